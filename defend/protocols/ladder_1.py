"""The protocol ladder-1: every attack that a claim needs, and everything else that it needs.

One object says both what is run and what is required, so that the two cannot differ.
"""

from __future__ import annotations

from typing import Any

from defend.eps import Eps
from defend.protocols.evidence import (
    MIN_DRAWS,
    MIN_IMAGES,
    UNBOUNDED_STEPS,
    has_enough_draws,
    is_at_claim_eps,
    is_from_same_purifier,
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
from defend.protocols.protocol import (
    TARGETED_DLR,
    Observed,
    Protocol,
    ProtocolAttack,
    Requirement,
    all_records,
    holds_of_records,
    run_as,
    was_attacked_by,
)
from defend.tasks.registry import load_task

NAME = "ladder-1"
NO_PROTOCOL = "task"  # what is missing at a task other than classification
EOT = 20  # copies over which the gradient of a stochastic pipeline is averaged
UNBOUNDED = Eps(text="1", value=1.0)  # in L-inf: any image at all


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


def _transferred(observed: Observed) -> bool:
    """Both transferred attacks count: one says little of what the other does."""
    records = [r for r in observed.evidence if is_from_same_purifier(r)]
    return TRANSFER_APGD.was_run(records) and TRANSFER_PGD.was_run(records)


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
        is_met=all_records(has_enough_draws),
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
    run_as(NAME),
)


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
