"""Does the purifier do the same each time: with the same noise, in any company, before and after an attack, watched or not?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from defend.audit.comparison import to_grid
from defend.audit.context import Context
from defend.audit.declared import Declared
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import Check, CheckResult
from defend.stats import mcnemar, permutation

FORWARDS = 5
TINY = 1e-6  # the change of a pixel that nothing may depend on
BACK = 1e-3  # of the way to the clean image. x + eps is a quantiser's edge by itself (0.3 x 255 = 76.5), rounded up here and down there
_SOURCE = "AutoAttack's flags (arXiv:2003.01690, flags_doc.md); Tramer et al., arXiv:2002.08347"


def checks(declared: Callable[[], Declared]) -> list[Check]:
    share = f"<= {100 * THRESHOLDS['state'].value:g} % of the images move"
    table: dict[str, tuple[str, str, Callable[[Context], CheckResult]]] = {
        "five forwards": (
            "Do five forwards agree with the same noise, and with other noise as the card says?",
            "Let the card say what it does, stochastic=True or False, and draw from `noise` alone: attacks and scores go by it",
            _forwards,
        ),
        "a millionth": (
            "Does x + 1e-6 give what x gives, on the grid of 256 levels and off it?",
            "What depends on exact numbers hides the slope: attack its average over small changes",
            lambda s: _millionth(s, declared()),
        ),
        "company": (
            "Is an image purified alone as it is in a batch, and in any order?",
            "Let no image depend on its neighbours",
            _company,
        ),
        "watched": (
            "Does it do the same when a gradient is asked for?",
            "The attacker is shown another purifier than the one that is scored",
            _watched,
        ),
        "before and after": (
            "Does it do the same after the attacks as before?",
            "It remembers what it has seen: remove the state",
            _after,
        ),
        "fresh process": (
            "Does a fresh one do the same, with the attacks' images too?",
            "It depends on what else has run: remove the state",
            lambda s: _fresh(s, declared()),
        ),
    }
    made = [
        Check(
            name=name,
            question=question,
            weight="required",
            threshold=share,
            source=_SOURCE,
            advice=advice,
            run=run,
        )
        for name, (question, advice, run) in table.items()
    ]
    rekeyed = Check(
        name="re-keyed noise",
        question="Is the score the same under other noise?",
        weight="required",
        threshold=f"p >= {THRESHOLDS['rekeyed'].value:g}, paired, or less than {THRESHOLDS['gap'].value:g} points apart",
        source=THRESHOLDS["rekeyed"].source,
        advice="The noise of the score is not like that of deployment",
        run=lambda s: _rekeyed(s, declared()),
    )
    return [*made, rekeyed]


def moved(a: Tensor, b: Tensor) -> float:
    """The share of images whose pixels differ by more than a thousandth on average, or by a hundredth anywhere in a twentieth of them."""
    d = (a - b).abs().flatten(1)
    limit = THRESHOLDS["moved"].value
    return ((d.mean(1) > limit) | ((d > 10 * limit).double().mean(1) > 0.05)).double().mean().item()


def _judged(share: float, of: str = "") -> CheckResult:
    return CheckResult(
        measured=f"{100 * share:.1f} % of the images move{of}",
        value=share,
        ok=share <= THRESHOLDS["state"].value,
    )


def _seen(context: Context) -> tuple[Tensor, Tensor]:
    """The clean images, and places off their grid."""
    return context.x[context.some], context.points


def _forwards(context: Context) -> CheckResult:
    same, other, drew = 0.0, 0.0, False
    for x in _seen(context):
        first = context.purified(x, context.nth(context.some, "state"))
        for k in range(1, FORWARDS):
            again, anew = (
                context.purified(x, context.nth(context.some, "state", draw)) for draw in (0, k)
            )
            same, other, drew = (
                max(same, moved(first, again)),
                max(other, moved(first, anew)),
                drew or not torch.equal(first, anew),
            )
    if context.stochastic and not drew:
        return CheckResult(
            measured="no draw changes a pixel, and the card says stochastic", value=0.0, ok=False
        )
    return _judged(same if context.stochastic else max(same, other))


def _millionth(context: Context, declared: Declared) -> CheckResult:
    """Pixels, where the attack did not choose the place; labels, where it did: inside its images, and in those rounded to the grid."""
    clean, off = _seen(context)
    worst = max(
        min(_apart(context, x, TINY), _apart(context, x, -TINY)) for x in (clean, off)
    )  # one side may cross a quantiser's edge
    found = declared.best.x_adv[context.some]
    for x in (clean, off, found.lerp(clean, BACK), to_grid(found, clean, context.eps)):
        worst = max(worst, min(_relabelled(context, x, TINY), _relabelled(context, x, -TINY)))
    return _judged(worst)


def _apart(context: Context, x: Tensor, by: float) -> float:
    noise = context.nth(context.some, "state")
    return moved(context.purified(x, noise), context.purified((x + by).clamp(0, 1), noise))


def _relabelled(context: Context, x: Tensor, by: float) -> float:
    """The share of images whose label changes."""
    noise = context.nth(context.some, "state")
    return (
        (
            context.logits(x, noise).argmax(1)
            != context.logits((x + by).clamp(0, 1), noise).argmax(1)
        )
        .double()
        .mean()
        .item()
    )


def _company(context: Context) -> CheckResult:
    worst = 0.0
    for x in _seen(context):
        noise = context.nth(context.some, "state")
        whole, few = context.purified(x, noise), min(16, len(x))
        alone = torch.cat(
            [
                context.purified(x[i : i + 1], noise.again().take(slice(i, i + 1)))
                for i in range(few)
            ]
        )
        worst = max(worst, moved(whole[:few], alone) if few else 0.0)
        order = torch.arange(len(x) - 1, -1, -1, device=x.device)
        worst = max(
            worst, moved(whole[order], context.purified(x[order], noise.again().take(order)))
        )
    return _judged(worst)


def _watched(context: Context) -> CheckResult:
    worst = 0.0
    for x in _seen(context):
        noise = context.nth(context.some, "state")
        with torch.enable_grad():
            watched = context.purifier.purified(x.clone().requires_grad_(), noise.again()).detach()
        worst = max(worst, moved(context.purified(x, noise), watched))
    return _judged(worst)


def _after(context: Context) -> CheckResult:
    """Against what it gave when the audit began."""
    noise = context.nth(context.some, "state")
    return _judged(
        max(
            moved(before, context.purified(x, noise))
            for x, before in zip(_seen(context), context.before, strict=True)
        )
    )


def remember(context: Context) -> None:
    context.before = [
        context.purified(x, context.nth(context.some, "state")) for x in _seen(context)
    ]


def _fresh(context: Context, declared: Declared) -> CheckResult:
    """In another order, so that a memory of places shows too. Each set of images in a process of its own: attacked ones, whose clean ones
    it never saw, tell a memory of what was shown before."""
    worst, order = 0.0, torch.arange(len(context.some) - 1, -1, -1, device=context.x.device)
    for x in (*_seen(context), *(made[context.some] for made in declared.best.made[-1:])):
        noise = context.nth(context.some, "state")
        worst = max(
            worst, moved(context.purified(x, noise)[order], context.twin(x[order], order, "state"))
        )
    return _judged(worst, f", against {context.twin_is}")


def _rekeyed(context: Context, declared: Declared) -> CheckResult:
    """The declared gradient's best images, scored on `score` draws and on as many others."""
    x_adv, rows = declared.best.x_adv, context.all
    here, there = (
        context.right(x_adv, rows, fork, context.budget.draws) for fork in ("score", "re-keyed")
    )
    p, apart = (
        (permutation if context.stochastic else mcnemar)(here, there),
        100 * abs(here.mean() - there.mean()),
    )
    ok = (
        p >= THRESHOLDS["rekeyed"].value or apart < THRESHOLDS["gap"].value
    )  # noise alone is significant once in a hundred
    return CheckResult(
        measured=f"{100 * here.mean():.1f} % and {100 * there.mean():.1f} %, p = {p:.2g}",
        value=p,
        ok=bool(ok),
    )
