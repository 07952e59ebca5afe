"""The persistent search as an alternative attack: it weighs gradients, and says what broke most."""

from dataclasses import replace

import masked
import pytest
import torch.nn.functional as F
from audit_toys import context_of, find_check, run_check
from masked import make_card

import defend
from defend import Purifier
from defend.auditing.persistent_search import PersistentSearch
from defend.auditing.session import Session
from defend.auditing.verdict import NotTried

EPS = 0.2


class Aside(Purifier):
    """Blur, so that points that break the bare classifier do not break every image, and declare the
    gradient of the image turned around.
    """

    card = make_card("surrogate")

    def purify(self, x, noise):
        return F.avg_pool2d(x, 3, 1, 1)

    def surrogate(self, x, noise):
        return x.flip(-1, -2)


def test_a_gradient_that_leads_aside_is_beaten_by_the_same_search_through_others():
    row = run_check("persistent search", Aside(), eps=EPS)
    assert row.verdict == "flag" and row.gap > 0.1
    assert ", most by " in row.measured and row.move in row.measured


@pytest.mark.parametrize("spec", ["jpeg", "bitdepth:bits=3", "median"])
def test_an_honest_gradient_is_not_beaten(spec):
    row = run_check("persistent search", defend.load(spec), eps=0.05)
    assert row.gap < 0.02


def test_without_another_gradient_there_is_nothing_to_compare():
    row = run_check("persistent search", defend.load("none"))
    assert (row.verdict, row.gap) == ("not run", None)
    assert "the only one" in row.measured


def test_the_search_through_one_gradient_counts_no_moves():
    context = context_of(Aside(), eps=EPS)
    context.budget = replace(context.budget, search_rounds=1)
    search = PersistentSearch(context)
    search.through_declared(context.all_rows)
    assert search.describe() == ""
    search.through_every(context.all_rows)
    counted = search.moves.total()
    assert 0 < counted <= len(context.x)
    assert search.describe().endswith(f" of {counted})")


@pytest.mark.parametrize(
    ("eps", "is_conclusive"),
    [(0.08, False), (1e-6, True), (0.5, True)],
    ids=["some", "none", "all"],
)
def test_a_search_whose_last_round_still_broke_images_says_so(eps, is_conclusive):
    """Not where nothing is left: another round would have nothing to break."""
    context = context_of(masked.Blur(), eps=eps, n=32)
    context.budget = replace(context.budget, search_rounds=1, search_queries=0)
    search = PersistentSearch(context)
    search.through_every(context.all_rows)
    assert (search.inconclusive == "") == is_conclusive, search.inconclusive


def test_a_quick_audit_leaves_it_out():
    check = find_check("persistent search", context_of(Aside(), eps=EPS))
    with pytest.raises(NotTried, match="budget=quick"):
        check.run(Session(context_of(Aside(), eps=EPS)))
