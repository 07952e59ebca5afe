"""Specs: parse and str are inverse, and every bad spec is refused in one clear line."""

import math
import string
from dataclasses import MISSING
from fractions import Fraction
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defend.benchmarks.specs import spec_from_table
from defend.errors import BadParameter, BadSpec, DefendError
from defend.spec import (
    Configured,
    Spec,
    canonical_spec,
    coerce,
    parse,
    parse_single,
    read_value,
    typed_params,
    write_value,
)

fractions = st.builds(Fraction, st.integers(-(10**6), 10**6), st.integers(1, 10**6))
floats = st.floats(allow_nan=False, allow_infinity=False)
# Texts of the characters to which the grammar gives a meaning.
tricky = st.text("ab01eE+-./,:='\"\\ \n_ntruefalse", max_size=8)
values = (
    st.none() | st.booleans() | st.integers() | floats | fractions | st.text(max_size=12) | tricky
)
keys = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6)
names = st.from_regex(r"\A[a-z0-9][a-z0-9/._-]{0,9}\Z")
specs = st.builds(
    lambda name, params: Spec(name, tuple(sorted(params.items()))),
    names,
    st.dictionaries(keys, values, max_size=4),
)


@settings(max_examples=300)
@given(specs)
def test_parse_undoes_str(spec):
    assert parse(str(spec)) == (spec,)


@settings(max_examples=300)
@given(st.lists(specs, min_size=1, max_size=4))
def test_parse_undoes_str_for_chains(chain):
    assert parse("+".join(map(str, chain))) == tuple(chain)


@settings(max_examples=500)
@given(values)
def test_a_value_keeps_its_type(value):
    result = read_value(write_value(value))
    integral = isinstance(value, Fraction) and value.denominator == 1
    assert result == value and type(result) is (int if integral else type(value))


@settings(max_examples=500)
@given(st.text("ab1e+-./,:='\" 0t", max_size=24) | st.text(max_size=24))
def test_any_text_is_a_spec_or_one_clear_error(text):
    try:
        once = canonical_spec(text)
    except BadSpec:
        return
    assert canonical_spec(once) == once and parse(once) == parse(text)


GOOD = {  # typed -> canonical
    "jpeg": "jpeg",
    " jpeg ": "jpeg",
    "jpeg:": "jpeg",
    "jpeg:quality=75": "jpeg:quality=75",
    "b:z=1,a=2": "b:a=2,z=1",
    "b: a = 2 , z = 1": "b:a=2,z=1",
    "pgd:eps=8/255": "pgd:eps=8/255",
    "pgd:eps=16/510": "pgd:eps=8/255",
    "pgd:eps=6/3": "pgd:eps=2",
    "pgd:eps=.5": "pgd:eps=0.5",
    "pgd:eps=1e-3": "pgd:eps=0.001",
    "x:a=TRUE,b=None": "x:a=true,b=none",
    "x:a='true'": 'x:a="true"',
    "x:a='1,2+3'": 'x:a="1,2+3"',
    'x:a="8/255"': 'x:a="8/255"',
    'x:a=""': 'x:a=""',
    "x:path=/data/a-b_c.png": "x:path=/data/a-b_c.png",
    "x:path='C:/data'": 'x:path="C:/data"',
    "a+b:c=1+d": "a+b:c=1+d",
    "a:x=1e+16+b": "a:x=1e+16+b",
    "a:x=+5+b": "a:x=5+b",
    "a:x='1e'+2b": 'a:x="1e"+2b',
    "defend-bitcut/bitcut:bits=2": "defend-bitcut/bitcut:bits=2",
}


@pytest.mark.parametrize("text", GOOD)
def test_canonical_form(text):
    assert canonical_spec(text) == GOOD[text]
    assert parse(GOOD[text]) == parse(text)


BAD = {
    "": "expected name:key=value",
    "+": "expected name:key=value",
    "a+": "expected name:key=value",
    "a++b": "expected name:key=value",
    ":x=1": "expected name:key=value",
    "a b:x=1": "expected name:key=value",
    "a:x": "expected key=value, got 'x'",
    "a:x=": "expected key=value",
    "my_module:Blur": "got 'Blur'; a class of yours is named by its file, ./FILE.py:NAME",
    "a:x=1,": "expected key=value, got ''",
    "a:x=1,,y=2": "expected key=value, got ''",
    "a:1x=1": "expected key=value, got '1x=1'",
    "a:x y=1": "expected key=value",
    "a:x=1,x=2": "x is given twice",
    "a:x=1/0": "division by zero",
    "a:x='1": "a quote is not closed",
    'a:x="1': "a quote is not closed",
    "a:x='1' '2'": "quotes go around the whole value",
    "a:x=p'1'": "quotes go around the whole value",
    'a:x="\\q"': "a backslash in double quotes",
    "a:x=1e999": "too large for a number",
    "a:x=-1e999": "too large for a number",
    "a:x=" + "9" * 5000: "too long for a number",
}


@pytest.mark.parametrize("text", BAD, ids=lambda t: t[:12])
def test_bad_spec_is_one_clear_line(text):
    with pytest.raises(BadSpec) as e:
        parse(text)
    assert BAD[text] in str(e.value) and "\n" not in str(e.value)


def test_fractions_are_exact():
    ((_, value),) = parse("pgd:eps=8/255")[0].params
    assert value == Fraction(8, 255) and float(value) == 8 / 255


def test_only_defenses_are_chained():
    assert parse_single("pgd:steps=2", "attack") == Spec("pgd", (("steps", 2),))
    with pytest.raises(BadSpec, match="only defenses are chained"):
        parse_single("pgd+fgsm", "attack")


def test_a_field_can_be_removed():
    spec, eps = parse("pgd:steps=2,eps=8/255")[0].without("eps")
    assert (str(spec), eps) == ("pgd:steps=2", Fraction(8, 255))
    assert spec.without("eps") == (spec, None)


def test_tables_are_specs():
    table = {"name": "pgd", "steps": 40, "norm": "L2", "eps": "8/255", "text": "1"}
    assert str(spec_from_table(table)) == 'pgd:eps=8/255,norm=L2,steps=40,text="1"'


BAD_TABLES = [{}, {"name": 3}, {"name": ""}, {"name": "a+b"}, {"name": "a:x=1"}]
BAD_TABLES += [
    {"name": "a", **row} for row in ({"x": [1]}, {"x": math.inf}, {"x": math.nan}, {"x y": 1})
]


@pytest.mark.parametrize("table", BAD_TABLES, ids=str)
def test_bad_table(table):
    with pytest.raises(BadSpec):
        spec_from_table(table)


FITS = [  # value, annotation, value of the field
    (3, int, 3),
    (3.0, int, 3),
    (Fraction(1, 4), float, 0.25),
    (3, float, 3.0),
    (True, bool, True),
    ("L2", str, "L2"),
    (None, int | None, None),
    (3, int | None, 3),
    (3, float | None, 3.0),
    (3, str | int, 3),
    ("a", Literal["a", "b"], "a"),
    (2.0, Literal[1, 2], 2),
    (3, Any, 3),
    ((0.0, 1.0), tuple[float, float], (0.0, 1.0)),
]


@pytest.mark.parametrize(("value", "annotation", "expected"), FITS, ids=str)
def test_annotation_decides_the_type(value, annotation, expected):
    converted = coerce(value, annotation, "x: f")
    assert converted == expected and type(converted) is type(expected)


MISFITS = [
    (3.5, int, "expected a whole number"),
    (math.inf, int, "expected a whole number"),
    ("3", int, "expected a whole number"),
    (True, int, "expected a whole number"),
    (True, float, "expected a number"),
    ("abc", float, "f=abc: expected a number"),
    (10**400, float, "expected a number"),
    (math.nan, float, "expected a number"),
    (1, bool, "expected true or false"),
    ("yes", bool, "expected true or false"),
    (None, int, "f=none: expected a whole number"),
    (Fraction(1, 2), str, 'expected text; if text is meant, quote it: "1/2"'),
    (True, str, 'quote it: "true"'),
    (True, Literal[1, 2], "expected 1 or 2"),
    ("c", Literal["a", "b"], "expected 'a' or 'b'"),
    (3, tuple[float, float], "only Python code can give"),
]


@pytest.mark.parametrize(("value", "annotation", "message"), MISFITS, ids=str)
def test_a_misfit_names_the_expected_value(value, annotation, message):
    with pytest.raises(BadParameter) as e:
        coerce(value, annotation, "x: f")
    assert message in str(e.value)


class Knob(Configured):
    steps: int
    rate: float = 0.5
    tag: str | None = None


class Finer(Knob):
    rate: float = 0.25


def test_fields_and_settings():
    assert Knob.fields() == {
        "steps": (int, MISSING),
        "rate": (float, 0.5),
        "tag": (str | None, None),
    }
    assert Finer(steps=2).settings == {"steps": 2, "rate": 0.25, "tag": None}
    params = typed_params(Knob, {"steps": 2.0, "rate": 1}, "attack 'knob'")
    assert params == {"steps": 2, "rate": 1.0}


WRONG_FIELDS = {
    "unknown": (
        {"steps": 1, "rat": 2},
        "attack 'knob' has no field 'rat'. Did you mean rate? It takes rate=0.5, tag=none.",
    ),
    "missing": ({}, "attack 'knob' needs steps: write knob:steps=..."),
}


@pytest.mark.parametrize(("params", "message"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_wrong_fields(params, message):
    with pytest.raises(DefendError) as e:
        typed_params(Knob, params, "attack 'knob'")
    assert str(e.value) == message


def test_fields_are_keyword_only():
    with pytest.raises(TypeError):
        Knob(2)
