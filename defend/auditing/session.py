"""Results that several checks of one audit need, each computed at the first request."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, reduce
from traceback import walk_tb
from typing import TypeVar

import torch
from torch import Tensor

from defend.auditing.autograd_routes import AutogradRoutes, find_autograd_routes
from defend.auditing.context import Context
from defend.auditing.declared import DeclaredAttack, attack_declared
from defend.auditing.pgd_trace import TRACE_STEPS, PGDTrace, trace_pgd
from defend.auditing.slopes import (
    SLOPE_IMAGES,
    WIDTHS,
    Slope,
    declared_changes,
    measured_changes,
    slope_of,
)
from defend.auditing.verdict import CheckResult, NotApplicable
from defend.gradients import Backward
from defend.losses import cross_entropy

T = TypeVar("T")
STANDING = 0.5  # share of draws from which on an image counts as correct


class Session:
    """One audit while it runs: the context, and what earlier checks found out."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.outcomes: dict[str, CheckResult | Exception] = {}  # by the name of the check

    @property
    def declared(self) -> DeclaredAttack:
        """Return the result of the declared gradient's attacks, which run at the first request.

        Raises what they raised, at every request.
        """
        if isinstance(self.declared_or_error, Exception):
            raise self.declared_or_error
        return self.declared_or_error

    @cached_property
    def declared_or_error(self) -> DeclaredAttack | Exception:
        """Return the result of the declared gradient's attacks, or what they raised."""
        return result_or_error(lambda: attack_declared(self.context))

    @cached_property
    def trace(self) -> PGDTrace:
        """Return a plain PGD on the probe images, step by step."""
        context = self.context
        target = context.target(context.probe_rows, stream="trace")
        return trace_pgd(
            target, context.probe_x, context.probe_y, context.eps, TRACE_STEPS, cross_entropy
        )

    @cached_property
    def autograd(self) -> AutogradRoutes:
        """Return the ways to differentiate `purify` that differ from the declared gradient."""
        return find_autograd_routes(self.context)

    @cached_property
    def places(self) -> list[Tensor]:
        """Return where gradients are judged, around the probe images: at clean images, at random
        points of the ball, where the last of the declared attacks ended, and half way there.

        The worst images would not do: behind noise they are often the clean ones.
        """
        context, best = self.context, self.declared.best
        attacked = (best.images[-1] if best.images else best.x_adv)[context.probe_rows]
        halfway = (context.probe_x + attacked) / 2
        return [context.probe_x, context.probe_points, attacked, halfway]

    @cached_property
    def slope_rows(self) -> Tensor:
        """Return the probe images on which slopes are measured: those that are still correct after
        the declared attacks first.
        """
        scores = torch.from_numpy(self.declared.best.scores.copy())[: len(self.context.probe_rows)]
        order = scores.argsort(descending=True, stable=True)[:SLOPE_IMAGES]
        return order.to(self.context.x.device)

    @cached_property
    def is_standing(self) -> Tensor:
        """Return which of these images the declared attacks left correct."""
        return torch.from_numpy(self.declared.best.scores >= STANDING)[self.slope_rows.cpu()]

    @cached_property
    def slope_changes(self) -> list[tuple[Tensor, float, Tensor]]:
        """Return places, widths, and the changes of the loss that are measured there."""
        context, rows = self.context, self.slope_rows
        return [
            (x[rows], width, measured_changes(context, x[rows], rows, width))
            for x in self.places
            for width in WIDTHS
        ]

    def lowest_slope(self, backward: Backward | None) -> Slope:
        """Return how far a gradient is the slope where it is so the least."""
        context, rows = self.context, self.slope_rows
        slopes = [
            slope_of(
                declared_changes(context, x, backward, rows, width), measured, self.is_standing
            )
            for x, width, measured in self.slope_changes
        ]
        return reduce(Slope.lower, slopes)

    @property
    def square_gap(self) -> float | None:
        """Return how many more images Square broke, or None if it has not run."""
        outcome = self.outcomes.get("Square")
        return outcome.gap if isinstance(outcome, CheckResult) else None


def result_or_error(run: Callable[[], T]) -> T | Exception:
    """Return what `run` returns, or the exception that it raises.

    A plugin may raise anything. NotApplicable counts only if the audit's own code raised it.
    """
    try:
        return run()
    except NotApplicable as e:
        return e if _raised_by_audit(e) else RuntimeError(f"{type(e).__name__}: {e}")
    except Exception as e:
        return e


def _raised_by_audit(e: BaseException) -> bool:
    """Return True if the audit's code raised this, and not the code that is audited."""
    *_, (frame, _) = walk_tb(e.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith(__package__ or "defend")
