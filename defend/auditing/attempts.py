"""The attacks that are compared with the declared gradient's best; each takes rows of images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import NamedTuple

from torch import Tensor, nn

from defend.auditing.autograd_routes import MIN_WITH_GRADIENT, AutogradRoutes
from defend.auditing.comparison import Attempt, pipeline_attempts
from defend.auditing.context import Context, Surrogate
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import NotApplicable, NotTried
from defend.benchmarks.component_keys import is_undefended
from defend.gradients import Backward, Relaxed, identity
from defend.losses import negative_margin
from defend.threat_models import TEMPERATURES
from defend.training.bpda_network import RECIPE, fit_bpda_network
from defend.training.perturbations import add_random_signs

LONGER = 3  # times the steps of a fit, where the first one imitates badly
# On another pipeline broken images are not dropped, so fixed numbers of steps suffice.
TRANSFER_ATTACKS = ("pgd:steps=40", "apgd:loss=ce,steps=40")


class SquareEffort(NamedTuple):
    """How Square spends its queries."""

    steps: int
    draws: int  # over which each step is averaged


class TransferRoute(NamedTuple):
    """A surrogate, and the gradient through which it is attacked (None: its declared one)."""

    surrogate: Surrogate
    backward: Backward | None


def identity_attempts(context: Context) -> Iterator[Attempt]:
    """Return attacks through the identity gradient (BPDA). Raises NotApplicable."""
    if context.purifier.card.gradient == "identity":
        raise NotApplicable("the declared gradient is the identity")
    return pipeline_attempts(context, _gradient_attacks(context), identity)


def learned_attempts(context: Context, fits_longer: bool) -> Iterator[Attempt]:
    """Return attacks through the gradient of a fitted network. Raises NotApplicable, NotTried.

    fits_longer: fit another network for longer if the first one imitates the purifier badly.
    """
    if is_undefended(context.purifier):
        raise NotApplicable("there is no purifier to imitate")
    if not context.budget.fit_images:
        raise NotTried("left out of budget=quick")
    fit = fit_well if fits_longer else fit_network
    network, context.bpda_network_error = fit(context)
    return pipeline_attempts(context, _gradient_attacks(context), network)


def autograd_attempts(context: Context, autograd: AutogradRoutes) -> Iterator[Attempt]:
    """Return attacks through `purify` itself. Raises NotApplicable, NotTried."""
    if autograd.raises and not autograd.routes:
        raise NotTried(autograd.reason)
    if not autograd.routes:
        raise NotApplicable(autograd.reason)
    return _attack_routes(context, autograd)


def _attack_routes(context: Context, autograd: AutogradRoutes) -> Iterator[Attempt]:
    for route in autograd.routes:
        yield from pipeline_attempts(context, _gradient_attacks(context), route)


def relaxed_attempts(context: Context) -> Iterator[Attempt]:
    """Yield attacks through the relaxation at each temperature. Raises NotApplicable."""
    if not context.purifier.has_relaxation:
        raise NotApplicable("the purifier declares no relaxation")
    return _attack_relaxations(context)


def _attack_relaxations(context: Context) -> Iterator[Attempt]:
    for temperature in TEMPERATURES:
        relaxation = Relaxed(temperature)
        yield from pipeline_attempts(context, _gradient_attacks(context), relaxation)


def fit_network(context: Context) -> tuple[nn.Module, float]:
    """Return a network that imitates the purifier, and its relative error.

    For specs it is the bench's network, so that audit and bench report the same gradient.
    """
    pipeline = context.bench_pipeline
    if pipeline is None:
        return _fit(context, RECIPE["steps"])
    fitted = pipeline.components.bpda.get(pipeline.classifier, pipeline.defense)
    return fitted.backward, fitted.error


def fit_well(context: Context) -> tuple[nn.Module, float]:
    """Return the network of `fit_network`; where its error is large, the better of it and of one
    that is fitted longer.
    """
    first = fit_network(context)
    if first[1] <= THRESHOLDS.imitation.value:
        return first
    return min(first, _fit(context, LONGER * RECIPE["steps"]), key=lambda fitted: fitted[1])


def _fit(context: Context, steps: int) -> tuple[nn.Module, float]:
    images, labels = context.training_images(context.budget.fit_images)
    return fit_bpda_network(
        context.purifier,
        images,
        labels,
        context.network,
        context.seed,
        eps=context.eps,
        steps=steps,
    )


def _gradient_attacks(context: Context) -> tuple[str, ...]:
    steps = context.budget.alternative_steps
    return f"apgd:loss=ce,steps={steps}", f"pgd:steps={min(40, steps)}"


def square_effort(context: Context) -> SquareEffort:
    """Return Square's steps and draws.

    Where noise changes almost no prediction, the queries go into steps instead of averages.
    Otherwise noise that does nothing would shorten the search.
    """
    queries, eot = context.budget.square_queries, context.budget.eot
    if context.noise_is_negligible:
        return SquareEffort(queries * eot, 1)
    return SquareEffort(queries, eot)


def oblivious_attempts(context: Context) -> Iterator[Attempt]:
    """Yield attacks on the bare classifier."""
    bare_classifier = Surrogate(context.no_defense, context.network)
    for spec in TRANSFER_ATTACKS:
        yield partial(_attack_surrogate, context, spec, TransferRoute(bare_classifier, None))


class TransferAttack:
    """The attacks on every surrogate, whose images are then tried on the audited pipeline.

    Which gradients the surrogates have is measured once, when it is first needed.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    @cached_property
    def routes_of_surrogates(self) -> list[list[TransferRoute]]:
        """Return the routes to each surrogate; none for a surrogate without a gradient."""
        return [find_routes(self.context, surrogate) for surrogate in self.context.surrogates]

    def make_attempts(self) -> Iterator[Attempt]:
        """Return attacks on every surrogate. Raises NotTried if none can be attacked."""
        if not self.context.surrogates:
            raise NotTried(self.context.no_surrogate_reason)
        if not any(self.routes_of_surrogates):
            raise NotTried(
                "no surrogate can be attacked: the gradient is zero, through its purifier and past"
                " its purifier"
            )
        return self._attack_routes()

    def _attack_routes(self) -> Iterator[Attempt]:
        for routes in self.routes_of_surrogates:
            for route in routes:
                for spec in TRANSFER_ATTACKS:
                    yield partial(_attack_surrogate, self.context, spec, route)

    def describe(self) -> str:
        """Return notes on surrogates that were attacked past their purifier, or not at all."""
        notes = ""
        if any(len(routes) > 1 for routes in self.routes_of_surrogates):
            notes += ", past a surrogate's purifier too: its own gradient is zero"
        left_out = self.routes_of_surrogates.count([])
        if left_out:
            total = len(self.routes_of_surrogates)
            notes += f", without {left_out} of {total} surrogates, whose gradients are zero"
        return notes


def _attack_surrogate(context: Context, spec: str, route: TransferRoute, rows: Tensor) -> Tensor:
    target = context.transfer_target(rows, route.surrogate, route.backward)
    return context.attack(spec, target, rows)


def find_routes(context: Context, surrogate: Surrogate) -> list[TransferRoute]:
    """Return how a surrogate is attacked: through its declared gradient.

    If that is zero for most images, the attack also goes past its purifier, by the identity: a
    retrained copy of a masked purifier masks its gradient, too. If both are zero, there is no way.
    """
    declared = TransferRoute(surrogate, None)
    if _has_gradient(context, declared):
        return [declared]
    through_identity = TransferRoute(surrogate, identity)
    if _has_gradient(context, through_identity):
        return [declared, through_identity]
    return []


def _has_gradient(context: Context, route: TransferRoute) -> bool:
    """Return True if at least half of the probe images have a gradient that is not zero."""
    target = context.transfer_target(context.probe_rows, route.surrogate, route.backward)
    gradient, _, _ = target.gradient(context.probe_points, context.probe_y, negative_margin)
    is_nonzero = gradient.flatten(1).abs().amax(1) > 0
    return bool(is_nonzero.double().mean() >= MIN_WITH_GRADIENT)


def one_step_attempts(context: Context) -> Iterator[Attempt]:
    """Return attacks of a single step."""
    return pipeline_attempts(context, ("fgsm", "pgd:steps=1,step=1"))


def random_attempts(context: Context) -> Iterator[Attempt]:
    """Yield random corners of the ball."""
    for draw in range(context.budget.random_draws):
        yield partial(_draw_corner, context, draw)


def _draw_corner(context: Context, draw: int, rows: Tensor) -> Tensor:
    noise = context.noise.take(rows).fork(f"signs {draw}")
    return add_random_signs(context.x[rows], context.eps, noise)
