"""The scripts that write the tables of docs/: what they print of runs made by hand."""

import importlib.util
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_runs import DECLARED, IDENTITY, cell, complete, keep, record
from tiny_priors import tiny, write_prior

from defend.records import Flag, FlagCode

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, RESULTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


# The ladder.


def test_the_ladder_is_bold_where_it_may_be_claimed_and_says_that_images_repeat(tmp_path):
    page = load_script("ladder_page")
    (row,), _ = page.read_run(keep(tmp_path, complete()))
    levels = row.by_level
    assert (levels["oblivious"], levels["query"], levels["adaptive"]) == ("<= 1.0", "1.0", "<= 1.0")
    assert (row.worst, row.clean) == ("<= 1.0", "100.0")
    text = "\n".join(page.format_page([row]))
    assert "n = 1,000 (575 distinct: each counts once)" in text
    assert "**<= 1.0** (0.5 to 2.2)" in text
    assert text.rstrip().endswith("| claim: ladder-1, Linf 16/255 |")
    assert set(row.to_columns()) == set(page.COLUMNS)


def test_a_ladder_without_an_attack_is_not_bold(tmp_path):
    page = load_script("ladder_page")
    (row,), _ = page.read_run(keep(tmp_path, complete()[1:]))
    line = page.format_row(row)
    assert "**" not in line and "no claim (missing: oblivious APGD-CE" in line


def test_a_level_that_still_fell_is_at_most_that(tmp_path):
    page = load_script("ladder_page")
    flags = [Flag(code=FlagCode.UNCONVERGED, value=0.01)]
    cells = [
        cell(tmp_path, [1, 1, 0], knowledge="query", attack="square", flags=flags),
        cell(tmp_path, [1, 0, 0], knowledge="oblivious"),
    ]
    (row,), _ = page.read_run(keep(tmp_path, cells))
    assert (row.by_level["query"], row.by_level["oblivious"]) == ("<= 66.7", "33.3")


def test_a_level_of_the_ladder_is_the_worst_of_each_image(tmp_path):
    """Two gradients that break different images leave less than either."""
    page = load_script("ladder_page")
    cells = [
        cell(tmp_path, [1, 1, 0, 0], **DECLARED),
        cell(tmp_path, [0, 1, 1, 1], **IDENTITY),
        cell(tmp_path, [0, 1, 1, 1], knowledge="oblivious"),
    ]
    (row,), _ = page.read_run(keep(tmp_path, cells))
    levels = row.by_level
    assert (levels["oblivious"], levels["transfer"], levels["adaptive"]) == ("75.0", "", "25.0")
    assert row.worst == "25.0"
    assert row.by_gradient == {"declared": "50.0", "identity": "75.0", "learned": ""}


def test_of_several_numbers_of_images_the_most_are_listed(tmp_path):
    page = load_script("ladder_page")
    rows = []
    for n in (100, 200):
        records = [record(n // 2, n=n, defense=name) for name in ("none", "jpeg")]
        rows += page.read_run(keep(tmp_path / str(n), records))[0]
    listed = [(row.defense, row.n) for row in page.choose_rows(rows)]
    assert listed == [("none", 100), ("none", 200), ("jpeg", 200)]


# The sweep of the papers' tables.


def test_the_sweep_prints_published_beside_measured_numbers():
    page = load_script("split_vqvae_sweep")
    spec = {"attack": "fgsm", "dataset": "mnist", "eps_text": "0.3", "eps": 0.3}
    records = [
        record(150, defense="none", **spec),
        record(100, defense="a", **spec),
        record(120, defense="b", **spec),
    ]
    rows = page.make_rows(records, {"a": ("whole", 100), "b": ("quad", 100)})
    assert [row.published for row in rows] == ["", "0.346", "0.278"]
    assert [row.difference for row in rows] == ["", "+0.1540", "+0.3220"]
    failed = records[0].replace(error="RuntimeError: out of memory")
    with pytest.raises(RuntimeError, match="1 cells failed; the first: none at eps"):
        page.make_rows([failed], {})


# The audit's thresholds.


def test_a_part_that_is_measured_again_leaves_the_rest_of_the_table(tmp_path):
    page, table = load_script("audit_thresholds"), tmp_path / "table.json"
    rows = [audited("caught", 0.4, 0.0, "unreliable"), audited("new", 0.1, 0.0, "unreliable")]
    measured_again = [page.Measurement.from_dict(row) for row in rows]
    measured = [page.Measurement.from_dict(row) for row in MEASURED]
    assert page.merge_into_table(table, measured_again) == measured_again
    table.write_text(json.dumps(MEASURED))
    assert page.merge_into_table(table, measured_again) == [
        measured_again[0],
        *measured[1:],
        measured_again[1],
    ]


def audited(name, declared, best, verdict, honest=False):
    check = {"name": "slope", "value": 0.5, "turns": verdict == "unreliable"}
    report = {"verdict": verdict, "n": 100, "eps": 0.1, "checks": [check]}
    gap = None if declared is None else declared - best
    measured = {
        "declared": declared,
        "best_known": best,
        "gap": gap,
        "cpu_seconds": 9.0,
        "report": report,
    }
    return {"name": name, "family": name, "half": 1, "honest": honest} | measured


MEASURED = [
    audited("caught", 0.5, 0.0, "unreliable"),
    audited("missed", 0.5, 0.0, "no sign of masking"),
    audited("no number", None, 0.0, "unreliable"),
    audited("little hidden", 0.04, 0.0, "no sign of masking"),
    audited("alarm", 0.5, 0.5, "unreliable", honest=True),
    audited("sound", 0.0, 0.0, "no sign of masking", honest=True),
]


def test_misses_and_false_alarms_are_counted_where_there_is_something_to_miss():
    load_script("audit_thresholds")  # it makes the module of measurements importable
    page = import_module("audit_measurements")
    rows = [page.Measurement.from_dict(row) for row in MEASURED]
    expected = [True, True, True, None, False, False]
    assert [row.should_be_unreliable for row in rows] == expected
    text, families = page.format_rates(rows), page.format_families(rows)
    assert "the half that judges: 1 of 3 (95 %: 6 to 79 %) misses" in text
    assert "1 of 2 (95 %: 9 to 91 %) false alarms" in text
    assert "something to gain (the declared gradient leaves 2 % or more): 1 of 1" in text
    assert "| missed | judges | 1 | 1 |" in families
    assert "little hidden | judges | 0 | 0 |" in families


@pytest.mark.parametrize("changed", [{}, {"budget": "quick"}, {"classifier": "lenet"}, {"n": 32}])
def test_rows_of_other_options_do_not_enter_a_table(changed, tmp_path):
    """Otherwise the page would name the last call's options above all rows."""
    script = load_script("audit_thresholds")
    page, table = import_module("audit_measurements"), tmp_path / "table.json"
    made_with = {"budget": "standard", "classifier": "convnet", "n": None}
    table.write_text(json.dumps([{**row, **made_with} for row in MEASURED]))
    new = page.Measurement.from_dict({**MEASURED[0], **made_with, **changed})
    if changed:
        with pytest.raises(SystemExit, match="use --table FOLDER for another table"):
            script.merge_into_table(table, [new])
    else:
        merged = script.merge_into_table(table, [new])
        assert len(merged) == len(MEASURED)
        assert "with budget standard and convnet" in page.format_page(merged, "digits")


def test_what_was_not_judged_is_counted_apart():
    load_script("audit_thresholds")
    page = import_module("audit_measurements")
    undecided = [
        audited("open", 0.5, 0.0, "not judged"),
        audited("careful", 0.5, 0.5, "not judged", honest=True),
    ]
    text = page.format_rates([page.Measurement.from_dict(row) for row in MEASURED + undecided])
    assert "the half that judges: 1 of 3 (95 %: 6 to 79 %), 1 not judged, misses" in text
    assert "1 of 2 (95 %: 9 to 91 %), 1 not judged, false alarms" in text


@pytest.mark.parametrize(
    "changed", ["classifier", "budget", "n", "robust", "soft_eps", "best_steps"]
)
def test_measurements_with_other_options_are_not_read(changed):
    page = load_script("audit_thresholds")
    options = {
        "classifier": "convnet",
        "budget": "standard",
        "n": None,
        "robust": None,
        "soft_eps": 0.1,
        "best_steps": 100,
        "only": [],
    }

    def key(**changes):
        return page.hash_inputs(SimpleNamespace(**{**options, **changes}))

    assert key() == key(only=["hash"])
    assert key() != key(**{changed: "other"})


# PSNR of restorations.


def test_psnr_of_restorations_has_intervals_of_means_and_of_paired_differences():
    """Images differ by decibels, and all of them gain the same: the difference is sure."""
    page = load_script("restoration_psnr")
    first = torch.linspace(20, 40, 21)
    assert "to the first" not in page.describe(first, first)
    text = page.describe(first + 0.1, first)
    numbers = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]
    mean, low, high, difference, least, most = numbers
    assert (mean, difference, least, most) == (30.1, 0.1, 0.1, 0.1)
    error = first.std(correction=0).item() / 21**0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_program_prints_a_line_for_each_baseline_and_spec(tmp_path, monkeypatch, capsys):
    page = load_script("restoration_psnr")
    prior = write_prior(tmp_path / "prior.safetensors", tiny(steps=1))
    words = ["x", "2", "stages=sr,steps=1", "--dataset=digits-m", f"--weights={prior}"]
    monkeypatch.setattr(sys, "argv", words)
    page.main()
    lines = capsys.readouterr().out.splitlines()
    starts = ["bicubic, x2: ", "grey: ", "grey and mean chroma: ", "stages=sr,steps=1: "]
    assert len(lines) == 4
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start) and re.search(r" dB \(\d+\.\d+ to \d+\.\d+\)", line)
