"""A claim as the line that is printed below a table."""

from __future__ import annotations

from collections.abc import Iterator

from defend.protocols import PROTOCOLS, STRONGEST
from defend.protocols.evidence import MIN_IMAGES
from defend.protocols.ladder_1 import NO_PROTOCOL
from defend.records import Claim
from defend.results.diagnostics import format_remark, format_sign
from defend.spec import parse_single


def format_claim(claim: Claim) -> str:
    """Return the line of a claim, or of what is missing for one.

    "claim: ladder-1, 93.1 % right (91.4 to 94.5) in the worst case at Linf eps 0.3"; "claim at a
    non-standard eps: ..." where the field has another eps, or none, on these images; "no claim
    (missing: oblivious APGD-CE, test split; 1 cell failed)".
    """
    if claim.stands:
        line = f"{name_claim(claim)}: {claim.protocol}, {_format_value(claim)}"
        line += "".join(f"; {format_remark(remark)}" for remark in claim.remarks)
        line += _format_weakness(claim)
    else:
        line = f"no claim ({'; '.join(_reasons(claim))})"
    return line + format_told_apart(claim)


def _format_weakness(claim: Claim) -> str:
    """Return that a stronger protocol exists than the one of the claim, if it does."""
    return "" if claim.protocol == STRONGEST.name else f"; {STRONGEST.name} attacks further"


def name_claim(claim: Claim) -> str:
    """Return "claim", "claim at a non-standard eps" or "no claim"."""
    if not claim.stands:
        return "no claim"
    return "claim" if claim.standard_eps else "claim at a non-standard eps"


def summarise_claim(claim: Claim) -> str:
    """Return the line of a claim, and a short one where nobody asked for a protocol.

    "no claim: it needs --protocol ladder-2 -n 1000"; or why none is possible. `format_claim` lists
    what is missing.
    """
    is_beside_a_protocol = "run_as_protocol" in claim.missing and NO_PROTOCOL not in claim.missing
    if claim.stands or claim.signs or not is_beside_a_protocol:
        return format_claim(claim)
    reason = f"it needs --protocol {claim.protocol} -n {MIN_IMAGES}"
    if _has_too_few_images(claim):
        reason = (
            f"none is possible on {_dataset_name(claim)}, whose test split has {claim.images:,}"
            f" images; a claim needs {MIN_IMAGES:,}"
        )
    return f"no claim: {reason}{format_told_apart(claim)}"


def format_told_apart(claim: Claim) -> str:
    """Return what tells the pipeline from others of the same names."""
    facts = [f"{name} {value}" for name, value in claim.told_apart_by.items()]
    return f"; of {', '.join(facts)}" if facts else ""


def format_signs(claim: Claim) -> str:
    """Return the signs that no claim survives."""
    return "; ".join(map(format_sign, claim.signs))


def format_missing(claim: Claim) -> list[str]:
    """Return what a claim needs and does not have, in the order of the protocol."""
    protocol = PROTOCOLS[claim.protocol]
    return [protocol.title(code) + _why_impossible(code, claim) for code in claim.missing]


def _why_impossible(code: str, claim: Claim) -> str:
    """Return how few images there are, if the whole test split has fewer than a claim needs."""
    if code != "images" or not _has_too_few_images(claim):
        return ""
    return f" ({_dataset_name(claim)} has {claim.images:,})"


def _has_too_few_images(claim: Claim) -> bool:
    """Return True if the whole test split has fewer images than a claim needs."""
    return claim.images is not None and claim.images < MIN_IMAGES


def _dataset_name(claim: Claim) -> str:
    return parse_single(claim.dataset, "dataset").name


def _reasons(claim: Claim) -> Iterator[str]:
    if claim.missing:
        yield f"missing: {', '.join(format_missing(claim))}"
    if claim.signs:
        yield format_signs(claim)


def _format_value(claim: Claim) -> str:
    if claim.accuracy is None or claim.low is None or claim.high is None:
        return "no value"
    value = f"{100 * claim.accuracy:.1f} % right"
    if claim.bound or claim.unconverged:
        value = f"<= {value}"
    if claim.unconverged:
        value += " (unconverged)"
    interval = f"({100 * claim.low:.1f} to {100 * claim.high:.1f})"
    place = f"in the worst case at {claim.norm} eps {claim.eps_text}"
    return f"{value} {interval} {place}{_format_repeated_images(claim)}"


def _format_repeated_images(claim: Claim) -> str:
    if claim.distinct_images >= claim.n:
        return ""
    return f", over {claim.distinct_images:,} things that {claim.n:,} images show"
