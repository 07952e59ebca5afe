"""Checks that an attack finds adversarial images where they are known to exist.

Each check takes one attack.
"""

from __future__ import annotations

import warnings
from itertools import product

import torch.nn.functional as F

from defend.attack import Attack
from defend.errors import BadParameter
from defend.noise import Noise
from defend.testing.attack_setup import (
    ALL_ROWS,
    EPS,
    IMAGES,
    NOT_SCORED,
    SCORED,
    STOCHASTIC,
    Pipeline,
    accuracy,
    attacked,
    half_wrong_labels,
    largest_margin_gain,
    linear_classifier,
    margin_gain,
    pipelines_for,
    predicted_labels,
    random_images,
    rebuilt,
    require_labels,
)
from defend.testing.runner import NotApplicable

# At these eps every image of the box, or nearly every one, is in the ball.
UNBOUNDED = {"Linf": 1.0, "L2": 14.0}
# The share of images whose loss must rise. An attack without gradients may miss some of them.
SHARE_THAT_RISES = {"gradient": 1.0, "scores": 0.7, "labels": 0.7}
COUNTERS = ("steps", "max_iter", "queries")  # fields that say how long an attack searches


def check_breaks_an_undefended_classifier(attack: Attack) -> None:
    """Fail if more than 70 % of the images survive, at an eps at which all could be broken."""
    require_labels(attack)
    x, y = random_images(), predicted_labels(random_images())
    for pipeline in (NOT_SCORED, SCORED):
        robust_accuracy = accuracy(attacked(attack, x, y, pipeline.target()), y)
        assert robust_accuracy <= 0.7, (
            f"expected a robust accuracy of at most 70 % on a linear classifier, "
            f"got {robust_accuracy:.0%} at an eps at which every image can be broken"
        )


def check_more_eps_never_helps_the_defender(attack: Attack) -> None:
    """Fail if robust accuracy rises with eps. A random search may lose one image."""
    require_labels(attack)
    x, y = random_images(), predicted_labels(random_images())
    robust = [
        accuracy(attacked(attack, x, y, eps=EPS[attack.norm] * share), y) for share in (0.1, 0.4, 1)
    ]
    slack = 0.0 if attack.card.access == "gradient" else 1.5 / IMAGES
    assert robust[0] + slack >= robust[1] and robust[1] + slack >= robust[2], (
        f"expected a robust accuracy that falls with eps, got {robust}"
    )


def check_more_steps_never_help_the_defender(attack: Attack) -> None:
    """Fail if the loss after 12 steps is more than a tenth below the loss after 3 steps."""
    require_labels(attack)
    counter = next((name for name in COUNTERS if name in attack.fields()), None)
    if counter is None:
        raise NotApplicable(f"it has no field {', '.join(COUNTERS[:-1])} or {COUNTERS[-1]}")
    x, y = random_images(), predicted_labels(random_images())

    def loss_after(steps: int) -> float:
        with warnings.catch_warnings():  # few steps of the attack's own size may be too short
            warnings.simplefilter("ignore")
            adv = attacked(rebuilt(attack, **{counter: steps}), x, y)
        return F.cross_entropy(linear_classifier()(adv), y).item()

    few, many = loss_after(3), loss_after(12)
    assert many >= 0.9 * few, (
        f"expected no smaller loss for {counter}=12 than for {counter}=3, "
        f"got {many:.3f} and {few:.3f}"
    )


def check_large_eps_drives_accuracy_to_chance(attack: Attack) -> None:
    """Fail if robust accuracy is above chance, 50 %, at an eps that allows any image."""
    require_labels(attack)
    x, y = random_images(), predicted_labels(random_images())
    robust_accuracy = accuracy(attacked(attack, x, y, eps=UNBOUNDED[attack.norm]), y)
    assert robust_accuracy <= 0.5, (
        f"expected a robust accuracy of at most 50 % (chance) at an eps that allows any image, "
        f"got {robust_accuracy:.0%}"
    )


def check_moves_away_from_the_label(attack: Attack) -> None:
    """Fail if the loss of the label that the attack was called with does not rise.

    With three classes this shows an attack that moves towards the label, as if it were a target,
    and one that moves away from the predicted class instead.
    """
    require_labels(attack)
    x, model = random_images(), linear_classifier(3)
    # An attack that sees labels alone seeks the boundary, so it may leave wrong images as they are.
    y = predicted_labels(x, 3) if attack.card.access == "labels" else half_wrong_labels(x, 3)
    x_adv = attacked(attack, x, y, NOT_SCORED.target(model))
    before = F.cross_entropy(model(x), y, reduction="none")
    after = F.cross_entropy(model(x_adv), y, reduction="none")
    share = (after > before).float().mean().item()
    required_share = SHARE_THAT_RISES[attack.card.access]
    assert share >= required_share, (
        f"expected the loss of the label to rise for {required_share:.0%} of the images, "
        f"got {share:.0%}; climb the loss of the label that the attack is called with"
    )


def check_targeted_mode_hits_the_target(attack: Attack) -> None:
    """Fail if targeted=True reaches the target class for no more than half of the images."""
    if "targeted" not in attack.fields():
        raise NotApplicable("it has no targeted mode")
    x, target_class = random_images(), (predicted_labels(random_images(), 3) + 1) % 3
    target = NOT_SCORED.target(linear_classifier(3))
    try:
        targeted = rebuilt(attack, targeted=True)
    except BadParameter as e:
        raise NotApplicable(str(e)) from None
    noise = Noise.of(6, ALL_ROWS).fork("start")
    x_adv = targeted.run(target, x, target_class, EPS[attack.norm], noise)
    share = accuracy(x_adv, target_class, 3)
    assert share > 0.5, (
        f"expected targeted=True to reach the target class for more than 50 % of the images "
        f"(chance: 33 %), got {share:.0%}"
    )


def check_every_image_is_attacked_to_the_end(attack: Attack) -> None:
    """Fail if an attack drops misclassified images although `target.may_drop` is False.

    An attack that leaves an image alone once it is wrong stops on the bare classifier's boundary,
    where any blur cures the image. One that attacks all images reaches the optimum of a linear
    classifier for wrong images too.
    """
    require_labels(attack)
    if attack.card.access == "labels":
        raise NotApplicable("it sees labels only and ends on a boundary by design")
    pipelines = [p for p in pipelines_for(attack) if p != SCORED]
    for pipeline, eps in product(pipelines, (EPS[attack.norm] / 10, EPS[attack.norm])):
        _check_wrong_images_are_attacked(attack, pipeline, eps)


def _check_wrong_images_are_attacked(attack: Attack, pipeline: Pipeline, eps: float) -> None:
    """Compare how far right and wrong images go, as shares of the way to the optimum."""
    x, y = random_images(), half_wrong_labels(random_images())
    target = pipeline.target()
    assert not target.may_drop, "the check needs a pipeline of which no image may be dropped"
    gain = margin_gain(attacked(attack, x, y, target, eps), x, y)
    progress = gain / largest_margin_gain(attack.norm, eps)
    right, wrong = progress[::2], progress[1::2]
    if attack.card.access == "gradient":
        assert progress.min() > 0.95, (
            f"expected every image to go 95 % of the way to the optimum, got {progress.min():.0%} "
            f"(misclassified images: {wrong.min():.0%}); do not drop images"
        )
    if pipeline is STOCHASTIC and right.mean() < 0.2:
        return  # A search without gradients cannot see differences this small in the noise.
    assert wrong.mean() > 0.5 * right.mean(), (
        f"misclassified images go {wrong.mean():.0%} of the way to the optimum, others "
        f"{right.mean():.0%}; drop images only if target.may_drop"
    )


def check_never_returns_the_clean_image(attack: Attack) -> None:
    """Fail if the attack returns a clean image at an eps that breaks next to nothing.

    The pipeline that is scored may be another than the target.
    """
    x, y, eps = random_images(), predicted_labels(random_images()), EPS[attack.norm] / 50
    for pipeline in (NOT_SCORED, SCORED):
        x_adv = attacked(attack, x, y, pipeline.target(), eps)
        unchanged = int((x_adv == x).flatten(1).all(1).sum())
        assert unchanged == 0, (
            f"returned {unchanged} of {IMAGES} clean images; return the perturbed image where the "
            "attack failed"
        )
