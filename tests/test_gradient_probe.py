"""Zero and undefined gradients are counted from what the attack computed, and one point more."""

import pytest
import torch
from audit_toys import AliveOnTheGrid, RightAtFirst, Rough, Startled, Undefined, digits, network

import defend
from defend import Chain
from defend.benchmarks.gradient_probe import (
    FirstGradient,
    ObservedTarget,
    check_attacked_pipeline,
    count_unusable,
)
from defend.errors import BrokenPurifier
from defend.noise import Noise

N = 24
COUNTS = {  # purifier -> images with a zero gradient, with an undefined one
    Undefined: (0, N),
    RightAtFirst: (0, 0),
    AliveOnTheGrid: (N, 0),
    Rough: (0, 0),
}
ATTACKS = (None, "fgsm", "pgd:steps=2", "apgd:loss=dlr,steps=2")  # None: no attack has run


def images():
    return digits().rows("val", 0, N)


def observed(purifier, **keys):
    x, _ = images()
    noise = Noise.of(0, torch.arange(N))
    return ObservedTarget(network(), purifier, noise, first_gradient=FirstGradient(x), **keys)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("purifier", COUNTS)
def test_gradients_are_looked_at_on_the_grid_and_off_it(purifier, attack):
    """A gradient that is no number makes no step: the sign of NaN is 0."""
    x, y = images()
    target = observed(purifier())
    if attack is not None:
        noise = Noise.of(0, torch.arange(N)).fork("start")
        defend.load(attack, "attack").run(target, x, y, 0.1, noise)
    counts = count_unusable(target, target.first_gradient, y)
    assert (counts.zero, counts.undefined) == COUNTS[purifier]


@pytest.mark.parametrize(("attack", "is_on_grid"), [("fgsm", True), ("pgd:steps=2", False)])
def test_the_first_gradient_of_an_attack_is_recorded(attack, is_on_grid):
    x, y = images()
    target = observed(Rough())
    defend.load(attack, "attack").run(target, x, y, 0.1, Noise.of(0, torch.arange(N)))
    assert target.first_gradient.unusable is not None
    assert target.first_gradient.is_on_grid == is_on_grid


def test_counting_costs_one_gradient_beside_an_attack_and_leaves_its_counts_alone():
    x, y = images()
    target = observed(Rough())
    defend.load("fgsm", "attack").run(target, x, y, 0.1, Noise.of(0, torch.arange(N)))
    counts = dict(target.counts)
    forwards = []
    target.classifier.register_forward_hook(lambda _, inputs, __: forwards.append(len(inputs[0])))
    count_unusable(target, target.first_gradient, y)
    assert forwards == [N]
    assert target.counts == counts


@pytest.mark.parametrize("noise", [False, True])
def test_a_purifier_that_looks_whether_a_gradient_is_asked_for_fails(noise):
    """With noise or without; one that rounds otherwise passes."""
    x, y = images()
    members = (defend.load("gaussian:sigma=0.05"),) if noise else ()

    def check(purifier):
        target = observed(Chain(members=(*members, purifier)), eot=3)
        check_attacked_pipeline(target, x, y, needs_gradient=True)

    check(Rough())
    with pytest.raises(BrokenPurifier, match="predictions change when gradients are enabled"):
        check(Startled())


class Elsewhere(defend.load("bitdepth").__class__):
    """Bit depth whose relaxed value is the smooth staircase itself."""

    def relaxed(self, x, noise, temperature):
        return defend.soft_round(x * 7, temperature) / 7


@pytest.mark.parametrize("noise", [False, True])
def test_a_relaxation_that_attacks_another_pipeline_fails(noise):
    x, y = images()
    members = (defend.load("gaussian:sigma=0.05"),) if noise else ()

    def check(purifier):
        chain = Chain(members=(*members, purifier))
        target = observed(chain, eot=3, backward=defend.Relaxed(0.3))
        check_attacked_pipeline(target, x, y, needs_gradient=True)

    check(defend.load("bitdepth"))
    with pytest.raises(BrokenPurifier, match="gives 24 of 24 images another value"):
        check(Elsewhere())
