"""The audit announces its duration: counted in evaluations, that is at most twice what it takes."""

from collections import Counter
from functools import cache

import audit_toys
import counting_plugin
import masked
import masked_stochastic
import pytest

from defend.auditing import estimate, run
from defend.auditing.autograd_routes import find_autograd_routes
from defend.auditing.cost import Cost, count_evaluations
from defend.auditing.prepare import prepare

TINY_EPS = 1e-6  # at which no attack breaks anything
LARGE_EPS = 0.3
# Costs of one evaluation of each kind: a slow purifier with a dear gradient, and one whose gradient
# costs no more than a forward pass.
PRICES = {
    "dear gradient": Cost(gradients=3, identity_gradients=1, forwards=1),
    "cheap gradient": Cost(gradients=1, identity_gradients=1, forwards=1),
}
KINDS = {"deterministic": counting_plugin.Counts, "stochastic": counting_plugin.CountsAndDraws}


# The attacks beside the usual ones: through a relaxation, or on so many surrogates.
BESIDE = {
    "nothing": (False, 0),
    "relaxation": (True, 0),
    "surrogate": (False, 1),
    "both": (True, 2),
}


def counted(kind, evaluations, relaxation=False):
    """Return a purifier that counts its images: with a gradient or without."""
    original = kind.purify

    def purify(self, x, noise):
        evaluations["gradients" if x.requires_grad else "forwards"] += len(x)
        return original(self, x, noise)

    methods = {"__doc__": kind.__doc__, "purify": purify}
    if relaxation:
        methods["relaxed"] = lambda self, x, noise, _: purify(self, x, noise)
    return type(kind.__name__, (kind,), methods)()


def make_context(kind, eps, evaluations, relaxation=False, surrogates=0):
    """Return the context of an audit of 16 images; its surrogates count alike."""
    classifier = audit_toys.convnet()
    request = audit_toys.request(
        counted(kind, evaluations, relaxation),
        audit_toys.digits(),
        classifier,
        eps=eps,
        surrogates=[(counted(kind, evaluations), classifier)] * surrogates,
    )
    return prepare(request)[0]


@cache
def run_audit(kind, eps, beside="nothing"):
    """Return the cost that is announced, the evaluations, and those before the announced rest."""
    evaluations = Counter()
    context = make_context(kind, eps, evaluations, *BESIDE[beside])
    estimated = estimate.Estimate(estimate.announced_cost(context), PRICES["dear gradient"])
    before_rest = []

    def say(line):
        if "more, if no other" in line:
            before_rest.append((line, Counter(evaluations)))

    rows, accuracies, _ = run.run_checks(context, say, estimated)
    assert not [row.measured for row in rows if "could not run" in row.measured]
    ((line, before),) = before_rest
    assert line == estimate.describe_rest(context, estimated, accuracies.declared_accuracy)
    rest = estimated.cost.rest(1.0 if context.stochastic else accuracies.declared_accuracy)
    return estimated.cost, evaluations, (rest, evaluations - before)


def price(cost, prices):
    return sum(a * b for a, b in zip(cost, prices, strict=True))


UNBROKEN = [("deterministic", beside) for beside in BESIDE] + [("stochastic", "nothing")]


@pytest.fixture(scope="module", params=UNBROKEN, ids=" beside ".join)
def unbroken(request):
    kind, beside = request.param
    return run_audit(KINDS[kind], TINY_EPS, beside)


EVERY_PRICE = pytest.mark.parametrize("prices", PRICES.values(), ids=PRICES)


@EVERY_PRICE
def test_the_first_estimate_is_kept_and_within_a_factor_of_two(unbroken, prices):
    announced, evaluations, _ = unbroken
    taken = price(Cost(**evaluations), prices)
    assert taken <= price(announced.total, prices) <= 2 * taken


ROUTES_OF = {  # purifier: the most ways of autograd beside its declared gradient
    "exact": (masked.Blur, 0),
    "one that replaces a step": (masked.Exploding, 1),
    "one past which its gradient goes": (masked_stochastic.PastRestorer, 2),
    "a stand-in": (masked.Misdirected, 2),
}


@pytest.mark.parametrize("name", ROUTES_OF)
def test_every_route_of_autograd_that_can_be_attacked_is_announced(name):
    make, most = ROUTES_OF[name]
    context = audit_toys.context_of(make(), n=16)
    assert estimate.most_autograd_routes(context.purifier) == most
    assert len(find_autograd_routes(context).routes) <= most
    none = count_evaluations(context.budget).total
    assert (estimate.announced_cost(context).total.gradients > none.gradients) == (most > 0)


@EVERY_PRICE
@pytest.mark.parametrize("beside", [name for name in BESIDE if name != "nothing"])
def test_what_attacks_beside_the_usual_ones_add_is_announced(beside, prices):
    """A surrogate is announced with two routes: one past it, if its own gradient is zero."""
    usual, more = (run_audit(KINDS["deterministic"], TINY_EPS, b) for b in ("nothing", beside))
    announced = price(more[0].total, prices) - price(usual[0].total, prices)
    taken = price(Cost(**more[1]), prices) - price(Cost(**usual[1]), prices)
    assert 0 < taken <= announced <= 2 * taken


@pytest.fixture(scope="module")
def broken():
    return run_audit(KINDS["deterministic"], LARGE_EPS)


@EVERY_PRICE
def test_both_estimates_are_kept_where_images_break(broken, prices):
    """The second one knows how many images are left, so that it is within a factor of two."""
    announced, evaluations, (rest, taken_behind) = broken
    assert price(Cost(**evaluations), prices) <= price(announced.total, prices)
    assert price(rest, prices) < price(announced.total, prices) / 2
    taken = price(Cost(**taken_behind), prices)
    assert taken <= price(rest, prices) <= 2 * taken


@pytest.mark.parametrize(("long", "images"), [(0.0, 2), (1e9, 2 + 16)], ids=["slow", "fast"])
def test_a_slow_purifier_is_timed_on_two_images(long, images, monkeypatch):
    monkeypatch.setattr(estimate, "LONG", long)
    evaluations = Counter()
    context = make_context(KINDS["deterministic"], TINY_EPS, evaluations)
    evaluations.clear()
    assert estimate.estimate(context) is not None
    assert evaluations == {"gradients": images, "forwards": 2 * images}  # identity, and logits


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "3 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_a_duration_has_a_fitting_unit(seconds, text):
    assert estimate.format_seconds(seconds) == text
