"""What records and pages say of a search in rounds."""

import pytest
import torch
from made_runs import persist, record, table

from defend.cell_numbers.search_rounds import COUNT_NOTE, MOVE_NOTE, ROUND_NOTE, read_rounds
from defend.record_parts import SearchRounds
from defend.results.cell_notes import list_rounds
from defend.results.diagnostics import SignCode
from defend.search_moves import GRADIENTS, LOSSES, NEVER, STARTS, Move
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


def test_the_search_tries_other_gradients_than_the_one_it_is_run_with():
    rounds = SearchRounds(standing=(0.9,), broken_by={})
    for search, is_sign in ((persist(rounds=rounds), False), (persist(), True)):
        codes = [sign.code for sign in table([search]).rows[0].claim.signs]
        assert (SignCode.DECLARED_GRADIENT_ALONE in codes) is is_sign
