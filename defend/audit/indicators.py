"""Signs that an attack failed to attack: the indicators of Pintor et al., arXiv:2106.09947, written from the paper, and AutoAttack's flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defend.ascent import ascend
from defend.audit.context import NORM, Context
from defend.audit.declared import Declared
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import Check, CheckResult, NotApplicable
from defend.losses import cross_entropy, dlr_any_classes, negative_margin
from defend.target import Loss, Target

STEPS = 40
LAST = 10  # steps over which an attack should have come to rest
AROUND = (
    4 / 255
)  # half-width of the cube in which predictions should be stable; 100 draws in the paper
DRAWS = 20
_PINTOR = "Pintor et al., arXiv:2106.09947, section 3"


@dataclass(frozen=True)
class Trace:
    """A plain PGD, step by step."""

    x_adv: Tensor
    losses: Tensor  # (steps + 1, b)
    wrong: Tensor  # bool (steps + 1, b)
    lost: Tensor  # bool (b,): no finite gradient, or none at all, at the first step


def climb(target: Target, x: Tensor, y: Tensor, eps: float, steps: int, loss: Loss) -> Trace:
    """L-inf PGD from x itself, of 2.5 eps / steps; every image takes every step."""
    adv, losses, wrong, lost = x, [], [], None
    for _ in range(steps):
        g, value, logits = target.gradient(adv, y, loss)
        losses.append(value)
        wrong.append(logits.argmax(1) != y)
        dead = ~(g.isfinite().flatten(1).all(1) & (g.flatten(1).abs().amax(1) > 0))
        lost = dead if lost is None else lost
        adv = ascend(adv, g.nan_to_num(), 2.5 * eps / steps, x, eps, NORM)
    logits = target.logits(adv)
    assert lost is not None
    return Trace(
        adv,
        torch.stack([*losses, loss(logits, y)]),
        torch.stack([*wrong, logits.argmax(1) != y]),
        lost,
    )


def checks(
    context: Context, declared: Callable[[], Declared], square: Callable[[], float | None]
) -> list[Check]:
    kept: list[Trace] = []

    def trace() -> Trace:
        if not kept:
            kept.append(
                climb(
                    context.target(context.some, fork="trace"),
                    context.x[context.some],
                    context.y[context.some],
                    context.eps,
                    STEPS,
                    cross_entropy,
                )
            )
        return kept[0]

    t = THRESHOLDS
    share = f"<= {100 * t['indicator'].value:g} % of the images"
    table: dict[str, tuple[str, str, str, Callable[[Context], CheckResult]]] = {
        "indicator 1": (
            "Unavailable gradients: is the attack without a gradient at its first step?",
            share,
            "Attack another loss, or another gradient",
            lambda _: _share(trace().lost),
        ),
        "indicator 2": (
            "Unstable predictions: does the loss jump in a small cube around the images found?",
            f"<= {t['unstable'].value:g}, relative, capped at 1",
            "The loss surface is too rough for one gradient: average over small changes",
            lambda s: _unstable(s, trace()),
        ),
        "indicator 3": (
            "Silent success: was an image broken on the way and right again at the end?",
            share,
            "Keep the best iterate, not the last",
            lambda s: _silent(s, trace()),
        ),
        "indicator 4": (
            "Incomplete optimisation: does the loss still grow over the last ten steps?",
            f"<= {t['incomplete'].value:g} of its range (median)",
            "Attack with more steps",
            lambda _: _incomplete(trace()),
        ),
        "indicator 5": (
            "Transfer failure: does what breaks the attacked pipeline leave the scored one right?",
            share,
            "Attack what is scored: more copies, and no other pipeline",
            lambda s: _elsewhere(s, declared()),
        ),
        "indicator 6": (
            "Failure without bounds: is an image right where everything is allowed?",
            "<= 1 %",
            "See the unbounded attack",
            lambda s: _free(s),
        ),
    }
    made = [
        Check(
            name=name,
            question=question,
            weight="sign",
            threshold=threshold,
            source=_PINTOR,
            advice=advice,
            run=run,
        )
        for name, (question, threshold, advice, run) in table.items()
    ]
    flags = Check(
        name="AutoAttack's flags",
        question="Would AutoAttack warn?",
        weight="sign",
        threshold=f"no flag: random outputs, probabilities for logits, zero DLR gradients, Square > {t['square'].value:g} points below, autograd inside",
        source="flags_doc.md and checks.py of arXiv:2003.01690",
        advice="AutoAttack's own number is not to be trusted here",
        run=lambda s: _flags(s, square()),
    )
    return [*made, flags]


def _share(which: Tensor) -> CheckResult:
    value = which.double().mean().item() if len(which) else 0.0
    return CheckResult(
        measured=f"{100 * value:.1f} % of the images",
        value=value,
        ok=value <= THRESHOLDS["indicator"].value,
    )


def _unstable(context: Context, trace: Trace) -> CheckResult:
    """Mean over images and draws of min(1, |f(x + u) - f(x)| / |f(x)|), u uniform in the cube, the noise being the same."""
    rows, y, noise = context.some, context.y[context.some], context.nth(context.some, "unstable")
    here = cross_entropy(context.logits(trace.x_adv, noise.again()), y)
    total = torch.zeros_like(here)
    for draw in range(DRAWS):
        u = (2 * context.root.take(rows).fork(f"around {draw}").uniform(trace.x_adv) - 1) * AROUND
        there = cross_entropy(context.logits((trace.x_adv + u).clamp(0, 1), noise.again()), y)
        total += ((there - here).abs() / here.abs().clamp(min=1e-6)).clamp(max=1)
    value = (total / DRAWS).mean().item()
    return CheckResult(
        measured=f"{value:.2f}", value=value, ok=value <= THRESHOLDS["unstable"].value
    )


def _silent(context: Context, trace: Trace) -> CheckResult:
    if context.stochastic:
        raise NotApplicable("a stochastic purifier is right and wrong by chance")
    return _share(trace.wrong.any(0) & ~trace.wrong[-1])


def _incomplete(trace: Trace) -> CheckResult:
    """Of the best loss so far, scaled to [0, 1]: what the last ten steps added."""
    best = trace.losses.double().nan_to_num().cummax(0).values
    low, high = best[0], best[-1]
    added = torch.where(high > low, (high - best[-1 - LAST]) / (high - low).clamp(min=1e-12), 0.0)
    value = added.median().item()
    return CheckResult(
        measured=f"{value:.3f} of its range",
        value=value,
        ok=value <= THRESHOLDS["incomplete"].value,
    )


def _elsewhere(context: Context, declared: Declared) -> CheckResult:
    """Of the images that are wrong for the attacker's view, those that the score calls right in most draws."""
    target = context.target(context.all, fork="view")
    seen = (
        torch.stack(
            [
                target.logits(declared.best.x_adv).argmax(1) != context.y
                for _ in range(context.budget.draws)
            ]
        )
        .double()
        .mean(0)
        > 0.5
    )
    right = torch.from_numpy(declared.best.score > 0.5).to(seen.device)
    return (
        _share((seen & right)[seen])
        if seen.any()
        else CheckResult(measured="no image is broken", value=0.0)
    )


def _free(context: Context) -> CheckResult:
    trace = climb(
        context.target(context.some, fork="free"),
        context.x[context.some],
        context.y[context.some],
        1.0,
        2 * STEPS,
        negative_margin,
    )
    value = (~trace.wrong.any(0)).double().mean().item()
    return CheckResult(
        measured=f"{100 * value:.1f} % of the images",
        value=value,
        ok=value <= THRESHOLDS["unbounded"].value,
    )


def _flags(context: Context, square: float | None) -> CheckResult:
    x, y, noise = (
        context.x[context.some],
        context.y[context.some],
        context.nth(context.some, "flags"),
    )
    logits = context.logits(x, noise.again())
    again = context.logits(x, context.nth(context.some, "flags", 1))
    flat = (
        logits / logits.flatten(1).norm(dim=1, keepdim=True),
        again / again.flatten(1).norm(dim=1, keepdim=True),
    )
    probabilities = bool(
        (logits >= 0).all() and (logits <= 1).all() and ((logits.sum(1) - 1).abs() < 1e-5).all()
    )
    found = {
        "random outputs" + (" (use version=rand)" if context.stochastic else ""): bool(
            (flat[0] - flat[1]).abs().max() > 1e-4
        ),
        "probabilities for logits": probabilities,
        "zero gradients of DLR": bool(
            (
                context.target(context.some, fork="flags")
                .gradient(x, y, dlr_any_classes)[0]
                .flatten(1)
                .abs()
                .amax(1)
                == 0
            ).any()
        ),
        f"Square lowers it by {100 * (square or 0):.1f} points": square is not None
        and 100 * square > THRESHOLDS["square"].value,
        "autograd inside the purifier": _calls_autograd(
            lambda: context.purified(x[:2], noise.again().take(slice(0, 2)))
        ),
    }
    raised = [name for name, there in found.items() if there]
    return CheckResult(
        measured="; ".join(raised) or "no flag", value=float(len(raised)), ok=not raised
    )


@contextmanager
def _watching(names: dict[str, Any], called: list[str]) -> Iterator[None]:
    """Notes calls of these functions; they do what they did."""
    kept = {name: getattr(owner, name) for name, owner in names.items()}

    def noted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return kept[name](*args, **kwargs)

        return call

    for name, owner in names.items():
        setattr(owner, name, noted(name))
    try:
        yield
    finally:
        for name, owner in names.items():
            setattr(owner, name, kept[name])


def _calls_autograd(forward: Callable[[], Any]) -> bool:
    called: list[str] = []
    with _watching({"grad": torch.autograd, "backward": torch.Tensor}, called):
        forward()
    return bool(called)
