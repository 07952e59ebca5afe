"""defend verify: records are confirmed by their units, and anything else is named."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_runs import DECLARED, IDENTITY, cell, keep, record
from safetensors import safe_open
from safetensors.torch import save_file

from defend.cli import main
from defend.records import Flag, FlagCode, read_records
from defend.results import table
from defend.results.report import write_report
from defend.results.report.data_files import format_csv
from defend.results.text_report import format_report
from defend.results.verify import ProblemCode, verify_record, verify_run
from defend.unit_files import read_unit, unit_path, write_unit


@pytest.fixture
def folder(undisturbed, tmp_path):
    """A copy of the folder of a real run, which a test may spoil."""
    shutil.copytree(undisturbed[0], tmp_path / "run")
    return tmp_path / "run"


def run(*args, code=0):
    done = CliRunner().invoke(main, ["verify", *map(str, args)])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stdout


def test_a_run_is_confirmed_and_left_alone(folder):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    n = len(read_records(folder))
    assert run(folder) == f"{n} cells confirmed; no problem\n"
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")} == before


# Edited records.


def edit(folder, at, **changes):
    """Change fields of one record in records.json; a function gets the old value."""
    rows = json.loads((folder / "records.json").read_text())
    for name, value in changes.items():
        rows[at][name] = value(rows[at][name]) if callable(value) else value
    (folder / "records.json").write_text(json.dumps(rows))


def index_of(folder, **fields):
    """Return the place of the first record with these fields."""
    for i, r in enumerate(read_records(folder)):
        if all(getattr(r, name) == value for name, value in fields.items()):
            return i
    raise AssertionError(fields)


ADAPTIVE = {"knowledge": "adaptive", "defense": "gaussian:sigma=0.1"}
EDITS = {
    "robust accuracy": ({"robust_accuracy": 0.93}, "robust_accuracy 0.93 in the record, "),
    "clean accuracy": ({"clean_accuracy": 0.5}, "clean_accuracy 0.5 in the record, "),
    "an interval": ({"ci_low": 0.92}, "ci_low 0.92 in the record, "),
    "all draws": ({"all_draws_correct": 0.9}, "all_draws_correct 0.9 in the record, "),
    "costs": ({"forwards": 10000.0}, "forwards 10000 in the record, "),
    "eps": ({"eps": 0.4, "eps_text": "0.4"}, "eps 0.4 in the record, 0.1 in its units"),
    "the number of eps": ({"eps": 0.4}, "eps 0.4 in the record, 0.1 in its units"),
    "the text of eps": ({"eps_text": "99/255"}, "eps_text 99/255 in the record, and its eps is"),
    "no eps": ({"eps_text": "much"}, "eps 'much': expected a number"),
    "eps of the attack": ({"attack": "pgd:eps=0.4,steps=3"}, "eps of the attack 0.4 in the record"),
    "a field of the attack": (
        {"attack": "pgd:steps=5000"},
        "attack pgd:steps=5000 in the record, and its settings say steps: 3",
    ),
    "a field that it has not": (
        {"attack": "pgd:queries=5000"},
        "attack pgd:queries=5000 in the record, and its settings say queries: no such field",
    ),
    "a field of the defense": (
        {"defense": "gaussian:sigma=0.3"},
        "defense gaussian:sigma=0.3 in the record, and its settings say sigma: 0.1",
    ),
    "settings of the defense": (
        {"settings": lambda s: s | {"defense": {"sigma": 0.3}}, "defense": "gaussian:sigma=0.3"},
        'defense settings {"sigma":0.3} in the record, [{"sigma":0.1}] in its units',
    ),
    "settings of the classifier": (
        {"settings": lambda s: s | {"classifier": s["classifier"] | {"width": 8}}},
        "classifier settings {",
    ),
    "settings of what was attacked": (
        {"settings": lambda s: s | {"attacked": s["attacked"] | {"defense": {"sigma": 0.3}}}},
        "attacked defense settings {",
    ),
    "a member more": (
        {"defense": "gaussian:sigma=0.1+gaussian:sigma=0.1"},
        "and its settings are of 1 member",
    ),
    "weights": ({"weights": {"convnet-digits": "0" * 64}}, "weights are not those in its units"),
    "scored weights": (
        {"scored_weights": {"classifier": {"convnet-digits": "0" * 64}, "defense": {}}},
        "weights of the classifier are not those in its units",
    ),
    "noise": ({"stochastic": False}, "stochastic False in the record, True in its units"),
    "access": ({"access": "scores"}, "access scores in the record, gradient in its units"),
    "classes": ({"classes": 2}, "classes 2 in the record, 10 in its units"),
    "things": ({"distinct_images": 24}, "distinct_images 24 in the record, and its copies leave"),
    "a surrogate": (
        {"surrogate": "median+convnet"},
        "surrogate defense median in the record, gaussian in its units",
    ),
    "a surrogate of another level": (
        {"surrogate": "gaussian:sigma=0.1+convnet"},
        "surrogate gaussian:sigma=0.1+convnet in the record, whose level is adaptive",
    ),
    "norm": ({"norm": "L2"}, "norm L2 in the record, Linf in its units"),
    "seed": ({"seed": 3}, "seed 3 in the record, 0 in its units"),
    "n": ({"n": 1000}, "n 1000 in the record, and its units hold images 0 to 16, 16 to 32"),
    "draws": ({"draws": 20}, "draws 20 in the record, 5 in its units"),
    "eot": ({"eot": 20}, "eot 20 in the record, 2 in its units"),
    "attack": ({"attack": "apgd"}, "attack apgd in the record, pgd in its units"),
    "steps": (
        {"settings": lambda s: s | {"attack": s["attack"] | {"steps": 100}}},
        "attack settings {",
    ),
    "defense": ({"defense": "jpeg"}, "defense jpeg in the record, gaussian in its units"),
    "classifier": ({"classifier": "lenet"}, "classifier lenet in the record, convnet in its"),
    "hash": ({"pipeline": lambda p: p | {"defense": "0" * 12}}, "settings or weights of the def"),
    "task": ({"task": "identification"}, "task identification in the record, classification"),
    "level": ({"knowledge": "oblivious"}, "knowledge oblivious in the record, and its units att"),
    "device": ({"device": "NVIDIA H100"}, "device NVIDIA H100 in the record, cpu in its units"),
    "no units": ({"units": []}, "it names no units"),
    "a unit twice": ({"units": lambda u: [*u, u[0]]}, "n 48 in the record, and its units hold"),
    "a failure": ({"error": "no memory"}, "it is said to have failed, and all its units are"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_record_is_named(folder, name):
    changes, message = EDITS[name]
    edit(folder, index_of(folder, **ADAPTIVE), **changes)
    text = run(folder, code=1)
    lines = [line for line in text.splitlines() if message in line]
    assert lines and lines[0].partition(":")[0] in ("edited", "added")
    assert f"{len(read_records(folder)) - 1} cells confirmed" in text.splitlines()[-1]


def test_a_cell_of_another_level_is_named(folder):
    """Images made without knowledge of the purifier do not become an adaptive attack."""
    at = index_of(folder, knowledge="oblivious", defense="gaussian:sigma=0.1")
    edit(folder, at, knowledge="adaptive", gradient="declared")
    assert "knowledge adaptive in the record, and its units attacked" in run(folder, code=1)


def test_a_flag_that_was_taken_away_is_named(tmp_path):
    """The units count images without a gradient, and the record is silent."""
    made = cell(tmp_path, [1, 0, 1], **IDENTITY)
    sound = keep(tmp_path, [made])
    assert verify_run(sound).problems == ()
    unit = read_unit(tmp_path, made.units[0])
    costs = unit.header["costs"] | {"zero_gradients": 3}
    write_unit(tmp_path, made.units[0], unit.tensors, dict(unit.header) | {"costs": costs})
    (problem,) = verify_run(tmp_path).problems
    assert FlagCode.ZERO_GRADIENT in problem.text
    keep(tmp_path, [made.replace(flags=(Flag(code=FlagCode.ZERO_GRADIENT, value=3),))])
    assert verify_run(tmp_path).problems == ()


# Units.


def first_unit(folder):
    key = read_records(folder)[0].units[0]
    return unit_path(folder, key)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def repaint(path):
    """Make every image right, and leave the checksums as they were."""
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    tensors["score"] = torch.ones_like(tensors["score"])
    save_file(tensors, path, metadata)


def rename(path):
    path.rename(path.with_name("0" * 64 + ".safetensors"))


SPOILED = {
    "deleted": (lambda p: p.unlink(), "missing", "1 of 3 units: no such file"),
    "a flipped byte": (flip, "damaged", "1 of 3 units: the checksum does not fit"),
    "other outcomes": (repaint, "damaged", "1 of 3 units: the checksum does not fit"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:99]), "damaged", "the checksum does not fit"),
    "renamed": (rename, "added", "no record names it, and it is no sound unit"),
    "another file": (
        lambda p: (p.parent / "note.txt").write_text("x"),
        "added",
        "no record names it, and it is no sound unit",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_unit_is_named(folder, name):
    spoil, code, message = SPOILED[name]
    spoil(first_unit(folder))
    lines = run(folder, code=1).splitlines()
    assert any(line.startswith(f"{code}: ") and message in line for line in lines)


def test_sound_units_that_no_record_names_are_no_problem(folder):
    rows = json.loads((folder / "records.json").read_text())
    (folder / "records.json").write_text(json.dumps(rows[:1]))
    text = run(folder)
    assert text.startswith("1 cell confirmed; ")
    assert "units of earlier commands, on which no record rests; no problem" in text


def test_json_holds_the_same(folder):
    edit(folder, 0, robust_accuracy=0.93)
    data = json.loads(run(folder, "--json", code=1))
    (problem,) = data["problems"]
    assert problem["code"] == "edited" and "0.93" in problem["text"]
    assert data["confirmed"] == len(read_records(folder)) - 1


def test_a_folder_without_records_is_one_line(tmp_path):
    done = CliRunner().invoke(main, ["verify", str(tmp_path)])
    assert done.exit_code == 2 and "holds no records" in done.stderr
    assert done.stderr.count("\n") == 1


# The report.


def test_the_report_marks_what_it_cannot_confirm(folder, tmp_path):
    at = index_of(folder, **ADAPTIVE)
    honest = read_records(folder)[at]
    edit(folder, at, robust_accuracy=0.93)
    page, results = write_report([folder], tmp_path / "out")
    message = f"robust_accuracy 0.93 in the record, {honest.robust_accuracy:.6g} from its units"
    assert message in page.read_text()
    with results.open(newline="") as f:
        flags = [row["flags"] for row in csv.DictReader(f)]
    assert [message in text for text in flags] == [i == at for i in range(len(flags))]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (line,) = summary["unconfirmed"]
    assert message in line
    assert any("1 cell not confirmed by the units" in sign for sign in summary["signs"])
    for name in ("latex", "markdown"):
        assert "Not confirmed by the units of the run" in format_report([folder], name)
    assert "not confirmed by its units" in format_report([folder], "csv")


def test_a_confirmed_run_has_no_such_marks(folder, tmp_path):
    write_report([folder], tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["unconfirmed"] == []
    assert "onfirmed" not in (tmp_path / "out" / "report.html").read_text()


def test_only_the_numbers_of_the_cell_are_marked(tmp_path):
    made = [cell(tmp_path, [1, 0, 1], **fields) for fields in (IDENTITY, DECLARED)]
    records = [made[0], made[1].replace(clean_accuracy=0.4)]
    problems = [verify_record(r, [tmp_path]) for r in records]
    assert [len(p) for p in problems] == [0, 1]
    model = table(records, [tmp_path], problems=problems)
    (row,) = model.rows
    marked = {name for name, number in row.numbers.items() if number.is_marked}
    assert marked == {"declared", "worst"}
    assert not row.claim.stands
    assert row.claim.signs[-1].code == "not_confirmed"
    backwards = table(records[::-1], [tmp_path], problems=problems[::-1])
    assert backwards.rows[0].numbers["clean"].is_marked


def test_a_claim_of_one_norm_rests_on_the_cells_of_every_norm(tmp_path):
    """An attack of eps 1 in L-inf is evidence for the claim in L2."""
    unbounded = {"eps": 1.0, "eps_text": "1"} | DECLARED
    made = [
        cell(tmp_path, [1, 0, 1], **f) for f in ({"norm": "L2", "eps": 0.5} | DECLARED, unbounded)
    ]
    made[0] = made[0].replace(eps_text="0.5")
    records = [made[0], made[1].replace(robust_accuracy=0.0)]
    problems = [verify_record(r, [tmp_path]) for r in records]
    assert [len(p) for p in problems] == [0, 1]
    for row in table(records, [tmp_path], problems=problems).rows:
        assert row.claim.signs[-1].code == "not_confirmed"


def test_the_csv_has_the_findings_of_the_page_for_two_spellings_of_a_component(tmp_path):
    """The stronger attack breaks less. It is known as the same attack of the same purifier."""
    same = {"pipeline": {"classifier": "a" * 12, "defense": "b" * 12}, "shard": 40}
    weak = {"knowledge": "query", "attack": "square", "access": "scores"}
    scores = [np.repeat([1, 0], counts) for counts in ((10, 30), (40, 0))]
    one = cell(tmp_path, scores[0], defense="median", **same | weak)
    other = cell(tmp_path, scores[1], defense="median:size=3", **same | DECLARED)
    model = table([one, other], [tmp_path])
    text = format_csv([one, other], model.accusations)
    assert any(model.accusations)
    codes = [finding.code for findings in model.accusations for finding in findings]
    assert all(code in text for code in codes)


def test_records_without_units_are_not_confirmed(tmp_path):
    (problem,) = verify_record(record(100, **DECLARED), [tmp_path])
    assert problem.code == ProblemCode.ADDED
    write_report([keep(tmp_path, [record(100, **DECLARED)])], tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "it names no units" in summary["unconfirmed"][0]
