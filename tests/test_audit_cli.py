"""defend audit from end to end, on digits: what it prints, its exit codes, a fresh process, objects."""

import json

import audit_toys
import masked
import pytest
from click.testing import CliRunner

import defend
from defend.cli import main
from defend.errors import BadParameter, BrokenPurifier, UnknownName
from defend.stats import holm

WORDS = ["--dataset", "digits", "--classifier", "convnet", "--budget", "quick", "--split", "val"]


@pytest.fixture
def masked_plugin(tmp_path, install):
    """tests/masked.py under names of a distribution, as a plugin has them."""
    folder = tmp_path / "masked-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: masked\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text(
        "[defend.defenses]\nfalsely-exact = masked:FalselyExact\nrecalls = audit_toys:Recalls\n"
    )
    install(tmp_path)


def run(*words):
    return CliRunner().invoke(main, ["audit", *words, *WORDS])


def test_a_sound_one(tmp_path):
    page = tmp_path / "audit.html"
    done = run("bitdepth:bits=3", "-n", "40", "--eps", "0.1", "--json", "--out", str(page))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["verdict"] == "no sign of masking" and told["reasons"] == []
    assert told["defense"] == "bitdepth:bits=3" and told["n"] == 40 and told["eps"] == 0.1
    checks = {c["name"]: c for c in told["checks"]}
    assert (
        told["surrogates"] and checks["transfer"]["verdict"] == "pass"
    )  # of the bench's default pipeline
    assert [name for name, c in checks.items() if c["untried"]] == ["learned gradient"]
    assert "300 queries an image" in checks["Square"]["measured"] and not any(
        "can win enough" in c["measured"] for c in told["checks"]
    )
    fresh = next(c for c in told["checks"] if c["name"] == "fresh process")
    assert fresh["verdict"] == "pass" and "a fresh process" in fresh["measured"]
    assert "at most about" in done.stderr and "on top" not in done.stderr  # quick fits nothing
    assert "bitdepth:bits=3" in page.read_text()


@pytest.mark.parametrize(
    ("eps", "wanted"),
    [
        ("0.1,0.2", "one number"),
        ("0", "expected a number above 0"),
        ("8", "for grey levels write 8/255$"),
    ],
)
def test_a_wrong_eps_is_the_users_error(eps, wanted):
    with pytest.raises(BadParameter, match=wanted):
        defend.audit("none", "digits", "convnet", "quick", eps=eps)


@pytest.mark.usefixtures("masked_plugin")
def test_an_unreliable_one():
    done = run("falsely-exact", "-n", "40", "--surrogate", "bitdepth+convnet")
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("unreliable (not tried: ")
    assert all(
        any(line.startswith(f"- {name}: ") for line in lines) for name in ("Square", "transfer")
    )


@pytest.mark.usefixtures("masked_plugin")
def test_a_memory_outside_of_the_object_shows_in_a_fresh_process():
    """Clean images and points near them it purifies as a fresh one does; the attacks' images it has never seen."""
    done = run("recalls", "-n", "32")
    assert done.exit_code == 3 and len(audit_toys.MEMORY) == 3, done.output
    assert any(line.startswith("- fresh process: ") for line in done.stdout.splitlines()), (
        done.output
    )


def test_what_the_audit_says_of_itself_nobody_else_can_say():
    report = defend.audit(audit_toys.Excused(), "digits", "convnet", "quick", n=16, split="val")
    assert report.verdict == "unreliable" and any(
        "declared gradient" in r and "LeftOut: nothing to do" in r for r in report.reasons
    )


def test_a_purifier_with_final_methods_of_its_own_is_refused():
    with pytest.raises(
        BrokenPurifier, match="Double: has its own purified, which all purifiers share"
    ):
        defend.audit(audit_toys.Double(), "digits", "convnet", "quick", n=16, split="val")


def test_an_object():
    report = defend.audit(masked.Blur(), "digits", "convnet", "quick", n=16, split="val")
    assert report.verdict == "no sign of masking" and report.about["defense"] == "Blur:weight=1.0"
    assert (
        report.about["lowest_accuracy"]
        <= report.about["declared_accuracy"]
        < 0.5
        < report.about["clean_accuracy"]
    )


WRONG = {
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


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_audited_is_the_users_error(what):
    over, wanted = WRONG[what]
    given = {"spec": "none", "dataset": "digits", "classifier": "convnet", "budget": "quick"} | over
    with pytest.raises(BadParameter, match=wanted):
        defend.audit(**given)


@pytest.mark.parametrize("spec", ["gaussian:seed=3", defend.load("gaussian:seed=3")])
def test_noise_of_its_own_is_refused(spec):
    """With one seed for all its life, what is deployed is another defense than the one that an audit would judge."""
    with pytest.raises(BadParameter, match="says how a purifier runs"):
        defend.audit(spec, "digits", "convnet", "quick", n=16, split="val")


def test_one_surrogate_needs_no_list():
    """A text is a sequence of letters, too."""
    with pytest.raises(UnknownName, match="unknown classifier 'nowhere'"):
        defend.audit("none", "digits", "convnet", "quick", n=16, split="val", surrogates="nowhere")


class Raises(masked.Blur):
    """Not on adversarial images."""

    def purify(self, x, noise):
        if ((x * 255 - (x * 255).round()).abs() > 1e-3).any():
            raise RuntimeError("pictures only")
        return super().purify(x, noise)


def test_a_check_that_raises_is_a_row():
    report = defend.audit(Raises(), "digits", "convnet", "quick", n=16, split="val")
    assert report.verdict == "unreliable" and report.about["declared_accuracy"] is None
    assert any(c.measured == "could not run: RuntimeError: pictures only" for c in report.checks)
    json.dumps(report.as_dict(), allow_nan=False)


def test_holm_is_in_force_over_all_attacks():
    """From end to end: what a check shows is corrected over every attack that ran."""
    report = defend.audit(
        masked.Detached(strength=1.0), "digits", "convnet", "quick", n=16, split="val"
    )
    fought = [c for c in report.checks if c.p is not None]
    assert len(fought) >= 6 and [c.p_holm for c in fought] == pytest.approx(
        holm([c.p for c in fought])
    )
    assert any(c.p_holm > c.p for c in fought) and all(
        c.turns for c in fought if c.p_holm < 0.05 and c.gap >= 0.02
    )
