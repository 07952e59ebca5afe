"""Cells whose units do not give their record again: their numbers are marked, and claim nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from defend.records import Diagnosis, Record
from defend.results.cell_notes import join_eps
from defend.results.claims import Claims
from defend.results.diagnostics import Finding, FindingCode, SignCode
from defend.results.grouping import claim_key
from defend.results.verify import Problem


def find_unconfirmed(
    records: Sequence[Record], problems: Sequence[Sequence[Problem]]
) -> list[Finding]:
    """Return a finding against each cell with problems; they are in the order of the records."""
    findings = []
    for record, of_record in zip(records, problems or [()] * len(records), strict=True):
        if of_record:
            detail = "; ".join(f"{problem.code}: {problem.text}" for problem in of_record)
            code = FindingCode.NOT_CONFIRMED
            findings.append(Finding(code=code, weaker=record, stronger=record, detail=detail))
    return findings


def refute_unconfirmed(claims: Claims, unconfirmed: Sequence[Finding]) -> Claims:
    """Return the claims with a sign where a cell of the pipeline is not confirmed, in any norm.

    A claim in one norm rests on cells of another, too: on attacks that no ball holds back.
    """
    cells = Counter(claim_key(finding.stronger).in_any_norm() for finding in unconfirmed)
    refuted = dict(claims)
    for key, claim in claims.items():
        if number := cells[key.in_any_norm()]:
            sign = Diagnosis(code=SignCode.NOT_CONFIRMED, value=number)
            refuted[key] = claim.model_copy(update={"signs": (*claim.signs, sign)})
    return refuted


def list_unconfirmed(unconfirmed: Sequence[Finding]) -> tuple[str, ...]:
    """Return each problem of a series once, with its eps."""
    return join_eps([(finding.stronger, finding.detail) for finding in unconfirmed])
