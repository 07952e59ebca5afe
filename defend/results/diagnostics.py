"""The catalogue of diagnoses: for each code the sentence that is made of its values when printed.

A flag is what one cell says against itself (FlagCode of defend/records.py). A finding comes from
comparing two cells. No claim survives a sign. A remark stands beside a claim. A training mark says
what a training knew. Nothing reads a sentence again.

Sources: Athalye, Carlini, Wagner, ICML 2018 (arXiv:1802.00420) section 3.1; Carlini et al., "On
Evaluating Adversarial Robustness" (arXiv:1902.06705) section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from defend.errors import count_of
from defend.records import Diagnosis, Flag, FlagCode, Record
from defend.tasks.registry import load_task
from defend.tasks.task import Unit
from defend.threat_models import GRADIENT_NAMES

_FEW_IMPOSTORS = (
    "few impostors: {{count}} of val pass the threshold of FAR {far}, which rests on them"
)
FLAG_TEXTS: dict[FlagCode, str] = {
    FlagCode.ZERO_GRADIENT: "zero gradient: {count} of {n} images",
    FlagCode.UNDEFINED_GRADIENT: "undefined gradient: {count} of {n} images",
    FlagCode.UNCHANGED_IMAGES: "nothing changed: the attack returned every image as it was",
    FlagCode.LOSS_FELL: "loss fell: the attack lowered the loss that it should raise",
    FlagCode.UNCONVERGED: (
        "unconverged: accuracy still fell by {points} points in the last fifth of the queries,"
        " or in the last round of a search"
    ),
    FlagCode.NO_DRAW_CHANGES_A_PIXEL: (
        "nothing drawn: the card says stochastic=True, and no draw changed a pixel"
    ),
    FlagCode.GRADIENT_OF_ONE_DRAW: (
        "no EOT: a stochastic defense, attacked through the gradient of one draw"
    ),
    FlagCode.SCORES_OF_ONE_DRAW: (
        "no EOT: a stochastic defense, searched by the scores of single draws"
    ),
    FlagCode.FEW_IMPOSTORS_AT_FAR_1: _FEW_IMPOSTORS.format(far="1 %"),
    FlagCode.FEW_IMPOSTORS_AT_FAR_01: _FEW_IMPOSTORS.format(far=".1 %"),
    FlagCode.LABEL_IS_NOT_THE_GOAL: (
        "another goal: the attack makes the classifier lose the label, and not the claim"
    ),
    FlagCode.NOT_FINITE: "{field} is not a finite number",
}


class FindingCode(StrEnum):
    """What comparing two cells shows: a sign that an attack failed, not that a purifier works."""

    BLACK_BOX_BEATS_WHITE_BOX = "black_box_beats_white_box"
    OBLIVIOUS_BEATS_ADAPTIVE = "oblivious_beats_adaptive"
    ANOTHER_GRADIENT_BEATS_DECLARED = "another_gradient_beats_declared"
    FEWER_STEPS_BEAT_MORE = "fewer_steps_beat_more"
    ACCURACY_GROWS_WITH_EPS = "accuracy_grows_with_eps"
    NOT_CONFIRMED = "not_confirmed"  # the cell's own units do not give its record again


FINDING_TITLES: dict[FindingCode, str] = {
    FindingCode.BLACK_BOX_BEATS_WHITE_BOX: "black box beats white box",
    FindingCode.OBLIVIOUS_BEATS_ADAPTIVE: "oblivious beats adaptive",
    FindingCode.ANOTHER_GRADIENT_BEATS_DECLARED: "another gradient beats the declared one",
    FindingCode.FEWER_STEPS_BEAT_MORE: "fewer steps beat more",
    FindingCode.ACCURACY_GROWS_WITH_EPS: "accuracy grows with eps",
    FindingCode.NOT_CONFIRMED: "not confirmed by its units",
}
# What is said beside the accused cell's own number.
ACCUSATIONS: dict[FindingCode, str] = {
    FindingCode.BLACK_BOX_BEATS_WHITE_BOX: "black box beats it",
    FindingCode.OBLIVIOUS_BEATS_ADAPTIVE: "oblivious beats it",
    FindingCode.ANOTHER_GRADIENT_BEATS_DECLARED: "another gradient beats it",
    FindingCode.FEWER_STEPS_BEAT_MORE: "fewer steps beat it",
    FindingCode.ACCURACY_GROWS_WITH_EPS: "a smaller eps beats it",
    FindingCode.NOT_CONFIRMED: "not confirmed by its units",
}


class SignCode(StrEnum):
    """Signs that an attack was too weak or a gradient masked: no claim survives one."""

    DECLARED_GRADIENT_ALONE = "declared_gradient_alone"
    NO_EOT = "no_eot"
    NOTHING_DRAWN = "nothing_drawn"
    NO_DRAW_DECIDES = "no_draw_decides"
    BLACK_BOX_BEATS_WHITE_BOX = "black_box_beats_white_box"  # subject: the black-box attack
    # subject: the search in rounds; value: the share of the images that its random search broke
    RANDOM_SEARCH_BREAKS_MOST = "random_search_breaks_most"
    OBLIVIOUS_BEATS_ADAPTIVE = "oblivious_beats_adaptive"  # subject: the oblivious attack
    SURVIVES_EPS_1 = "survives_eps_1"  # value: the accuracy that is left
    NO_GRADIENT = "no_gradient"  # subject: which gradient; value: the share of the images
    FAILED_CELLS = "failed_cells"  # value: how many
    STRONGER_ATTACK = "stronger_attack"  # subject: the attack and where; value: what it leaves
    NOT_CONFIRMED = "not_confirmed"  # value: how many cells


SIGN_TEXTS: dict[SignCode, str] = {
    SignCode.DECLARED_GRADIENT_ALONE: "the declared gradient alone was attacked",
    SignCode.NO_EOT: "randomised, and attacked without EOT",
    SignCode.NOTHING_DRAWN: "its card says stochastic=True, and nothing was drawn",
    SignCode.NO_DRAW_DECIDES: "its card says stochastic=True, and no draw decides anything",
    SignCode.BLACK_BOX_BEATS_WHITE_BOX: "black box beats white box: {subject}",
    SignCode.RANDOM_SEARCH_BREAKS_MOST: (
        "most of what {subject} broke, {percent} % of the images, fell to a random search"
    ),
    SignCode.OBLIVIOUS_BEATS_ADAPTIVE: "oblivious beats adaptive: {subject}",
    SignCode.SURVIVES_EPS_1: "PGD at eps 1 from the clean image leaves {percent} %",
    SignCode.NO_GRADIENT: (
        "the {subject} gradient vanishes or is undefined on {percent} % of the images"
    ),
    SignCode.FAILED_CELLS: "{cells} failed",
    SignCode.NOT_CONFIRMED: "{cells} not confirmed by the units",
    SignCode.STRONGER_ATTACK: "a stronger attack: {subject}, leaves {percent} %",
}


class TrainingCode(StrEnum):
    """What a training knew of the other half of the pipeline; such a row is marked."""

    KNOWS_CLASSIFIER = "knows_classifier"  # subject: the classifiers
    # subject: the defense that the classifier was trained behind; value: the one here
    SCORED_BEHIND_ANOTHER = "scored_behind_another"


TRAINING_TEXTS: dict[TrainingCode, str] = {
    TrainingCode.KNOWS_CLASSIFIER: (
        "the purifier was trained against {subject}, the classifier that it stands before here"
    ),
    TrainingCode.SCORED_BEHIND_ANOTHER: (
        "the classifier was trained behind {subject}; scored here behind {value}"
    ),
}


class RemarkCode(StrEnum):
    """What stands beside a claim and does not take it away."""

    WEAK_LEARNED_GRADIENT = "weak_learned_gradient"  # value: its error; None if it is no number


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Two cells of which the attack that should be the weaker one leaves less."""

    code: FindingCode
    weaker: Record  # the attack that knows or does less, and yet leaves fewer images right
    stronger: Record  # the attack that should do at least as well: its number is accused
    more: int = 0  # further eps at which the same two attacks show the same
    detail: str = ""  # of a cell that is not confirmed, which is both of the two


def format_flag(flag: Flag, n: int) -> str:
    """Return the sentence of a flag of a cell of n images."""
    text = FLAG_TEXTS[flag.code]
    if isinstance(flag.value, float | int):
        return text.format(count=f"{flag.value:.0f}", points=f"{100 * flag.value:.1f}", n=n)
    return text.format(field=flag.value)


def format_finding(finding: Finding) -> str:
    """Return the line below a table."""
    if finding.code == FindingCode.ACCURACY_GROWS_WITH_EPS:
        return _format_growth(finding)
    weaker, stronger = finding.weaker, finding.stronger
    more = f" (and at {finding.more} more eps)" if finding.more else ""
    return (
        f"{FINDING_TITLES[finding.code]}: {describe_cell(weaker)} leaves {_accuracy(weaker)}"
        f" at eps {weaker.eps_text}, {describe_attack(stronger)} {_accuracy(stronger)}{more}:"
        " a sign of masked gradients."
    )


def _format_growth(finding: Finding) -> str:
    small, large = finding.weaker, finding.stronger
    series = f"{small.defense_label}, {small.bare_attack}, {describe_level(small)}"
    more = f" (and {finding.more} more steps of eps)" if finding.more else ""
    return (
        f"{FINDING_TITLES[finding.code]}: {series}: {_accuracy(small)} at eps {small.eps_text},"
        f" {_accuracy(large)} at {large.eps_text}{more}."
        " The attack fails at the larger eps; the number there is no robustness."
    )


def format_accusation(finding: Finding) -> str:
    """Return what is said beside the accused cell's own number."""
    return f"{ACCUSATIONS[finding.code]}: {finding.detail or _format_weaker(finding)}"


def format_sign(sign: Diagnosis) -> str:
    """Return the sign in a few words."""
    text = SIGN_TEXTS[SignCode(sign.code)]
    if not isinstance(sign.value, float | int):
        return text.format(subject=sign.subject)
    cells = count_of(int(sign.value), "cell")
    return text.format(subject=sign.subject, percent=f"{100 * sign.value:.1f}", cells=cells)


def format_training_mark(mark: Diagnosis) -> str:
    """Return the sentence of a mark."""
    return TRAINING_TEXTS[TrainingCode(mark.code)].format(subject=mark.subject, value=mark.value)


def format_remark(remark: Diagnosis) -> str:
    """Return what stands beside a claim."""
    assert remark.code == RemarkCode.WEAK_LEARNED_GRADIENT, "there is no other remark"
    error = "no number"
    if isinstance(remark.value, float | int):
        error = f"{remark.value:.2f}, the identity's is 1"
    return f"the learned gradient says little (its error is {error})"


def encode_flag(flag: Flag) -> str:
    """Return the flag as code=value, as a file of data lists it."""
    if flag.value is None:
        return flag.code
    value = f"{flag.value:.6g}" if isinstance(flag.value, float | int) else flag.value
    return f"{flag.code}={value}"


def encode_training_mark(mark: Diagnosis) -> str:
    """Return the mark as code=subject, as a file of data lists it."""
    return f"{mark.code}={mark.subject}"


def encode_finding(finding: Finding) -> str:
    """Return the finding as code=value, as a file of data lists it beside the accused cell."""
    return f"{finding.code}={finding.detail or _format_weaker(finding)}"


def _format_weaker(finding: Finding) -> str:
    return f"{describe_cell(finding.weaker)} leaves {_accuracy(finding.weaker)}"


def describe_cell(record: Record) -> str:
    """Return defense, attack and level: "jpeg, pgd, adaptive BPDA"."""
    return f"{record.defense_label}, {describe_attack(record)}"


def describe_attack(record: Record) -> str:
    """Return attack and level: "pgd, adaptive BPDA"."""
    return f"{record.attack}, {describe_level(record)}"


def describe_level(record: Record) -> str:
    """Return the level: "adaptive BPDA", "transfer from jpeg+convnet"."""
    level = record.knowledge
    if level == "adaptive" and record.gradient:
        level += f" {GRADIENT_NAMES.get(record.gradient, record.gradient)}"
    if record.surrogate:
        level += f" from {record.surrogate}"
    return level


def _accuracy(record: Record) -> str:
    if record.number is None:
        return "no number"
    return format_measured(record.number.value, load_task(record.task).unit)


def format_measured(value: float, unit: Unit) -> str:
    """Return a number with its unit: "25.0 %" for 0.25, "31.4 dB", "1.25 bpp"."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.2f} bpp" if unit == "bpp" else f"{value:.1f} dB"
