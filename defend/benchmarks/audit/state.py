"""Does the purifier do the same each time: with the same noise, in any company, before and after an attack, watched or not?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from defend.benchmarks.audit.declared import Declared
from defend.benchmarks.audit.model import Rule, Seen
from defend.benchmarks.audit.rounds import to_grid
from defend.benchmarks.audit.scene import Scene
from defend.benchmarks.audit.thresholds import THRESHOLDS
from defend.benchmarks.stats import mcnemar, permutation

FORWARDS = 5
TINY = 1e-6  # the change of a pixel that nothing may depend on
BACK = 1e-3  # of the way to the clean image. x + eps is a quantiser's edge by itself (0.3 x 255 = 76.5), rounded up here and down there
_SOURCE = "AutoAttack's flags (arXiv:2003.01690, flags_doc.md); Tramer et al., arXiv:2002.08347"


def rules(declared: Callable[[], Declared]) -> list[Rule]:
    share = f"<= {100 * THRESHOLDS['state'].value:g} % of the images move"
    table: dict[str, tuple[str, str, Callable[[Scene], Seen]]] = {
        "five forwards": (
            "Do five forwards agree with the same noise, and with other noise as the card says?",
            "Let the card say what it does, stochastic=True or False, and draw from `noise` alone: attacks and scores go by it", _forwards,
        ),
        "a millionth": (
            "Does x + 1e-6 give what x gives, on the grid of 256 levels and off it?",
            "What depends on exact numbers hides the slope: attack its average over small changes", lambda s: _millionth(s, declared()),
        ),
        "company": ("Is an image purified alone as it is in a batch, and in any order?", "Let no image depend on its neighbours", _company),
        "watched": ("Does it do the same when a gradient is asked for?", "The attacker is shown another purifier than the one that is scored", _watched),
        "before and after": ("Does it do the same after the attacks as before?", "It remembers what it has seen: remove the state", _after),
        "fresh process": (
            "Does a fresh one do the same, with the attacks' images too?", "It depends on what else has run: remove the state", lambda s: _fresh(s, declared()),
        ),
    }  # fmt: skip
    made = [
        Rule(name=name, question=question, weight="required", threshold=share, source=_SOURCE, advice=advice, run=run)
        for name, (question, advice, run) in table.items()
    ]
    rekeyed = Rule(
        name="re-keyed noise", question="Is the score the same under other noise?", weight="required",
        threshold=f"p >= {THRESHOLDS['rekeyed'].value:g}, paired, or less than {THRESHOLDS['gap'].value:g} points apart", source=THRESHOLDS["rekeyed"].source,
        advice="The noise of the score is not like that of deployment", run=lambda s: _rekeyed(s, declared()),
    )  # fmt: skip
    return [*made, rekeyed]


def moved(a: Tensor, b: Tensor) -> float:
    """The share of images whose pixels differ by more than a thousandth on average, or by a hundredth anywhere in a twentieth of them."""
    d = (a - b).abs().flatten(1)
    limit = THRESHOLDS["moved"].value
    return ((d.mean(1) > limit) | ((d > 10 * limit).double().mean(1) > 0.05)).double().mean().item()


def _judged(share: float, of: str = "") -> Seen:
    return Seen(measured=f"{100 * share:.1f} % of the images move{of}", value=share, ok=share <= THRESHOLDS["state"].value)


def _seen(scene: Scene) -> tuple[Tensor, Tensor]:
    """The clean images, and places off their grid."""
    return scene.x[scene.some], scene.points


def _forwards(scene: Scene) -> Seen:
    same, other, drew = 0.0, 0.0, False
    for x in _seen(scene):
        first = scene.purified(x, scene.nth(scene.some, "state"))
        for k in range(1, FORWARDS):
            again, anew = (scene.purified(x, scene.nth(scene.some, "state", draw)) for draw in (0, k))
            same, other, drew = max(same, moved(first, again)), max(other, moved(first, anew)), drew or not torch.equal(first, anew)
    if scene.stochastic and not drew:
        return Seen(measured="no draw changes a pixel, and the card says stochastic", value=0.0, ok=False)
    return _judged(same if scene.stochastic else max(same, other))


def _millionth(scene: Scene, declared: Declared) -> Seen:
    """Pixels, where the attack did not choose the place; labels, where it did: inside its images, and in those rounded to the grid."""
    clean, off = _seen(scene)
    worst = max(min(_apart(scene, x, TINY), _apart(scene, x, -TINY)) for x in (clean, off))  # one side may cross a quantiser's edge
    found = declared.best.x_adv[scene.some]
    for x in (clean, off, found.lerp(clean, BACK), to_grid(found, clean, scene.eps)):
        worst = max(worst, min(_relabelled(scene, x, TINY), _relabelled(scene, x, -TINY)))
    return _judged(worst)


def _apart(scene: Scene, x: Tensor, by: float) -> float:
    noise = scene.nth(scene.some, "state")
    return moved(scene.purified(x, noise), scene.purified((x + by).clamp(0, 1), noise))


def _relabelled(scene: Scene, x: Tensor, by: float) -> float:
    """The share of images whose label changes."""
    noise = scene.nth(scene.some, "state")
    return (scene.logits(x, noise).argmax(1) != scene.logits((x + by).clamp(0, 1), noise).argmax(1)).double().mean().item()


def _company(scene: Scene) -> Seen:
    worst = 0.0
    for x in _seen(scene):
        noise = scene.nth(scene.some, "state")
        whole, few = scene.purified(x, noise), min(16, len(x))
        alone = torch.cat([scene.purified(x[i : i + 1], noise.again().take(slice(i, i + 1))) for i in range(few)])
        worst = max(worst, moved(whole[:few], alone) if few else 0.0)
        order = torch.arange(len(x) - 1, -1, -1, device=x.device)
        worst = max(worst, moved(whole[order], scene.purified(x[order], noise.again().take(order))))
    return _judged(worst)


def _watched(scene: Scene) -> Seen:
    worst = 0.0
    for x in _seen(scene):
        noise = scene.nth(scene.some, "state")
        with torch.enable_grad():
            watched = scene.purifier.purified(x.clone().requires_grad_(), noise.again()).detach()
        worst = max(worst, moved(scene.purified(x, noise), watched))
    return _judged(worst)


def _after(scene: Scene) -> Seen:
    """Against what it gave when the audit began."""
    noise = scene.nth(scene.some, "state")
    return _judged(max(moved(before, scene.purified(x, noise)) for x, before in zip(_seen(scene), scene.before, strict=True)))


def remember(scene: Scene) -> None:
    scene.before = [scene.purified(x, scene.nth(scene.some, "state")) for x in _seen(scene)]


def _fresh(scene: Scene, declared: Declared) -> Seen:
    """In another order, so that a memory of places shows too. Each set of images in a process of its own: attacked ones, whose clean ones
    it never saw, tell a memory of what was shown before."""
    worst, order = 0.0, torch.arange(len(scene.some) - 1, -1, -1, device=scene.x.device)
    for x in (*_seen(scene), *(made[scene.some] for made in declared.best.made[-1:])):
        noise = scene.nth(scene.some, "state")
        worst = max(worst, moved(scene.purified(x, noise)[order], scene.twin(x[order], order, "state")))
    return _judged(worst, f", against {scene.twin_is}")


def _rekeyed(scene: Scene, declared: Declared) -> Seen:
    """The declared gradient's best images, scored on `score` draws and on as many others."""
    x_adv, rows = declared.best.x_adv, scene.all
    here, there = (scene.right(x_adv, rows, fork, scene.plan.draws) for fork in ("score", "re-keyed"))
    p, apart = (permutation if scene.stochastic else mcnemar)(here, there), 100 * abs(here.mean() - there.mean())
    ok = p >= THRESHOLDS["rekeyed"].value or apart < THRESHOLDS["gap"].value  # noise alone is significant once in a hundred
    return Seen(measured=f"{100 * here.mean():.1f} % and {100 * there.mean():.1f} %, p = {p:.2g}", value=p, ok=bool(ok))
