"""`defend.audit`: the checks one after another, and the verdict. A check that raises is a row of the report, never the end of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from traceback import walk_tb
from typing import Any

import torch

from defend.audit import active, alternative_attacks, declared, gradients, indicators, state
from defend.audit.comparison import together
from defend.audit.context import Context, frame
from defend.audit.prepare import Pipeline, prepare
from defend.audit.verdict import (
    AuditReport,
    Check,
    CheckResult,
    CheckRow,
    NotApplicable,
    apply_holm,
    checked,
    verdict_of,
)
from defend.benchmarks.engines.local import numerics_applied
from defend.benchmarks.suite import Eps
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import one_line
from defend.loading import pick_device
from defend.losses import cross_entropy
from defend.purifier import Purifier


def audit(
    spec: str | Purifier,
    dataset: str | Dataset,
    classifier: str | Classifier,
    budget: str = "standard",
    *,
    n: int | None = None,
    split: str = "test",
    eps: float | str | None = None,
    surrogates: Sequence[str | Pipeline] = (),
    seed: int = 0,
    device: str = "auto",
    data_root: str | None = None,
    progress: bool = False,
) -> AuditReport:
    """Is what the declared gradient of a purifier reports before this classifier real? L-inf; eps: by default the data set's claim eps.

    spec, dataset, classifier: specs, or objects. surrogates: other pipelines to transfer from, as "C" or "DEFENSE+C", or (purifier,
    classifier). n: images, by default the budget's. progress: the estimate of the time, and each check, on stderr. Raises DefendError for
    what the caller can mend; a check that fails or cannot run is a row of the report.
    """
    given = {
        "n": n,
        "split": split,
        "eps": eps,
        "surrogates": surrogates,
        "seed": seed,
        "data_root": data_root,
    }
    where = pick_device(device)
    with numerics_applied(frame(where)):
        return _audit(
            spec, dataset, classifier, budget, _teller(progress), {**given, "device": str(where)}
        )


def _audit(
    spec: str | Purifier,
    dataset: str | Dataset,
    classifier: str | Classifier,
    budget: str,
    tell: Callable[[str], None],
    given: dict[str, Any],
) -> AuditReport:
    began = time.perf_counter()
    context, about = prepare(spec, dataset, classifier, budget, **given)
    tell(
        f"{about['defense']} before {about['classifier']}: {len(context.x)} images of {about['dataset']} {about['split']}, eps {Eps.of(context.eps).text}"
    )
    tell(_expected(context))
    checks, found = _checks(context, tell)
    verdict, reasons = verdict_of(checks)
    about |= found | {"seconds": round(time.perf_counter() - began, 1)}
    return AuditReport(verdict=verdict, reasons=reasons, checks=checks, about=about)


def _checks(context: Context, tell: Callable[[str], None]) -> tuple[list[CheckRow], dict[str, Any]]:
    seen: dict[str, CheckResult | Exception] = {}
    table, attacked = all_checks(context, seen)
    began = _once(lambda: state.remember(context))
    for rule in table:
        seen[rule.name] = (
            began
            if isinstance(began, Exception) and rule.name == "before and after"
            else _once(lambda r=rule: r.run(context))
        )  # type: ignore[misc]
        outcome = seen[rule.name]
        tell(
            f"{rule.name}: {outcome.measured if isinstance(outcome, CheckResult) else one_line(outcome)}"
        )
    return apply_holm([checked(rule, seen[rule.name]) for rule in table]), _numbers(
        context, attacked()
    )


def all_checks(
    context: Context, seen: Mapping[str, CheckResult | Exception]
) -> tuple[list[Check], Callable[[], declared.Declared | Exception]]:
    """Every check of this scene, and the declared gradient's attack, which runs when a check first asks. seen: what was seen so far."""
    attacked = cache(lambda: _once(lambda: declared.attack_declared(context)))

    def best() -> declared.Declared:
        found = attacked()
        if isinstance(found, declared.Declared):
            return found
        raise found

    def square() -> float | None:
        there = seen.get("Square")
        return there.gap if isinstance(there, CheckResult) else None

    table = [
        *declared.checks(context, best),
        *alternative_attacks.checks(best),
        *gradients.checks(context, best),
        *indicators.checks(context, best, square),
        *active.checks(),
        *state.checks(best),
    ]
    return table, attacked


def _once(run: Callable[[], Any]) -> Any:
    """What it gives, or why it gives nothing: a plugin may raise anything, the audit's own LeftOut too."""
    try:
        return run()
    except Exception as e:
        return (
            RuntimeError(f"{type(e).__name__}: {e}")
            if isinstance(e, NotApplicable) and not _of_the_audit(e)
            else e
        )


def _of_the_audit(e: BaseException) -> bool:
    """Was it raised here, and not by what is audited?"""
    *_, (frame, _) = walk_tb(e.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith(__package__ or "defend")


def _numbers(context: Context, found: declared.Declared | Exception) -> dict[str, Any]:
    if isinstance(found, Exception):
        none = dict.fromkeys(
            (
                "clean_accuracy",
                "declared_accuracy",
                "declared",
                "lowest_accuracy",
                "imitation_error",
            )
        )
        return {**none, "curve": [], "copies": []}
    return {
        "clean_accuracy": found.clean,
        "declared_accuracy": found.best.accuracy,
        "declared": found.text,
        "lowest_accuracy": float(together(found.best).mean()),
        "imitation_error": context.imitation_error,
        "curve": found.curve,
        "copies": found.copies,
    }


def estimate(context: Context) -> float:
    """Seconds, from one forward and one gradient of some images."""
    rows = context.all[:32]
    target = context.target(rows, eot=1, fork="estimate")

    def clock(run: Callable[[], Any]) -> float:
        run()  # warm
        began = time.perf_counter()
        run()
        if rows.device.type == "cuda":
            torch.cuda.synchronize(rows.device)
        return (time.perf_counter() - began) / len(rows)

    timed = _once(
        lambda: (
            clock(lambda: target.gradient(context.x[rows], context.y[rows], cross_entropy)),
            clock(lambda: target.logits(context.x[rows])),
        )
    )
    if isinstance(timed, Exception):
        return float("nan")
    backwards, forwards = context.budget.cost(len(context.surrogates))
    return float(timed[0] * backwards + timed[1] * forwards)


def _expected(context: Context) -> str:
    seconds = estimate(context)
    if seconds != seconds:
        return "how long it takes cannot be estimated: a first gradient could not be computed"
    fit = (
        "; the fit of the learned gradient comes on top"
        if context.budget.fits(context.purifier)
        else ""
    )
    return f"at most about {minutes(seconds)}, if no attack breaks anything{fit}"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _teller(progress: bool) -> Callable[[str], None]:
    def tell(line: str) -> None:
        if progress:
            print(line, file=sys.stderr, flush=True)

    return tell
