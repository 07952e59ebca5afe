"""defend diff: two runs compared cell by cell over the same images, with Holm's correction."""

import json

import numpy as np
import pytest
from bench_suite import SMALL
from click.testing import CliRunner
from made_runs import DECLARED, IDENTITY, cell, failed, keep

import defend
from defend.cli import main
from defend.records import read_records
from defend.results.run_diff import compare_runs
from defend.stats import holm, mcnemar
from defend.unit_files import unit_path


def right(count, n=40):
    return np.repeat([1, 0], [count, n - count])


def make_run(folder, cells):
    """Return a folder with a cell for each (number of right images or outcomes, fields)."""
    folder.mkdir()
    records = []
    for score, fields in cells:
        if isinstance(score, int):
            score = right(score)
        records.append(cell(folder, score, **{"shard": 20} | fields))
    return keep(folder, records)


def run(*args, code=0):
    done = CliRunner().invoke(main, ["diff", *map(str, args)])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def compare(tmp_path):
    """A function: the cells of two runs -> their comparison, and what the command prints."""

    def compare(old, new, code=0):
        folders = [make_run(tmp_path / "old", old), make_run(tmp_path / "new", new)]
        done = run(*folders, code=code)
        assert "Traceback" not in done.output
        return (compare_runs(*folders) if code < 2 else None), done.output

    return compare


NEW_CODE = {"inputs": {"code": {"defend_bitcut": "b" * 64}}}


def test_two_runs_of_one_suite_and_seed_do_not_differ(undisturbed, tmp_path):
    folder, records = undisturbed
    defend.bench(SMALL, out=tmp_path / "again", workers=1)
    text = run(folder, tmp_path / "again").stdout
    assert text.splitlines()[-1] == "no significant difference"
    assert f"{len(records)} cells of the same units: nothing to compare." in text


def test_another_seed_of_a_real_run_is_named_and_does_not_differ(undisturbed, tmp_path):
    folder, records = undisturbed
    keys = SMALL | {"seed": 1, "attacks": ["fgsm", "pgd:steps=3"]}
    defend.bench(keys, out=tmp_path / "other", workers=1)
    diff = compare_runs(folder, tmp_path / "other")
    assert any(line.startswith("seed: 0 -> 1 (") for line in diff.changes)
    assert not diff.significant and not diff.only_old
    assert len(diff.only_new) == len(records)  # fgsm
    clean = [c for c in diff.cells if c.cell.endswith("clean")]
    assert len(diff.cells) == len(records) + len(clean) and len(clean) == 2


def test_p_values_are_mcnemars_by_holm_over_all_cells(compare):
    counts = {0.1: (40, 10), 0.2: (30, 24), 0.3: (20, 20)}
    old = [(a, {"eps": eps} | IDENTITY) for eps, (a, _) in counts.items()]
    new = [(b, {"eps": eps} | IDENTITY | NEW_CODE) for eps, (_, b) in counts.items()]
    diff, text = compare(old, new, code=1)
    p_values = [mcnemar(right(a), right(b)) for a, b in counts.values()]
    expected = sorted(holm([*p_values, 1.0]))  # the clean images are a fourth comparison
    assert [cell.p for cell in diff.cells] == expected
    first = diff.cells[0]
    assert (first.old.value, first.new.value, first.changed) == (1.0, 0.25, 30)
    assert first.difference == -0.75 and first.significant
    significant = sum(p < 0.05 for p in expected)
    assert 0 < significant < 4
    verb = "cells differ significantly"
    assert text.splitlines()[-1] == f"{significant} of 4 {verb}"


def test_pairing_is_over_images_and_not_over_counts(compare):
    """Twenty right images on both sides, and no image right on both: no difference of means."""
    old = [(right(20), IDENTITY)]
    new = [(right(20)[::-1], IDENTITY | NEW_CODE)]
    diff, _ = compare(old, new)
    (changed,) = [cell for cell in diff.cells if cell.changed]
    assert (changed.changed, changed.difference, changed.p) == (40, 0.0, 1.0)


def test_draws_are_compared_by_the_permutation_test(compare):
    rng = np.random.default_rng(0)
    fields = IDENTITY | {"select": np.ones((40, 10))}
    old = [(rng.random((40, 4)) < 0.9, fields)]
    new = [(rng.random((40, 4)) < 0.1, fields | NEW_CODE)]
    diff, _ = compare(old, new, code=1)
    assert diff.cells[0].test == "paired permutation" and diff.cells[0].significant


def test_the_smaller_number_of_images_is_compared(compare):
    old, new = [(right(30), IDENTITY)], [(np.r_[right(10), np.ones(20)], IDENTITY | NEW_CODE)]
    diff, _ = compare(old, new, code=1)
    assert {cell.images for cell in diff.cells} == {40}
    assert min(cell.new.value for cell in diff.cells) == 0.25
    assert "n: 40 -> 60 (1 cell)" in diff.changes


def sized(size):
    """Return a setting of the purifier, in the key of the units and in the record."""
    key = {"scored": {"defense": [{"settings": {"size": size}}]}}
    return {"inputs": key, "settings": {"defense": {"members": [{"size": size}]}}}


CHANGES = {
    "code": ({"inputs": {"code": {"p": "a" * 64}}}, {"inputs": {"code": {"p": "b" * 64}}}),
    "weights": ({"weights": {"net": "a" * 64}}, {"weights": {"net": "b" * 64} | {}}),
    "a setting": (
        sized(3),
        sized(5),
    ),
    "a version": ({"versions": {"torch": "2.11.0"}}, {"versions": {"torch": "2.12.0"}}),
    "the device": ({"device": "cpu"}, {"device": "NVIDIA H100"}),
}
LINES = {
    "code": "code p: aaaaaaaaaaaa -> bbbbbbbbbbbb (1 cell)",
    "weights": "weights net: aaaaaaaaaaaa -> bbbbbbbbbbbb (1 cell)",
    "a setting": "scored defense 1 settings size: 3 -> 5 (1 cell)",
    "a version": "version of torch: 2.11.0 -> 2.12.0 (1 cell)",
    "the device": "device: cpu -> NVIDIA H100 (1 cell)",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_beside_the_outcomes_is_named(compare, name):
    old, new = CHANGES[name]
    distinct = {"inputs": {"part": 2} | new.get("inputs", {})}
    diff, text = compare([(20, IDENTITY | old)], [(20, IDENTITY | new | distinct)])
    assert LINES[name] in diff.changes
    assert LINES[name] in text


def test_units_of_one_key_with_other_outcomes_are_compared(compare):
    """A key decides the outcomes: where they differ all the same, that is told."""
    diff, text = compare([(40, IDENTITY)], [(5, IDENTITY)], code=1)
    assert diff.same == 0 and diff.significant
    assert "cells differ significantly" in text


def test_cells_of_one_run_alone_are_named(compare):
    both = (20, IDENTITY)
    diff, text = compare([both, (20, DECLARED)], [both, (20, IDENTITY | {"attack": "fgsm"})])
    assert diff.only_old == ("convnet, median, pgd, adaptive declared, eps 16/255",)
    assert diff.only_new == ("convnet, median, fgsm, adaptive BPDA, eps 16/255",)
    assert text.splitlines()[-1] == "no significant difference"


def test_a_cell_that_failed_in_one_run_alone_is_told_and_exit_1(tmp_path):
    cells = [(20, DECLARED), (20, IDENTITY)]
    old = make_run(tmp_path / "old", cells)
    new = make_run(tmp_path / "new", cells[:1])
    records = [cell(new, right(20), shard=20, **DECLARED)]
    keep(new, [*records, failed("no memory", n=40, **IDENTITY)])
    text = run(old, new, code=1).stdout
    assert "convnet, median, pgd, adaptive BPDA, eps 16/255: failed in the new run: no memory" in (
        text
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({"defense": "jpeg"}, {}, "have no cell in common: defense jpeg / median"),
        ({"dataset": "mnist"}, {}, "have no cell in common: dataset mnist / digits-m"),
        ({"eps": 0.5, "eps_text": "0.5"}, {}, "have no cell in common: eps 0.5 / 16/255"),
        ({"inputs": {"data": "a"}}, {"inputs": {"data": "b"}}, "the images differ"),
    ],
)
def test_runs_without_a_common_cell_or_image_are_one_line(compare, old, new, message):
    _, text = compare([(20, IDENTITY | old)], [(20, IDENTITY | new)], code=2)
    assert message in text and text.count("\n") == 1


def test_missing_units_are_one_line(tmp_path):
    old = make_run(tmp_path / "old", [(20, IDENTITY)])
    new = make_run(tmp_path / "new", [(20, IDENTITY | NEW_CODE)])
    for unit in new.rglob("*.safetensors"):
        unit.unlink()
    error = run(old, new, code=2).stderr
    assert "units of the new run are missing or damaged" in error and error.count("\n") == 1


def test_a_cell_whose_units_were_deleted_is_not_taken_for_the_same(tmp_path):
    """Both records name the same units, one was edited, and nothing is there to contradict it."""
    cells = [(20, IDENTITY), (20, IDENTITY | {"eps": 0.2, "eps_text": "0.2"})]
    old, new = (make_run(tmp_path / name, cells) for name in ("old", "new"))
    rows = read_records(new)
    keep(new, [rows[0].replace(robust_accuracy=0.99), rows[1]])
    for key in rows[0].units:
        unit_path(new, key).unlink()
    diff = compare_runs(old, new)
    (line,) = diff.not_compared
    assert "units of the new run are missing or damaged" in line and diff.same == 1
    text = run(old, new, code=1).stdout
    assert text.splitlines()[-1] == "no significant difference; 1 cell not compared"


def test_json_holds_the_same(tmp_path):
    old = make_run(tmp_path / "old", [(40, IDENTITY)])
    new = make_run(tmp_path / "new", [(5, IDENTITY | NEW_CODE)])
    data = json.loads(run(old, new, "--json", code=1).stdout)
    assert data["verdict"] == "1 of 2 cells differ significantly"
    assert data["cells"][0]["new"]["value"] == 0.125 and data["cells"][0]["significant"]


def test_nothing_is_written(tmp_path):
    old = make_run(tmp_path / "old", [(40, IDENTITY)])
    before = sorted(tmp_path.rglob("*"))
    run(old, old)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_record_that_its_units_contradict_is_named(tmp_path):
    old = make_run(tmp_path / "old", [(20, IDENTITY)])
    new = make_run(tmp_path / "new", [(20, IDENTITY)])
    records = new / "records.json"
    text = records.read_text()
    records.write_text(text.replace('"robust_accuracy": 0.5', '"robust_accuracy": 0.93'))
    assert "Not confirmed" not in run(old, old).stdout
    printed = run(old, new, code=1).stdout
    assert "Not confirmed by the units of the run" in printed
    assert "new run: convnet, median, pgd, adaptive BPDA, eps 16/255: robust_accuracy" in printed
    assert "0.93 in the record, 0.5 from its units" in printed


RENAMED = {"classifier": "./net_v2.py:build"} | NEW_CODE


def test_a_component_of_another_name_is_paired_by_the_names_that_are_given(tmp_path):
    old = make_run(tmp_path / "old", [(20, IDENTITY | {"classifier": "./net.py:build"})])
    new = make_run(tmp_path / "new", [(5, IDENTITY | RENAMED)])
    refused = run(old, new, code=2).stderr
    assert "classifier ./net.py:build / ./net_v2.py:build; --pair OF_RUN1 OF_RUN2" in refused
    printed = run(old, new, "--pair", "./net.py:build", "./net_v2.py:build", code=1).stdout
    assert "classifier: ./net.py:build -> ./net_v2.py:build (1 cell)" in printed
    assert "./net.py:build, median, pgd, adaptive BPDA, eps 16/255: 50.0 -> 12.5" in printed


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (("convnett", "convnet"), "--pair convnett: the first run has no such classifier"),
        (("convnet", "lenet"), "--pair lenet: the second run has no such classifier"),
    ],
)
def test_a_pair_that_no_run_has_is_one_line(tmp_path, specs, message):
    folder = make_run(tmp_path / "old", [(20, IDENTITY)])
    error = run(folder, folder, "--pair", *specs, code=2).stderr
    assert message in error and error.count("\n") == 1
    assert "Did you mean convnet?" in error or "lenet" in error


SPELLINGS = [
    ("attack", "pgd:targeted=true,steps=2", "pgd:steps=2,targeted=true"),
    ("defense", "jpeg:quality=60,subsampling=true", "jpeg:subsampling=true, quality=60"),
    ("classifier", "./n.py:build,weights=a.pt,classes=3", "./n.py:build,classes=3,weights=a.pt"),
]


@pytest.mark.parametrize(("field", "one", "other"), SPELLINGS)
def test_two_spellings_of_a_spec_are_one_cell(compare, field, one, other):
    diff, _ = compare([(20, IDENTITY | {field: one})], [(20, IDENTITY | {field: other})])
    assert (diff.same, diff.only_old, diff.only_new) == (1, (), ())
