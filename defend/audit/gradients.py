"""The declared gradient itself: finite, alive, neither fading nor exploding, the same twice, the slope of what is scored; and an attack without bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from defend.audit.context import NORM, Context
from defend.audit.declared import Declared
from defend.audit.spsa import WIDTH
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import Check, CheckResult, NotApplicable
from defend.losses import negative_margin
from defend.norms import project, random_signs
from defend.purifier import Backward, identity
from defend.stats import mcnemar, permutation
from defend.target import Target

STEPS = 100  # of the attack without bounds
DIRECTIONS = 20  # for each image, of finite differences
_ATHALYE = "Athalye et al., arXiv:1802.00420, section 3.1"


def checks(context: Context, declared: Callable[[], Declared]) -> list[Check]:
    t = THRESHOLDS
    return [
        Check(
            name="unbounded attack",
            question="Does an attack at eps 1, from the clean image itself, break everything?",
            weight="required",
            threshold=f"<= {100 * t['unbounded'].value:g} % left, and less than random and zero gradients of equal steps leave",
            source=t["unbounded"].source,
            advice="The gradient does not lead out of the class even where every image is allowed: it is masked",
            run=_unbounded,
        ),
        Check(
            name="finite gradient",
            question="Is the gradient made of finite numbers?",
            weight="required",
            threshold="every image",
            source="Pintor et al., arXiv:2106.09947, indicator 1",
            advice="Find the overflow or the division by zero in the purifier",
            run=_finite,
        ),
        Check(
            name="zero gradient",
            question="Is the gradient of any image zero?",
            weight="required",
            threshold=f"<= {100 * t['zero'].value:g} % of the images",
            source=t["zero"].source,
            advice="A step of the purifier cuts the gradient: use straight_through, or declare identity",
            run=_zero,
        ),
        Check(
            name="dead pixels",
            question="Do pixels get no gradient that would have one without the purifier?",
            weight="sign",
            threshold=f"<= {100 * t['dead'].value:g} %",
            source=t["dead"].source,
            advice="Parts of the image are detached, or without effect where they are, as behind a median: compare with BPDA",
            run=_dead,
        ),
        Check(
            name="size of the gradient",
            question="Does it fade or explode on its way through the purifier?",
            weight="sign",
            threshold=f"{t['vanishing'].value:g} to {t['exploding'].value:g} of the one past the purifier (median of L1 norms)",
            source=t["vanishing"].source,
            advice="Rounding and overflow eat such gradients: compare with BPDA",
            run=_size,
        ),
        Check(
            name="noisy gradient",
            question="Do two gradients of the same image agree?",
            weight="required" if not context.stochastic else "sign",
            threshold=f"cosine >= {t['cosine' if context.stochastic else 'replayed_cosine'].value:g} (median)",
            source=(t["cosine"] if context.stochastic else t["replayed_cosine"]).source,
            advice="Average over more copies (--eot)"
            if context.stochastic
            else "The card says stochastic=False and the gradient is random: declare it",
            run=_noisy,
        ),
        Check(
            name="slope",
            question="Is the gradient the slope of the loss that is scored?",
            weight="sign",
            threshold=f"correlation with finite differences >= {t['slope'].value:g}",
            source=t["slope"].source,
            advice="The declared gradient points elsewhere: compare with BPDA, the learned gradient and Square",
            run=_slope,
        ),
        Check(
            name="frozen noise",
            question="With the noise frozen and known, does the attack succeed at least as often?",
            weight="sign",
            threshold=f"not significantly fewer, or at most {100 * t['frozen'].value:g} % of the clean accuracy left",
            source=_ATHALYE + "; Carlini et al., arXiv:1902.06705, section 5",
            advice="Noise is not what stops the attack: the gradient is",
            run=lambda s: _frozen(s, declared()),
        ),
    ]


def _unbounded(context: Context) -> CheckResult:
    rows = context.all
    left = context.score(
        context.attack(f"pgd:steps={STEPS},random_start=false", context.target(rows), rows, eps=1.0)
    )
    walk = context.x
    for step in range(STEPS):
        walk = project(
            walk + 2.5 / STEPS * random_signs(walk, context.root.fork(f"walk {step}")),
            context.x,
            1.0,
            NORM,
        )
    test = permutation if context.stochastic else mcnemar
    controls = {"random directions": context.score(walk), "zero gradients": context.clean}
    beaten = {
        name: left.mean() < c.mean() and test(left, c) < THRESHOLDS["alpha"].value / 2
        for name, c in controls.items()
    }
    all_fell = left.mean() == 0 < context.clean.mean()  # of few images no test can say more
    enough = bool(
        (beaten["zero gradients"] or all_fell) and left.mean() <= THRESHOLDS["unbounded"].value
    )  # random steps may break nearly all of few too
    measured = f"leaves {100 * left.mean():.1f} %; " + ", ".join(
        f"{name} {100 * c.mean():.1f} %" for name, c in controls.items()
    )
    return CheckResult(
        measured=measured,
        value=float(left.mean()),
        ok=enough and bool(beaten["random directions"]),
        minor=enough,
    )


def _gradient(
    context: Context, backward: Backward | None = None, fork: str = "gradients"
) -> Tensor:
    """Of the excess at those points: (b, pixels)."""
    return (
        context.target(context.some, backward, fork=fork)
        .gradient(context.points, context.y[context.some], negative_margin)[0]
        .flatten(1)
    )


def _finite(context: Context) -> CheckResult:
    bad = (~_gradient(context).isfinite()).any(1).double().mean().item()
    return CheckResult(
        measured=f"{100 * bad:.1f} % of the images have infinite or undefined gradients",
        value=bad,
        ok=bad == 0,
    )


def _zero(context: Context) -> CheckResult:
    zero = (_gradient(context).abs().amax(1) == 0).double().mean().item()
    return CheckResult(
        measured=f"{100 * zero:.1f} % of the images",
        value=zero,
        ok=zero <= THRESHOLDS["zero"].value,
    )


def _dead(context: Context) -> CheckResult:
    alive = _gradient(context, identity) != 0
    dead = ((_gradient(context) == 0) & alive).double().sum().item() / max(1, int(alive.sum()))
    return CheckResult(
        measured=f"{100 * dead:.1f} % of the pixels",
        value=dead,
        ok=dead <= THRESHOLDS["dead"].value,
    )


def _size(context: Context) -> CheckResult:
    through, past = (_gradient(context, b).double().abs().sum(1) for b in (None, identity))
    ratio = (through / past.clamp(min=1e-300)).nan_to_num(nan=0.0, posinf=1e300).median().item()
    return CheckResult(
        measured=f"{ratio:.3g} times",
        value=ratio,
        ok=THRESHOLDS["vanishing"].value <= ratio <= THRESHOLDS["exploding"].value,
    )


def _noisy(context: Context) -> CheckResult:
    one, two = _gradient(context).double(), _gradient(context, fork="gradients again").double()
    cosine = torch.nn.functional.cosine_similarity(one, two, dim=1, eps=1e-300).nan_to_num(nan=0.0)
    both_zero = (one.abs().amax(1) == 0) & (two.abs().amax(1) == 0)
    median = torch.where(both_zero, 1.0, cosine).median().item()
    wanted = THRESHOLDS["cosine" if context.stochastic else "replayed_cosine"].value
    return CheckResult(
        measured=f"cosine {median:.3f} with {context.plan.eot} copies",
        value=median,
        ok=median >= wanted,
    )


class _Frozen(Target):
    """The same draw at every call: the noise is known."""

    def _advance(self, n: int) -> Tensor:
        return torch.zeros_like(self._rows)


def _frozen_target(context: Context, rows: Tensor) -> Target:
    return _Frozen(
        context.network, context.purifier, context.root.take(rows).fork("frozen"), scored=True
    )


def _slope(context: Context) -> CheckResult:
    """Over images and directions: the declared slope along u against (f(x + h u) - f(x - h u)) / 2h, the noise being the same."""
    x, y, h = context.points, context.y[context.some], WIDTH * context.eps
    target, noise = (
        _frozen_target(context, context.some),
        context.root.take(context.some).fork("directions"),
    )
    g = target.gradient(x, y, negative_margin)[0]
    said, measured = [], []
    for k in range(DIRECTIONS):
        u = random_signs(x, noise.fork(str(k)))
        high, low = (x + h * u).clamp(0, 1), (x - h * u).clamp(0, 1)
        said.append((g * (high - low)).flatten(1).double().sum(1))
        measured.append((negative_margin(target.logits(high), y) - negative_margin(target.logits(low), y)).double())
    pairs = torch.stack([torch.stack(said, 1), torch.stack(measured, 1)])  # (2, images, directions)
    pairs = pairs / pairs.square().mean(2, keepdim=True).sqrt().clamp(
        min=1e-300
    )  # each image counts the same
    value = float(torch.corrcoef(pairs.flatten(1))[0, 1].nan_to_num(nan=0.0))
    return CheckResult(
        measured=f"correlation {value:.2f}", value=value, ok=value >= THRESHOLDS["slope"].value
    )


def _frozen(context: Context, declared: Declared) -> CheckResult:
    if not context.stochastic:
        raise NotApplicable("the purifier is deterministic")
    rows = context.all
    x_adv = context.attack("pgd:steps=40", _frozen_target(context, rows), rows)
    with torch.no_grad():
        right = (
            (_frozen_target(context, rows).logits(x_adv).argmax(1) == context.y)
            .double()
            .cpu()
            .numpy()
        )
    fewer = (
        right.mean() > declared.best.accuracy
        and permutation(right, declared.best.score) < THRESHOLDS["alpha"].value
    )
    worse = fewer and right.mean() > THRESHOLDS["frozen"].value * declared.clean
    return CheckResult(
        measured=f"leaves {100 * right.mean():.1f} %, fresh noise {100 * declared.best.accuracy:.1f} %",
        value=float(right.mean()),
        ok=not worse,
    )
