"""The images, pipelines and linear classifiers that the checks of attacks share.

The worst perturbation of a linear classifier is known in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from defend.attack import Attack
from defend.errors import BadParameter
from defend.noise import Noise
from defend.purifier import Card, Purifier
from defend.target import Target
from defend.tasks.reconstruction import Reconstruction
from defend.testing.runner import NotApplicable

RECONSTRUCTION = Reconstruction()
IMAGES = 8
SHAPE = (3, 8, 8)
PIXELS = 192
# These move the margin of every image by three standard deviations, without meeting the box.
EPS = {"Linf": 0.05, "L2": 0.4}
ALL_ROWS = torch.arange(IMAGES)


class Clear(Purifier):
    """x' = x."""

    card = Card(paper="none: for checks", gradient="exact", stochastic=False)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.clone()


class Jitter(Purifier):
    """x' = x + N(0, 0.02^2), not clipped: for images away from black and white."""

    card = Card(paper="none: for checks", gradient="exact", stochastic=True)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x + 0.02 * noise.normal(x)


@dataclass(frozen=True)
class Pipeline:
    """A purifier in front of the linear classifier.

    scored: True if it is exactly the pipeline that will be scored. If it is deterministic too, an
    attack may drop images (`target.may_drop`).
    """

    purifier: type[Purifier] = Clear
    scored: bool = False

    def target(self, model: nn.Module | None = None, rows: Tensor = ALL_ROWS) -> Target:
        """Return the target for the images `rows`; the model is the linear classifier by default.

        Their noise depends on `rows`, so that a part of the images keeps its noise.
        """
        return Target(
            model or linear_classifier(),
            self.purifier(),
            Noise.of(5, rows).fork("attack"),
            eot=2,
            scored=self.scored,
        )


NOT_SCORED = Pipeline(Clear, scored=False)
SCORED = Pipeline(Clear, scored=True)  # the only pipeline of which images may be dropped
STOCHASTIC = Pipeline(Jitter, scored=True)


def pipelines_for(attack: Attack) -> tuple[Pipeline, ...]:
    """Return the pipelines that an attack takes.

    An attack may refuse stochastic pipelines by a BadParameter.
    """
    row = ALL_ROWS[:1]
    x = random_images()[:1]
    try:
        attacked(rebuilt(attack), x, half_wrong_labels(x), STOCHASTIC.target(rows=row), rows=row)
    except BadParameter:
        return NOT_SCORED, SCORED
    return NOT_SCORED, SCORED, STOCHASTIC


def linear_classifier(classes: int = 2) -> nn.Sequential:
    """Return a network with logits W (x - 1/2).

    It is centred on the images, so that margins of both signs occur.
    """
    # skip_init: to create a Linear layer would move the global random state.
    layer = nn.utils.skip_init(nn.Linear, PIXELS, classes).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    layer.weight.copy_(torch.randn(classes, PIXELS, generator=generator) / 2)
    layer.bias.copy_(-layer.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


def random_images() -> Tensor:
    """Return eight images of uniform noise in [0.3, 0.7]."""
    return 0.3 + 0.4 * torch.rand(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(7))


def images_at_the_box() -> Tensor:
    """Return images for which the box is active: black, white, a checkerboard, one hot pixel, and
    four of noise in [0, 1].
    """
    x = torch.rand(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(8))
    x[0] = 0
    x[1] = 1
    x[2] = 0
    x[2, :, ::2, ::2] = 1
    x[3] = 0
    x[3, 0, 0, 0] = 1
    return x


def predicted_labels(x: Tensor, classes: int = 2) -> Tensor:
    """Return the labels that the linear classifier predicts."""
    return cast(Tensor, linear_classifier(classes)(x).argmax(1))


def half_wrong_labels(x: Tensor, classes: int = 2) -> Tensor:
    """Return labels of which every other one is not the predicted class."""
    return (predicted_labels(x, classes) + torch.arange(len(x)) % 2) % classes


def attacked(
    attack: Attack,
    x: Tensor,
    y: Tensor,
    target: Target | None = None,
    eps: float | None = None,
    rows: Tensor = ALL_ROWS,
) -> Tensor:
    """Return the adversarial images; by default the pipeline is not scored and eps is that of EPS.

    The noise of the start depends on `rows`, the numbers of the images.
    """
    target, reference = at_its_task(attack, target or NOT_SCORED.target(rows=rows), x, y)
    return attack.run(
        target,
        x,
        reference,
        EPS[attack.norm] if eps is None else eps,
        Noise.of(6, rows).fork("start"),
    )


def at_its_task(attack: Attack, target: Target, x: Tensor, y: Tensor) -> tuple[Target, Tensor]:
    """Return the target at a task that the attack's card allows, and what it measures against.

    An attack with the objective "distortion" meets the same linear network as a codec, whose
    output is a reconstruction.
    """
    if attack.card.objective != "distortion":
        return target, y
    return replace(target, task=RECONSTRUCTION), x


def require_labels(attack: Attack) -> None:
    """Raise NotApplicable for an attack that climbs no loss of labels."""
    if attack.card.objective == "distortion":
        raise NotApplicable("its card says objective='distortion': it attacks no labels")


def rebuilt(attack: Attack, **changed: Any) -> Attack:
    """Return an attack with the same settings, except those that are given."""
    return type(attack)(**{**attack.settings, **changed})


def margin_gain(x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return how far the other class's logit rose against the logit of y: (b,)."""
    model = linear_classifier()
    difference = model(x_adv) - model(x)
    return cast(Tensor, difference[:, 1] - difference[:, 0]) * (1 - 2 * y)


def largest_margin_gain(norm: str, eps: float) -> float:
    """Return the gain that no perturbation exceeds: eps times the dual norm of w_1 - w_0, the
    difference of the rows of W.
    """
    w = cast(nn.Linear, linear_classifier()[1]).weight
    difference = w[1] - w[0]
    dual_norm = difference.abs().sum() if norm == "Linf" else difference.norm()
    return eps * float(dual_norm)


def accuracy(x: Tensor, y: Tensor, classes: int = 2) -> float:
    """Return the share of the images that the linear classifier labels y."""
    return (predicted_labels(x, classes) == y).float().mean().item()
