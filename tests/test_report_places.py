"""Where reports go: nothing is overwritten unasked; two versions of a purifier are two rows."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from made_runs import IDENTITY, cell, keep, record

from defend.cli import main
from defend.errors import BadParameter
from defend.results import table
from defend.results.report import write_report
from defend.results.run_folders import collect_records
from defend.results.versions import name_runs


def right(count, n=6):
    return np.repeat([1, 0], [count, n - count])


def make_run(folder, count=4, inputs=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    return keep(folder, [cell(folder, right(count), inputs=inputs, **IDENTITY | changes)])


def run(*args, code=0):
    done = CliRunner().invoke(main, ["report", *map(str, args)])
    assert done.exit_code == code, done.output
    return done


def snapshot(folder):
    """Return every file below a folder with its bytes and its time."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# Places.


def test_the_report_of_one_run_is_made_again_in_its_folder(tmp_path):
    folder = make_run(tmp_path / "run")
    names = run(folder).stdout.split()
    assert names == [str(folder / "report.html"), str(folder / "results.csv")]
    (folder / "report.html").write_text("old")
    run(folder)
    assert "<html" in (folder / "report.html").read_text()


def test_several_runs_get_a_new_folder_each_time(tmp_path, monkeypatch):
    old, new = make_run(tmp_path / "old"), make_run(tmp_path / "new", eps=0.5)
    before = snapshot(old) | snapshot(new)
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    assert run(old, new).stdout.split() == ["report/report.html", "report/results.csv"]
    first = snapshot(place)
    assert run(old, new).stdout.split()[0] == "report-2/report.html"
    assert snapshot(old) | snapshot(new) == before
    assert snapshot(place).items() >= first.items()


def test_a_report_of_something_else_is_replaced_only_when_that_is_asked_for(tmp_path):
    old, new = make_run(tmp_path / "old"), make_run(tmp_path / "new", eps=0.5)
    run(old)
    before = snapshot(old)
    for args in ([old, new, "--out", old], [new, "--out", old]):
        error = run(*args, code=2).stderr
        assert "holds report.html, results.csv, summary.json already" in error
        assert "--overwrite" in error and error.count("\n") == 1
        assert snapshot(old) == before
    run(old, new, "--out", old, "--overwrite")
    assert (old / "report.html").read_bytes() != before[old / "report.html"][0]
    assert run(old, "--out", old)  # its own


@pytest.mark.parametrize("blocked", ["report.html", "here"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, blocked):
    """The page cannot take the place of a folder; a deleted directory holds no new folder."""
    old, new = make_run(tmp_path / "old"), make_run(tmp_path / "new", eps=0.5)
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    args = [old]
    if blocked == "here":
        place.rmdir()
        args = [old, new]
    else:
        (old / blocked / "x").mkdir(parents=True)
    error = run(*args, code=2).stderr
    assert "--out" in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_file_is_no_folder_for_a_report(tmp_path):
    folder = make_run(tmp_path / "run")
    (tmp_path / "page").write_text("mine")
    assert "expected a folder" in run(folder, "--out", tmp_path / "page", code=2).stderr
    assert (tmp_path / "page").read_text() == "mine"


FOREIGN = {
    "nothing is wrong": lambda _: None,
    "no JSON": lambda folder: (folder / "records.json").write_text("{damaged"),
    "another version": lambda folder: (folder / "records.json").write_text("[1]"),
    "no records": lambda folder: (folder / "records.json").unlink(),
    "a damaged unit": lambda folder: next(folder.rglob("*.safetensors")).write_bytes(b"x"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("chosen", ["html", "csv"])
def test_a_folder_that_is_read_stays_as_it_is(tmp_path, what, chosen):
    folder = make_run(tmp_path / "run")
    FOREIGN[what](folder)
    before = snapshot(folder)
    args = ["report", str(folder), "--format", chosen, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, args)
    assert done.exit_code in (0, 2) and "Traceback" not in done.output
    assert snapshot(folder) == before
    assert {p.name for p in folder.iterdir()} == {p.relative_to(folder).parts[0] for p in before}


# Versions.


CODE = {"defend": "same", "defend_bitcut": "a"}
VERSIONS = {
    "other weights": ({"pipeline": {"defense": "w1"}}, {"pipeline": {"defense": "w2"}}, True),
    "other code": (
        {"inputs": {"code": CODE}},
        {"inputs": {"code": CODE | {"defend_bitcut": "b"}}},
        True,
    ),
    "other code, and no cell in common": (
        {"inputs": {"code": CODE}, "eps": 0.1},
        {"inputs": {"code": CODE | {"defend_bitcut": "b"}}, "eps": 0.2},
        True,
    ),
    "another attack of one package": (
        {"inputs": {"code": {"defend": "a"}}},
        {"inputs": {"code": {"defend": "b"}}, "attack": "fgsm"},
        False,
    ),
    "another library": (
        {"inputs": {"libraries": {"pillow": "10"}}},
        {"inputs": {"libraries": {"pillow": "11"}}},
        True,
    ),
    "other images": ({"inputs": {"data": "d1"}}, {"inputs": {"data": "d2"}}, True),
    "other ranges": ({"shard": 3}, {"shard": 6}, False),
    "the same": ({}, {}, False),
    "another defense": ({}, {"defense": "jpeg"}, False),
    "another seed": ({}, {"seed": 1}, False),
}


def make_two(tmp_path, name, counts=(5, 2)):
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder, count, changes in zip(folders, counts, VERSIONS[name], strict=False):
        folder.mkdir()
        fields = IDENTITY | {"shard": 3} | changes
        keep(folder, [cell(folder, right(count), **fields)])
    return folders


@pytest.mark.parametrize("name", VERSIONS)
def test_two_versions_of_a_purifier_are_two_rows_with_their_runs(tmp_path, name):
    folders = make_two(tmp_path, name)
    records, _ = collect_records(folders)
    labels = [r.defense_label for r in records]
    if not VERSIONS[name][2]:
        assert not any("[" in label for label in labels)
        return
    assert labels == ["median [old]", "median [new]"]
    (section, *others) = table(records, folders).sections
    assert not others
    rows = {row.defense: row.numbers["worst"].value for row in section.rows}
    assert rows == {"median [old]": 5 / 6, "median [new]": 2 / 6}
    assert {w.defense for w in section.worst} <= set(rows)


def test_the_whole_report_tells_two_versions_apart(tmp_path):
    folders = make_two(tmp_path, "other code")
    page, results = write_report(folders, tmp_path / "out")
    with results.open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["run"], r["defense"], float(r["robust_accuracy"])) for r in rows] == [
        ("old", "median", 5 / 6),
        ("new", "median", 2 / 6),
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [w["defense"] for w in summary["worst"]] == ["median [old]", "median [new]"]
    assert [(p["a"], p["b"]) for p in summary["comparisons"]] == [("median [old]", "median [new]")]
    text = page.read_text()
    assert "median [old]" in text and "median [new]" in text


def test_an_undefended_network_stays_undefended_with_a_label(tmp_path):
    """Labels are for the eye: what parses a spec gets the spec."""
    runs = {"old": "a", "new": "b"}
    for name, code in runs.items():
        fields = IDENTITY | {"defense": "none"}
        make_run(tmp_path / name, inputs={"code": {"defend": code}}, **fields)
    records, _ = collect_records([tmp_path / name for name in runs])
    (section,) = table(records, [tmp_path / name for name in runs]).sections
    assert [row.defense for row in section.rows] == ["none [old]", "none [new]"]
    assert [row.numbers["worst"].note for row in section.rows] == ["", ""]


def test_two_versions_of_a_classifier_are_two_sections(tmp_path):
    for name in ("old", "new"):
        make_run(tmp_path / name, pipeline={"classifier": name}, defense="none")
    folders = [tmp_path / "old", tmp_path / "new"]
    titles = [section.title for section in table(collect_records(folders)[0]).sections]
    assert ["convnet [old]" in titles[0], "convnet [new]" in titles[1]] == [True, True]


def test_one_run_has_no_labels(tmp_path):
    records = [record(100, pipeline={"defense": name}) for name in ("w1", "w2")]
    shown, _ = collect_records([keep(tmp_path, records)])
    assert [r.defense_label for r in shown] == ["median", "median"]


def test_runs_are_named_as_far_as_tells_them_apart(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert name_runs(paths) == ["a/run", "b/run"]
    assert name_runs([tmp_path / "old", tmp_path / "new"]) == ["old", "new"]
    assert len(name_runs([tmp_path, tmp_path])) == 2


def test_python_refuses_to_overwrite_too(tmp_path):
    folder = make_run(tmp_path / "run")
    write_report([folder], tmp_path / "out")
    with pytest.raises(BadParameter, match=r"holds report\.html"):
        write_report([folder], tmp_path / "out")
    write_report([folder], tmp_path / "out", overwrite=True)
