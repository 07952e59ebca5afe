"""Signs that an attack failed to attack: the indicators of Pintor et al., arXiv:2106.09947, written from the paper, and AutoAttack's flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defend.benchmarks.audit.declared import Declared
from defend.benchmarks.audit.model import LeftOut, Rule, Seen
from defend.benchmarks.audit.scene import NORM, Scene
from defend.benchmarks.audit.thresholds import THRESHOLDS
from defend.losses import cross_entropy, dlr_of_any, excess
from defend.norms import project, steepest
from defend.target import Loss, Target

STEPS = 40
LAST = 10  # steps over which an attack should have come to rest
AROUND = 4 / 255  # half-width of the cube in which predictions should be stable; 100 draws in the paper
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
        adv = project(adv + 2.5 * eps / steps * steepest(g.nan_to_num(), NORM), x, eps, NORM)
    logits = target.logits(adv)
    assert lost is not None
    return Trace(adv, torch.stack([*losses, loss(logits, y)]), torch.stack([*wrong, logits.argmax(1) != y]), lost)


def rules(scene: Scene, declared: Callable[[], Declared], square: Callable[[], float | None]) -> list[Rule]:
    kept: list[Trace] = []

    def trace() -> Trace:
        if not kept:
            kept.append(climb(scene.target(scene.some, fork="trace"), scene.x[scene.some], scene.y[scene.some], scene.eps, STEPS, cross_entropy))
        return kept[0]

    t = THRESHOLDS
    share = f"<= {100 * t['indicator'].value:g} % of the images"
    table: dict[str, tuple[str, str, str, Callable[[Scene], Seen]]] = {
        "indicator 1": (
            "Unavailable gradients: is the attack without a gradient at its first step?", share, "Attack another loss, or another gradient",
            lambda _: _share(trace().lost),
        ),
        "indicator 2": (
            "Unstable predictions: does the loss jump in a small cube around the images found?", f"<= {t['unstable'].value:g}, relative, capped at 1",
            "The loss surface is too rough for one gradient: average over small changes", lambda s: _unstable(s, trace()),
        ),
        "indicator 3": (
            "Silent success: was an image broken on the way and right again at the end?", share, "Keep the best iterate, not the last",
            lambda s: _silent(s, trace()),
        ),
        "indicator 4": (
            "Incomplete optimisation: does the loss still grow over the last ten steps?", f"<= {t['incomplete'].value:g} of its range (median)",
            "Attack with more steps", lambda _: _incomplete(trace()),
        ),
        "indicator 5": (
            "Transfer failure: does what breaks the attacked pipeline leave the scored one right?", share,
            "Attack what is scored: more copies, and no other pipeline", lambda s: _elsewhere(s, declared()),
        ),
        "indicator 6": (
            "Failure without bounds: is an image right where everything is allowed?", "<= 1 %", "See the unbounded attack", lambda s: _free(s),
        ),
    }  # fmt: skip
    made = [
        Rule(name=name, question=question, weight="sign", threshold=threshold, source=_PINTOR, advice=advice, run=run)
        for name, (question, threshold, advice, run) in table.items()
    ]
    flags = Rule(
        name="AutoAttack's flags", question="Would AutoAttack warn?", weight="sign",
        threshold=f"no flag: random outputs, probabilities for logits, zero DLR gradients, Square > {t['square'].value:g} points below, autograd inside",
        source="flags_doc.md and checks.py of arXiv:2003.01690", advice="AutoAttack's own number is not to be trusted here",
        run=lambda s: _flags(s, square()),
    )  # fmt: skip
    return [*made, flags]


def _share(which: Tensor) -> Seen:
    value = which.double().mean().item() if len(which) else 0.0
    return Seen(measured=f"{100 * value:.1f} % of the images", value=value, ok=value <= THRESHOLDS["indicator"].value)


def _unstable(scene: Scene, trace: Trace) -> Seen:
    """Mean over images and draws of min(1, |f(x + u) - f(x)| / |f(x)|), u uniform in the cube, the noise being the same."""
    rows, y, noise = scene.some, scene.y[scene.some], scene.nth(scene.some, "unstable")
    here = cross_entropy(scene.logits(trace.x_adv, noise.again()), y)
    total = torch.zeros_like(here)
    for draw in range(DRAWS):
        u = (2 * scene.root.take(rows).fork(f"around {draw}").uniform(trace.x_adv) - 1) * AROUND
        there = cross_entropy(scene.logits((trace.x_adv + u).clamp(0, 1), noise.again()), y)
        total += ((there - here).abs() / here.abs().clamp(min=1e-6)).clamp(max=1)
    value = (total / DRAWS).mean().item()
    return Seen(measured=f"{value:.2f}", value=value, ok=value <= THRESHOLDS["unstable"].value)


def _silent(scene: Scene, trace: Trace) -> Seen:
    if scene.stochastic:
        raise LeftOut("a stochastic purifier is right and wrong by chance")
    return _share(trace.wrong.any(0) & ~trace.wrong[-1])


def _incomplete(trace: Trace) -> Seen:
    """Of the best loss so far, scaled to [0, 1]: what the last ten steps added."""
    best = trace.losses.double().nan_to_num().cummax(0).values
    low, high = best[0], best[-1]
    added = torch.where(high > low, (high - best[-1 - LAST]) / (high - low).clamp(min=1e-12), 0.0)
    value = added.median().item()
    return Seen(measured=f"{value:.3f} of its range", value=value, ok=value <= THRESHOLDS["incomplete"].value)


def _elsewhere(scene: Scene, declared: Declared) -> Seen:
    """Of the images that are wrong for the attacker's view, those that the score calls right in most draws."""
    target = scene.target(scene.all, fork="view")
    seen = torch.stack([target.logits(declared.best.x_adv).argmax(1) != scene.y for _ in range(scene.plan.draws)]).double().mean(0) > 0.5
    right = torch.from_numpy(declared.best.score > 0.5).to(seen.device)
    return _share((seen & right)[seen]) if seen.any() else Seen(measured="no image is broken", value=0.0)


def _free(scene: Scene) -> Seen:
    trace = climb(scene.target(scene.some, fork="free"), scene.x[scene.some], scene.y[scene.some], 1.0, 2 * STEPS, excess)
    value = (~trace.wrong.any(0)).double().mean().item()
    return Seen(measured=f"{100 * value:.1f} % of the images", value=value, ok=value <= THRESHOLDS["unbounded"].value)


def _flags(scene: Scene, square: float | None) -> Seen:
    x, y, noise = scene.x[scene.some], scene.y[scene.some], scene.nth(scene.some, "flags")
    logits = scene.logits(x, noise.again())
    again = scene.logits(x, scene.nth(scene.some, "flags", 1))
    flat = logits / logits.flatten(1).norm(dim=1, keepdim=True), again / again.flatten(1).norm(dim=1, keepdim=True)
    probabilities = bool((logits >= 0).all() and (logits <= 1).all() and ((logits.sum(1) - 1).abs() < 1e-5).all())
    found = {
        "random outputs" + (" (use version=rand)" if scene.stochastic else ""): bool((flat[0] - flat[1]).abs().max() > 1e-4),
        "probabilities for logits": probabilities,
        "zero gradients of DLR": bool((scene.target(scene.some, fork="flags").gradient(x, y, dlr_of_any)[0].flatten(1).abs().amax(1) == 0).any()),
        f"Square lowers it by {100 * (square or 0):.1f} points": square is not None and 100 * square > THRESHOLDS["square"].value,
        "autograd inside the purifier": _calls_autograd(lambda: scene.purified(x[:2], noise.again().take(slice(0, 2)))),
    }
    raised = [name for name, there in found.items() if there]
    return Seen(measured="; ".join(raised) or "no flag", value=float(len(raised)), ok=not raised)


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
