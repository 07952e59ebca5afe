"""Components that break their contract fail their own cells, with the reason, and no others."""

import pytest
from bench_suite import SMALL, without_times

import defend
from defend.benchmarks import purifier_checks
from defend.errors import BadParameter
from defend.records import FlagCode
from defend.unit_files import unit_path


@pytest.mark.usefixtures("plugin")
def test_a_failing_attack_fails_its_cells_and_leaves_no_file(tmp_path):
    keys = {"attacks": ["leaves-the-ball", "fgsm"], "defenses": ["none"]}
    records = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    failed = [r for r in records if r.attack == "leaves-the-ball"]
    for record in failed:
        assert "left the Linf ball" in record.error
        assert record.robust_accuracy is None
        assert not any(unit_path(tmp_path, key).exists() for key in record.units)
    assert not any(r.failed for r in records if r.attack == "fgsm")


NOT_DETERMINISTIC = "its card says stochastic=False, and two draws of the same images differ"
MISBEHAVES = {
    "writes": "wrote into its input",
    "nan": "logits behind it are not finite",
    "random": NOT_DETERMINISTIC,
    "late": NOT_DETERMINISTIC,  # on adversarial images alone
    "remembers": "a freshly loaded one gives other logits: it remembers what it purified",
    "centres": "8 of 8 images are purified otherwise alone than in their batch",
    "cuts": "let it keep the shape",
    "raises": "adversarial images are not to my taste",
}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("how", MISBEHAVES)
def test_a_purifier_that_breaks_its_contract_fails_alone(undisturbed, tmp_path, how):
    """At every level; what stands beside it gets the numbers that it gets alone."""
    keys = {"defenses": ["none", f"misbehaves:how={how}"], "attacks": ["pgd:steps=3"]}
    records = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    for record in records:
        if record.defense != "none":
            assert MISBEHAVES[how] in record.error
            assert record.robust_accuracy is None
    undefended = [r for r in undisturbed[1] if r.defense == "none"]
    beside = [r for r in records if r.defense == "none"]
    assert without_times(beside) == without_times(undefended)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("how", ["late", "remembers", "centres"])
def test_every_eps_of_an_attack_fails_with_a_broken_purifier(tmp_path, how):
    """The check is made at the largest eps; the smaller ones must not pass beside it."""
    keys = {
        "defenses": [f"misbehaves:how={how}"],
        "attacks": ["fgsm"],
        "eps": "0.01,0.1,0.2",
        "knowledge": ["oblivious"],
    }
    records = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    assert [MISBEHAVES[how] in str(r.error) for r in records] == [True] * 3


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("knowledge", ["oblivious", "bpda"])
@pytest.mark.parametrize("is_quick", [True, False])
def test_a_fault_that_spares_the_first_images_is_found(tmp_path, monkeypatch, is_quick, knowledge):
    """A quick purifier is checked on all images, a slow one on a few that still count as right."""
    monkeypatch.setattr(purifier_checks, "QUICK_SECONDS", 3600.0 if is_quick else 0.0)
    keys = {
        "defenses": ["misbehaves:how=dark"],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": [knowledge],
        "n": 32,
        "shard": 32,
    }
    records = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    assert [NOT_DETERMINISTIC in str(r.error) for r in records] == [True]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("once", "reason"),
    [
        ("false", "the same image and noise give different outputs"),
        ("true", "something is drawn when it is created"),
    ],
)
def test_a_draw_from_another_generator_is_named(tmp_path, once, reason):
    """Neither purifier remembers anything."""
    keys = {
        "defenses": [f"careless:once={once}"],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": ["oblivious"],
        "n": 16,
    }
    for record in defend.bench(SMALL | keys, out=tmp_path, workers=1):
        assert reason in record.error


@pytest.mark.usefixtures("plugin")
def test_an_attack_that_asks_for_too_much_fails_and_an_idle_one_is_flagged(tmp_path):
    keys = {
        "defenses": ["none"],
        "attacks": ["peeks", "idles", "fgsm"],
        "eps": "0.1",
        "knowledge": ["query", "oblivious"],
    }
    records = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    by_cell = {(r.attack, r.knowledge): r for r in records}
    assert 'its card says access="scores"' in by_cell["peeks", "query"].error
    idle = by_cell["idles", "oblivious"]
    assert [flag.code for flag in idle.flags] == [FlagCode.UNCHANGED_IMAGES]
    fgsm = by_cell["fgsm", "oblivious"]
    assert (fgsm.error, fgsm.flags) == (None, ())


def test_records_of_another_version_are_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "records.json").write_text('[{"dataset": "digits"}]')
    with pytest.raises(BadParameter, match="Move that file away"):
        defend.bench(SMALL, out=tmp_path, workers=1)
    assert not (tmp_path / "units").exists()


EDITED = '''
import defend


class Shift(defend.Purifier):
    """Shift all pixels."""

    card = defend.Card(paper="none: a test", gradient="exact", stochastic=False)

    def purify(self, x, noise):
        return (x + SHIFT).clamp(0, 1)
'''


def test_code_that_was_edited_after_its_import_fails_in_workers(tmp_path, install):
    """Workers import the edited file; the parent's keys name the code that it imported."""
    info = tmp_path / "site" / "edited-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[defend.defenses]\nshift = edited_plugin:Shift\n")
    module = tmp_path / "site" / "edited_plugin.py"
    module.write_text(EDITED.replace("SHIFT", "0.1"))
    install(tmp_path / "site")
    keys = {"defenses": ["shift"], "attacks": ["fgsm"], "knowledge": ["bpda"], "eps": "0.1"}
    before = defend.bench(SMALL | keys, out=tmp_path / "run", workers=2)
    assert not any(r.failed for r in before)
    module.write_text(EDITED.replace("SHIFT", "0.2"))
    keys["eps"] = "0.2"
    after = defend.bench(SMALL | keys, out=tmp_path / "run", workers=2)
    assert ["was edited after it was imported" in str(r.error) for r in after] == [True]


@pytest.mark.usefixtures("plugin")
def test_data_that_cannot_be_read_fails_its_cells_with_the_reason(tmp_path, monkeypatch):
    data = type(defend.load("digits", "dataset"))
    rows = data.rows

    def broken(self, split, start, stop):
        if (start, stop) == (16, 32) and counting:
            raise OSError("the disk is gone")
        return rows(self, split, start, stop)

    counting = []
    keys = {"defenses": ["none"], "attacks": ["fgsm"], "eps": "0.1", "knowledge": ["bpda"]}
    monkeypatch.setattr(data, "rows", broken)
    from defend.benchmarks import execute

    run = execute.Executor.execute

    def execute_broken(self, job, on_unit_done):
        counting.append(job)
        run(self, job, on_unit_done)

    monkeypatch.setattr(execute.Executor, "execute", execute_broken)
    records = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    assert ["OSError: the disk is gone" in str(r.error) for r in records] == [True]
