"""Other attacks on the same images, compared with the declared gradient's best.

If one of them breaks significantly more, the declared gradient hides something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from defend.auditing import attempts
from defend.auditing.attempts import TransferAttack
from defend.auditing.comparison import (
    AttackedImages,
    Attempt,
    compare_attempts,
    round_to_8_bit,
    worst_over_alternatives,
)
from defend.auditing.context import Context
from defend.auditing.finite_differences import FiniteDifferences
from defend.auditing.persistent_search import check_persistent_search
from defend.auditing.session import Session
from defend.auditing.square_search import SquareSearch
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import ROUNDING_ERROR, Check, CheckResult, NotApplicable

_THRESHOLD = (
    f"breaks < {THRESHOLDS.gap.value:g} points more, or not significantly at"
    f" {THRESHOLDS.alpha.value:g} after Holm"
)
_ATHALYE = "Athalye et al., arXiv:1802.00420, section 3.1"
_CARLINI = "Carlini et al., arXiv:1902.06705, section 5"


def _compare(
    make_attempts: Callable[[Context], Iterator[Attempt]],
) -> Callable[[Session], CheckResult]:
    """Return a check that compares these attempts with the declared gradient's best."""

    def run(session: Session) -> CheckResult:
        context = session.context
        return compare_attempts(session.declared.best, lambda: make_attempts(context))

    return run


def compare_8_bit(context: Context, best: AttackedImages) -> CheckResult:
    """Return whether the images of every attack break more once they are rounded to 8 bits.

    The declared attacks and the oblivious ones are rounded, and compared with the same attacks
    unrounded. Every attack counts, not only the best: an image that one of them left correct may
    break when rounded, and of several equally good attacks only the last would be looked at.
    """
    if 100 * best.accuracy < THRESHOLDS.gap.value:
        return compare_attempts(best, list)
    unrounded = best.copy()
    for attempt in attempts.oblivious_attempts(context):
        unrounded.run(attempt)
    declared = [images.__getitem__ for images in best.images]
    oblivious = attempts.oblivious_attempts(context)  # on all images, broken ones too
    rounded = [_round(context, attempt) for attempt in [*declared, *oblivious]]
    return compare_attempts(unrounded, lambda: rounded, "the same, unrounded,")


def _round(context: Context, attempt: Attempt) -> Attempt:
    """Return the attempt with its images rounded to 8 bits."""
    return lambda rows: round_to_8_bit(attempt(rows), context.x[rows], context.eps)


def _check_transfer(session: Session) -> CheckResult:
    transfer = TransferAttack(session.context)
    return compare_attempts(
        session.declared.best, transfer.make_attempts, describe_cost=transfer.describe
    )


def _check_autograd(session: Session) -> CheckResult:
    return compare_attempts(
        session.declared.best,
        lambda: attempts.autograd_attempts(session.context, session.autograd),
    )


def _check_finite_differences(session: Session) -> CheckResult:
    differences = FiniteDifferences(session.context)
    result = compare_attempts(
        session.declared.best, differences.make_attempts, describe_cost=differences.describe
    )
    return replace(result, inconclusive=differences.inconclusive)


def _check_square(session: Session) -> CheckResult:
    """Search behind a stochastic purifier until the margin is flat; the last search counts."""
    search = SquareSearch(session.context)
    result = compare_attempts(
        session.declared.best, search.make_attempts, describe_cost=search.describe
    )
    return replace(result, inconclusive=search.inconclusive, weakness=search.weakness)


def _check_learned(session: Session) -> CheckResult:
    """Attack through the learned gradient, which says nothing if it imitates the purifier badly."""
    context = session.context
    result = compare_attempts(
        session.declared.best,
        lambda: attempts.learned_attempts(context, _needs_imitation(session)),
    )
    error = context.bpda_network_error
    if error is None or error <= THRESHOLDS.imitation.value:
        return result
    reason = f"the network imitates badly, with a relative error of {error:.2f}"
    return replace(result, inconclusive=reason)


def _needs_imitation(session: Session) -> bool:
    """Return True if the declared gradient is not the slope, so that the verdict needs another."""
    return not session.lowest_slope(None).holds


def _check_8_bit_images(session: Session) -> CheckResult:
    return compare_8_bit(session.context, session.declared.best)


def _check_8_bit_drift(session: Session) -> CheckResult:
    context, best = session.context, session.declared.best
    rounded = round_to_8_bit(best.x_adv, context.x, context.eps)
    change = float(context.score(rounded).mean()) - best.accuracy
    return CheckResult(
        measured=f"{100 * change:+.1f} points",
        value=change,
        passed=abs(100 * change) <= THRESHOLDS.rounding.value + ROUNDING_ERROR,
    )


def _check_all_together(session: Session) -> CheckResult:
    """Combine the attacks image by image.

    If another gradient is better on some images and worse on others, mean accuracies hide it. The
    persistent search is left out: it is compared with a search of its own, through the declared
    gradient, and both have starts and random searches that are no other gradient.
    """
    best = session.declared.best
    if not best.alternatives:
        raise NotApplicable("no other attack ran")
    lowest = worst_over_alternatives(best)
    gap = float((best.scores - lowest).mean())
    return CheckResult(
        measured=f"leave {100 * lowest.mean():.1f} %,"
        f" the declared gradient's best {100 * best.accuracy:.1f} %",
        value=gap,
        gap=gap,
        p=session.context.p_value_of_attack(lowest, best.scores),
    )


_AlternativeAttack = partial(Check, weight="attack", threshold=_THRESHOLD)
CHECKS = (
    _AlternativeAttack(
        name="identity gradient",
        question="Does the gradient that skips the purifier (BPDA) break more?",
        source="Athalye et al., arXiv:1802.00420, section 4.1",
        advice="Report BPDA beside it: the declared gradient is worse than none",
        run=_compare(attempts.identity_attempts),
    ),
    _AlternativeAttack(
        name="autograd",
        question="Does the gradient that autograd gives through purify itself break more?",
        source="Athalye et al., arXiv:1802.00420, sections 4.1 and 4.2",
        advice="Declare the gradient of autograd (exact or approximate): the declared one is worse",
        run=_check_autograd,
    ),
    _AlternativeAttack(
        name="learned gradient",
        question="Does the gradient of a network fitted to imitate the purifier break more?",
        source="ours, after the differentiable approximations of BPDA, arXiv:1802.00420,"
        " section 4.1",
        advice="Report the learned gradient beside it: the declared one points elsewhere",
        run=_check_learned,
    ),
    _AlternativeAttack(
        name="relaxed gradient",
        question="Does the gradient through the purifier's own relaxation break more?",
        source="Athalye et al., arXiv:1802.00420, section 4.1; the relaxation is the purifier's",
        advice="Report the relaxed gradient beside it: the declared one loses the way at a step",
        run=_compare(attempts.relaxed_attempts),
    ),
    _AlternativeAttack(
        name="persistent search",
        question="Does a search that goes on break more through every gradient than through one?",
        source="ours: the attack persist, docs/attacks.md",
        advice="Report the gradient that broke most beside it: the declared one loses the way",
        run=check_persistent_search,
    ),
    _AlternativeAttack(
        name="finite differences",
        question="Does an attack whose gradient is measured by finite differences break more?",
        source=f"SPSA: Uesato et al., arXiv:1802.05666; {_ATHALYE}",
        advice="The declared gradient is not the slope of the scored loss: repair it",
        run=_check_finite_differences,
    ),
    _AlternativeAttack(
        name="Square",
        question="Does a search without any gradient break more?",
        source=f"Andriushchenko et al., arXiv:1912.00049; {_ATHALYE}",
        advice="A black-box attack beats the white-box one: the accuracy under the declared"
        " gradient is not robust accuracy",
        run=_check_square,
    ),
    _AlternativeAttack(
        name="oblivious",
        question="Do images made against the bare classifier break more?",
        source=_CARLINI,
        advice="An attacker who does not know the purifier breaks more than one who does: repair"
        " the gradient",
        run=_compare(attempts.oblivious_attempts),
    ),
    _AlternativeAttack(
        name="transfer",
        question="Do images made against another pipeline break more?",
        source=_CARLINI,
        advice="Report transfer from this pipeline beside it",
        run=_check_transfer,
    ),
    _AlternativeAttack(
        name="one step",
        question="Does a single step break more than many?",
        source=_ATHALYE,
        advice="Iterations go astray: the loss surface is shattered or flat",
        run=_compare(attempts.one_step_attempts),
    ),
    _AlternativeAttack(
        name="random noise",
        question="Does random noise break more?",
        source=_CARLINI,
        advice="Random search beats the gradient: the attack does not climb",
        run=_compare(attempts.random_attempts),
    ),
    _AlternativeAttack(
        name="8-bit images",
        question="Do the attacks' images break more once they are rounded to 8 bits?",
        source="design: a deployed pipeline receives pictures of 256 levels",
        advice="The purifier treats other numbers than the 256 levels of a picture differently:"
        " attack on the grid of 256 levels",
        run=_check_8_bit_images,
    ),
    _AlternativeAttack(
        name="all together",
        question="Do all these attacks together, image by image, break more?",
        source=_CARLINI,
        advice="Some images resist only because the gradient is masked: report the worst case of"
        " each image over all attacks",
        run=_check_all_together,
    ),
    Check(
        name="8-bit drift",
        question="Does the accuracy under the declared gradient hold for pictures of 256 levels?",
        weight="sign",
        threshold=f"<= {THRESHOLDS.rounding.value:g} point either way",
        source="design: rounded towards the clean image, inside the ball",
        advice="Say so beside the accuracy, or attack on the grid of 256 levels",
        run=_check_8_bit_drift,
    ),
)
