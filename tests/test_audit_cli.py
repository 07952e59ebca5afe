"""defend audit from end to end, on digits: output, exit codes, a fresh process, objects."""

import json
from importlib import import_module

import audit_toys
import masked
import pytest
from click.testing import CliRunner
from masked_stochastic import PastRestorer

import defend
from defend.auditing.page import write_page
from defend.auditing.verdict import SOUND
from defend.cli import main
from defend.cli.audit import print_report
from defend.errors import BadParameter, BrokenPurifier, UnknownName
from defend.stats import holm

WORDS = ("--dataset", "digits", "--classifier", "convnet", "--budget", "quick", "--split", "val")

LEFT_OUT = ["learned gradient", "persistent search"]  # of budget=quick


@pytest.fixture
def masked_plugin(tmp_path, install):
    """Register purifiers of the tests under the names of a distribution, as a plugin does."""
    folder = tmp_path / "masked-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: masked\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text(
        "[defend.defenses]\nfalsely-exact = masked:FalselyExact\nrecalls = audit_toys:Recalls\n"
    )
    install(tmp_path)


def run(*words):
    return CliRunner().invoke(main, ["audit", *words, *WORDS])


def audit(spec, **options):
    return defend.audit(spec, "digits", "convnet", "quick", n=16, split="val", **options)


def test_a_sound_evaluation(tmp_path):
    page = tmp_path / "audit.html"
    done = run("bitdepth:bits=3", "-n", "40", "--eps", "0.1", "--json", "--out", str(page))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["verdict"], report["reasons"]) == ("no sign of masking", [])
    assert (report["defense"], report["n"], report["eps"]) == ("bitdepth:bits=3", 40, 0.1)
    assert report["surrogates"]  # the bench's default pipeline
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["transfer"]["verdict"] == "pass"
    assert [name for name, check in checks.items() if check["untried"]] == LEFT_OUT
    assert "300 queries an image" in checks["Square"]["measured"]
    assert not any("too few for any attack" in c["measured"] for c in report["checks"])
    assert checks["fresh process"]["verdict"] == "pass"
    assert "a fresh process" in checks["fresh process"]["measured"]
    assert "at most about" in done.stderr
    assert "on top" not in done.stderr  # quick fits nothing
    assert "bitdepth:bits=3" in page.read_text()


@pytest.mark.parametrize(
    ("eps", "expected"),
    [
        ("0.1,0.2", "one number"),
        ("0", "expected a number above 0"),
        ("8", "for grey levels write 8/255$"),
    ],
)
def test_a_wrong_eps_is_the_users_error(eps, expected):
    with pytest.raises(BadParameter, match=expected):
        audit("none", eps=eps)


@pytest.mark.usefixtures("masked_plugin")
def test_an_unreliable_evaluation():
    done = run("falsely-exact", "-n", "40", "--surrogate", "bitdepth+convnet")
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("unreliable (not tried: ")
    for name in ("Square", "transfer"):
        assert any(line.startswith(f"- {name}: ") for line in lines)


def test_a_masked_stochastic_purifier_is_not_called_sound():
    report = audit(PastRestorer(strength=0.1), eps=0.15)
    assert report.verdict != SOUND, report.headline
    assert report.broke_most.startswith("autograd, ")


@pytest.mark.usefixtures("masked_plugin")
def test_a_memory_outside_of_the_object_shows_in_a_fresh_process():
    """It purifies clean images and points near them as a fresh purifier does.

    The attack's images are new to the fresh one.
    """
    done = run("recalls", "-n", "32")
    assert done.exit_code == 3, done.output
    assert len(audit_toys.MEMORY) == 3
    assert any(line.startswith("- fresh process: ") for line in done.stdout.splitlines()), (
        done.output
    )


def test_only_the_audit_may_excuse_a_check():
    report = audit(audit_toys.Excused())
    assert report.verdict == "unreliable"
    assert any(
        "declared gradient" in reason and "NotApplicable: nothing to do" in reason
        for reason in report.reasons
    )


def test_a_purifier_that_overrides_final_methods_is_refused():
    with pytest.raises(BrokenPurifier, match=r"Double: .*purified"):
        audit(audit_toys.Double())


def test_an_object():
    report = audit(masked.Blur())
    assert report.verdict == "no sign of masking"
    assert report.about["defense"] == "Blur:weight=1.0"
    assert (
        report.about["lowest_accuracy"]
        <= report.about["declared_accuracy"]
        < 0.5
        < report.about["clean_accuracy"]
    )


def test_importing_the_package_leaves_the_function_in_place():
    """`defend.audit` is also the name of the package."""
    import_module("defend.auditing.verdict")

    with pytest.raises(BadParameter):
        defend.audit("none", "digits", "convnet", "no such budget")


INPUT_ERRORS = {
    "a class": (
        {"spec": masked.Blur},
        r"defense: expected a spec or a Purifier object, got the class Blur: give Blur\(\)",
    ),
    "nothing": ({"spec": None}, "defense: expected a spec or a Purifier object, got NoneType None"),
    "a function": ({"classifier": len}, "classifier: expected a spec or a Classifier object"),
    "a number": ({"dataset": 3}, "dataset: expected a spec or a Dataset object, got int 3"),
    "training images": ({"split": "train"}, "split 'train': expected test or val"),
    "a seed below 0": ({"seed": -5}, "seed -5: expected a whole number >= 0"),
}


@pytest.mark.parametrize("case", INPUT_ERRORS)
def test_an_input_that_cannot_be_audited_is_the_users_error(case):
    changes, expected = INPUT_ERRORS[case]
    arguments = {
        "spec": "none",
        "dataset": "digits",
        "classifier": "convnet",
        "budget": "quick",
        **changes,
    }
    with pytest.raises(BadParameter, match=expected):
        defend.audit(**arguments)


def chain_with_seed():
    return defend.Chain(members=(defend.load("jpeg"), defend.load("gaussian:seed=3")))


SEEDED = {
    "spec": "gaussian:seed=3",
    "object": defend.load("gaussian:seed=3"),
    "spec of a chain": "jpeg+gaussian:seed=3",
    "member": chain_with_seed(),
    "member of a member": defend.Chain(members=(chain_with_seed(), defend.load("jpeg"))),
}


@pytest.mark.parametrize("purifier", SEEDED.values(), ids=SEEDED.keys())
def test_a_seed_of_the_purifiers_own_is_refused(purifier):
    """With a fixed seed, the deployed defense differs from the one that an audit would judge."""
    with pytest.raises(BadParameter, match="seed=3"):
        audit(purifier)


def test_one_surrogate_needs_no_list():
    """A text is a sequence of letters, too."""
    with pytest.raises(UnknownName, match="nowhere"):
        audit("none", surrogates="nowhere")


class Raises(masked.Blur):
    """Refuse adversarial images."""

    def purify(self, x, noise):
        if not audit_toys.is_picture(x).all():
            raise RuntimeError("pictures only")
        return super().purify(x, noise)


def test_a_check_that_raises_is_a_row(capsys, tmp_path):
    report = audit(Raises(), progress=True)
    assert capsys.readouterr().err.count("pictures only") == 1
    print_report(report)
    assert capsys.readouterr().out.count("pictures only") == 1
    write_page(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("pictures only") == 1
    assert report.verdict == "unreliable"
    assert report.about["declared_accuracy"] is None
    assert any(c.measured == "could not run: RuntimeError: pictures only" for c in report.checks)
    json.dumps(report.as_dict(), allow_nan=False)


def test_holm_is_applied_to_all_attacks():
    """From end to end: each p value is corrected over every attack that ran."""
    report = audit(masked.Detached(strength=1.0))
    attacks = [check for check in report.checks if check.p is not None]
    assert len(attacks) >= 6
    assert [c.p_holm for c in attacks] == pytest.approx(holm([c.p for c in attacks]))
    assert any(c.p_holm > c.p for c in attacks)
    assert all(c.turns for c in attacks if c.p_holm < 0.05 and c.gap >= 0.02)
