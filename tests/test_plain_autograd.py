"""Plain autograd: the derivative of `purify` itself, whatever gradient the card declares."""

import masked
import pytest
import torch
from tiny_restorers import random_normal

import defend
from defend import Chain, Noise, PlainAutograd, Purifier, Target, recomputed, relax
from defend.chain import declares_autograd
from defend.defenses.median import Median
from defend.gradients import identity, straight_through

PAST = PlainAutograd(past_replacements=True)


class Squares(Purifier):
    """Return x^2, whose slope is 2 x."""

    card = masked.make_card("identity")

    def purify(self, x, noise):
        return x**2


class StandIn(Squares):
    """Declare the slope 5 of a stand-in."""

    card = masked.make_card("surrogate")

    def surrogate(self, x, noise):
        return 5 * x


class Replaced(Purifier):
    """Give x^2 the slope 3, by straight_through, within `purify`."""

    card = masked.make_card("approximate")

    def purify(self, x, noise):
        return straight_through(3 * x, x**2)


class Rounded(Replaced):
    """Give a value that is cut off from its image the slope 3."""

    def purify(self, x, noise):
        return straight_through(3 * x, x.detach() ** 2)


class Steps(Purifier):
    """Compute x^2 again in the backward pass."""

    card = masked.make_card("identity")

    def purify(self, x, noise):
        return recomputed(lambda x, _: straight_through(3 * x, x**2), x, noise)


class Relaxes(Replaced):
    """Give x^2 the slope 3 by `relax`."""

    def purify(self, x, noise):
        return relax(3 * x, x**2)


class Calls(Purifier):
    """Call another purifier, by the gradient that it names."""

    card = masked.make_card("identity")
    named: bool = False

    def purify(self, x, noise):
        return Squares().purified(x, noise, identity if self.named else None)


def slopes(purifier, backward, x):
    """Return d purified / d x of each pixel; 0 where there is none."""
    x = x.clone().requires_grad_()
    y = purifier.purified(x, Noise.of(0, torch.arange(len(x))), backward)
    assert torch.equal(y, purifier.purified(x.detach(), Noise.of(0, torch.arange(len(x)))))
    return torch.autograd.grad(y.sum(), x, materialize_grads=True)[0]


def chain(*members):
    return Chain(members=members)


# purifier: its slope at x by its card, by plain autograd, and past replacements; (a, k): a x^k
SLOPES = {
    "identity": (Squares(), (1, 0), (2, 1), (2, 1)),
    "stand-in": (StandIn(), (5, 0), (2, 1), (2, 1)),
    "replaced": (Replaced(), (3, 0), (3, 0), (2, 1)),
    "relax": (Relaxes(), (3, 0), (3, 0), (2, 1)),
    "cut off": (Rounded(), (3, 0), (3, 0), (3, 0)),
    "recomputed": (Steps(), (1, 0), (3, 0), (2, 1)),
    "chain": (
        chain(Squares(), StandIn()),
        (5, 0),
        (4, 3),
        (4, 3),
    ),
    "calls": (Calls(), (1, 0), (2, 1), (2, 1)),
    "names": (Calls(named=True), (1, 0), (1, 0), (2, 1)),
}


@pytest.mark.parametrize("size", [256, 2], ids=["whole", "cut to memory"])
@pytest.mark.parametrize("name", SLOPES)
def test_the_slope_is_that_of_the_formula(name, size):
    purifier, *expected = SLOPES[name]
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    members = purifier.members if name == "chain" else ()
    for part in (purifier, *members):
        part.max_batch = size
    for backward, (a, k) in zip((None, PlainAutograd(), PAST), expected, strict=True):
        assert torch.allclose(slopes(purifier, backward, x), a * x**k)


def test_a_gradient_that_was_plain_is_declared_again_afterwards():
    x = torch.full((1, 1, 4, 4), 0.5)
    slopes(Squares(), PAST, x)
    assert (slopes(Replaced(), None, x) == 3).all()


class Detached(Squares):
    """Cut the image off."""

    def purify(self, x, noise):
        return x.detach() ** 2


def gradient_of_mean(purifier, x, eot=1, weights=1.0):
    """Return the gradient of the weighted sum of each purified image, as an attack sees it."""

    class Weigh(torch.nn.Module):
        def forward(self, x):
            return (x * weights).sum((1, 2, 3))[:, None]

    noise = Noise.of(0, torch.arange(len(x)))
    target = Target(Weigh(), purifier, noise, PlainAutograd(), eot=eot)
    y = torch.zeros(len(x), dtype=torch.int64)
    return target.gradient(x, y, lambda logits, _: logits[:, 0])[0]


def test_a_purify_without_a_gradient_has_one_of_zero():
    x = torch.rand(2, 1, 4, 4)
    assert (gradient_of_mean(Squares(), x) != 0).all()
    assert (gradient_of_mean(Detached(), x) == 0).all()


def test_a_target_averages_it_over_copies():
    """Noise of sigma s before x^2: the slope of each draw is 2 (x + s n)."""
    noisy = chain(defend.load("gaussian:sigma=0.01"), Squares())
    x, weights = torch.full((3, 1, 8, 8), 0.5), random_normal(1, 1, 8, 8, seed=2)
    one, many = (gradient_of_mean(noisy, x, eot, weights) for eot in (1, 200))
    expected = weights.expand_as(x)
    assert not torch.allclose(one, expected, atol=0.01)
    assert torch.allclose(many, expected, atol=0.01)


@pytest.mark.parametrize(
    ("purifier", "expected"),
    [
        (Median(), True),
        (Replaced(), True),
        (Squares(), False),
        (StandIn(), False),
        (chain(Median(), Replaced()), True),
        (chain(Median(), Squares()), False),
        (chain(Squares(), Squares()), False),
    ],
)
def test_who_declares_autograd(purifier, expected):
    assert declares_autograd(purifier) == expected


NAMES = ("Hides", "Median")


def test_the_bench_attacks_through_autograd_where_another_gradient_is_declared(tmp_path):
    """Behind x^2 with the slope 0 of a stand-in, autograd breaks what the declared one leaves."""

    class Hides(StandIn):
        """Declare no slope."""

        def surrogate(self, x, noise):
            return 0 * x

    records = defend.bench(
        dataset="digits",
        classifiers=["convnet"],
        defenses=[Hides(), Median()],
        attacks=["pgd:steps=10"],
        knowledge=["adaptive"],
        gradients=["declared", "autograd"],
        eps="0.2",
        n=32,
        split="val",
        device="cpu",
        out=tmp_path / "run",
        workers=1,
    )
    hides, median = ([r for r in records if name in r.defense_label] for name in NAMES)
    left = {r.gradient: r.robust_accuracy for r in hides}
    assert left["declared"] > 0.9
    assert left["autograd"] < 0.5
    assert [r.gradient for r in median] == ["declared"]
