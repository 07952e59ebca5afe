"""Checks of what every score rests on: a purifier depends on an image and its noise alone.

They run on the first range of a run, once for each attack and defense, at the largest eps, on all
images where these are purified within seconds. Of a slower purifier a few images are looked at, and
all of them where something differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from defend.benchmarks.network_checks import blame_network_first
from defend.errors import BrokenPurifier
from defend.noise import Noise
from defend.purifier import Purifier, Relaxed
from defend.tasks.classification import CLASSIFICATION
from defend.tasks.task import Task

FEW = 8  # images of a slow purifier that are looked at first, at most
QUICK_SECONDS = 3.0  # a purifier that takes no longer for all images is checked on all of them
SINGLE_IMAGES = 8  # images that are purified one by one, too
TOLERANCE = 1e-3  # of logits and pixels: what rounding in another batch may change

RANGE_ERROR = 1e-3  # of a pixel, by rounding in 16 bits


def is_quick(images: int, images_per_second: float) -> bool:
    """Return True if so many images are purified soon enough to be checked one and all."""
    return images <= QUICK_SECONDS * images_per_second


def spread_rows(count: int, n: int) -> Tensor:
    """Return n of the rows 0 to count - 1 in rising order, each from the middle of its n-th."""
    n = min(n, count)
    return torch.tensor([(2 * i + 1) * count // (2 * n) for i in range(n)], dtype=torch.long)


def few_of(images: int) -> int:
    """Return how many of so many images are looked at first: half of them, or FEW."""
    return min(FEW, (images + 1) // 2)


def few_rows(is_right: Tensor) -> Tensor:
    """Return the rows of the few images that are looked at, of is_right (b,), in rising order.

    They are images that count as right, where a purifier that cheats profits, spread over the
    range; where these are fewer, there are others beside them.
    """
    n = few_of(len(is_right))
    right, wrong = is_right.nonzero().flatten().cpu(), (~is_right).nonzero().flatten().cpu()
    chosen = right[spread_rows(len(right), n)]
    others = wrong[spread_rows(len(wrong), n - len(chosen))]
    return torch.cat([chosen, others]).sort().values


def purify_once(purifier: Purifier, x: Tensor, noise: Noise) -> Tensor:
    """Return one draw; x and noise stay as they are, whatever a plugin does to them."""
    with torch.no_grad():
        return purifier.purified(x.clone(), noise.again())


def logits_after_purify(purifier: Purifier, network: nn.Module, images: Tensor) -> Tensor:
    """Return logits (b, classes) of purified images, at most max_batch at once.

    At a task without a classifier they are the images. Raises BrokenPurifier if they are not
    finite: the argmax of NaN is class 0, which some images are; and for images outside [0, 1],
    which no camera and no file gives a classifier. Raises Mismatch if the network is the cause.
    """
    check_range(purifier, images)
    with torch.no_grad():
        parts = images.split(purifier.images_at_once(images))
        logits = torch.cat([network(part) for part in parts])
    with blame_network_first(network, lambda: images):
        check_finite(purifier, logits)
    return logits


def rate_of(purifier: Purifier, x: Tensor) -> Tensor | None:
    """Return the bits per pixel (b,) at which a codec codes images, None if it says none.

    A codec is a purifier with a method `rate(x)`; a field of that name is none. Raises
    BrokenPurifier for rates of another type or shape, or that are not finite.
    """
    rate = getattr(purifier, "rate", None)
    if not callable(rate):
        return None
    rates = []
    for part in x.split(purifier.images_at_once(x)):
        with torch.no_grad():
            rates.append(_checked_rate(purifier, rate(part.clone()), len(part)))
    return torch.cat(rates)


def _checked_rate(purifier: Purifier, rates: object, count: int) -> Tensor:
    """Return the rates (count,) of one batch. Raises BrokenPurifier."""
    if not isinstance(rates, Tensor):
        got = f"a {type(rates).__name__}"
    elif rates.shape != (count,):
        got = f"values of shape {tuple(rates.shape)}"
    elif not rates.isfinite().all():
        got = "values that are not finite"
    else:
        return rates
    raise BrokenPurifier(
        f"{type(purifier).__name__}: rate(x) expected finite bits per pixel ({count},), got {got}"
    )


def check_range(purifier: Purifier, images: Tensor) -> None:
    """Raise BrokenPurifier if a purified pixel is outside [0, 1] by more than RANGE_ERROR."""
    if not len(images):
        return
    low, high = images.amin(), images.amax()
    if low < -RANGE_ERROR or high > 1 + RANGE_ERROR:
        raise BrokenPurifier(
            f"{type(purifier).__name__}: expected purified pixels in [0, 1], got {low:.3g} to"
            f" {high:.3g}; clamp the output"
        )


def check_finite(purifier: Purifier, logits: Tensor) -> None:
    """Raise BrokenPurifier if some logits are not finite."""
    if not logits.isfinite().all():
        raise BrokenPurifier(f"{type(purifier).__name__}: logits behind it are not finite")


def logits_agree(first: Tensor, second: Tensor) -> bool:
    """Return True if two batches of logits are equal up to rounding."""
    return torch.allclose(first, second, atol=TOLERANCE)


def check_declared_deterministic(purifier: Purifier, first: Tensor, second: Tensor) -> None:
    """Raise BrokenPurifier if two draws differ behind a purifier that is declared deterministic.

    first, second: logits of the same images on two draws. Dropping broken images and scoring by
    one draw rest on the card's word.
    """
    if not purifier.card.stochastic and not logits_agree(first, second):
        raise BrokenPurifier(
            f"{type(purifier).__name__}: its card says stochastic=False, and two draws of the"
            " same images differ"
        )


def check_gradient_mode(
    purifier: Purifier, with_gradient: Tensor, without: Tensor, task: Task = CLASSIFICATION
) -> None:
    """Raise BrokenPurifier if more than one output in twenty changes with a gradient.

    The outputs are of the same images on the same draws. Otherwise the attacked pipeline would not
    be the scored one; a few images may round to another label.
    """
    changed = int((~task.agree(with_gradient, without)).sum())
    if changed > max(1, len(without) // 20):
        outputs = "predictions" if task.needs_classifier else "reconstructions"
        raise BrokenPurifier(
            f"{type(purifier).__name__}: {changed} of {len(without)} {outputs} change when"
            " gradients are enabled; purify() must not depend on requires_grad"
        )


def check_relaxation(purifier: Purifier, x: Tensor, noise: Noise, relaxation: Relaxed) -> None:
    """Raise BrokenPurifier if `relaxed` gives more than one image in twenty another value.

    The attack would climb on another pipeline than the scored one. A few images may round to
    another code.
    """
    deployed = purify_once(purifier, x, noise)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = purifier.purified(leaf, noise.again(), relaxation).detach()
    is_other = ~torch.isclose(value, deployed, atol=TOLERANCE).flatten(1).all(1)
    changed = int(is_other.sum())
    if changed > max(1, len(x) // 20):
        raise BrokenPurifier(
            f"{type(purifier).__name__}: relaxed() gives {changed} of {len(x)} images another value"
            " than purify(); write defend.relax(soft, value) for the step that it relaxes"
        )


def check_fresh_copy(
    purifier: Purifier,
    fresh: Callable[[], Purifier],
    logits_of: Callable[[Purifier], Tensor],
    logits: Tensor,
) -> None:
    """Raise BrokenPurifier if a freshly loaded purifier gives other logits.

    fresh: loads one. logits_of: the logits behind a purifier of images on one draw. logits: what
    the used purifier gave for them.
    """
    fresh_logits = logits_of(fresh())
    if logits_agree(logits, fresh_logits):
        return
    if not logits_agree(logits, logits_of(purifier)):
        reason = (
            "the same image and noise give different outputs, as by torch's global generator or"
            " a memory of what was purified"
        )
    elif logits_agree(fresh_logits, logits_of(fresh())):
        reason = "it remembers what it purified"
    else:
        reason = "something is drawn when it is created"
    raise BrokenPurifier(
        f"{type(purifier).__name__}: a freshly loaded one gives other logits: {reason};"
        " let purify depend on x and noise alone"
    )


def fresh_copy_agrees(
    fresh: Purifier, network: nn.Module, x: Tensor, logits: Tensor, noise: Noise, rows: Tensor
) -> bool:
    """Return True if an unused purifier gives the same logits for these rows, one by one.

    logits: of x (b, ...) behind the used purifier, in their batch. noise: the same if the purifier
    is stochastic, or else other noise. One comparison then covers memory, batch mates and hidden
    randomness.
    """
    rows = rows.to(x.device)
    parts = []
    for row in rows.split(1):
        alone = purify_once(fresh, x[row], noise.take(row))
        parts.append(logits_after_purify(fresh, network, alone))
    return logits_agree(torch.cat(parts), logits[rows])


def check_batch_independence(purifier: Purifier, x: Tensor, purified: Tensor, noise: Noise) -> None:
    """Raise BrokenPurifier if most of the first images are purified otherwise alone.

    purified: what x (b, ...) became on this noise in its batch. Attacks drop images and score
    them beside others, and a deployed purifier sees any batch. A few images may round otherwise.
    """
    rows = [slice(i, i + 1) for i in range(min(SINGLE_IMAGES, len(x)))]
    changed = 0
    for row in rows:
        alone = purify_once(purifier, x[row], noise.take(row))
        changed += not torch.allclose(alone, purified[row], atol=TOLERANCE)
    if 2 * changed > len(rows):
        raise BrokenPurifier(
            f"{type(purifier).__name__}: {changed} of {len(rows)} images are purified otherwise"
            " alone than in their batch; let each be purified by itself, without statistics of"
            " its batch, as of a batch norm in training mode"
        )
