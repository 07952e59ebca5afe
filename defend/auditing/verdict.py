"""Checks, their results, and the verdict that follows from them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from defend.auditing.thresholds import THRESHOLDS
from defend.errors import NotApplicable as NotApplicable
from defend.errors import one_line
from defend.stats import holm
from defend.trained_on import TrainedOn

if TYPE_CHECKING:
    from defend.auditing.grounds import Grounds
    from defend.auditing.session import Session

SOUND, UNRELIABLE, NOT_JUDGED = "no sign of masking", "unreliable", "not judged"
COULD_NOT_RUN = "could not run"  # before the error of a check that raised one
MAX_REASON = 300  # characters of an exception's text in the report
COMBINED = ("all together",)  # checks that add up other attacks
ROUNDING_ERROR = 1e-9  # of differences of accuracies, in percentage points

Outcome = Literal["pass", "flag", "not run", "not judged"]
Weight = Literal["attack", "required", "sign"]

WEIGHT_MEANINGS: dict[Weight, str] = {
    "attack": "another attack: the evaluation is unreliable if it breaks significantly more images"
    " than the declared gradient's best attack, or could not run",
    "required": "the evaluation is unreliable if this check fails or could not run",
    "sign": "reported only; does not change the verdict",
}


class NotTried(NotApplicable):
    """Raised by an attack that would apply, but was left out; named beside the verdict."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check measured."""

    measured: str
    passed: bool = True  # not used for attacks: Holm over all of them decides
    advisory: bool = False  # of a required check: a failure is reported, the verdict stays
    inconclusive: str = ""  # of an attack: why it is not judged, if it broke nothing more
    weakness: str = ""  # of an attack: why no verdict rests on it, though it ran to its end
    value: float | None = None
    gap: float | None = None  # of an attack: share broken beyond the declared gradient's best
    p: float | None = None  # of an attack: paired, one-sided; None if not tested
    accuracy: float | None = None  # that an attack leaves, beside the declared gradient's best
    move: str = ""  # of an attack that knows it: the loss, start and gradient that broke most


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check before it has run.

    `run` returns a result. If it raises anything but NotApplicable, the check could not run.
    """

    name: str
    question: str
    weight: Weight
    threshold: str
    source: str
    advice: str
    run: Callable[[Session], CheckResult]


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One row of the report; its fields are the keys of the JSON report."""

    name: str
    question: str
    weight: Weight
    verdict: Outcome
    measured: str
    value: float | None
    threshold: str
    source: str
    advice: str
    gap: float | None = None
    p: float | None = None
    p_holm: float | None = None
    turns: bool = False  # this row makes the evaluation unreliable
    untried: bool = False  # an attack that would apply, but was left out
    accuracy: float | None = None  # that an attack leaves
    move: str = ""  # that broke most


class CurvePoint(NamedTuple):
    """An accuracy left after this many steps, or with this many EOT copies."""

    effort: int
    accuracy: float


class GroundSlope(NamedTuple):
    """How far a gradient is the slope of the loss where it is so the least: a key of the report."""

    name: str  # of the check
    slope: float  # correlation with finite differences, over the images that stand
    share: float  # of the images that are near the slope by themselves


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was audited, and how; its fields are keys of the JSON report."""

    defense: str
    dataset: str
    classifier: str
    surrogates: list[str]
    split: str
    n: int
    norm: str
    eps: float
    budget: str
    seed: int
    device: str
    stochastic: bool
    declared_gradient: str
    eot: int
    draws: int
    trained_on: tuple[TrainedOn, ...]  # of each learned member of the defense
    classifier_trained_on: tuple[TrainedOn, ...]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Accuracies between 0 and 1, None if the declared gradient's attacks could not run.

    The fields are keys of the JSON report.
    """

    clean_accuracy: float | None = None
    declared_accuracy: float | None = None
    declared: str | None = None  # declared_accuracy as a table prints it
    lowest_accuracy: float | None = None  # the worst case over all attacks of the audit
    imitation_error: float | None = None  # of the learned gradient's network
    curve: list[CurvePoint] = field(default_factory=list)  # along attack steps
    copies: list[CurvePoint] = field(default_factory=list)  # along EOT copies


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The verdict on an evaluation, with the checks that led to it."""

    verdict: str
    reasons: list[str]
    checks: list[CheckRow]
    rests_on: list[str] = field(default_factory=list)  # the attacks that could have told
    grounds: list[GroundSlope] = field(default_factory=list)
    broke_most: str = ""
    subject: Subject
    accuracies: Accuracies
    seconds: float

    @property
    def about(self) -> dict[str, Any]:
        """Return what was audited, the accuracies, and the seconds taken, as in the JSON report."""
        subject = {
            **asdict(self.subject),
            "trained_on": [t.to_json() for t in self.subject.trained_on],
            "classifier_trained_on": [t.to_json() for t in self.subject.classifier_trained_on],
        }
        return {**subject, **asdict(self.accuracies), "seconds": self.seconds}

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it.

        A number that is not finite becomes None; `not_finite` maps its path to its text.
        """
        report = {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "rests_on": self.rests_on,
            "grounds": [slope._asdict() for slope in self.grounds],
            "broke_most": self.broke_most,
            **self.about,
            "checks": [asdict(row) for row in self.checks],
        }
        not_finite: dict[str, str] = {}
        finite: dict[str, Any] = _replace_not_finite(report, "", not_finite)
        return {**finite, "not_finite": not_finite}

    @property
    def headline(self) -> str:
        """Return the verdict, and the attacks that were left out of it, or say nothing about it."""
        notes = []
        for title, names in (
            ("not tried", [row.name for row in self.checks if row.untried]),
            ("not judged", [row.name for row in self.checks if row.verdict == NOT_JUDGED]),
        ):
            if names:
                notes.append(f"{title}: {', '.join(names)}")
        return f"{self.verdict} ({'; '.join(notes)})" if notes else self.verdict


def _replace_not_finite(value: Any, path: str, not_finite: dict[str, str]) -> Any:
    """Return the value with None for numbers that are not finite; note these in `not_finite`."""
    if isinstance(value, Mapping):
        return {
            key: _replace_not_finite(item, f"{path}.{key}".lstrip("."), not_finite)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _replace_not_finite(item, f"{path}[{i}]", not_finite) for i, item in enumerate(value)
        ]
    if isinstance(value, float) and not isfinite(value):
        not_finite[path] = str(value)
        return None
    return value


def make_row(check: Check, outcome: CheckResult | Exception) -> CheckRow:
    """Return the report's row for a check. `apply_holm` decides about attacks afterwards."""
    if isinstance(outcome, NotApplicable):
        return _row_without_result(check, str(outcome), untried=isinstance(outcome, NotTried))
    if isinstance(outcome, Exception):
        reason = f"{type(outcome).__name__}: {one_line(outcome)}"[:MAX_REASON]
        return _row_without_result(
            check, f"{COULD_NOT_RUN}: {reason}", turns=check.weight != "sign"
        )
    failed = not outcome.passed and check.weight != "attack"
    return CheckRow(
        name=check.name,
        question=check.question,
        weight=check.weight,
        verdict=_outcome_of(outcome, failed),
        measured=_describe(outcome),
        value=outcome.value,
        threshold=check.threshold,
        source=check.source,
        advice=check.advice,
        gap=outcome.gap,
        p=outcome.p,
        accuracy=outcome.accuracy,
        move=outcome.move,
        turns=failed and check.weight == "required" and not outcome.advisory,
    )


def _describe(outcome: CheckResult) -> str:
    if not outcome.inconclusive:
        return outcome.measured
    return f"{outcome.measured}; {outcome.inconclusive}"


def _outcome_of(outcome: CheckResult, failed: bool) -> Outcome:
    if failed:
        return "flag"
    return "not judged" if outcome.inconclusive else "pass"


def _row_without_result(
    check: Check, reason: str, *, turns: bool = False, untried: bool = False
) -> CheckRow:
    return CheckRow(
        name=check.name,
        question=check.question,
        weight=check.weight,
        verdict="not run",
        measured=reason,
        value=None,
        threshold=check.threshold,
        source=check.source,
        advice=check.advice,
        turns=turns,
        untried=untried,
    )


def apply_holm(rows: Sequence[CheckRow]) -> list[CheckRow]:
    """Return the rows with the attacks' p values corrected by Holm over all that were tested.

    An attack is flagged if it is significant after the correction and breaks at least
    THRESHOLDS.gap points more than the declared gradient's best.
    """
    p_values = {row.name: row.p for row in rows if row.p is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [_decide(row, corrected.get(row.name)) for row in rows]


def _decide(row: CheckRow, p_holm: float | None) -> CheckRow:
    """Return the row of an attack with its corrected p value and its verdict.

    A row without a p value stays as it is.
    """
    if p_holm is None:
        return row
    min_gap = THRESHOLDS.gap.value - ROUNDING_ERROR
    is_large = row.gap is not None and 100 * row.gap >= min_gap
    breaks_more = is_large and p_holm < THRESHOLDS.alpha.value
    measured = row.measured
    if is_large:
        measured += f", p = {p_holm:.2g} after Holm"
    if is_large and not breaks_more:
        measured += ": not significant over these images"
    verdict: Outcome = "flag" if breaks_more else row.verdict
    if is_suspicious(row) and not breaks_more:
        verdict = "not judged"
    return replace(
        row,
        p_holm=p_holm,
        verdict=verdict,
        turns=breaks_more,
        measured=measured,
    )


def is_suspicious(row: CheckRow) -> bool:
    """Return True for an attack that broke so much more that only more images can decide."""
    limit = THRESHOLDS.suspicious.value - ROUNDING_ERROR
    return row.weight == "attack" and row.gap is not None and 100 * row.gap >= limit


def decide_verdict(
    rows: Sequence[CheckRow], grounds: Grounds | None = None
) -> tuple[str, list[str]]:
    """Return the verdict, and one sentence for each reason to call the evaluation unreliable.

    If nothing makes it unreliable, it is not judged where an attack broke much more on too few
    images, or where `grounds` holds nothing that the verdict could rest on. The reasons are then
    those why each attack could not have told.
    """
    decisive = [row for row in rows if row.turns]
    reasons = [
        f"{row.name}: {row.measured}. {row.advice}" for row in decisive if row.verdict == "flag"
    ]
    names_by_error: dict[str, list[str]] = {}  # one exception may stop many checks
    for row in decisive:
        if row.verdict == "not run":
            names_by_error.setdefault(row.measured, []).append(row.name)
    for error, names in names_by_error.items():
        listed = ", ".join(names)
        subject = listed if len(names) == 1 else f"{len(names)} checks ({listed})"
        reasons.append(f"{subject}: {error}")
    if reasons:
        return UNRELIABLE, reasons
    suspicions = [row for row in rows if row.verdict == NOT_JUDGED and is_suspicious(row)]
    if suspicions:
        return NOT_JUDGED, [f"{row.name}: {row.measured}; give more, -n" for row in suspicions]
    if grounds is not None and not grounds.rests_on:
        return NOT_JUDGED, grounds.missing
    return SOUND, []


def name_strongest(rows: Sequence[CheckRow], declared: float | None) -> str:
    """Return the attack that left the lowest accuracy, by what it did, and how much lower that is.

    declared: the accuracy that the declared gradient's best attack left.
    """
    accuracies = {row.name: row.accuracy for row in rows if row.name not in COMBINED}
    left = {name: accuracy for name, accuracy in accuracies.items() if accuracy is not None}
    name = min(left, key=left.__getitem__, default="")
    if declared is None or not name or left[name] >= declared - ROUNDING_ERROR / 100:
        return "the declared gradient's attacks"
    (move,) = [row.move for row in rows if row.name == name]
    points = f"{100 * (declared - left[name]):.1f} points more than the declared gradient's best"
    return f"{name}, {points}, most by {move}" if move else f"{name}, {points}"
