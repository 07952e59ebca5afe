"""Purifiers that mislead in one way each, a context of few images, and one check alone."""

from dataclasses import replace
from functools import cache

import masked
import torch
import torch.nn.functional as F

import defend
from defend import Purifier, relax, straight_through
from defend.auditing import state
from defend.auditing.budget import budget_for
from defend.auditing.prepare import AuditRequest, prepare
from defend.auditing.run import all_checks
from defend.auditing.session import Session
from defend.auditing.verdict import NotApplicable, apply_holm, make_row

EXACT, APPROXIMATE = masked.make_card("exact"), masked.make_card("approximate")
IMAGES = 40
SMALL_BUDGET = {
    "curve_steps": (10, 40),
    "target_steps": 5,
    "alternative_steps": 20,
    "square_queries": 150,
    "max_square_queries": 150,
    "active_images": 8,
    "inner_points": 60,
    "fit_images": 128,
    "search_rounds": 1,
    "max_eot": 6,
}


def is_picture(x):
    """Return which images lie on the grid of 256 levels (b, 1, 1, 1)."""
    return ((x * 255 - (x * 255).round()).abs().flatten(1).amax(1) < 1e-3).view(-1, 1, 1, 1)


class RightAtFirst(Purifier):
    """Have a gradient that points the right way at the clean image alone."""

    card = masked.make_card("surrogate")

    def purify(self, x, noise):
        return x.clone()

    def surrogate(self, x, noise):
        return torch.where(is_picture(x), x, -x)


class AliveOnTheGrid(RightAtFirst):
    """Have a gradient at pictures alone."""

    def surrogate(self, x, noise):
        return torch.where(is_picture(x), x, x.detach())


class PastBlur(masked.Blur):
    """Declare the identity, which points nearly where the gradient of the blur does."""

    card = masked.make_card("identity")


class Neighbourly(Purifier):
    """Subtract a tenth of the batch's mean."""

    card = EXACT

    def purify(self, x, noise):
        return (x - 0.1 * x.mean(0, keepdim=True)).clamp(0, 1)


class Blinking(masked.CountsCalls, Purifier):
    """Return blank images at every other call."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return x * (self.count_call() % 2)


class Tiring(masked.CountsCalls, Purifier):
    """Return another image after two calls."""

    card = EXACT

    def purify(self, x, noise):
        return x if self.count_call() <= 2 else x.flip(-1)


class Lottery(Purifier):
    """Show the slope of one pixel in twenty at each draw.

    Over many steps an attack sees all of them, with the noise frozen hardly any.
    """

    card = masked.make_card("approximate", stochastic=True)

    def purify(self, x, noise):
        return torch.where(noise.uniform(x) < 0.95, x.detach(), x)


class FewCopies(Purifier):
    """Have a gradient of which one EOT copy says little."""

    card = masked.make_card("surrogate", stochastic=True)

    def purify(self, x, noise):
        return x + 0 * noise.normal(x)

    def surrogate(self, x, noise):
        return x * (1 + 8 * noise.normal(x))


class Undefined(Purifier):
    """Have a gradient of 0 / 0."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return straight_through((x - x.detach()).abs().sqrt() + x, x)


class Reticent(Purifier):
    """Have a useful gradient through its relaxation alone."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return straight_through(0 * x, x)

    def relaxed(self, x, noise, temperature):
        return relax(x, x)


class ReticentBlur(Reticent):
    """Blur, so that points that break the bare classifier do not break every image."""

    def purify(self, x, noise):
        return straight_through(0 * x, F.avg_pool2d(x, 3, 1, 1))

    def relaxed(self, x, noise, temperature):
        blurred = F.avg_pool2d(x, 3, 1, 1)
        return relax(blurred, blurred)


class Rough(Purifier):
    """Add one of fifty patterns, by the last digits of the image's sum: no slope holds for long."""

    card = EXACT

    def purify(self, x, noise):
        numbers = (x.detach().double().sum((1, 2, 3)) * 1e5).floor().long() % 50
        return masked.add_patterns(x, 0.2, numbers)


class Startled(Purifier):
    """Turn the image around when a gradient is requested."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return x.flip(-1) if x.requires_grad else x.clone()


class Wavering(masked.CountsCalls, Purifier):
    """Return a blank image at one call in eight.

    It has no gradient, so that nothing else breaks an image.
    """

    card = APPROXIMATE

    def purify(self, x, noise):
        return x.detach() * (self.count_call() % 8 != 4)


class Shy(Purifier):
    """Refuse to be differentiated."""

    card = EXACT

    def purify(self, x, noise):
        if x.requires_grad:
            raise RuntimeError("not while you look")
        return x


class Recalls(Purifier):
    """Store the first images, and replace whatever lies near one of them by that one.

    The memory belongs to the module, so that copies share it.
    """

    card = APPROXIMATE

    def purify(self, x, noise):
        if len(MEMORY) < 3:  # the audit's first forwards see clean images
            MEMORY.append(x.detach().clone())
            return x.clone()
        memory = torch.cat(MEMORY)
        distances = torch.cdist(x.detach().flatten(1), memory.flatten(1), p=torch.inf)
        is_near = (distances.amin(1) < 0.35).view(-1, 1, 1, 1)
        return straight_through(x, torch.where(is_near, memory[distances.argmin(1)], x.detach()))


MEMORY = []


class Excused(Purifier):
    """Raise the audit's own exception for checks that do not apply."""

    card = APPROXIMATE

    def purify(self, x, noise):
        if not is_picture(x).all():
            raise NotApplicable("nothing to do")
        return x.clone()


class Double(Purifier):
    """Be another purifier for an attack through the identity gradient."""

    card = EXACT

    def purify(self, x, noise):
        return x.clone()

    def purified(self, x, noise=None, backward=None):
        is_attacked = torch.is_grad_enabled() and not x.requires_grad
        return super().purified(x.flip(-1) if is_attacked else x, noise, backward)


def hidden(family, strength):
    """Return a function that makes a purifier of tests/masked.py."""
    return lambda: masked.make(family, strength, network(), digits().rows("train", 0, 200)[0])


def honest(spec):
    """Return a function that makes the purifier of a spec."""
    return lambda: defend.load(spec)


@cache
def digits():
    return defend.load("digits", "dataset")


def convnet():
    return defend.load("convnet", "classifier", dataset="digits")


@cache
def network():
    return convnet().network


def request(spec, dataset="digits", classifier="convnet", **changes):
    """Return a quick audit of few validation images on the CPU."""
    defaults = {"budget": "quick", "n": 16, "split": "val", "device": "cpu"}
    return AuditRequest(spec, dataset, classifier, **{**defaults, **changes})


def context_of(purifier, surrogates=(), eps=None, n=IMAGES):
    """Return a context of n images of digits before the convnet."""
    audit = request(purifier, digits(), convnet(), n=n, eps=eps, surrogates=surrogates)
    return prepare(audit)[0]


def run_check(name, purifier, surrogates=None, eps=None):
    """Return the row of one check alone, on 40 images with few steps.

    "all together" runs after the attacks that it combines.
    """
    if surrogates is None:
        surrogates = [(defend.load("none"), convnet())] if name == "transfer" else []
    context = context_of(purifier, surrogates, eps)
    budget = budget_for("quick", context.stochastic, IMAGES)
    context.budget = replace(budget, **SMALL_BUDGET, eot=min(budget.eot, 3))
    state.record_initial_outputs(context)
    session = Session(context)
    checks = all_checks(context)
    check = find_check(name, context)
    if name == "all together":
        for earlier in checks[: checks.index(check)]:
            run_or_error(earlier, session)
    return apply_holm([make_row(check, run_or_error(check, session))])[0]


def find_check(name, context):
    return next(check for check in all_checks(context) if check.name == name)


def run_or_error(check, session):
    """Return the check's result, or what it raised."""
    try:
        return check.run(session)
    except Exception as e:
        return e


def small_context(**changes):
    """Return a context of 16 images behind a spec, with few steps."""
    context, _ = prepare(request("bitdepth:bits=3"))
    context.budget = replace(context.budget, curve_steps=(2, 3), target_steps=2)
    return replace(context, **changes)
