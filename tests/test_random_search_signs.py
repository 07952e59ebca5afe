"""A search in rounds whose images fall to its random search is a sign, and hides no other."""

import pytest
from made_runs import apgd, claim_line, complete, persist, square

from defend.record_parts import SearchRounds
from defend.results.comparisons import compare_black_box
from defend.results.diagnostics import SignCode
from defend.results.masking_signs import find_signs
from defend.results.significance import stronger_by_intervals
from defend.search_moves import STARTS, Move

SQUARE, MARGIN = str(Move("none", "square", "best")), str(Move("declared", "margin", "random"))
BROKEN_BY = {
    "all by the random search": ({SQUARE: 900}, True),
    "most by the random search": ({SQUARE: 501, MARGIN: 499}, True),
    "from several starts": ({str(Move("none", "square", s)): 300 for s in STARTS}, True),
    "half of each": ({SQUARE: 400, MARGIN: 400}, False),
    "most by a gradient": ({MARGIN: 800, SQUARE: 100}, False),
    "too few to say anything": ({SQUARE: 19}, False),
    "just enough": ({SQUARE: 20}, True),
    "nothing": ({}, False),
}


def search(broken_by):
    rounds = SearchRounds(standing=(0.99, 0.01), broken_by=broken_by)
    return persist(rounds=rounds)


@pytest.mark.parametrize("what", BROKEN_BY)
def test_what_fell_to_a_random_search_is_a_sign(what):
    broken_by, is_sign = BROKEN_BY[what]
    codes = [sign.code for sign in find_signs([*complete(), search(broken_by)])]
    assert (SignCode.RANDOM_SEARCH_BREAKS_MOST in codes) is is_sign


def test_the_claim_says_it():
    line = claim_line([*complete(), search({SQUARE: 900})])
    assert "broke, 90.0 % of the images, fell to a random search" in line


@pytest.mark.parametrize("what", BROKEN_BY)
def test_such_a_search_does_not_hide_that_black_box_beats_white_box(what):
    broken_by, is_left_out = BROKEN_BY[what]
    half = {"robust_accuracy": 0.5, "ci_low": 0.47, "ci_high": 0.53}
    cells = [apgd("adaptive", "declared", "ce", **half), square(5000), search(broken_by)]
    findings = list(compare_black_box(cells, stronger_by_intervals))
    assert bool(findings) is is_left_out
