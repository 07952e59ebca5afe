"""What the audit says: checks, and the verdict that follows from them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal

from defend.audit.thresholds import THRESHOLDS
from defend.errors import one_line
from defend.stats import holm

SOUND, UNRELIABLE = "no sign of masking", "unreliable"
Outcome = Literal["pass", "flag", "not run"]
Weight = Literal["attack", "required", "sign"]
# attack: another attack against the declared gradient's best; it turns the verdict where it breaks more.
# required: it turns the verdict where it fails or could not run.  sign: it is said, and turns nothing.


class NotApplicable(Exception):
    """Raised by a check that has nothing to do here: not run, on purpose, and held against nobody. Only the audit's own word counts: a
    purifier that raises it has failed."""


class NotTried(NotApplicable):
    """An attack that would have had something to do: said beside the verdict."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check measured."""

    measured: str
    ok: bool = True  # of an attack: settled by Holm over all of them
    minor: bool = False  # of a required check: what is not ok is said, and turns nothing
    value: float | None = None
    gap: float | None = (
        None  # of an attack: points it breaks more than the declared gradient's best
    )
    p: float | None = None  # of an attack: paired, two-sided


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check before it has run. `run` takes the scene; whatever it raises but LeftOut means: could not run."""

    name: str
    question: str
    weight: Weight
    threshold: str
    source: str
    advice: str
    run: Callable[[Any], CheckResult]


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One row of the report."""

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
    turns: bool = False  # does it make the evaluation unreliable?
    untried: bool = False  # an attack that would have had something to do


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    verdict: str
    reasons: list[str]
    checks: list[CheckRow]
    about: dict[str, Any]  # what was audited, on what, and the accuracies

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold: a number that is none is null, and `not_finite` says which one and what it was."""
        whole = {
            "verdict": self.verdict,
            "reasons": self.reasons,
            **self.about,
            "checks": [asdict(c) for c in self.checks],
        }
        lost: dict[str, str] = {}
        told: dict[str, Any] = _finite(whole, "", lost)
        return told | {"not_finite": lost}

    @property
    def headline(self) -> str:
        """The verdict, and which attacks it does not rest on."""
        untried = ", ".join(c.name for c in self.checks if c.untried)
        return f"{self.verdict} (not tried: {untried})" if untried else self.verdict


def _finite(what: Any, path: str, lost: dict[str, str]) -> Any:
    if isinstance(what, Mapping):
        return {k: _finite(v, f"{path}.{k}".lstrip("."), lost) for k, v in what.items()}
    if isinstance(what, list | tuple):
        return [_finite(v, f"{path}[{i}]", lost) for i, v in enumerate(what)]
    if isinstance(what, float) and not isfinite(what):
        lost[path] = str(what)
        return None
    return what


def checked(rule: Check, seen: CheckResult | Exception) -> CheckRow:
    """A rule and what came of it. Attacks are settled later, all together."""
    base = {
        k: getattr(rule, k) for k in ("name", "question", "weight", "threshold", "source", "advice")
    }
    if isinstance(seen, NotApplicable):
        return CheckRow(
            **base,
            verdict="not run",
            measured=str(seen),
            value=None,
            untried=isinstance(seen, NotTried),
        )
    if isinstance(seen, Exception):
        reason = f"{type(seen).__name__}: {one_line(seen)}"[:300]
        return CheckRow(
            **base,
            verdict="not run",
            measured=f"could not run: {reason}",
            value=None,
            turns=rule.weight != "sign",
        )
    fails = not seen.ok and rule.weight != "attack"
    return CheckRow(
        **base,
        verdict="flag" if fails else "pass",
        measured=seen.measured,
        value=seen.value,
        gap=seen.gap,
        p=seen.p,
        turns=fails and rule.weight == "required" and not seen.minor,
    )


def apply_holm(checks: Sequence[CheckRow]) -> list[CheckRow]:
    """Holm over the attacks that ran: one counts that is significant among them all and breaks enough more."""
    fought = [c for c in checks if c.p is not None]
    adjusted = dict(
        zip((c.name for c in fought), holm([c.p for c in fought if c.p is not None]), strict=True)
    )
    return [_settled(c, adjusted[c.name]) if c.name in adjusted else c for c in checks]


def _settled(check: CheckRow, p: float) -> CheckRow:
    wide = check.gap is not None and 100 * check.gap >= THRESHOLDS["gap"].value - 1e-9
    beats = wide and p < THRESHOLDS["alpha"].value
    more = (
        f", p = {p:.2g} after Holm" + ("" if beats else ": not significant over these images")
        if wide
        else ""
    )
    return replace(
        check,
        p_holm=p,
        verdict="flag" if beats else "pass",
        turns=beats,
        measured=check.measured + more,
    )


def verdict_of(checks: Sequence[CheckRow]) -> tuple[str, list[str]]:
    """The verdict, and a sentence for each check that made it."""
    reasons = [
        f"{c.name}: {c.measured}. {c.advice}" for c in checks if c.turns and c.verdict == "flag"
    ]
    stopped: dict[str, list[str]] = {}  # one exception may stop many checks
    for c in checks:
        if c.turns and c.verdict == "not run":
            stopped.setdefault(c.measured, []).append(c.name)
    reasons += [f"{', '.join(names)}: {measured}" for measured, names in stopped.items()]
    return (UNRELIABLE if reasons else SOUND), reasons
