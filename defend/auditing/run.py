"""`defend.audit`: the checks one after another, and the verdict.

A check that raises is a row of the report and does not end the audit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from defend.auditing import (
    active,
    alternative_attacks,
    autoattack_flags,
    declared,
    gradients,
    indicators,
    state,
)
from defend.auditing.context import Context, numeric_settings
from defend.auditing.declared import DeclaredAttack
from defend.auditing.estimate import Estimate, describe_duration, describe_rest, estimate
from defend.auditing.grounds import Grounds, find_grounds
from defend.auditing.prepare import AuditRequest, SurrogateInput, prepare
from defend.auditing.session import Session, result_or_error
from defend.auditing.verdict import (
    COULD_NOT_RUN,
    Accuracies,
    AuditReport,
    Check,
    CheckResult,
    CheckRow,
    NotApplicable,
    apply_holm,
    decide_verdict,
    make_row,
    name_strongest,
)
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.eps import Eps
from defend.errors import count_of, one_line
from defend.loading import pick_device
from defend.numerics import numerics_applied
from defend.plain_numbers import whole_number
from defend.purifier import Purifier

Say = Callable[[str], None]


@torch.inference_mode(False)
def audit(
    spec: str | Purifier,
    dataset: str | Dataset,
    classifier: str | Classifier,
    budget: str = "standard",
    *,
    n: int | None = None,
    split: str = "test",
    eps: float | str | None = None,
    surrogates: Sequence[SurrogateInput] = (),
    seed: int = 0,
    device: str = "auto",
    data_root: str | None = None,
    progress: bool = False,
) -> AuditReport:
    """Judge whether the robust accuracy under a purifier's declared gradient is real, in L-inf.

    spec, dataset, classifier: specs, or objects. n: images, by default the budget's. eps: by
    default the data set's claim eps. surrogates: other pipelines to transfer from, as "C" or
    "DEFENSE+C", or as (purifier, classifier). progress: print the estimated duration and each
    check to stderr.

    Raises DefendError for what the caller can correct. A check that fails or cannot run is a row
    of the report.
    """
    resolved = pick_device(device)
    request = AuditRequest(
        spec,
        dataset,
        classifier,
        budget,
        n=None if n is None else whole_number(n, "n"),
        split=split,
        eps=eps,
        surrogates=surrogates,
        seed=whole_number(seed, "seed"),
        device=str(resolved),
        data_root=data_root,
    )
    with numerics_applied(numeric_settings(resolved)):
        return _audit(request, _make_say(progress))


def _make_say(progress: bool) -> Say:
    """Return a function that prints a line to stderr, or nothing without progress."""

    def say(line: str) -> None:
        if progress:
            print(line, file=sys.stderr, flush=True)

    return say


def _audit(request: AuditRequest, say: Say) -> AuditReport:
    start = time.perf_counter()
    context, subject = prepare(request)
    say(
        f"{subject.defense} before {subject.classifier}: {count_of(subject.n, 'image')} of"
        f" {subject.dataset} {subject.split}, eps {Eps.of(context.eps).text}"
    )
    estimated = estimate(context)
    say(describe_duration(context, estimated))
    rows, accuracies, grounds = run_checks(context, say, estimated)
    verdict, reasons = decide_verdict(rows, grounds)
    return AuditReport(
        verdict=verdict,
        reasons=reasons,
        checks=rows,
        rests_on=grounds.rests_on,
        grounds=grounds.slopes,
        broke_most=name_strongest(rows, accuracies.declared_accuracy),
        subject=subject,
        accuracies=accuracies,
        seconds=round(time.perf_counter() - start, 1),
    )


def run_checks(
    context: Context, say: Say, estimated: Estimate | None = None
) -> tuple[list[CheckRow], Accuracies, Grounds]:
    """Run every check; return the rows of the report, the accuracies, and the verdict's grounds.

    estimated: what the audit costs, which is said again once the declared attacks have ended.
    """
    session = Session(context)
    checks = all_checks(context)
    initial_error = result_or_error(lambda: state.record_initial_outputs(context))
    for check in checks:
        if check.name == "before and after" and isinstance(initial_error, Exception):
            outcome: CheckResult | Exception = initial_error
        else:
            outcome = result_or_error(partial(check.run, session))
        say(f"{check.name}: {_describe(outcome, list(session.outcomes.values()))}")
        session.outcomes[check.name] = outcome
        if check is checks[0] and estimated and isinstance(outcome, CheckResult):
            say(describe_rest(context, estimated, session.declared.best.accuracy))
    rows = apply_holm([make_row(check, session.outcomes[check.name]) for check in checks])
    return rows, _collect_accuracies(session), _grounds_of(session)


def _grounds_of(session: Session) -> Grounds:
    """Return what a verdict rests on; nothing, and the reason, where that could not be found."""
    grounds = result_or_error(lambda: find_grounds(session))
    return Grounds(missing=[str(grounds)]) if isinstance(grounds, Exception) else grounds


def _describe(outcome: CheckResult | Exception, earlier: Sequence[CheckResult | Exception]) -> str:
    """Return what a check measured, or its error; an error that stood above is not repeated."""
    if isinstance(outcome, CheckResult):
        return outcome.measured
    texts = [str(other) for other in earlier if type(other) is type(outcome)]
    if not isinstance(outcome, NotApplicable) and str(outcome) in texts:
        return f"{COULD_NOT_RUN}: see above"
    return one_line(outcome)


def all_checks(context: Context) -> list[Check]:
    """Return every check of an audit, in the order in which they run."""
    return [
        *declared.CHECKS,
        *alternative_attacks.CHECKS,
        *gradients.checks(context.stochastic),
        *indicators.CHECKS,
        autoattack_flags.CHECK,
        active.CHECK,
        *state.CHECKS,
    ]


def _collect_accuracies(session: Session) -> Accuracies:
    attack = session.declared_or_error
    if not isinstance(attack, DeclaredAttack):
        return Accuracies()
    return Accuracies(
        clean_accuracy=attack.clean_accuracy,
        declared_accuracy=attack.best.accuracy,
        declared=attack.text,
        lowest_accuracy=float(attack.lowest.mean()),
        imitation_error=session.context.bpda_network_error,
        curve=attack.curve,
        copies=attack.copies,
    )
