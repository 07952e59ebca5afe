"""Checks of a purifier's gradient. Each check takes one purifier."""

from __future__ import annotations

import copy

import torch

from defend.gradients import identity
from defend.purifier import Purifier
from defend.testing.defense_setup import BATCH, input_gradient, purify, random_like
from defend.testing.edge_images import edge_images
from defend.testing.runner import NotApplicable, depends_on_weights, reads_only


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
