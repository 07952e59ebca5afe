"""Rows of a zoo.toml are written by hand: they say what they should, and no other byte changes."""

import math
import tomllib

import pytest
from hypothesis import given, strategies

from defend.errors import BadWeights
from defend.weights.rows import format_row, format_value, put_row, put_value

TEXTS = strategies.text(strategies.characters(exclude_categories=["Cs"]))
SCALARS = (
    strategies.booleans()
    | strategies.integers(-(2**63), 2**63 - 1)
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = strategies.recursive(
    SCALARS, lambda inner: strategies.lists(inner) | strategies.dictionaries(TEXTS, inner)
)


@given(strategies.dictionaries(TEXTS, VALUES))
def test_toml_reads_what_was_written(row):
    assert tomllib.loads(f"x = {format_value(row)}") == {"x": row}


@given(TEXTS, strategies.dictionaries(strategies.sampled_from("abc"), VALUES))
def test_toml_reads_a_table(name, row):
    assert tomllib.loads(format_row(name, row)) == {name: row}


def test_a_table_leaves_none_out():
    assert format_value({"a": None, "b": 1, "c": {"d": None}}) == "{ b = 1, c = {} }"


NO_TOML = {  # value -> words of the error
    "NaN": ({"psnr": math.nan}, "psnr: expected a finite number, a text, .*, got nan"),
    "an infinity": (math.inf, "measured: expected a finite number"),
    "in a list": ({"psnr": [1, -math.inf]}, "psnr: .* got \\[1, -inf\\]"),
    "null in a list": ({"a": {"b": [None]}}, "b: .* got \\[None\\]"),
    "an object": ({"a": object()}, "a: expected a finite number"),
}


@pytest.mark.parametrize(("value", "message"), NO_TOML.values(), ids=NO_TOML)
def test_a_value_that_toml_does_not_hold_is_one_line(value, message):
    for put in (
        lambda: put_row(BEFORE, "new", {"measured": value}),
        lambda: put_value(BEFORE, "second", "measured", value),
    ):
        with pytest.raises(BadWeights, match=f"^zoo.toml: {message}") as e:
            put()
        assert "\n" not in str(e.value)


BEFORE = """# our weights
[first]  # the first
  file = 'a'   # odd spaces stay
measured.psnr = 1

# about the second
[second]
file = "b"
measured = { psnr = 2 }  # old

# about the third

["third.one"]
file = "c"
[third."sub"]
x = [
  1,
]
"""


@pytest.mark.parametrize("text", [BEFORE, BEFORE.rstrip(), BEFORE + "\n", "", "# nothing\n"])
def test_a_new_row_goes_to_the_end(text):
    after = put_row(text, "new", {"file": "d"})
    assert after.startswith(text)
    assert after.endswith('[new]\nfile = "d"\n')
    assert not text or after.endswith('\n\n[new]\nfile = "d"\n')
    assert tomllib.loads(after) == {**tomllib.loads(text), "new": {"file": "d"}}


@pytest.mark.parametrize("name", ["first", "second", "third.one", "third"])
def test_a_row_is_replaced_in_its_place(name):
    after = put_row(BEFORE, name, {"file": "d"})
    assert tomllib.loads(after) == {**tomllib.loads(BEFORE), name: {"file": "d"}}
    for comment in ("# our weights", "# about the second", "# about the third"):
        assert comment in after
    untouched = [line for line in BEFORE.splitlines() if line.startswith("# about")]
    assert [line for line in after.splitlines() if line.startswith("# about")] == untouched


def test_replacing_a_row_with_itself_changes_nothing():
    text = put_row(put_row("", "a", {"x": 1}), "b", {"x": 2})
    for name, x in (("a", 1), ("b", 2)):
        assert put_row(text, name, {"x": x}) == text


def test_one_value_changes_one_line():
    after = put_value(BEFORE, "second", "measured", {"psnr": 3.5})
    old, new = BEFORE.splitlines(), after.splitlines()
    assert [(a, b) for a, b in zip(old, new, strict=True) if a != b] == [
        ("measured = { psnr = 2 }  # old", "measured = { psnr = 3.5 }")
    ]


def test_a_value_that_is_new_is_added_to_its_row():
    after = put_value(BEFORE, "third.one", "measured", {"psnr": 3})
    expected = {"file": "c", "measured": {"psnr": 3}}
    assert tomllib.loads(after)["third.one"] == expected
    assert len(after) - len(BEFORE) == len("measured = { psnr = 3 }\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("first", BEFORE, "one value on each line, got another layout"),
        ("missing", BEFORE, r"expected a table \[missing\], got none"),
        ("a", "[a]\nmeasured = [\n1,\n]\n", "got another layout"),
        ("a", "[a]\nx = 1\n[a.measured]\ny = 1\n", "got another layout"),
    ],
    ids=["a dotted key", "no row", "several lines", "a table below"],
)
def test_a_layout_that_would_break_is_refused(name, text, message):
    with pytest.raises(BadWeights, match=message):
        put_value(text, name, "measured", {"psnr": 3})
