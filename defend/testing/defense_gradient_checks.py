"""Checks of a purifier's gradient. Each check takes one purifier."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from defend.gradients import Relaxed, identity, relaxations_shown
from defend.purifier import Purifier
from defend.testing.defense_setup import BATCH, input_gradient, purify, random_like
from defend.testing.edge_images import edge_images
from defend.testing.runner import NotApplicable, depends_on_weights, reads_only
from defend.threat_models import TEMPERATURES

NEARLY_THE_STEP = 0.001  # a temperature
ONE_LEVEL = 1 / 255  # of 256; a value on a step's edge stays between two values


@reads_only
def check_gradient_mode_does_not_change_value(p: Purifier) -> None:
    """Fail if the output depends on torch.no_grad or on requires_grad of the input."""
    x = p.example(BATCH)
    with torch.no_grad():
        without = purify(p, x)
    assert torch.equal(without, purify(p, x)), (
        "the output differs between torch.no_grad and gradient mode"
    )
    assert torch.equal(without, purify(p, x.clone().requires_grad_())), (
        "the output changes when the input requires a gradient"
    )


@depends_on_weights
@reads_only
def check_gradient_reaches_input(p: Purifier) -> None:
    """Fail if the gradient of an image is zero or not finite."""
    g = input_gradient(p, p.example(BATCH))
    assert g.isfinite().all(), "expected a finite gradient, got NaN or inf"
    zero_count = int((g.flatten(1).abs().sum(1) == 0).sum())
    assert zero_count == 0, (
        f"{zero_count} of {BATCH} images have a zero gradient, so white-box attacks fail without "
        "any robustness; declare gradient='identity' if the purifier has no derivative"
    )


@depends_on_weights
@reads_only
def check_gradient_is_finite_on_edge_images(p: Purifier) -> None:
    """Fail if the gradient of an edge image is not finite."""
    assert input_gradient(p, edge_images(p.example(1))).isfinite().all(), (
        "expected a finite gradient, got NaN or inf for a black, white, checkerboard or one-hot "
        "image"
    )


@reads_only
def check_gradient_stays_in_its_image(p: Purifier) -> None:
    """Fail if the output of one image has a gradient in another image."""
    g = input_gradient(p, p.example(BATCH), slice(1))
    assert (g[1:] == 0).all(), "the output of one image has a gradient in other images"


@reads_only
def check_stand_in_takes_over_the_gradient(p: Purifier) -> None:
    """Fail if backward=identity does not give the gradient of the identity."""
    x = p.example(BATCH).requires_grad_()
    y = p.purified(x, backward=identity)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(g, torch.ones_like(x)), (
        "backward=identity does not give the gradient of the identity"
    )


@reads_only
def check_exact_gradient_claim(p: Purifier) -> None:
    """Fail if the card says exact, and autograd disagrees with central finite differences.

    The check works on a copy in float64, in which steps of 1e-6 give the slope to four digits.
    """
    if p.card.gradient != "exact":
        raise NotApplicable(f"the card says gradient={p.card.gradient!r}")
    in_float64 = copy.deepcopy(p)
    in_float64.as_module().double()
    x, step = in_float64.example(2).double(), 1e-6
    g = input_gradient(in_float64, x)
    projection = random_like(x, 1)
    with torch.no_grad():
        for seed in (2, 3, 4):
            direction = random_like(x, seed)
            ahead = purify(in_float64, x + step * direction)
            behind = purify(in_float64, x - step * direction)
            slope = ((ahead - behind) * projection).sum() / (2 * step)
            claimed = (g * direction).sum()
            assert abs(slope - claimed) < 1e-3 + 0.01 * abs(slope), (
                f"the card says gradient='exact', but autograd gives {claimed:.4f} and finite "
                f"differences give {slope:.4f}; correct the gradient or the card"
            )


@depends_on_weights
@reads_only
def check_relaxed_gives_deployed_value(p: Purifier) -> None:
    """Fail if the value of `relaxed` is not that of `purify`, to the bit."""
    _require_relaxation(p)
    for x in (p.example(BATCH), edge_images(p.example(1))):
        deployed = purify(p, x)
        for temperature in TEMPERATURES:
            value = purify(p, x.clone().requires_grad_(), backward=Relaxed(temperature))
            assert torch.equal(value, deployed), (
                f"relaxed() at temperature {temperature:g} does not give the value of purify(), by"
                f" up to {(value - deployed).abs().max():.3g}; write defend.relax(soft, value) for"
                " the step that is relaxed"
            )


@depends_on_weights
@reads_only
def check_relaxation_tends_to_the_step(p: Purifier) -> None:
    """Fail if the relaxation does not come near to `purify` at a small temperature.

    The mean distance of pixels at 0.001 must be within one of 256 levels, and below that at 1.
    """
    _require_relaxation(p)
    x = p.example(BATCH)
    near, far = _distance_of_relaxation(p, x, NEARLY_THE_STEP), _distance_of_relaxation(p, x, 1.0)
    assert far > 0, (
        "relaxed() relaxes nothing: its relaxation is purify() itself; write defend.relax(soft,"
        " value) for the step that has no derivative"
    )
    assert near < far, (
        f"expected a relaxation that is nearer to purify() at temperature {NEARLY_THE_STEP:g}"
        f" than at 1, got mean distances of {near:.4f} and {far:.4f}; use the temperature"
    )
    assert near <= ONE_LEVEL, (
        f"expected a relaxation that tends to purify(), within {ONE_LEVEL:.4f} at temperature"
        f" {NEARLY_THE_STEP:g}, got a mean distance of {near:.4f}"
    )


@depends_on_weights
@reads_only
def check_relaxed_gradient_ascends(p: Purifier) -> None:
    """Fail if the relaxation falls along its own gradient.

    Small steps along the gradient of a projection of the relaxation, and against it, must raise the
    projection. Its size may differ, as where a width is detached.
    """
    _require_relaxation(p)
    x = p.example(BATCH)
    for temperature in TEMPERATURES:
        for seed in (1, 2, 3):
            g = _relaxed_gradient(p, x, temperature, seed)
            step = ONE_LEVEL * g / g.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
            ahead = _relaxation(p, (x + step).clamp(0, 1), temperature)
            behind = _relaxation(p, (x - step).clamp(0, 1), temperature)
            rise = float(((ahead - behind) * _projection(ahead, seed)).sum())
            assert rise > 0, (
                f"the relaxation at temperature {temperature:g} changes by {rise:.3g} along its own"
                " gradient, which must raise it; correct the gradient of what is detached"
            )


@depends_on_weights
@reads_only
def check_relaxed_gradient_reaches_input(p: Purifier) -> None:
    """Fail if the relaxed gradient is not finite, or zero for an image at temperature 1."""
    _require_relaxation(p)
    for x in (p.example(BATCH), edge_images(p.example(1))):
        for temperature in TEMPERATURES:
            assert _relaxed_gradient(p, x, temperature).isfinite().all(), (
                f"expected a finite relaxed gradient at temperature {temperature:g}, got NaN or inf"
            )
    g = _relaxed_gradient(p, p.example(BATCH), 1.0)
    zero_count = int((g.flatten(1).abs().sum(1) == 0).sum())
    assert zero_count == 0, (
        f"{zero_count} of {BATCH} images have a zero relaxed gradient at temperature 1; choose a"
        " larger unit of the temperature"
    )


@reads_only
def check_relaxed_gradient_is_of_its_image(p: Purifier) -> None:
    """Fail if the relaxed gradient of an image depends on its batch."""
    _require_relaxation(p)
    x = p.example(BATCH)
    together = _relaxed_gradient(p, x, 0.3)[:1]
    alone = _relaxed_gradient(p, x[:1], 0.3)
    distance = (together - alone).norm()
    assert distance <= 0.01 * alone.norm() + 1e-6, (
        f"the relaxed gradient of an image differs by {distance / alone.norm():.2g} of its norm"
        " between its batch and alone; take the unit of the temperature from each image"
    )


def _require_relaxation(p: Purifier) -> None:
    if not p.has_relaxation:
        raise NotApplicable("it declares no relaxed()")


def _distance_of_relaxation(p: Purifier, x: Tensor, temperature: float) -> float:
    """Return the mean distance of pixels between the relaxation and `purify`."""
    return float((_relaxation(p, x, temperature) - purify(p, x)).abs().mean())


def _relaxation(p: Purifier, x: Tensor, temperature: float) -> Tensor:
    """Return the images that the relaxation makes, and not those of `purify`."""
    with relaxations_shown():
        soft = purify(p, x.clone().requires_grad_(), backward=Relaxed(temperature))
    return soft.detach()


def _relaxed_gradient(p: Purifier, x: Tensor, temperature: float, seed: int = 1) -> Tensor:
    """Return the gradient of a projection of the output images, in the shape of x."""
    x = x.clone().requires_grad_()
    y = purify(p, x, backward=Relaxed(temperature))
    return torch.autograd.grad((y * _projection(y, seed)).sum(), x, materialize_grads=True)[0]


def _projection(y: Tensor, seed: int) -> Tensor:
    """Return a random projection of images y (b, c, h, w).

    The first image has the same one in every batch; that of the k-th is k times as large.
    """
    factors = torch.arange(1, len(y) + 1, dtype=y.dtype).view(-1, 1, 1, 1)
    return random_like(y[:1], seed) * factors
