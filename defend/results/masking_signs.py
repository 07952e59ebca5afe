"""What no claim survives: signs that an attack was too weak, or the gradient masked. Of the records of one defense on one classifier.

Sources: Athalye, Carlini, Wagner, arXiv:1802.00420, section 3.1; Carlini et al., arXiv:1902.06705, section 5; AutoAttack's checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from defend.benchmarks.flags import NOTHING_DRAWN, share_without_gradient
from defend.results.claims import at_claim, bare, unbounded
from defend.results.diagnostics import black_box_pairs, oblivious_pairs, way_of, white_box
from defend.results.outcomes import Record
from defend.results.significance import Beats, by_intervals

STANDS = 0.01  # of the images may be right at eps 1
DEAD = 0.01  # of the images may have a gradient of zero: a saturated softmax in float32, which DLR does not mind


class CheckResult(NamedTuple):
    records: Sequence[Record]  # of one norm
    every: Sequence[Record]  # of all norms
    beats: Beats


Doubt = Callable[[CheckResult], str]  # the sign in a few words, or nothing


def declared_alone(seen: CheckResult) -> str:
    gradients = {r["gradient"] for r in _white(seen.records)}
    return (
        "the declared gradient alone was attacked"
        if gradients == {"declared"} and not bare(seen.records[0]["defense"])
        else ""
    )


def without_eot(seen: CheckResult) -> str:
    white = [r for r in _white(seen.records) if r["stochastic"]]
    return (
        "randomised, and attacked without EOT"
        if white and all(r["eot"] == 1 for r in white)
        else ""
    )


def false_randomness(seen: CheckResult) -> str:
    """As deterministic it would have been asked more and attacked for longer. One that draws on some images alone draws in some cell."""
    sound = [r for r in seen.records if r["error"] is None]
    if sound and all(NOTHING_DRAWN in r["flags"] for r in sound):
        return "its card says stochastic=True, and nothing was drawn"
    steady = sound and all(
        r["stochastic"] and r["all_draws_correct"] == r["robust_accuracy"] for r in sound
    )
    return "its card says stochastic=True, and no draw decides anything" if steady else ""


def black_box_wins(seen: CheckResult) -> str:
    pairs = list(black_box_pairs(at_claim(seen.records), seen.beats))
    return f"black box beats white box: {way_of(pairs[0][0])}" if pairs else ""


def knowing_hurts(seen: CheckResult) -> str:
    pairs = list(oblivious_pairs(at_claim(seen.records), seen.beats))
    return f"oblivious beats adaptive: {pairs[0][0]['attack']}" if pairs else ""


def survives_eps_1(seen: CheckResult) -> str:
    """Through one of its gradients, any pipeline that has one can be led anywhere."""
    left = [r["robust_accuracy"] for r in unbounded(seen.every)]
    return (
        f"PGD at eps 1 from the clean image leaves {100 * min(left):.1f} %"
        if left and min(left) > STANDS
        else ""
    )


def dead_gradients(seen: CheckResult) -> str:
    found = [(share_without_gradient(r["flags"]), r) for r in _white(seen.records)]
    share, r = max(found, key=lambda pair: pair[0], default=(0.0, {}))
    return (
        f"the {r['gradient']} gradient vanishes or is undefined on {100 * share:.1f} % of the images"
        if share > DEAD
        else ""
    )


def failed_cells(seen: CheckResult) -> str:
    count = sum(r["error"] is not None for r in seen.every)
    return f"{count} cell{'s' if count > 1 else ''} failed" if count else ""


DOUBTS: tuple[Doubt, ...] = (
    declared_alone,
    without_eot,
    false_randomness,
    black_box_wins,
    knowing_hurts,
    survives_eps_1,
    dead_gradients,
    failed_cells,
)


def doubts(
    records: Sequence[Record], relatives: Sequence[Record] = (), beats: Beats = by_intervals
) -> list[str]:
    """Each in a few words. records: of one (data set, classifier, defense, norm); relatives: the same defense's in other norms."""
    seen = CheckResult(records, [*records, *relatives], beats)
    return [said for doubt in DOUBTS if (said := doubt(seen))]


def _white(records: Sequence[Record]) -> list[Record]:
    return [r for r in white_box(records) if r["error"] is None]
