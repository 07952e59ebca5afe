"""The check of targeted attacks. It takes one attack."""

from __future__ import annotations

from defend.attack import Attack
from defend.errors import BadParameter
from defend.losses import cross_entropy
from defend.noise import Noise
from defend.tasks.targeted import next_class
from defend.testing.attack_setup import (
    ALL_ROWS,
    EPS,
    NOT_SCORED,
    linear_classifier,
    predicted_labels,
    random_images,
    rebuilt,
)
from defend.testing.runner import NotApplicable

CLASSES = 6
# The share of images that must come closer. An attack without gradients may miss some of them.
SHARE_THAT_COMES_CLOSER = {"gradient": 1.0, "scores": 0.7, "labels": 0.7}


def check_targeted_comes_closer_to_its_target(attack: Attack) -> None:
    """Fail if an attack that can be targeted does not lower the loss of the target class.

    y are then the classes that the images are to become, as in ART.
    """
    if "targeted" not in attack.fields():
        raise NotApplicable("it has no targeted mode")
    try:
        attack = rebuilt(attack, targeted=True)
    except BadParameter as e:
        raise NotApplicable(str(e)) from None
    x, model = random_images(), linear_classifier(CLASSES)
    wanted = next_class(predicted_labels(x, CLASSES), CLASSES)
    noise = Noise.of(6, ALL_ROWS).fork("start")
    x_adv = attack.run(NOT_SCORED.target(model), x, wanted, EPS[attack.norm], noise)
    fall = cross_entropy(model(x), wanted) - cross_entropy(model(x_adv), wanted)
    share = (fall > 0).float().mean().item()
    least = SHARE_THAT_COMES_CLOSER[attack.card.access]
    assert share >= least, (
        f"expected targeted=true to lower the loss of the target class for at least {least:.0%} of"
        f" the images, got {share:.0%}; with targeted=true, y are the classes to reach"
    )
