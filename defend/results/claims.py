"""What may be claimed of each pipeline in each norm, with its value, or what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from defend.eps import SAME_EPS
from defend.protocols import PROTOCOLS, STRONGEST, Protocol
from defend.protocols.evidence import at_claim, evidence
from defend.protocols.ladder_1 import NO_PROTOCOL
from defend.protocols.protocol import Requirement
from defend.protocols.standard_eps import is_standard_eps
from defend.records import Claim, Diagnosis, Record
from defend.results.claim_text import format_signs, format_told_apart
from defend.results.diagnostics import RemarkCode, SignCode, describe_attack
from defend.results.grouping import ClaimKey, claim_key, group_by, pipeline_key
from defend.results.masking_signs import find_signs
from defend.results.model import Number
from defend.results.numbers import worst_number
from defend.results.outcomes import OutcomeReader
from defend.results.significance import IsStronger, high_of, strongest
from defend.tasks.registry import load_task

Claims = dict[ClaimKey, Claim]


def make_claims(
    records: Sequence[Record], reader: OutcomeReader, is_stronger: IsStronger
) -> Claims:
    """Return the claim of each pipeline in each norm."""
    groups = group_by(records, claim_key)
    in_any_norm = group_by(records, lambda r: claim_key(r).in_any_norm())
    of_pipeline = group_by(records, pipeline_key)
    claims = {}
    for key, cells in groups.items():
        relatives = [r for r in in_any_norm[key.in_any_norm()] if r.norm != key.pipeline.norm]
        evaluation = _ClaimedCells(cells, relatives, of_pipeline[key.pipeline], reader)
        claims[key] = evaluation.make_claim(is_stronger, _tell_apart(key, groups))
    return claims


def refute_claims(claims: Claims, claims_of_all: Mapping[ClaimKey, Claim]) -> Claims:
    """Return the claims of what is shown, as far as all cells of the folders allow them.

    Other cells can lower a claim or take it away; they cannot make one.
    """
    standing = {key: claims_of_all[key] for key, claim in claims.items() if claim.stands}
    return {**claims, **standing}


def list_signs(claims: Mapping[ClaimKey, Claim]) -> tuple[str, ...]:
    """Return a line for each pipeline that shows a sign of masking."""
    lines = []
    for key, claim in claims.items():
        if claim.signs:
            of = key.pipeline
            pipeline = f"{of.defense} before {of.classifier}, {of.dataset}, {of.norm}"
            lines.append(f"{pipeline}{format_told_apart(claim)}: {format_signs(claim)}.")
    return tuple(lines)


@dataclass(frozen=True)
class _ClaimedCells:
    """The records that decide one claim."""

    cells: Sequence[Record]  # of the pipeline in the norm, from one seed, computed in one way
    relatives: Sequence[Record]  # of the same pipeline in other norms
    of_pipeline: Sequence[Record]  # in the norm, from any seed and however computed
    reader: OutcomeReader

    def make_claim(self, is_stronger: IsStronger, told_apart_by: Mapping[str, str]) -> Claim:
        """Return the claim with its value; the value is that of the cells nearest to a claim."""
        nearest = at_claim(self.cells)
        if not load_task(self.cells[0].task).has_claims:
            return self._claim_nothing(nearest, told_apart_by)
        attacks = [r for r in nearest if not r.is_control]
        number = worst_number(attacks, self.reader)[0] if attacks else Number(value=None)
        signs = find_signs(self.cells, self.relatives, is_stronger)
        signs += self._stronger_attacks(attacks, number)
        protocol, missing = self._judge()
        first = nearest[0] if nearest else self.cells[0]
        return Claim(
            protocol=protocol.name,
            dataset=first.dataset,
            missing=tuple(requirement.code for requirement in missing),
            signs=tuple(signs),
            accuracy=number.value,
            low=number.low,
            high=number.high,
            bound=number.bound,
            unconverged=number.unconverged,
            eps=first.eps,
            eps_text=first.eps_text,
            norm=first.norm,
            standard_eps=is_standard_eps(first.dataset, first.norm, first.eps),
            n=first.n,
            distinct_images=first.distinct_images,
            images=_split_size(evidence(self.cells)),
            remarks=tuple(_make_remarks(nearest)),
            told_apart_by=told_apart_by,
        )

    def _judge(self) -> tuple[Protocol, list[Requirement]]:
        """Return the strongest protocol of which nothing is missing.

        Where something is missing of each, return the one by which the cells were run, or the
        strongest one, with what is missing.
        """
        judged = [(p, p.missing(self.cells, self.relatives)) for p in PROTOCOLS.values()]
        strongest_first = judged[::-1]
        run_as = {record.protocol for record in evidence(self.cells)}
        complete = [one for one in strongest_first if not one[1]]
        asked_for = [one for one in strongest_first if one[0].name in run_as]
        return [*complete, *asked_for, *strongest_first][0]

    def _claim_nothing(self, nearest: Sequence[Record], told_apart_by: Mapping[str, str]) -> Claim:
        """Return the claim of a task of which no protocol says what a claim needs."""
        first = nearest[0] if nearest else self.cells[0]
        return Claim(
            protocol=STRONGEST.name,
            dataset=first.dataset,
            missing=(NO_PROTOCOL,),
            eps=first.eps,
            eps_text=first.eps_text,
            norm=first.norm,
            n=first.n,
            distinct_images=first.distinct_images,
            told_apart_by=told_apart_by,
        )

    def _stronger_attacks(self, attacks: Sequence[Record], number: Number) -> list[Diagnosis]:
        """Return a sign if a cell that is no part of the claim lies below the claim's interval.

        Such a cell has fewer images or draws, another split, seed or precision, or a smaller ball,
        which lies inside the claim's.
        """
        if number.low is None:
            return []
        largest_eps = max(r.eps for r in attacks)
        stronger = []
        for record in self.of_pipeline:
            is_other = not any(record is attack for attack in attacks)
            is_inside = record.eps <= largest_eps + SAME_EPS
            is_attack = not record.failed and not record.is_control
            if is_attack and is_other and is_inside and high_of(record) < number.low:
                stronger.append(record)
        if not stronger:
            return []
        return [_sign_of_stronger(strongest(stronger), attacks[0])]


def _sign_of_stronger(record: Record, claimed: Record) -> Diagnosis:
    """Return the sign, which says where the attack differs from the claimed cells."""
    place = [
        describe_attack(record),
        f"eps {record.eps_text}",
        f"n = {record.n:,} of {record.split}",
    ]
    for field in ("seed", "precision", "layout"):
        value = getattr(record, field)
        if value != getattr(claimed, field):
            place.append(f"{field} {value}")
    return Diagnosis(
        code=SignCode.STRONGER_ATTACK, subject=", ".join(place), value=record.robust_accuracy
    )


def _make_remarks(records: Sequence[Record]) -> list[Diagnosis]:
    """Return a remark if the BPDA network is no nearer to the purifier than the identity is."""
    errors = [r.gradient_error for r in records if r.gradient == "learned"]
    if None in errors:
        return [Diagnosis(code=RemarkCode.WEAK_LEARNED_GRADIENT)]
    largest = max((error for error in errors if error is not None), default=0.0)
    if largest > 1:
        return [Diagnosis(code=RemarkCode.WEAK_LEARNED_GRADIENT, value=largest)]
    return []


def _split_size(records: Sequence[Record]) -> int | None:
    """Return the number of images in the whole test split, None if no record is of it."""
    return min((r.images for r in records if r.split == "test"), default=None)


def _tell_apart(key: ClaimKey, keys: Iterable[ClaimKey]) -> dict[str, str]:
    """Return what tells a pipeline from others of the same names: seed, precision, layout, hashes.

    A precision other than float32 is always among it.
    """
    namesakes = [other.facts() for other in keys if key.has_same_names(other)]
    distinguishing = {}
    for name, value in key.facts().items():
        differs = len({facts[name] for facts in namesakes}) > 1
        if differs or (name == "precision" and value != "float32"):
            distinguishing[name] = value
    return distinguishing
