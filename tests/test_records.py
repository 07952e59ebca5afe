"""Records: what is written is read, anything else is refused in one clear line."""

import json
from pathlib import Path

import pytest
from made_runs import PLAIN, change, failed, record

from defend.errors import BadParameter
from defend.records import (
    Flag,
    FlagCode,
    Record,
    json_schema,
    merge_records,
    read_records,
    take_up_records,
)

SCHEMA = Path(__file__).parents[1] / "docs" / "record.schema.json"


def test_the_schema_in_the_docs_is_current():
    """Write it again by `python docs/record_schema.py`."""
    assert json.loads(SCHEMA.read_text()) == json_schema()


def test_records_are_read_as_they_were_written(tmp_path):
    flags = [Flag(code=FlagCode.ZERO_GRADIENT, value=3), Flag(code=FlagCode.LOSS_FELL)]
    records = [record(100, flags=flags), failed(defense="jpeg")]
    merge_records(tmp_path, records)
    assert read_records(tmp_path) == records
    assert all(isinstance(r, Record) for r in read_records(tmp_path))


def without(name):
    fields = PLAIN.model_dump(mode="json")
    del fields[name]
    return fields


BROKEN = {
    "an unknown field": (PLAIN.model_dump(mode="json") | {"colour": "red"}, "colour"),
    "an unknown field inside": (
        PLAIN.model_dump(mode="json") | {"pipeline": {"attack": "ab"}},
        "pipeline.attack",
    ),
    "another version": (PLAIN.model_dump(mode="json") | {"schema_version": 5}, "version 5"),
    "a record of the first version": (without("schema_version"), "version 1"),
    "a missing field": (without("claim_eps"), "claim_eps"),
    "a value of another type": (PLAIN.model_dump(mode="json") | {"n": "many"}, "field n"),
    "an unknown flag": (PLAIN.model_dump(mode="json") | {"flags": [{"code": "x"}]}, "flags.0.code"),
    "no record at all": (1, "no records"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_anything_else_is_refused_in_one_clear_line(tmp_path, name):
    content, named = BROKEN[name]
    (tmp_path / "records.json").write_text(json.dumps([PLAIN.model_dump(mode="json"), content]))
    with pytest.raises(BadParameter) as error:
        read_records(tmp_path)
    message = str(error.value)
    assert named in message and "\n" not in message
    assert message.startswith(f"{tmp_path / 'records.json'}: expected records of `defend bench`")
    assert "Move that file away and run the bench again" in message


def test_a_record_of_before_there_were_tasks_is_one_of_classification(tmp_path):
    fields = record(100).model_dump(mode="json") | {"schema_version": 3}
    for name in ("task", "score", "clean_score", "measures", "thresholds", "curve"):
        del fields[name]
    (tmp_path / "records.json").write_text(json.dumps([fields]))
    assert read_records(tmp_path) == [record(100)]
    assert read_records(tmp_path)[0].task == "classification"


def test_a_file_that_is_no_json_is_set_aside_by_who_writes_there_alone(tmp_path):
    (tmp_path / "records.json").write_text("{damaged")
    with pytest.raises(BadParameter, match="sets it aside and makes it again from its units"):
        read_records(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["records.json"]
    assert take_up_records(tmp_path) == []
    assert (tmp_path / "records.json.damaged").read_text() == "{damaged"


def test_a_number_that_is_not_finite_is_not_written():
    with pytest.raises(ValueError):
        record(100).replace(seconds=float("nan")).to_json()


def test_a_record_stays_the_protocols_when_its_cell_is_run_again_without_it(tmp_path):
    of_protocol = record(100, units=["a"], protocol="ladder-1")
    again = of_protocol.replace(protocol=None)
    merge_records(tmp_path, [of_protocol])
    merge_records(tmp_path, [again])
    assert read_records(tmp_path) == [of_protocol]
    other_units = again.replace(units=("b",))
    merge_records(tmp_path, [other_units])
    assert read_records(tmp_path) == [other_units]


def test_a_record_of_weights_trained_anew_does_not_replace_the_old_one(tmp_path):
    records = []
    for weights in ("old", "new"):
        pipeline = {"classifier": "c", "defense": weights}
        records.append(record(100, units=[weights], pipeline=pipeline))
        merge_records(tmp_path, records[-1:])
    assert read_records(tmp_path) == records


def test_a_later_record_of_the_same_cell_replaces_the_earlier(tmp_path):
    merge_records(tmp_path, [record(100), record(50, defense="jpeg")])
    merge_records(tmp_path, [record(90)])
    assert sorted(r.robust_accuracy for r in read_records(tmp_path)) == [0.25, 0.45]


def test_what_identifies_a_cell_is_not_what_was_measured():
    assert record(100).cell_id == record(90, seconds=9.0).cell_id
    for changes in ({"eps": 0.1}, {"seed": 1}, {"pipeline": {"defense": "d2"}}, {"threads": 2}):
        assert change(record(100), **changes).cell_id != record(100).cell_id
