"""Checks of the ways in which a purifier is called: through ART, with numpy arrays, in other pixel
ranges and layouts, in cuts of max_batch, as a module, and on a GPU. Each check takes one purifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defend.purifier import Purifier
from defend.testing.defense_setup import (
    BATCH,
    classifier_in_art,
    count_batch_sizes,
    input_gradient,
    linear_classifier,
    moved_to,
    one_hot_labels,
    options_set,
    purify,
    with_members,
)
from defend.testing.runner import NotApplicable, reads_only


@reads_only
def check_art_loss_gradient_is_alive(p: Purifier) -> None:
    """Fail if the gradient that ART's attacks get is zero or not finite for an image."""
    x = p.example(BATCH).numpy()
    g = classifier_in_art(p).loss_gradient(x, one_hot_labels(BATCH))
    assert np.isfinite(g).all(), "expected a finite loss_gradient of ART, got NaN or inf"
    assert (np.abs(g).reshape(BATCH, -1).sum(1) > 0).all(), (
        "ART's loss_gradient is zero for an image, so ART's attacks fail without any robustness"
    )


@reads_only
def check_art_predict_matches_forward(p: Purifier) -> None:
    """Fail if ART's predict and the purifier's forward give other logits."""
    with options_set(p, seed=0), torch.no_grad():
        through_art = classifier_in_art(p).predict(p.example(BATCH).numpy())
        expected = linear_classifier(p)(p.forward(p.example(BATCH))[0])
    assert np.allclose(through_art, expected.numpy(), atol=1e-4), (
        "ART's predict gives other logits than the classifier after forward()"
    )


@reads_only
def check_chunking_does_not_change_value(p: Purifier) -> None:
    """Fail if a smaller max_batch changes the output or the gradient."""
    x = p.example(BATCH)
    output, gradient = purify(p, x), input_gradient(p, x)
    with options_set(p, max_batch=2):
        output_in_cuts, gradient_in_cuts = purify(p, x), input_gradient(p, x)
    assert torch.allclose(output_in_cuts, output, atol=1e-5), "max_batch changes the output"
    tolerance = 1e-5 + 1e-4 * gradient.abs().max().item()
    assert torch.allclose(gradient_in_cuts, gradient, atol=tolerance), (
        "max_batch changes the gradient"
    )


@reads_only
def check_max_batch_bounds_purify(p: Purifier) -> None:
    """Fail if a call gives a purifier, or a member of a chain, more than max_batch images."""
    for member in range(len(with_members(p))):
        copied, bounded, batch_sizes = count_batch_sizes(p, member, 2)
        for caller, call in callers(copied).items():
            batch_sizes.clear()
            call()
            largest = max(batch_sizes, default=0)
            assert 1 <= largest <= 2, (
                f"max_batch=2, but {caller} passed {largest} images to purify of "
                f"{type(bounded).__name__}"
            )


def callers(p: Purifier) -> dict[str, Callable[[], Any]]:
    """Return a call of each kind that reaches `purify`, by its name."""
    x = p.example(BATCH)
    return {
        "purified": lambda: purify(p, x),
        "the backward pass": lambda: purify(p, x.clone().requires_grad_()).sum().backward(),
        "a numpy call": lambda: p(x.numpy()),
        "ART's predict": lambda: classifier_in_art(p).predict(x.numpy()),
        "ART's loss_gradient": lambda: classifier_in_art(p).loss_gradient(
            x.numpy(), one_hot_labels(BATCH)
        ),
    }


def outputs_of_each_method(p: Purifier, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the output of each method that follows the caller's conventions."""
    yield "forward", p.forward(x)[0]
    yield "estimate_forward", p.estimate_forward(x)
    yield "__call__", torch.from_numpy(p(x.numpy())[0])


@reads_only
def check_callers_range_and_layout(p: Purifier) -> None:
    """Fail if other clip_values or channels_first=False change more than range and layout.

    The pixels are multiples of 1/256, which survive the scaling exactly.
    """
    x = (p.example(BATCH) * 256).floor() / 256
    scaled = (4 * x - 1).permute(0, 2, 3, 1).contiguous()
    with options_set(p, seed=0):
        expected = p.forward(x)[0]
    with options_set(p, seed=0, clip_values=(-1.0, 3.0), channels_first=False):
        for method, output in outputs_of_each_method(p, scaled):
            assert output.shape == scaled.shape, (
                f"{method} with channels_first=False: expected {tuple(scaled.shape)}, "
                f"got {tuple(output.shape)}"
            )
            assert torch.allclose((output.permute(0, 3, 1, 2) + 1) / 4, expected, atol=1e-5), (
                f"{method}: other clip_values or layout change more than range and layout"
            )


@reads_only
def check_float64_in_float32_out(p: Purifier) -> None:
    """Fail if float64 images do not give the float32 output of the same images in float32."""
    x = p.example(BATCH)
    with options_set(p, seed=0):
        expected = p.forward(x)[0]
        outputs = list(outputs_of_each_method(p, x.double()))
    for method, output in outputs:
        assert output.dtype == torch.float32, (
            f"{method}: expected float32 for float64 images, got {output.dtype}; "
            "ART's models fail on anything but float32"
        )
        assert torch.allclose(output, expected, atol=1e-5), (
            f"{method}: float64 images get another output than float32 images"
        )


@reads_only
def check_as_module_is_it(p: Purifier) -> None:
    """Fail if as_module() gives another output than forward()."""
    x = p.example(BATCH)
    with options_set(p, seed=0):
        assert torch.equal(p.as_module()(x), p.forward(x)[0]), (
            "as_module() gives another output than forward()"
        )


@reads_only
def check_cuda_agrees_with_cpu(p: Purifier) -> None:
    """Fail if more than 1 % of the pixels differ between CPU and GPU.

    Where a purifier rounds, a difference in the last digit may round to another value.
    """
    if not torch.cuda.is_available():
        raise NotApplicable("there is no CUDA device")
    x = p.example(BATCH)
    on_cpu = purify(p, x)
    with moved_to(p, "cuda"):
        on_gpu = purify(p, x.cuda(), torch.arange(BATCH, device="cuda"))
    share = ((on_gpu.cpu() - on_cpu).abs() > 1e-3).float().mean().item()
    assert share < 0.01, f"{100 * share:.1f} % of the pixels differ between CPU and GPU"
