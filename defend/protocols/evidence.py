"""Which records a claim may rest on. Every function takes records of one pipeline in one norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from defend.eps import same_eps
from defend.records import Record
from defend.spec import Spec, parse
from defend.threat_models import NO_DEFENSE

MIN_IMAGES = 1000  # of the test split
MIN_DRAWS = 20  # with fewer draws the mean and the choice of the worst case are noise
UNBOUNDED_STEPS = 20  # of PGD at eps 1, at least


def purifier_names(members: Sequence[Spec]) -> list[str]:
    """Return the names of the members of a chain that do something."""
    return [member.name for member in members if member.name != NO_DEFENSE]


def is_undefended(defense: str) -> bool:
    """Return True for a spec without any purifier, whose gradient could be learned."""
    return not purifier_names(parse(defense))


def is_at_claim_eps(record: Record) -> bool:
    """Return True if the record is at the claim eps of its data set and norm."""
    return record.claim_eps is not None and same_eps(record.eps, record.claim_eps)


def has_enough_draws(record: Record) -> bool:
    """Return True for a deterministic purifier, and for enough draws of a stochastic one."""
    return not record.stochastic or record.draws >= MIN_DRAWS


def _is_of_test_split(record: Record) -> bool:
    return record.split == "test"


def _has_enough_images(record: Record) -> bool:
    return record.n >= MIN_IMAGES


_PREFERENCES: tuple[Callable[[Record], bool], ...] = (
    is_at_claim_eps,
    _is_of_test_split,
    _has_enough_images,
    has_enough_draws,
)


def at_claim(records: Sequence[Record]) -> list[Record]:
    """Return the records without failures that come nearest to a claim.

    They are at the claim eps, of the test split, with enough images and draws, each condition as
    far as any record meets it.
    """
    chosen = [r for r in records if not r.failed]
    for is_preferred in _PREFERENCES:
        preferred = [r for r in chosen if is_preferred(r)]
        if preferred:
            chosen = preferred
    return chosen


def evidence(records: Sequence[Record]) -> list[Record]:
    """Return the records that a protocol asked for; attacks beside it take nothing away."""
    nearest = at_claim(records)
    return [r for r in nearest if r.protocol is not None] or nearest


def unbounded_pgd(records: Sequence[Record]) -> list[Record]:
    """Return adaptive PGD in L-inf at eps >= 1, begun at the clean image.

    No pipeline with a gradient withstands it. Only records of the test split count, if there are
    any, on at least min(1,000, the largest n) images.
    """
    successful = [r for r in records if not r.failed]
    of_test_split = [r for r in successful if r.split == "test"]
    if of_test_split:
        successful = of_test_split
    most_images = max((r.n for r in successful), default=0)
    enough = min(most_images, MIN_IMAGES)
    return [r for r in successful if r.n >= enough and _is_unbounded_pgd(r)]


def _is_unbounded_pgd(record: Record) -> bool:
    attack = record.settings.attack
    from_clean_image = attack.get("random_start") is False
    long_enough = attack.get("steps", 0) >= UNBOUNDED_STEPS
    covers_box = record.norm == "Linf" and record.eps >= 1
    return (
        record.attack_name == "pgd"
        and record.knowledge == "adaptive"
        and record.access == "gradient"
        and from_clean_image
        and long_enough
        and covers_box
    )


def is_from_same_purifier(record: Record) -> bool:
    """Return True for a transfer from the same components before some classifier.

    Only settings that the weights file of a learned member decides may differ, since it is trained
    anew: it must be used alike, as at the same noise level. Images made for another purifier say
    little of this one. For an undefended classifier any pipeline will do.
    """
    if record.knowledge != "transfer" or not record.surrogate:
        return False
    if is_undefended(record.defense):
        return True
    scored = pair_settings(parse(record.defense), record.settings.defense)
    attacked = pair_settings(parse(record.surrogate)[:-1], record.settings.attacked.defense)
    return len(scored) == len(attacked) and all(
        member.name == other.name
        and (own == others or _is_trained_anew(member, own, others, record))
        for (member, own), (other, others) in zip(scored, attacked, strict=True)
    )


def pair_settings(
    members: Sequence[Spec], settings: Mapping[str, Any]
) -> list[tuple[Spec, Mapping[str, Any]]]:
    """Return the members of a chain that do something, with their settings in force."""
    of_members = [settings]
    if len(members) != 1:
        of_members = settings.get("members") or [{}] * len(members)
    pairs = zip(members, of_members, strict=True)
    return [(member, own) for member, own in pairs if member.name != NO_DEFENSE]


def _is_trained_anew(
    member: Spec, own: Mapping[str, Any], others: Mapping[str, Any], record: Record
) -> bool:
    """Return True for settings of a learned member that differ by its training alone."""
    is_learned = str(own.get("weights")) in record.scored_weights.defense
    uses = record.uses.get(member.name, ())
    return is_learned and all(own.get(name) == others.get(name) for name in uses)
