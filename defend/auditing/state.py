"""Checks that a purifier depends on the image and its noise alone.

Its output must not change with other images in the batch, with earlier calls, or with gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from defend.auditing.comparison import round_to_8_bit
from defend.auditing.context import Context, Floats
from defend.auditing.cost import SINGLE_IMAGES, copies_side_by_side
from defend.auditing.declared import DeclaredAttack
from defend.auditing.session import Session
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import Check, CheckResult
from defend.gradients import Backward, Relaxed
from defend.noise import Noise
from defend.threat_models import TEMPERATURES

FORWARDS = 5
TINY = 1e-6  # a change of each pixel that must change nothing
# The attack's images are moved by this share of the way back to the clean image. x + eps may lie
# exactly on a quantiser's boundary (0.3 x 255 = 76.5), rounded up in some pixels, down in others.
BACK = 1e-3
LARGE_CHANGE = 10.0  # times the threshold of a pixel
MANY_PIXELS = 0.05  # share of an image's pixels

_SOURCE = "AutoAttack's flags (arXiv:2003.01690, flags_doc.md); Tramer et al., arXiv:2002.08347"
_THRESHOLD = f"<= {100 * THRESHOLDS.state.value:g} % of the images change"


def record_initial_outputs(context: Context) -> None:
    """Store what the purifier returns before any attack, for the check "before and after"."""
    context.initial_outputs = [
        context.purify(x, _state_noise(context)) for x in _probe_batches(context)
    ]


def share_changed(a: Tensor, b: Tensor) -> float:
    """Return the share of images that differ between two batches (b, c, h, w).

    An image differs if its pixels change by more than a thousandth on average, or by more than a
    hundredth in more than a twentieth of them.
    """
    difference = (a - b).abs().flatten(1)
    limit = THRESHOLDS.moved.value
    changes_on_average = difference.mean(1) > limit
    changes_in_places = (difference > LARGE_CHANGE * limit).double().mean(1) > MANY_PIXELS
    return (changes_on_average | changes_in_places).double().mean().item()


def _judge_share(share: float, detail: str = "") -> CheckResult:
    return CheckResult(
        measured=f"{100 * share:.1f} % of the images change{detail}",
        value=share,
        passed=share <= THRESHOLDS.state.value,
    )


def _probe_batches(context: Context) -> tuple[Tensor, Tensor]:
    """Return the clean probe images, and points that are off their grid of 256 levels."""
    return context.probe_x, context.probe_points


def _seen_batches(session: Session) -> list[Tensor]:
    """Return the probe batches and, where an attack has run, its images of the same rows."""
    context = session.context
    return [*_probe_batches(context), *(x[context.probe_rows] for x in _last_attack(session))]


def _last_attack(session: Session) -> list[Tensor]:
    """Return the images (n, c, h, w) of the declared gradient's last attack, if it could run."""
    declared = session.declared_or_error
    return declared.best.images[-1:] if isinstance(declared, DeclaredAttack) else []


def _state_noise(context: Context, draw: int = 0) -> Noise:
    return context.noise_of(context.probe_rows, "state", draw)


def _check_five_forwards(session: Session) -> CheckResult:
    """Compare forwards on the same noise, and on other noise."""
    context = session.context
    same_noise, other_noise = 0.0, 0.0
    noise_has_effect = False
    for x in _seen_batches(session):
        first = context.purify(x, _state_noise(context))
        for draw in range(1, FORWARDS):
            repeated = context.purify(x, _state_noise(context))
            redrawn = context.purify(x, _state_noise(context, draw))
            same_noise = max(same_noise, share_changed(first, repeated))
            other_noise = max(other_noise, share_changed(first, redrawn))
            noise_has_effect = noise_has_effect or not torch.equal(first, redrawn)
    if context.stochastic and not noise_has_effect:
        return CheckResult(
            measured="no draw changes a pixel, and the card says stochastic",
            value=0.0,
            passed=False,
        )
    return _judge_share(same_noise if context.stochastic else max(same_noise, other_noise))


def _check_millionth(session: Session) -> CheckResult:
    """Change each pixel by a millionth, up or down: one of them may cross a quantiser's boundary.

    Pixels are compared where the attack did not choose the place. Labels are compared where it did,
    too: inside its images, and in its images rounded to the grid.
    """
    context, best = session.context, session.declared.best
    clean, off_grid = _probe_batches(context)
    worst = 0.0
    for x in (clean, off_grid):
        shares = [_share_of_pixels_changed(context, x, change) for change in (TINY, -TINY)]
        worst = max(worst, min(shares))
    for x in (clean, off_grid, *_near_attack(context, best.x_adv[context.probe_rows])):
        shares = [share_of_labels_changed(context, x, change) for change in (TINY, -TINY)]
        worst = max(worst, min(shares))
    return _judge_share(worst)


def _near_attack(context: Context, x_adv: Tensor) -> Iterator[Tensor]:
    clean = context.probe_x
    yield x_adv.lerp(clean, BACK)
    yield round_to_8_bit(x_adv, clean, context.eps)


def _share_of_pixels_changed(context: Context, x: Tensor, change: float) -> float:
    """Return the share of images that differ after a change of each pixel of the input."""
    noise = _state_noise(context)
    purified = context.purify(x, noise)
    return share_changed(purified, context.purify((x + change).clamp(0, 1), noise))


def share_of_labels_changed(context: Context, x: Tensor, change: float) -> float:
    """Return the share of images whose label changes after a change of each pixel."""
    noise = _state_noise(context)
    labels = context.logits(x, noise).argmax(1)
    changed_labels = context.logits((x + change).clamp(0, 1), noise).argmax(1)
    return (labels != changed_labels).double().mean().item()


def _check_company(session: Session) -> CheckResult:
    """Purify images alone, in reversed order and beside copies, and compare with their batch.

    A batch as large as an attack's is compared with small ones.
    """
    context = session.context
    worst = _share_changed_in_attack_batch(session)
    for x in _seen_batches(session):
        noise = _state_noise(context)
        batch = context.purify(x, noise)
        alone = _purify_one_by_one(context, x[:SINGLE_IMAGES])
        worst = max(worst, share_changed(batch[: len(alone)], alone))
        order = _reversed_order(x)
        reordered = context.purify(x[order], noise.again().take(order))
        worst = max(worst, share_changed(batch[order], reordered))
        for copies in copies_side_by_side(context.budget):
            beside = _share_changed_beside_copies(context, x[:SINGLE_IMAGES], copies)
            worst = max(worst, beside)
    return _judge_share(worst)


def _share_changed_in_attack_batch(session: Session) -> float:
    """Return the share of images that differ in a batch as an attack makes it from small ones."""
    context = session.context
    x, noise = _attack_batch(session)
    together = context.purify(x, noise)
    size = SINGLE_IMAGES
    parts = zip(x.split(size), noise.again().split(size), strict=True)
    return share_changed(together, torch.cat([context.purify(*part) for part in parts]))


def _attack_batch(session: Session) -> tuple[Tensor, Noise]:
    """Return every image, in as many copies as a gradient of an attack is averaged over, and the
    noise of each: (n eot, c, h, w).
    """
    context = session.context
    x, copies = [context.x, *_last_attack(session)][-1], context.budget.eot
    draws = torch.arange(copies, device=x.device).expand(len(x), copies)
    noise = context.noise.take(context.all_rows).fork("state").nth(draws)
    return x.repeat_interleave(copies, 0), noise


def _share_changed_beside_copies(context: Context, x: Tensor, copies: int) -> float:
    """Return the share of images that differ if they stand beside copies of themselves.

    An attack puts the copies of an image side by side, each with a draw of its own.
    """
    noise = context.noise.take(context.probe_rows[: len(x)]).fork("state")
    draws = torch.arange(copies, device=x.device).expand(len(x), copies)
    together = context.purify(x.repeat_interleave(copies, 0), noise.nth(draws))
    alone = [context.purify(x, noise.nth(draws[:, k : k + 1])) for k in range(copies)]
    return share_changed(torch.stack(alone, 1).flatten(0, 1), together)


def _purify_one_by_one(context: Context, x: Tensor) -> Tensor:
    noise = _state_noise(context)
    outputs = []
    for i in range(len(x)):
        row = slice(i, i + 1)
        outputs.append(context.purify(x[row], noise.again().take(row)))
    return torch.cat(outputs)


def _reversed_order(x: Tensor) -> Tensor:
    return torch.arange(len(x) - 1, -1, -1, device=x.device)


def _check_watched(session: Session) -> CheckResult:
    """Purify with gradients enabled, and without: with the declared gradient, and with others that
    go through the purifier. A batch as large as an attack's is among them.
    """
    context = session.context
    backwards: list[Backward | None] = [None, *session.autograd.routes]
    if context.purifier.has_relaxation:
        backwards.append(Relaxed(TEMPERATURES[1]))
    batches = [(x, _state_noise(context)) for x in _seen_batches(session)]
    worst = _share_changed_if_watched(context, _attack_batch(session), [None])
    for batch in batches:
        worst = max(worst, _share_changed_if_watched(context, batch, backwards))
    return _judge_share(worst)


def _share_changed_if_watched(
    context: Context, batch: tuple[Tensor, Noise], backwards: list[Backward | None]
) -> float:
    """Return the share of a batch that differs when one of these gradients is requested."""
    x, noise = batch
    worst, expected = 0.0, context.purify(x, noise)
    for backward in backwards:
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            purified = context.purifier.purified(leaf, noise.again(), backward).detach()
        worst = max(worst, share_changed(expected, purified))
    return worst


def _check_before_and_after(session: Session) -> CheckResult:
    """Compare with what the purifier returned before any attack."""
    context = session.context
    shares = []
    for x, initial in zip(_probe_batches(context), context.initial_outputs, strict=True):
        shares.append(share_changed(initial, context.purify(x, _state_noise(context))))
    return _judge_share(max(shares))


def _check_fresh_process(session: Session) -> CheckResult:
    """Compare with a fresh purifier, on reversed images, so that a memory of positions shows, too.

    Each batch has a process of its own. The attack's images are one of them: a purifier that
    remembers the clean images answers otherwise where it has never seen these.
    """
    context = session.context
    worst = 0.0
    for x in _seen_batches(session):
        order = _reversed_order(x)
        expected = context.purify(x, _state_noise(context))[order]
        fresh = context.fresh.purify(x[order], order, "state")
        worst = max(worst, share_changed(expected, fresh))
    return _judge_share(worst, f", against {context.fresh.description}")


def _check_rekeyed_noise(session: Session) -> CheckResult:
    """Score the declared gradient's best images on the `score` draws, and on as many others.

    Both the test and the size of the difference count. Chance alone is significant in one audit of
    a hundred, so that a second set of other draws must differ, too, and in the same direction.
    """
    context = session.context
    pair = _score_twice(session, "re-keyed")
    measured, p = _describe_pair(pair), context.paired_p_value(*pair)
    if direction := _direction(context, pair):
        second = _score_twice(session, "re-keyed again")
        measured += f"; again {_describe_pair(second)}"
        p = max(p, context.paired_p_value(*second))
        direction = direction if _direction(context, second) == direction else 0
    return CheckResult(measured=f"{measured}, p = {p:.2g}", value=p, passed=not direction)


def _score_twice(session: Session, stream: str) -> tuple[Floats, Floats]:
    """Return the scores (n,) of the attacked images under the noise of the score and another."""
    context, x_adv = session.context, session.declared.best.x_adv
    rows, draws = context.all_rows, context.budget.score_draws
    scores = context.score_rows(x_adv, rows, "score", draws)
    return scores, context.score_rows(x_adv, rows, stream, draws)


def _describe_pair(pair: tuple[Floats, Floats]) -> str:
    return " and ".join(f"{100 * scores.mean():.1f} %" for scores in pair)


def _direction(context: Context, pair: tuple[Floats, Floats]) -> int:
    """Return the sign of a difference that is large and significant, else 0."""
    change = float(pair[1].mean() - pair[0].mean())
    is_large = 100 * abs(change) >= THRESHOLDS.gap.value
    is_significant = context.paired_p_value(*pair) < THRESHOLDS.rekeyed.value
    return int(np.sign(change)) if is_large and is_significant else 0


CHECKS = (
    Check(
        name="five forwards",
        question="Do five forwards agree with the same noise, and with other noise as the card"
        " says?",
        weight="required",
        threshold=_THRESHOLD,
        source=_SOURCE,
        advice="Set the card's stochastic=True or False as the purifier behaves, and draw from"
        " `noise` alone: attacks and scores rely on both",
        run=_check_five_forwards,
    ),
    Check(
        name="a millionth",
        question="Does x + 1e-6 give what x gives, on the grid of 256 levels and off it?",
        weight="required",
        threshold=_THRESHOLD,
        source=_SOURCE,
        advice="Dependence on exact numbers hides the slope: attack the average over small changes",
        run=_check_millionth,
    ),
    Check(
        name="company",
        question="Is an image purified alone as it is in a batch, and in any order?",
        weight="required",
        threshold=_THRESHOLD,
        source=_SOURCE,
        advice="Let no image depend on the other images of its batch",
        run=_check_company,
    ),
    Check(
        name="watched",
        question="Is the output the same when a gradient is requested?",
        weight="required",
        threshold=_THRESHOLD,
        source=_SOURCE,
        advice="The attacked purifier is not the scored one: purify() must not depend on"
        " requires_grad",
        run=_check_watched,
    ),
    Check(
        name="before and after",
        question="Is the output the same after the attacks as before?",
        weight="required",
        threshold=_THRESHOLD,
        source=_SOURCE,
        advice="The purifier remembers earlier images: remove the state",
        run=_check_before_and_after,
    ),
    Check(
        name="fresh process",
        question="Does a fresh purifier give the same, for the attacks' images too?",
        weight="required",
        threshold=_THRESHOLD,
        source=_SOURCE,
        advice="The purifier depends on earlier calls: remove the state",
        run=_check_fresh_process,
    ),
    Check(
        name="re-keyed noise",
        question="Is the score the same under other noise?",
        weight="required",
        threshold=f"p >= {THRESHOLDS.rekeyed.value:g}, paired, or less than"
        f" {THRESHOLDS.gap.value:g} points apart, or not so on a second set of draws",
        source=THRESHOLDS.rekeyed.source,
        advice="The noise of the score is not like that of deployment",
        run=_check_rekeyed_noise,
    ),
)
