"""What a verdict rests on: attacks that could have told."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from audit_toys import PastBlur, Shy, context_of, digits
from masked import Detached, make_card, nearest_in
from masked_stochastic import ALL_FAMILIES, ALL_HONEST, HonestRestorer, PastRestorer

import defend
from defend import Purifier, straight_through
from defend.auditing import attempts
from defend.auditing.autograd_routes import AutogradRoutes, find_autograd_routes
from defend.auditing.comparison import AttackedImages
from defend.auditing.declared import DeclaredAttack
from defend.auditing.grounds import find_grounds
from defend.auditing.session import Session
from defend.auditing.square_search import SquareSearch
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import CheckResult, CurvePoint, NotApplicable, NotTried
from defend.gradients import AUTOGRAD_ROUTES


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


class TurnedFarAway(Purifier):
    """Have the right gradient up to a mean distance of 0.6 eps from the clean images."""

    card = make_card("surrogate", stochastic=True)
    eps = 0.1

    def purify(self, x, noise):
        return (x + 0.02 * noise.normal(x)).clamp(0, 1)

    def surrogate(self, x, noise):
        clean = self.memory[nearest_in(self.memory, x)]
        is_far = (x - clean).abs().mean((1, 2, 3), keepdim=True) > 0.6 * self.eps
        return torch.where(is_far, x.flip(-1), x)


class RightAlone(Purifier):
    """Have the gradient of another image where two neighbours in a batch are not the same."""

    card = make_card("approximate", stochastic=True)
    alone = True  # where the gradient is right

    def purify(self, x, noise):
        value = (x + 0.02 * noise.normal(x)).clamp(0, 1)
        same = (x[1:] == x[:-1]).flatten(1).all(1)
        is_copy = F.pad(same, (1, 0)) | F.pad(same, (0, 1))
        is_right = (is_copy != self.alone).view(-1, 1, 1, 1)
        return straight_through(torch.where(is_right, x, x.flip(-1)), value)


ROUTES_OF = {  # purifier: the ways that differ from its declared gradient
    "exact": (HonestRestorer, []),
    "identity past a restorer": (PastRestorer, [AUTOGRAD_ROUTES[0]]),
    "a decoy in a step": (Decoy, [AUTOGRAD_ROUTES[1]]),
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


def session_of(purifier, n=16, eps=0.1):
    """Return a session whose declared attacks broke nothing."""
    session = Session(context_of(purifier, n=n, eps=eps))
    best = AttackedImages(session.context, session.context.all_rows)
    flat = [CurvePoint(10, best.accuracy), CurvePoint(40, best.accuracy)]
    session.declared_or_error = DeclaredAttack(best, best.accuracy, flat)
    return session


class RightOnSome(Purifier):
    """Have a turned gradient for a share of the images."""

    card = make_card("surrogate")
    turned = 0.4

    def purify(self, x, noise):
        return x.clone()

    def surrogate(self, x, noise):
        numbers = nearest_in(self.memory, x).view(-1, 1, 1, 1)
        return torch.where(numbers < self.turned * len(self.memory), -x, x)


@pytest.mark.parametrize(("turned", "expected"), [(0.4, False), (0.0, True)])
def test_a_gradient_must_be_the_slope_on_most_images(turned, expected):
    purifier = RightOnSome()
    purifier.turned = turned
    session = session_of(purifier)
    purifier.memory = session.context.x
    assert bool(find_grounds(session).rests_on) == expected


def test_the_images_that_stand_are_looked_at_first():
    """Of 32 images 8 stand, and on these alone the gradient is turned."""
    session = session_of(RightOnSome(), n=32)
    session.context.purifier.memory = session.context.x
    session.context.purifier.turned = 0.25
    session.declared.best.scores[8:] = 0
    assert session.slope_rows[:8].tolist() == list(range(8))
    assert session.lowest_slope(None).mean < 0


CURVES = {  # of the attacks: steps, copies, and why no verdict may rest on them
    "flat": ((0.9, 0.9), (0.9, 0.9), ""),
    "more steps help": ((0.9, 0.7), (0.7, 0.7), "more steps still break 20.0 points"),
    "more copies help": ((0.9, 0.9), (0.9, 0.8), "twice the copies still break 10.0 points"),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_verdict_rests_on_attacks_that_have_converged(name):
    steps, copies, reason = CURVES[name]
    session = session_of(HonestRestorer())
    declared = session.declared
    declared.curve = [CurvePoint(10, steps[0]), CurvePoint(40, steps[1])]
    declared.copies = [CurvePoint(5, copies[0]), CurvePoint(10, copies[1])]
    grounds = find_grounds(session)
    assert bool(grounds.rests_on) == (reason == "")
    assert not reason or grounds.missing[0] == f"declared gradient: {reason}"
    assert declared.text.startswith("<=") == (reason != "")


class Returning(Purifier):
    """Return the clean images for what is more than 1.3 eps away from them."""

    card = make_card("approximate")
    reach = 1.3

    def purify(self, x, noise):
        clean = self.memory[nearest_in(self.memory, x)]
        distance = (x.detach() - clean).abs().amax((1, 2, 3), keepdim=True)
        return torch.where(distance > self.reach * 0.1, straight_through(x, clean), x)


@pytest.mark.parametrize(("reach", "expected"), [(1.3, False), (9.0, True)])
def test_the_attack_of_twice_eps_must_break_most_of_what_stands(reach, expected):
    purifier = Returning()
    purifier.reach, purifier.memory = reach, digits().rows("val", 0, 16)[0]
    session = session_of(purifier)
    assert bool(find_grounds(session).rests_on) == expected


def corners(x, eps):
    """Return the corners of the ball that no bound of the box cuts off."""
    return torch.where(x < 0.5, x + eps, x - eps)


@pytest.mark.parametrize(("turns_at", "expected"), [(0.1, False), (1.0, True)])
def test_the_slope_is_measured_where_an_attack_ended_though_it_broke_nothing(turns_at, expected):
    """Behind noise the worst image is then the clean one, where the gradient is right."""
    purifier = TurnedFarAway()
    session = session_of(purifier)
    context = session.context
    purifier.memory, purifier.eps = context.x, turns_at
    session.declared.best.run(lambda rows: corners(context.x[rows], context.eps))
    session.declared.best.x_adv = context.x
    assert bool(find_grounds(session).rests_on) == expected


@pytest.mark.parametrize(("alone", "expected"), [(True, False), (False, True)])
def test_the_slope_is_that_of_the_copies_that_an_attack_takes(alone, expected):
    purifier = RightAlone()
    purifier.alone = alone
    assert bool(find_grounds(session_of(purifier)).rests_on) == expected


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
    assert [ground.name for ground in grounds.slopes] == ["declared gradient"]
    assert (grounds.slopes[0].slope >= THRESHOLDS.ground.value) == expected


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
