"""What a protocol is made of: attacks that are run, and requirements of a claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from defend.eps import Eps
from defend.losses import MIN_CLASSES
from defend.protocols.evidence import evidence, is_undefended
from defend.records import Record

# The names of all protocols, from the weakest to the strongest: each one asks for all that the one
# before it asks for.
ORDER = ("ladder-1", "ladder-2")
RUN_AS_PROTOCOL = "run_as_protocol"
GRADIENTS = ("declared", "identity", "learned")  # through which ladder-1 attacks
TARGETED_DLR = MIN_CLASSES["dlr-targeted"]  # classes below which the loss has no denominator


@dataclass(frozen=True, kw_only=True)
class ProtocolAttack:
    """One attack at one level: how it is run, and the least that a claim accepts."""

    name: str
    level: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # as run, and exactly as required
    amounts: Mapping[str, int] = field(default_factory=dict)  # as run: steps, queries
    accepts: Mapping[str, int] | None = None  # at least so much; None: the amounts
    stochastic: bool | None = None  # run on stochastic or deterministic pipelines alone; None: all
    classes: int = 2  # run where there are at least so many classes
    gradients: tuple[str, ...] = GRADIENTS  # at the level adaptive
    eot: int = 1  # copies that a claim needs
    eps: Eps | None = None  # None: the claim eps
    norm: str | None = None  # None: the norm of the claim

    def spec(self, norm: str) -> str:
        """Return the attack's spec in this norm."""
        fields = {**self.settings, **self.amounts}
        norm = self.norm or norm
        if norm != "Linf":
            fields["norm"] = norm
        texts = [f"{key}={_format(value)}" for key, value in sorted(fields.items())]
        return f"{self.name}:{','.join(texts)}"

    def accepts_record(self, record: Record, eot: int | None = None) -> bool:
        """Return True if the record is of this attack at this level, and strong enough."""
        used = record.settings.attack
        return (
            record.attack_name == self.name
            and record.knowledge == self.level
            and record.eot >= (self.eot if eot is None else eot)
            and all(used.get(key) == value for key, value in self.settings.items())
            and all(used.get(key, 0) >= least for key, least in self._least(record).items())
        )

    def _least(self, record: Record) -> dict[str, int]:
        """Never require more targets than there are wrong classes."""
        least = dict(self.amounts if self.accepts is None else self.accepts)
        if "targets" in least:
            least["targets"] = min(least["targets"], record.classes - 1)
        return least

    def was_run(self, records: Sequence[Record], eot: int | None = None) -> bool:
        """Return True if a record is of this attack; at `adaptive` one through each of its
        gradients.
        """
        run = [r for r in records if self.accepts_record(r, eot)]
        if self.level != "adaptive":
            return bool(run)
        required = set(self.gradients)
        if all(is_undefended(r.defense) for r in records):
            required.discard("learned")  # there is no purifier to fit a network to
        return required <= {r.gradient for r in run}


def _format(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The records that a requirement may look at."""

    evidence: Sequence[Record]  # of one pipeline in one norm, those nearest to a claim
    defense: Sequence[Record]  # of the same pipeline at every eps and in every norm


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Something that a claim needs."""

    code: str
    title: str
    is_met: Callable[[Observed], bool]
    stochastic: bool | None = None  # asked of stochastic or deterministic purifiers alone
    classes: int = 2  # asked where there are at least so many classes


def all_records(is_met: Callable[[Record], bool]) -> Callable[[Observed], bool]:
    return lambda observed: all(map(is_met, observed.evidence))


def was_attacked_by(attack: ProtocolAttack, code: str, title: str) -> Requirement:
    """Return the requirement that the attack was run on the pipelines that it is for."""
    return Requirement(
        code=code,
        title=title,
        is_met=lambda o: attack.was_run(o.evidence),
        stochastic=attack.stochastic,
        classes=attack.classes,
    )


def holds_of_records(is_met: Callable[[Record], bool], code: str, title: str) -> Requirement:
    """Return the requirement that something holds of every record."""
    return Requirement(code=code, title=title, is_met=all_records(is_met))


def run_as(name: str) -> Requirement:
    """Return the requirement that every record was asked for by this protocol or by another ladder.

    What two ladders have in common is the same, whichever one asked for it.
    """
    return Requirement(
        code=RUN_AS_PROTOCOL,
        title=f"run as protocol {name}",
        is_met=lambda o: bool(o.evidence) and all(r.protocol in ORDER for r in o.evidence),
    )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A complete, versioned evaluation."""

    name: str
    attacks: tuple[ProtocolAttack, ...]  # in the order in which they are run and printed
    requirements: tuple[Requirement, ...]
    eot: int
    min_draws: int

    def attacks_on(
        self, stochastic: bool, classes: int, unbounded: bool
    ) -> Iterator[ProtocolAttack]:
        """Yield the attacks for a pipeline; unbounded: also those at any eps, in one norm only."""
        for attack in self.attacks:
            fits = attack.stochastic in (None, stochastic) and classes >= attack.classes
            if fits and (unbounded or attack.eps is None):
                yield attack

    def missing(
        self, records: Sequence[Record], relatives: Sequence[Record] = ()
    ) -> list[Requirement]:
        """Return what keeps the records of one pipeline in one norm from a claim.

        relatives: records of the same pipeline in other norms.
        """
        observed = Observed(evidence=evidence(records), defense=[*records, *relatives])
        stochastic = any(r.stochastic for r in records)
        classes = min((r.classes for r in records), default=TARGETED_DLR)
        return [
            requirement
            for requirement in self.requirements
            if requirement.stochastic in (None, stochastic)
            and classes >= requirement.classes
            and not requirement.is_met(observed)
        ]

    def title(self, code: str) -> str:
        """Return what the requirement of this code asks for."""
        return next(r.title for r in self.requirements if r.code == code)
