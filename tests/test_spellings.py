"""A spec has one spelling wherever it is shown or grouped, in whatever order it was typed."""

import json

import pytest
from made_runs import record

import defend
from defend.record_list import Records
from defend.records import FILE_NAME, read_records
from defend.results import table
from defend.results.report import write_report

SPELLINGS = {
    "attack": ("pgd:targeted=true,steps=2", "pgd:steps=2,targeted=true"),
    "defense": ("jpeg:subsampling=true, quality=60", "jpeg:quality=60,subsampling=true"),
    "classifier": ("./a.py:f,weights=x.pt,classes=3", "./a.py:f,classes=3,weights=x.pt"),
    "surrogate": ("lenet:width=2,classes=3", "lenet:classes=3,width=2"),
    "dataset": ("image-folder:size=3,path=p", "image-folder:path=p,size=3"),
}


@pytest.mark.parametrize("field", SPELLINGS)
def test_a_record_has_its_specs_in_one_order(field):
    first, second = (record(8, n=8, **{field: spec}) for spec in SPELLINGS[field])
    assert getattr(first, field) == getattr(second, field) == SPELLINGS[field][1]
    assert first.cell_id == second.cell_id


def test_what_is_no_spec_is_left_alone():
    assert record(8, n=8, attack="a: b").attack == "a: b"


@pytest.mark.parametrize("field", SPELLINGS)
def test_records_of_older_runs_are_read_with_that_order(tmp_path, field):
    fields = json.loads(record(8, n=8).to_json()) | {field: SPELLINGS[field][0]}
    (tmp_path / FILE_NAME).write_text(json.dumps([fields]))
    (read,) = read_records(tmp_path)
    assert getattr(read, field) == SPELLINGS[field][1]


def test_two_spellings_in_a_suite_are_one_row_everywhere(tmp_path):
    first, second = SPELLINGS["attack"]
    records = defend.bench(
        dataset="digits",
        classifiers=["convnet"],
        defenses=["median"],
        attacks=[first, second],
        knowledge=["oblivious"],
        eps="0.1",
        n=8,
        out=tmp_path / "run",
        workers=1,
    )
    assert {r.attack for r in records} == {second}
    assert len(Records.read(tmp_path / "run")) == 1
    model = table(records)
    assert len(model.rows) == 1 and len(model.measures) == 1
    page, csv = (path.read_text() for path in write_report([tmp_path / "run"]))
    assert first not in csv and second in csv
    assert page.count(first) == 1  # the suite as it was typed
