"""What a verdict rests on: attacks that could have told."""

from dataclasses import replace

import pytest
import torch
from audit_toys import PastBlur, Shy, context_of
from masked import Detached, make_card
from masked_stochastic import ALL_FAMILIES, ALL_HONEST, HonestRestorer, PastRestorer

import defend
from defend import Purifier, straight_through
from defend.auditing import attempts
from defend.auditing.autograd_routes import ROUTES, AutogradRoutes, find_autograd_routes
from defend.auditing.comparison import AttackedImages
from defend.auditing.declared import DeclaredAttack
from defend.auditing.grounds import find_grounds
from defend.auditing.session import Session
from defend.auditing.square_search import SquareSearch
from defend.auditing.verdict import CheckResult, NotApplicable, NotTried


class Decoy(Purifier):
    """Put the slope of another function in the place of a step that can be differentiated."""

    card = make_card("approximate")

    def purify(self, x, noise):
        return straight_through(x.flip(-1), x * 1)


class PastNumpy(Purifier):
    """Declare the identity past a step that cannot be differentiated."""

    card = make_card("identity")

    def purify(self, x, noise):
        return torch.from_numpy(x.numpy() * 1)


ROUTES_OF = {  # purifier: the ways that differ from its declared gradient
    "exact": (HonestRestorer, []),
    "identity past a restorer": (PastRestorer, [ROUTES[0]]),
    "a decoy in a step": (Decoy, [ROUTES[1]]),
    "no gradient at all": (lambda: Detached(strength=1.0), []),
    "cannot be differentiated": (PastNumpy, []),
}


@pytest.mark.parametrize("name", ROUTES_OF)
def test_autograd_attacks_where_it_is_another_gradient(name):
    make, expected = ROUTES_OF[name]
    assert find_autograd_routes(context_of(make(), n=16)).routes == expected


def test_what_cannot_be_differentiated_was_not_tried():
    routes = find_autograd_routes(context_of(PastNumpy(), n=16))
    with pytest.raises(NotTried, match="purify cannot be differentiated"):
        attempts.autograd_attempts(None, routes)
    with pytest.raises(NotApplicable, match="is that of autograd"):
        attempts.autograd_attempts(None, AutogradRoutes())
    assert not find_autograd_routes(context_of(Shy(), n=16)).raises  # autograd is its declared one


def session_of(purifier, n=16, eps=0.05):
    """Return a session whose declared attacks broke nothing."""
    session = Session(context_of(purifier, n=n, eps=eps))
    best = AttackedImages(session.context, session.context.all_rows)
    session.declared_or_error = DeclaredAttack(best, best.accuracy)
    return session


GROUNDS = {  # purifier: does a verdict rest on its declared gradient?
    "the slope": (HonestRestorer, True),
    "nearly the slope": (PastBlur, True),
    "a zero": (lambda: Detached(strength=1.0), False),
    "another slope": (Decoy, False),
}


@pytest.mark.parametrize("name", GROUNDS)
def test_no_case_belongs_to_the_half_that_judges(name):
    judging_kinds = tuple(family.kind for family in ALL_FAMILIES.values() if family.half == 1)
    judging = [entry.make() for entry in ALL_HONEST.values() if entry.half == 1]
    purifier = GROUNDS[name][0]()
    assert not isinstance(purifier, judging_kinds)
    assert (type(purifier), purifier.settings) not in [(type(p), p.settings) for p in judging]


@pytest.mark.parametrize("name", GROUNDS)
def test_a_verdict_rests_on_a_gradient_that_is_the_slope(name):
    make, expected = GROUNDS[name]
    grounds = find_grounds(session_of(make()))
    assert bool(grounds.rests_on) == expected, grounds
    assert any("declared gradient" in reason for reason in grounds.missing) != expected


@pytest.mark.parametrize(
    ("outcome", "rests", "missing"),
    [
        (CheckResult(measured=""), ["Square"], []),
        (CheckResult(measured="", inconclusive="still falls"), [], ["Square: still falls"]),
        (CheckResult(measured="", weakness="few queries"), [], ["Square: few queries"]),
        (NotTried("left out"), [], ["Square: left out"]),
    ],
)
def test_a_verdict_rests_on_a_search_that_ended(outcome, rests, missing):
    session = session_of(Detached(strength=1.0))
    session.outcomes["Square"] = outcome
    grounds = find_grounds(session)
    assert grounds.rests_on == rests
    assert grounds.missing[1:] == missing  # the declared gradient comes first


@pytest.mark.parametrize(
    ("eps", "longest", "runs", "is_judged"),
    [(1e-6, 16, [4, 8], False), (0.2, 16, [4, 8, 16], True), (0.2, 8, [4, 8], False)],
    ids=["it moves nothing", "flat in the end", "ended by the budget"],
)
def test_a_search_behind_noise_goes_on_until_it_gains_nothing(eps, longest, runs, is_judged):
    context = context_of(defend.load("gaussian:sigma=0.3"), eps=eps, n=16)
    context.budget = replace(context.budget, square_queries=4, max_square_queries=longest, eot=2)
    search = SquareSearch(context)
    (attempt,) = search.make_attempts()
    attempt(context.all_rows)
    assert (search.runs, search.inconclusive == "") == (runs, is_judged)


@pytest.mark.parametrize(
    ("queries", "eps", "weakness"),
    [(300, 0.2, "300 queries say little"), (1000, 0.001, "by only"), (1000, 0.2, "")],
    ids=["short", "moves little", "long"],
)
def test_a_search_that_is_short_or_moves_little_is_no_ground(queries, eps, weakness):
    context = context_of(defend.load("bitdepth:bits=3"), n=16, eps=eps)
    context.budget = replace(context.budget, square_queries=queries)
    search = SquareSearch(context)
    (attempt,) = search.make_attempts()
    attempt(context.all_rows)
    assert weakness in search.weakness and bool(search.weakness) == bool(weakness)
