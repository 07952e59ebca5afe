"""What comparing cells shows: signs that an attack failed, not that the purifier works."""

import numpy as np
import pytest
from made_runs import DECLARED, IDENTITY, LEARNED, cell, change, failed, printed, record

from defend.records import Diagnosis, Flag, FlagCode
from defend.results import table
from defend.results.comparisons import compare_cells
from defend.results.diagnostics import (
    ACCUSATIONS,
    FINDING_TITLES,
    FLAG_TEXTS,
    SIGN_TEXTS,
    FindingCode,
    SignCode,
    encode_flag,
    format_accusation,
    format_finding,
    format_flag,
    format_sign,
)

BLACK_BOX = FindingCode.BLACK_BOX_BEATS_WHITE_BOX
SQUARE = {"attack": "square", "knowledge": "query", "access": "scores"}


def findings(*records):
    return [format_finding(finding) for finding in compare_cells(records)]


# Black box against white box.


def test_black_box_below_white_box_is_a_sign_of_masking():
    white = [record(120, **DECLARED), record(110, **IDENTITY)]
    square = record(20, **SQUARE)
    assert findings(*white, square) == [
        "black box beats white box: median, square, query leaves 10.0 % at eps 16/255,"
        " pgd, adaptive BPDA 55.0 %: a sign of masked gradients."
    ]
    assert findings(*white, change(square, eps=0.5)) == []  # another eps says nothing
    assert findings(*white, change(square, seed=1)) == []  # nor do other images
    # Intervals touch.
    assert findings(*white, record(100, attack="square", knowledge="query")) == []


def right_on(*spans, n=1000):
    """Return scores that are right on these ranges of the n images."""
    right = np.zeros(n)
    for start, stop in spans:
        right[start:stop] = 1
    return right


# Scores of the white-box cells, scores of the black-box cell, whether it is significantly stronger.
PAIRED = {
    "45 more, and none fewer": ([right_on((0, 500))], right_on((0, 455)), True),
    "as many, others": ([right_on((0, 500))], right_on((500, 1000)), False),
    "under two points": ([right_on((0, 500))], right_on((0, 485)), False),
    "25 more, by chance": ([right_on((0, 500))], right_on((0, 200), (500, 775)), False),
    "more than each, fewer than all": (
        [right_on((0, 500)), right_on((400, 900))],
        right_on((0, 430)),
        False,
    ),
    "five of fifty": ([right_on((0, 25), n=50)], right_on((0, 20), n=50), False),  # p = 0.06
}


@pytest.mark.parametrize("name", PAIRED)
def test_a_black_box_is_compared_image_by_image_where_the_units_are_at_hand(tmp_path, name):
    white, black, is_beaten = PAIRED[name]
    fields = {"dataset": "mnist"} | DECLARED  # no image repeats
    cells = [
        cell(tmp_path, score, attack=f"pgd:steps={20 + i}", x_adv=str(i), shard=1000, **fields)
        for i, score in enumerate(white)
    ]
    query = {"dataset": "mnist", "attack": "square", "knowledge": "query"}
    cells.append(cell(tmp_path, black, x_adv="q", shard=1000, **query))
    model = table(cells, [tmp_path])
    assert (BLACK_BOX in {f.code for f in model.findings}) == is_beaten
    assert (BLACK_BOX in marks(model)) == is_beaten
    assert any("black box beats white box" in sign for sign in model.signs) == is_beaten


def marks(model):
    """Return the codes of all findings beside the numbers of a table."""
    codes = []
    for row in model.rows:
        for number in row.numbers.values():
            codes += [finding.code for finding in number.findings]
    return codes


def test_a_cell_that_another_one_accuses_is_marked():
    rows = {r.attack: r for r in table([record(100, **DECLARED), record(20, **SQUARE)]).rows}
    accused = rows["pgd"].numbers["declared"]
    assert [format_accusation(finding) for finding in accused.findings] == [
        "black box beats it: median, square, query leaves 10.0 %"
    ]
    assert accused.is_marked and not rows["square"].numbers["query"].is_marked


def test_findings_are_never_written_into_records():
    records = [record(100, **DECLARED), record(20, **SQUARE)]
    before = [r.to_json() for r in records]
    table(records)
    assert [r.to_json() for r in records] == before


# Oblivious against adaptive.


def test_oblivious_below_adaptive_is_a_sign_of_masking():
    (line,) = findings(record(40), record(100, **DECLARED), record(90, **IDENTITY))
    assert line.startswith(
        "oblivious beats adaptive: median, pgd, oblivious leaves 20.0 % at eps 16/255,"
        " pgd, adaptive BPDA 45.0 %"
    )


def test_one_gradient_that_works_is_enough():
    lines = findings(record(40), record(100, **DECLARED), record(45, **IDENTITY))
    assert not any(line.startswith("oblivious") for line in lines)


def test_oblivious_is_compared_with_every_adaptive_attack():
    lines = findings(record(40), record(100, attack="apgd", **DECLARED))
    assert lines[0].startswith("oblivious beats adaptive: median, pgd")


def test_nothing_is_masked_from_an_attack_without_a_gradient():
    square = {"attack": "square", "access": "scores"}
    assert findings(record(40, **square), record(100, **square, **DECLARED)) == []


# Few steps against many.


def test_fewer_steps_beating_more_is_a_sign_of_masking():
    one = record(30, attack="fgsm", backwards=1.0, **DECLARED)
    many = record(100, backwards=20.0, **DECLARED)
    (line,) = findings(one, many)
    assert line.startswith("fewer steps beat more: median, fgsm, adaptive declared leaves 15.0 %")
    # One step transfers better, which is no sign.
    oblivious = [change(r, knowledge="oblivious", gradient=None) for r in (one, many)]
    assert findings(*oblivious) == []
    weak_one = record(100, attack="fgsm", backwards=1.0, **DECLARED)
    assert findings(weak_one, record(30, backwards=20.0, **DECLARED)) == []


def run(right, steps, backwards, attack="apgd", eot=1, **settings):
    """Return an adaptive attack with these settings in its spec."""
    fields = {"steps": steps} | settings
    spec = attack
    if steps:
        spec += ":" + ",".join(f"{name}={value}" for name, value in fields.items())
    return record(
        right,
        attack=spec,
        backwards=backwards,
        eot=eot,
        settings={"attack": fields},
        **DECLARED,
    )


def test_few_steps_are_compared_with_more_of_the_same_attack():
    few = run(30, 10, 10.0, loss="ce")
    many = run(100, 100, 8.0, loss="ce")  # dropped images cost nothing more
    (line,) = findings(few, many)
    assert line.startswith(
        "fewer steps beat more: median, apgd:loss=ce,steps=10, adaptive declared leaves 15.0 %"
    )


FEW = run(30, 10, 10.0, loss="ce")
NOT_COMPARED = {
    "nearly as many steps": (FEW, run(100, 19, 19.0, loss="ce")),
    "another loss, and images dropped": (
        run(30, 100, 8.0, loss="ce"),
        run(100, 100, 300.0, loss="dlr-targeted"),
    ),
    "another loss": (FEW, run(100, 100, 900.0, loss="dlr-targeted")),
    "other EOT copies": (FEW, run(100, 100, 2000.0, eot=20, loss="ce")),
    "another attack": (run(30, 10, 10.0), run(100, 100, 100.0, attack="pgd")),
    "a step size that the user sets, perhaps badly": (
        run(30, 0, 1.0, attack="fgsm"),
        run(100, 100, 100.0, attack="pgd", step=0.001),
    ),
}


@pytest.mark.parametrize("name", NOT_COMPARED)
def test_attacks_that_differ_in_more_than_steps_are_not_compared(name):
    assert findings(*NOT_COMPARED[name]) == []


# Another gradient against the declared one.


def test_another_gradient_below_the_declared_one_is_told_and_marked():
    """The card is wrong, while the worst case is right all the same."""
    cells = [record(100, **DECLARED), record(45, **IDENTITY), record(90, **LEARNED)]
    (line,) = findings(*cells)
    assert line.startswith(
        "another gradient beats the declared one: median, pgd, adaptive BPDA leaves 22.5 %"
        " at eps 16/255, pgd, adaptive declared 50.0 %"
    )
    numbers = table(cells).rows[0].numbers
    assert [format_accusation(f) for f in numbers["declared"].findings] == [
        "another gradient beats it: median, pgd, adaptive BPDA leaves 22.5 %"
    ]
    assert not numbers["identity"].is_marked and not numbers["learned"].is_marked
    assert findings(record(45, **DECLARED), record(100, **IDENTITY)) == []


# Accuracy along eps.


def test_eps_in_the_spec_is_one_series_too():
    series = [
        record(right, attack=f"pgd:eps={eps}", eps=eps, eps_text=str(eps), **DECLARED)
        for eps, right in ((0.1, 20), (0.3, 90))
    ]
    (line,) = findings(*series)
    assert line.startswith(
        "accuracy grows with eps: median, pgd, adaptive declared: 10.0 % at eps 0.1, 45.0 % at 0.3."
    )


def test_accuracy_that_grows_with_eps_is_told():
    series = [
        record(right, eps=eps, eps_text=str(eps), **DECLARED)
        for eps, right in ((0.3, 90), (0.1, 100), (0.2, 20))
    ]
    (line,) = findings(*series)
    assert line.startswith(
        "accuracy grows with eps: median, pgd, adaptive declared: 10.0 % at eps 0.2, 45.0 % at 0.3."
    )
    other_attacks = [change(r, surrogate=str(i)) for i, r in enumerate(series)]
    assert findings(*other_attacks) == []


# Series, failures, printing.


def test_a_finding_at_many_eps_is_one_line():
    records = []
    for i in range(1, 9):
        eps = {"eps": i / 10, "eps_text": f"{i / 10}"}
        records.append(record(40 - i, **eps))
        records.append(record(100 - i, **eps, **DECLARED))
    (finding,) = compare_cells(records)
    assert finding.more == 7 and "(and at 7 more eps)" in format_finding(finding)


def test_failed_cells_are_in_no_finding():
    assert findings(record(40), failed(**DECLARED), failed(**IDENTITY)) == []


def test_findings_stand_below_the_table():
    heading = "What comparing cells shows:"
    assert heading in printed([record(40), record(100, **DECLARED)], width=120)
    assert heading not in printed([record(100), record(40, **DECLARED)], width=120)


def test_the_same_search_at_two_levels_is_told_once():
    search = {
        "attack": "square",
        "access": "scores",
        "units": ["a"],
        "accuracy_after": {"100": 0.5},
    }
    levels = [record(20, knowledge=level, **search) for level in ("query", "adaptive")]
    assert len(table(levels).queries) == 1


# The catalogue.


def test_every_code_has_a_sentence():
    assert set(FLAG_TEXTS) == set(FlagCode)
    assert set(FINDING_TITLES) == set(ACCUSATIONS) == set(FindingCode)
    assert set(SIGN_TEXTS) == set(SignCode)


FLAGS = {
    FlagCode.ZERO_GRADIENT: (3, "zero gradient: 3 of 200 images"),
    FlagCode.UNDEFINED_GRADIENT: (150, "undefined gradient: 150 of 200 images"),
    FlagCode.UNCONVERGED: (
        0.015,
        "unconverged: accuracy still fell by 1.5 points in the last fifth of the queries,"
        " or in the last round of a search",
    ),
    FlagCode.NOT_FINITE: ("a {brace}", "a {brace} is not a finite number"),
    FlagCode.FEW_IMPOSTORS_AT_FAR_01: (
        3,
        "few impostors: 3 of val pass the threshold of FAR .1 %, which rests on them",
    ),
    FlagCode.LOSS_FELL: (None, "loss fell: the attack lowered the loss that it should raise"),
}


@pytest.mark.parametrize("code", FLAGS)
def test_the_sentence_of_a_flag_is_made_of_its_value(code):
    value, sentence = FLAGS[code]
    flag = Flag(code=code, value=value)
    assert format_flag(flag, 200) == sentence
    assert encode_flag(flag) == (code if value is None else f"{code}={value}")


def test_a_sign_says_its_subject_and_its_value():
    sign = Diagnosis(code=SignCode.NO_GRADIENT, subject="declared", value=0.011)
    assert format_sign(sign) == (
        "the declared gradient vanishes or is undefined on 1.1 % of the images"
    )
