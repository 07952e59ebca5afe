"""The protocol ladder-1: every attack that a claim needs, and everything else that it needs.

One object says both what is run and what is required, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from defend.eps import Eps
from defend.losses import MIN_CLASSES
from defend.protocols.evidence import (
    MIN_DRAWS,
    MIN_IMAGES,
    UNBOUNDED_STEPS,
    evidence,
    has_enough_draws,
    is_at_claim_eps,
    is_from_same_purifier,
    is_undefended,
    unbounded_pgd,
)
from defend.protocols.images import (
    LEAST_CLASSES,
    MIN_CLUSTERS,
    has_classes_as_in_training,
    has_distinct_images,
    shows_enough_things,
    shows_several_classes,
    tells_of_its_images,
)
from defend.records import Record
from defend.tasks.registry import load_task

NAME = "ladder-1"
STRONGER = ("ladder-2",)  # they ask for all that this protocol asks for
RUN_AS_PROTOCOL = "run_as_protocol"
NO_PROTOCOL = "task"  # what is missing at a task other than classification
GRADIENTS = ("declared", "identity", "learned")  # through which it attacks
EOT = 20  # copies over which the gradient of a stochastic pipeline is averaged
TARGETED_DLR = MIN_CLASSES["dlr-targeted"]  # classes below which the loss has no denominator
UNBOUNDED = Eps(text="1", value=1.0)  # in L-inf: any image at all


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


_APGD_CE: dict[str, Any] = {"name": "apgd", "settings": {"loss": "ce"}, "amounts": {"steps": 100}}
_PGD_40: dict[str, Any] = {"name": "pgd", "amounts": {"steps": 40}}

OBLIVIOUS_APGD = ProtocolAttack(level="oblivious", **_APGD_CE)
TRANSFER_APGD = ProtocolAttack(level="transfer", **_APGD_CE)
OBLIVIOUS_PGD = ProtocolAttack(level="oblivious", **_PGD_40)
TRANSFER_PGD = ProtocolAttack(level="transfer", **_PGD_40)
ADAPTIVE_APGD = ProtocolAttack(level="adaptive", **_APGD_CE)
ADAPTIVE_TARGETED = ProtocolAttack(
    name="apgd",
    level="adaptive",
    settings={"loss": "dlr-targeted"},
    amounts={"steps": 100},
    accepts={"steps": 100, "targets": 9},
    classes=TARGETED_DLR,
)
PGD_EOT = ProtocolAttack(
    name="pgd", level="adaptive", amounts={"steps": 200}, stochastic=True, eot=EOT
)
SQUARE = ProtocolAttack(name="square", level="query", amounts={"queries": 5000}, stochastic=False)
SQUARE_EOT = ProtocolAttack(
    name="square", level="query", amounts={"queries": 1000}, stochastic=True, eot=EOT
)
UNBOUNDED_PGD = ProtocolAttack(
    name="pgd",
    level="adaptive",
    settings={"random_start": False},
    amounts={"steps": 40},
    accepts={"steps": UNBOUNDED_STEPS},
    eps=UNBOUNDED,
    norm="Linf",
)


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


def _transferred(observed: Observed) -> bool:
    """Both transferred attacks count: one says little of what the other does."""
    records = [r for r in observed.evidence if is_from_same_purifier(r)]
    return TRANSFER_APGD.was_run(records) and TRANSFER_PGD.was_run(records)


def _all_records(is_met: Callable[[Record], bool]) -> Callable[[Observed], bool]:
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
    return Requirement(code=code, title=title, is_met=_all_records(is_met))


def run_as(*names: str) -> Requirement:
    """Return the requirement that every record was asked for by one of these protocols, the first
    of which is the claim's own.
    """
    return Requirement(
        code=RUN_AS_PROTOCOL,
        title=f"run as protocol {names[0]}",
        is_met=lambda o: bool(o.evidence) and all(r.protocol in names for r in o.evidence),
    )


REQUIREMENTS = (
    holds_of_records(
        lambda r: load_task(r.task).has_claims, NO_PROTOCOL, "a protocol of this task"
    ),
    was_attacked_by(OBLIVIOUS_APGD, "oblivious_apgd_ce", "oblivious APGD-CE"),
    was_attacked_by(OBLIVIOUS_PGD, "oblivious_pgd", "oblivious PGD-40"),
    was_attacked_by(ADAPTIVE_APGD, "adaptive_apgd_ce", "adaptive APGD-CE through every gradient"),
    was_attacked_by(
        ADAPTIVE_TARGETED,
        "adaptive_apgd_dlr_targeted",
        "adaptive targeted APGD-DLR through every gradient",
    ),
    was_attacked_by(PGD_EOT, "pgd_eot", "PGD-EOT (200 steps x 20) through every gradient"),
    Requirement(
        code="apgd_eot",
        title="APGD-EOT through every gradient",
        is_met=lambda o: ADAPTIVE_APGD.was_run(o.evidence, eot=EOT),
        stochastic=True,
    ),
    Requirement(
        code="transfer",
        title="transfer from a pipeline with the same purifier, by APGD-CE and PGD-40",
        is_met=_transferred,
    ),
    was_attacked_by(SQUARE, "square", "Square 5,000"),
    was_attacked_by(SQUARE_EOT, "square_eot", "Square 1,000 x 20"),
    Requirement(
        code="unbounded_pgd",
        title="PGD at eps 1 from the clean image, through every gradient",
        is_met=lambda o: UNBOUNDED_PGD.was_run(unbounded_pgd(o.defense)),
    ),
    Requirement(
        code="draws",
        title=f"{MIN_DRAWS} draws",
        is_met=_all_records(has_enough_draws),
        stochastic=True,
    ),
    holds_of_records(is_at_claim_eps, "claim_eps", "claim eps"),
    holds_of_records(lambda r: r.split == "test", "test_split", "test split"),
    holds_of_records(lambda r: r.n >= MIN_IMAGES, "images", f"n >= {MIN_IMAGES:,}"),
    holds_of_records(
        tells_of_its_images,
        "sample",
        "a count of its distinct images (older records lack it: run the bench again)",
    ),
    holds_of_records(has_distinct_images, "distinct_images", f"{MIN_IMAGES:,} distinct images"),
    holds_of_records(
        shows_enough_things,
        "clusters",
        f"{MIN_CLUSTERS} images that are no near copies of each other",
    ),
    holds_of_records(
        shows_several_classes, "classes", f"images of at least {LEAST_CLASSES} classes"
    ),
    holds_of_records(
        has_classes_as_in_training,
        "class_shares",
        "no class above its share in training by more than chance",
    ),
    run_as(NAME, *STRONGER),
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


LADDER_1 = Protocol(
    name=NAME,
    attacks=(
        OBLIVIOUS_APGD,
        TRANSFER_APGD,
        OBLIVIOUS_PGD,
        TRANSFER_PGD,
        ADAPTIVE_APGD,
        ADAPTIVE_TARGETED,
        PGD_EOT,
        SQUARE,
        SQUARE_EOT,
        UNBOUNDED_PGD,
    ),
    requirements=REQUIREMENTS,
    eot=EOT,
    min_draws=MIN_DRAWS,
)
