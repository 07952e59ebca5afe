"""Toys that the tests of the audit share: purifiers that mislead in one way each, a scene of few images, and one check alone."""

from dataclasses import replace
from functools import cache

import masked
import torch

import defend
from defend import Purifier, straight_through
from defend.audit import state
from defend.audit.budget import budget_for
from defend.audit.prepare import prepare
from defend.audit.run import all_checks
from defend.audit.verdict import NotApplicable, apply_holm, checked

EXACT, APPROXIMATE = masked.card("exact"), masked.card("approximate")


def pictures(x):
    """Which images stand on the grid of 256 levels (b, 1, 1, 1)."""
    return ((x * 255 - (x * 255).round()).abs().flatten(1).amax(1) < 1e-3).view(-1, 1, 1, 1)


class RightAtFirst(Purifier):
    """Shows the way at the clean image alone."""

    card = masked.card("surrogate")

    def purify(self, x, noise):
        return x.clone()

    def surrogate(self, x, noise):
        return torch.where(pictures(x), x, -x)


class AliveOnTheGrid(RightAtFirst):
    """Has a gradient at pictures alone."""

    def surrogate(self, x, noise):
        return torch.where(pictures(x), x, x.detach())


class Neighbourly(Purifier):
    """Subtracts a tenth of the batch's mean."""

    card = EXACT

    def purify(self, x, noise):
        return (x - 0.1 * x.mean(0, keepdim=True)).clamp(0, 1)


class Blinking(masked.CountsCalls, Purifier):
    """Every other call is blank."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return x * (self.called() % 2)


class Tiring(masked.CountsCalls, Purifier):
    """Another image after two calls."""

    card = EXACT

    def purify(self, x, noise):
        return x if self.called() <= 2 else x.flip(-1)


class Lottery(Purifier):
    """Each draw shows the slope of one pixel in twenty: over many steps all are seen, with the noise frozen hardly any."""

    card = masked.card("approximate", stochastic=True)

    def purify(self, x, noise):
        return torch.where(noise.uniform(x) < 0.95, x.detach(), x)


class FewCopies(Purifier):
    """One copy's gradient says little."""

    card = masked.card("surrogate", stochastic=True)

    def purify(self, x, noise):
        return x + 0 * noise.normal(x)

    def surrogate(self, x, noise):
        return x * (1 + 8 * noise.normal(x))


class Undefined(Purifier):
    """Its gradient is 0 / 0."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return straight_through((x - x.detach()).abs().sqrt() + x, x)


class Rough(Purifier):
    """Adds one of fifty patterns, as the last digits of its sum say: no slope holds for long."""

    card = EXACT

    def purify(self, x, noise):
        which = (x.detach().double().sum((1, 2, 3)) * 1e5).floor().long() % 50
        return masked.patterned(x, 0.2, which)


class Startled(Purifier):
    """Turns the image around for whoever asks for a gradient."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return x.flip(-1) if x.requires_grad else x.clone()


class Wavering(masked.CountsCalls, Purifier):
    """Blank at one call in eight, and without a gradient, so that nothing else breaks an image."""

    card = APPROXIMATE

    def purify(self, x, noise):
        return x.detach() * (self.called() % 8 != 4)


class Shy(Purifier):
    """Will not be differentiated."""

    card = EXACT

    def purify(self, x, noise):
        if x.requires_grad:
            raise RuntimeError("not while you look")
        return x


class Recalls(Purifier):
    """Remembers the first images that it sees, and answers whatever lies near one of them with that one. Its memory is the module's, which
    copies share."""

    card = APPROXIMATE

    def purify(self, x, noise):
        if (
            len(MEMORY) < 3
        ):  # two looks of the estimate at clean images, and what the audit asks before its attacks
            MEMORY.append(x.detach().clone())
            return x.clone()
        known = torch.cat(MEMORY)
        apart = torch.cdist(x.detach().flatten(1), known.flatten(1), p=torch.inf)
        return straight_through(
            x,
            torch.where(
                (apart.amin(1) < 0.35).view(-1, 1, 1, 1), known[apart.argmin(1)], x.detach()
            ),
        )


MEMORY = []


class Excused(Purifier):
    """Gives back what the audit says where a check has nothing to do."""

    card = APPROXIMATE

    def purify(self, x, noise):
        if not pictures(x).all():
            raise NotApplicable("nothing to do")
        return x.clone()


class Double(Purifier):
    """Another purifier for whoever differentiates past it."""

    card = EXACT

    def purify(self, x, noise):
        return x.clone()

    def purified(self, x, noise=None, backward=None):
        return super().purified(
            x.flip(-1) if torch.is_grad_enabled() and not x.requires_grad else x, noise, backward
        )


def hidden(family, strength):
    """A masked one of tests/masked.py."""
    return lambda: masked.make(family, strength, network(), digits().rows("train", 0, 200)[0])


def honest(spec):
    return lambda: defend.load(spec)


@cache
def digits():
    return defend.load("digits", "dataset")


@cache
def network():
    return defend.load("convnet", "classifier", dataset="digits").network


def network_of_another():
    return defend.load("none"), defend.load("convnet", "classifier", dataset="digits")


def scene_of(purifier, surrogates=(), eps=None, n=40):
    """n images of digits before the convnet."""
    net = defend.load("convnet", "classifier", dataset="digits")
    return prepare(
        purifier,
        digits(),
        net,
        "quick",
        n=n,
        split="val",
        eps=eps,
        surrogates=surrogates,
        seed=0,
        device="cpu",
        data_root=None,
    )[0]


def look(name, purifier, surrogates=None, eps=None):
    """One check alone, on 40 images with few steps; "all together" after the attacks that it adds up."""
    context = scene_of(
        purifier, surrogates or ([network_of_another()] if name == "transfer" else []), eps
    )
    plan = budget_for("quick", context.stochastic, 40)
    small = {
        "curve": (10, 40),
        "target_steps": 5,
        "rival": 20,
        "queries": 150,
        "active": 8,
        "inner": 60,
        "images": 128,
        "eot": min(plan.eot, 3),
        "eot_most": 6,
    }
    context.budget = replace(plan, **small)
    state.remember(context)
    table = all_checks(context, {})[0]
    rule = next(r for r in table if r.name == name)
    for other in table[: table.index(rule)] if name == "all together" else []:
        ran(other, context)
    return apply_holm([checked(rule, ran(rule, context))])[0]


def ran(rule, context):
    try:
        return rule.run(context)
    except Exception as e:
        return e


def small(**changes):
    """A scene of 16 images behind a spec, with few steps."""
    context, _ = prepare(
        "bitdepth:bits=3",
        "digits",
        "convnet",
        "quick",
        n=16,
        split="val",
        eps=None,
        surrogates=(),
        seed=0,
        device="cpu",
        data_root=None,
    )
    context.budget = replace(context.budget, curve=(2, 3), target_steps=2)
    return replace(context, **changes)
