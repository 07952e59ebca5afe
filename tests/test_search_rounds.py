"""What records and pages say of a search in rounds."""

import numpy as np
import pytest
import torch
from made_runs import complete, make_costs, persist, record, table

from defend.cell_numbers.flags import FlaggedCell, make_flags
from defend.cell_numbers.search_rounds import (
    COUNT_NOTE,
    END_NOTE,
    MOVE_NOTE,
    RIGHT_NOTE,
    ROUND_NOTE,
    read_rounds,
)
from defend.record_parts import SearchRounds
from defend.records import Flag, FlagCode
from defend.results.cell_notes import list_rounds
from defend.results.claim_text import format_claim
from defend.results.diagnostics import SignCode
from defend.results.numbers import name_single_gradient
from defend.results.searches import searches_every_gradient
from defend.search_moves import ENDS, GRADIENTS, LOSSES, NEVER, STARTS, Move
from defend.tasks.registry import DEFAULT, load_task
from defend.unit_files import Unit

FIRST, SECOND = Move("declared", "margin", "random"), Move("none", "square", "best")


def unit(broken_in, moves, rounds):
    """Return a unit with the notes of a search."""
    numbers = [move.numbers() if move else (NEVER,) * 3 for move in moves]
    notes = {
        ROUND_NOTE: torch.tensor(broken_in),
        MOVE_NOTE: torch.tensor(numbers),
        COUNT_NOTE: torch.full((len(broken_in),), rounds),
    }
    return Unit(tensors=notes, header={})


UNITS = [
    unit([0, 1, NEVER, 2], [None, FIRST, None, SECOND], 2),
    unit([1, 1, 4, NEVER], [FIRST, FIRST, SECOND, None], 4),
]


def test_rounds_are_counted_over_all_units():
    rounds = read_rounds(UNITS)
    assert rounds.standing == (7 / 8, 4 / 8, 3 / 8, 3 / 8, 2 / 8)
    assert dict(rounds.broken_by) == {str(FIRST): 3, str(SECOND): 2}


def with_notes(one, **notes):
    """Return the unit with the notes of a search that says how right images are, and its end."""
    names = {"right": RIGHT_NOTE, "ended": END_NOTE}
    return Unit(tensors={**one.tensors, **{names[k]: v for k, v in notes.items()}}, header={})


def test_images_that_show_the_same_thing_count_once():
    clusters = np.array([0, 1, 2, 3, 0, 0, 0, 0])
    assert read_rounds(UNITS, clusters).standing == pytest.approx(
        [(4 / 5 + 3) / 4, (2 / 5 + 2) / 4, (2 / 5 + 1) / 4, (2 / 5 + 1) / 4, (1 / 5 + 1) / 4]
    )


def test_shares_of_right_draws_stand_and_a_short_search_keeps_its_last():
    short = with_notes(UNITS[0], right=torch.tensor([[1.0, 0.5, 0.25]]).repeat(4, 1))
    long = with_notes(UNITS[1], right=torch.tensor([[1.0, 1.0, 0.75, 0.5, 0.25]]).repeat(4, 1))
    assert read_rounds([short, long]).standing == (1.0, 0.75, 0.5, 0.375, 0.25)


ENDED = [
    (["nothing stands", "nothing stands"], "nothing stands"),
    (["nothing stands", "idle"], "idle"),
    (["rounds", "idle"], "rounds"),
    (["rounds", None], None),
]


@pytest.mark.parametrize(("ends", "worst"), ENDED)
def test_the_worst_end_of_the_units_is_that_of_the_search(ends, worst):
    units = []
    for one, end in zip(UNITS, ends, strict=True):
        notes = {} if end is None else {"ended": torch.full((4,), ENDS.index(end))}
        units.append(with_notes(one, **notes))
    assert read_rounds(units).ended == worst


FALLS = SearchRounds(standing=(0.9, 0.4, 0.25), broken_by={}, ended="rounds")
STILL_WINNING = {
    "it made all its rounds": (FALLS, "adaptive", 0.15),
    "of a surrogate": (FALLS, "transfer", None),
    "it ended idle": (FALLS.model_copy(update={"ended": "idle"}), "adaptive", None),
    "an older record": (FALLS.model_copy(update={"ended": None}), "adaptive", None),
    "its last round broke nothing": (
        FALLS.model_copy(update={"standing": (0.9, 0.4, 0.4)}),
        "adaptive",
        0.0,
    ),
}


@pytest.mark.parametrize("what", STILL_WINNING)
def test_a_search_that_was_still_winning_is_unconverged(what):
    rounds, knowledge, lost = STILL_WINNING[what]
    flagged = FlaggedCell(
        task=load_task(DEFAULT),
        n=4,
        eps=0.1,
        eot=1,
        knowledge=knowledge,
        access="gradient",
        is_control=False,
        is_stochastic=False,
        objective="label",
    )
    units = [Unit(tensors={}, header={"costs": make_costs(record(1, n=4), 4)})]
    values = [
        flag.value
        for flag in make_flags(flagged, units, 0.0, rounds)
        if flag.code == FlagCode.UNCONVERGED
    ]
    assert values == ([] if lost is None else [pytest.approx(lost)])


def test_the_claim_of_a_search_that_was_still_winning_is_a_bound():
    for flags, is_bound in (([Flag(code=FlagCode.UNCONVERGED, value=0.15)], True), ([], False)):
        records = [*complete(), persist(8, rounds=FALLS, flags=flags)]
        text = format_claim(table(records).rows[0].claim)
        bound = "claim: ladder-2, <= 0.8 % right (unconverged)"
        assert text.startswith(bound) is is_bound


@pytest.mark.parametrize("note", [ROUND_NOTE, MOVE_NOTE, COUNT_NOTE])
def test_an_attack_without_such_a_note_has_no_rounds(note):
    tensors = {name: values for name, values in UNITS[0].tensors.items() if name != note}
    assert read_rounds([UNITS[0], Unit(tensors=tensors, header={})]) is None
    assert read_rounds([]) is None


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("start", STARTS)
def test_a_move_survives_its_numbers(gradient, loss, start):
    move = Move(gradient, loss, start)
    assert Move.of_numbers(*move.numbers()) == move


def test_the_page_says_how_far_the_search_came_and_what_broke_most():
    rounds = SearchRounds(standing=(0.9, 0.2, 0.2), broken_by={str(FIRST): 7})
    (line,) = list_rounds([persist(rounds=rounds), record(10)])
    assert "90.0, 20.0, 20.0 % of the images" in line
    assert line.endswith("margin through declared from random (7)")
    nothing = persist(rounds=rounds.model_copy(update={"broken_by": {}}))
    assert list_rounds([nothing])[0].endswith("none broke")


def test_only_a_search_of_the_scored_pipeline_stands_below_the_table():
    rounds = SearchRounds(standing=(0.9, 0.2), broken_by={})
    others = {"oblivious": None, "transfer": "median+resnet20"}
    for knowledge, surrogate in others.items():
        assert not list_rounds([persist(rounds=rounds, knowledge=knowledge, surrogate=surrogate)])
    assert len(list_rounds([persist(rounds=rounds)])) == 1


ROUNDS = SearchRounds(standing=(0.9,), broken_by={})
KEEPS_TO_ONE = {
    "every gradient": ({"rounds": ROUNDS}, {}, False),
    "no rounds": ({}, {}, True),
    "one gradient by its settings": ({"rounds": ROUNDS}, {"gradients": "declared"}, True),
    "another attack with rounds": ({"rounds": ROUNDS}, {"gradients": None}, True),
}


@pytest.mark.parametrize("what", KEEPS_TO_ONE)
def test_a_search_that_keeps_to_the_declared_gradient_is_told(what):
    changes, fields, is_alone = KEEPS_TO_ONE[what]
    search = persist(**changes)
    search = persist(**changes, settings={"attack": {**search.settings.attack, **fields}})
    row = table([search]).rows[0]
    codes = [sign.code for sign in row.claim.signs]
    assert (SignCode.DECLARED_GRADIENT_ALONE in codes) is is_alone
    assert (name_single_gradient([search]) == "declared only") is is_alone


@pytest.mark.parametrize("gradient", ["identity", "learned"])
def test_a_search_through_a_chosen_gradient_tries_no_other(gradient):
    assert not searches_every_gradient(persist(rounds=ROUNDS, gradient=gradient))
    cells = [persist(rounds=ROUNDS, gradient=gradient)]
    assert name_single_gradient(cells).endswith(" only")
