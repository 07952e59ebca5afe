"""Records as a table of pandas, and one line where pandas is missing."""

import sys

import pytest
from made_runs import DECLARED, failed, keep, record

from defend.errors import MissingPackage
from defend.record_list import Records
from defend.records import Flag, FlagCode


def test_without_pandas_it_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackage, match=r"pip install 'defend-purifiers\[pandas\]'"):
        Records([record(100)]).to_pandas()


def test_one_row_is_one_cell_with_typed_columns(tmp_path):
    pytest.importorskip("pandas")
    flags = [Flag(code=FlagCode.ZERO_GRADIENT, value=3), Flag(code=FlagCode.LOSS_FELL)]
    rows = [record(100, flags=flags), record(20, **DECLARED), failed("no memory", attack="fgsm")]
    frame = Records.read(keep(tmp_path, rows)).to_pandas()
    assert len(frame) == 3
    types = {name: str(frame[name].dtype) for name in ("defense", "n", "eps", "stochastic")}
    assert types == {"defense": "string", "n": "Int64", "eps": "Float64", "stochastic": "boolean"}
    assert frame["robust_accuracy"].tolist()[:2] == [0.5, 0.1]
    assert frame["robust_accuracy"].isna().tolist() == [False, False, True]
    assert frame["flags"].tolist() == ["zero_gradient; loss_fell", "", ""]
    assert frame["error"].tolist()[2] == "no memory"


def test_every_field_of_one_value_is_a_column():
    """A record that sets every field has text or a number in these, however they are declared."""
    pytest.importorskip("pandas")
    described = record(100, surrogate="median+resnet20", gradient="declared", protocol="ladder-1")
    columns = set(Records([described]).to_pandas().columns)
    scalars = {k for k, v in described if isinstance(v, str | int | float)}
    assert "surrogate" in scalars and scalars <= columns


def test_scores_in_other_units_have_three_columns():
    pytest.importorskip("pandas")
    score = {"value": 31.4, "low": 30.0, "high": 32.0}
    frame = Records([record(100), record(100, score=score, robust_accuracy=None)]).to_pandas()
    assert frame["score"].isna().tolist() == [True, False]
    assert frame.loc[1, ["score", "score_low", "score_high"]].tolist() == [31.4, 30.0, 32.0]
