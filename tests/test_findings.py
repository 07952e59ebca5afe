"""What comparing cells shows: signs that an attack failed where the purifier did not succeed."""

import numpy as np
import pytest
from made_runs import DECLARED, IDENTITY, LEARNED, cell, failed, printed, record

from defend.results import table
from defend.results.diagnostics import find


def test_black_box_below_white_box_is_a_sign_of_masking():
    white = [record(120, **DECLARED), record(110, **IDENTITY)]
    square = record(20, attack="square", knowledge="query", access="scores")
    (line,) = find([*white, square])
    assert (
        line
        == "black box beats white box: median, square, query leaves 10.0 % at eps 16/255, pgd, adaptive BPDA 55.0 %: a sign of masked gradients."
    )
    assert find([*white, square | {"eps": 0.5}]) == []  # another eps says nothing
    assert find([*white, square | {"seed": 1}]) == []  # nor do other images
    assert find([*white, record(100, attack="square", knowledge="query")]) == []  # intervals touch


def standing(*spans, n=1000):
    """Right on these ranges of the n images."""
    right = np.zeros(n)
    for start, stop in spans:
        right[start:stop] = 1
    return right


PAIRED = {
    "45 more, and none fewer": ([standing((0, 500))], standing((0, 455)), True),  # intervals touch
    "as many, others": ([standing((0, 500))], standing((500, 1000)), False),
    "under two points": ([standing((0, 500))], standing((0, 485)), False),
    "25 more, by chance": ([standing((0, 500))], standing((0, 200), (500, 775)), False),
    "more than each, fewer than all": (
        [standing((0, 500)), standing((400, 900))],
        standing((0, 430)),
        False,
    ),
    "five of fifty": ([standing((0, 25), n=50)], standing((0, 20), n=50), False),  # p = 0.06
}


@pytest.mark.parametrize("what", PAIRED)
def test_a_black_box_is_compared_image_by_image_where_the_units_are_at_hand(tmp_path, what):
    white, black, beaten = PAIRED[what]
    cells = [
        cell(tmp_path, score, attack=f"pgd:steps={20 + i}", x_adv=str(i), shard=1000, **DECLARED)
        for i, score in enumerate(white)
    ]
    made = table(
        [*cells, cell(tmp_path, black, attack="square", knowledge="query", x_adv="q", shard=1000)],
        [tmp_path],
    )
    assert any("black box beats white box" in line for line in made.findings) == beaten
    assert (
        any(
            "black box beats it" in flag
            for row in made.rows
            for number in row.numbers.values()
            for flag in number.flags
        )
        == beaten
    )
    assert any("black box beats white box" in sign for sign in made.signs) == beaten


def test_oblivious_below_adaptive_is_a_sign_of_masking():
    (line,) = find([record(40), record(100, **DECLARED), record(90, **IDENTITY)])
    assert line.startswith(
        "oblivious beats adaptive: median, pgd, oblivious leaves 20.0 % at eps 16/255, pgd, adaptive BPDA 45.0 %"
    )
    told = find(
        [record(40), record(100, **DECLARED), record(45, **IDENTITY)]
    )  # one gradient that works is enough
    assert not any(line.startswith("oblivious") for line in told)
    assert find([record(40), record(100, attack="apgd", **DECLARED)])[0].startswith(
        "oblivious beats adaptive: median, pgd"
    )  # by whatever attack
    square = {"attack": "square", "access": "scores"}
    assert (
        find([record(40, **square), record(100, **square, **DECLARED)]) == []
    )  # it sees no gradient: nothing can be masked from it


def test_fewer_steps_beating_more_is_a_sign_of_masking():
    one, many = (
        record(30, attack="fgsm", backwards=1.0, **DECLARED),
        record(100, backwards=20.0, **DECLARED),
    )
    (line,) = find([one, many])
    assert line.startswith("fewer steps beat more: median, fgsm, adaptive declared leaves 15.0 %")
    assert (
        find([r | {"knowledge": "oblivious", "gradient": None} for r in (one, many)]) == []
    )  # one step transfers better: no sign
    assert (
        find(
            [
                record(100, attack="fgsm", backwards=1.0, **DECLARED),
                record(30, backwards=20.0, **DECLARED),
            ]
        )
        == []
    )


def test_few_steps_are_compared_with_more_of_the_same_attack():
    def run(right, steps, backwards, attack="apgd", eot=1, **own):
        spec = (
            f"{attack}:{','.join(f'{k}={v}' for k, v in {'steps': steps, **own}.items())}"
            if steps
            else attack
        )
        return record(
            right,
            attack=spec,
            backwards=backwards,
            eot=eot,
            **DECLARED | {"settings": {"attack": {"steps": steps, **own}}},
        )

    few, many = (
        run(30, 10, 10.0, loss="ce"),
        run(100, 100, 8.0, loss="ce"),
    )  # dropped images cost nothing more
    (line,) = find([few, many])
    assert line.startswith(
        "fewer steps beat more: median, apgd:steps=10,loss=ce, adaptive declared leaves 15.0 %"
    )
    assert find([few, run(100, 19, 19.0, loss="ce")]) == []  # nearly as many
    assert (
        find([run(30, 100, 8.0, loss="ce"), run(100, 100, 300.0, loss="dlr-targeted")]) == []
    )  # healthy: a strong one drops, another loss
    assert find([few, run(100, 100, 900.0, loss="dlr-targeted")]) == []
    assert find([few, run(100, 100, 2000.0, eot=20, loss="ce")]) == []
    assert find([run(30, 10, 10.0), run(100, 100, 100.0, attack="pgd")]) == []
    assert (
        find([run(30, 0, 1.0, attack="fgsm"), run(100, 100, 100.0, attack="pgd", step=0.001)]) == []
    )  # who sets the step may set it badly


def test_another_gradient_below_the_declared_one_is_told_and_marked():
    """A card that lies, where the worst case is right all the same."""
    cells = [record(100, **DECLARED), record(45, **IDENTITY), record(90, **LEARNED)]
    (line,) = find(cells)
    assert line.startswith(
        "another gradient beats the declared one: median, pgd, adaptive BPDA leaves 22.5 % at eps 16/255, pgd, adaptive declared 50.0 %"
    )
    flags = {column: n.flags for column, n in table(cells).rows[0].numbers.items()}
    assert (
        flags["declared"]
        == ("another gradient beats it: median, pgd, adaptive BPDA leaves 22.5 %",)
        and not flags["identity"]
        and not flags["learned"]
    )
    assert (
        find([record(45, **DECLARED), record(100, **IDENTITY)]) == []
    )  # the declared one is the better


def test_a_cell_that_another_one_accuses_is_marked():
    square = record(20, attack="square", knowledge="query", access="scores")
    rows = {row.attack: row for row in table([record(100, **DECLARED), square]).rows}
    assert rows["pgd"].numbers["declared"].flags == (
        "black box beats it: median, square, query leaves 10.0 %",
    )
    assert not rows["square"].numbers["query"].flags


def test_the_same_search_at_two_levels_is_told_once():
    searched = {
        "attack": "square",
        "access": "scores",
        "units": ["a"],
        "accuracy_after": {"100": 0.5},
    }
    assert (
        len(
            table(
                [
                    record(20, knowledge="query", **searched),
                    record(20, **searched | {"knowledge": "adaptive"}),
                ]
            ).queries
        )
        == 1
    )


def test_eps_in_the_spec_is_one_series_too():
    series = [
        record(k, attack=f"pgd:eps={e}", eps=e, eps_text=str(e), **DECLARED)
        for e, k in ((0.1, 20), (0.3, 90))
    ]
    (line,) = find(series)
    assert line.startswith(
        "accuracy grows with eps: median, pgd, adaptive declared: 10.0 % at eps 0.1, 45.0 % at 0.3."
    )


def test_accuracy_that_grows_with_eps_is_told():
    series = [
        record(k, eps=e, eps_text=str(e), **DECLARED) for e, k in ((0.3, 90), (0.1, 100), (0.2, 20))
    ]
    (line,) = find(series)
    assert line.startswith(
        "accuracy grows with eps: median, pgd, adaptive declared: 10.0 % at eps 0.2, 45.0 % at 0.3."
    )
    assert find([r | {"surrogate": str(i)} for i, r in enumerate(series)]) == []


def test_a_finding_at_many_eps_is_one_line():
    levels = ((40, {"knowledge": "oblivious"}), (100, DECLARED))
    records = [
        record(k - i, eps=i / 10, eps_text=f"{i / 10}", **level)
        for i in range(1, 9)
        for k, level in levels
    ]
    (line,) = find(records)
    assert "(and at 7 more eps)" in line


def test_failed_cells_are_in_no_finding():
    assert find([record(40), failed(**DECLARED), failed(**IDENTITY)]) == []


def test_findings_stand_below_the_table():
    assert "What comparing cells shows:" in printed(
        [record(40), record(100, **DECLARED)], width=120
    )
    assert "What comparing cells shows:" not in printed(
        [record(100), record(40, **DECLARED)], width=120
    )
