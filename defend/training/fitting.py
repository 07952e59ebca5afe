"""Train a component by its recipe: what is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from defend.errors import BadWeights, one_line
from defend.progress import TrainingProgress
from defend.trained_on import TrainedOn
from defend.training.data import Batch, Source
from defend.training.loop import train
from defend.training.quality import device_of, no_display

if TYPE_CHECKING:
    from defend.training.recipe import Recipe

# What a training can know, from least to most. "unknown" may hide anything but an attack.
KNOWLEDGE = ("untrained", "clean", "corrupted", "unknown", "adversarial")


def fit_component(
    component: Any,
    recipe: Recipe,
    source: Source,
    val: Batch | None,
    resume: Path | None,
    save_every: float,
    progress: bool,
) -> None:
    """Train the component's network, and note in the component what the training knew.

    See `Learned.fit`. Raise DefendError.
    """
    device = device_of(component)
    started_from, earlier = load_start(component, recipe.start)
    unfreeze(component)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        trainee = recipe.trainee(component).to(device)
    if not started_from:
        recipe.initialise(trainee, source.to(device))
    display = TrainingProgress(progress)
    score = None if val is None else make_score(component, recipe, val, display)
    identity = {"started_from": started_from, "classifiers": recipe.classifiers}

    component.file, component.weights = None, "untrained"  # no file holds these weights yet
    component.started_from = started_from
    knowledge = recipe.trained_on
    classifiers = {**knowledge.classifiers, **recipe.classifiers}
    component.fitted_on = add_knowledge(replace(knowledge, classifiers=classifiers), earlier)
    train(
        trainee,
        source,
        recipe.objectives(),
        recipe,
        score,
        resume,
        save_every,
        display,
        identity,
    )


def load_start(component: Any, start: str) -> tuple[str, TrainedOn]:
    """Load the weights named `start` into the component, if there is such a name.

    Return the sha256 of the file that the component's weights come from, or "", and what its
    training knew. Raise UnknownName or BadWeights if there are no such weights, or if they do not
    fit.
    """
    earlier: TrainedOn = component.trained_on[0]
    if not start or (component.file and start in (component.weights, component.file.name)):
        return (component.file.sha256 if component.file else component.started_from), earlier
    fields = {name: value for name, value in component.settings.items() if name != "weights"}
    other = type(component)(**fields, weights=start, dataset=component.dataset)
    try:
        component.net.load_state_dict(other.net.state_dict())
    except RuntimeError as e:
        raise BadWeights(
            f"start={start}: does not fit {type(component).__name__}: {one_line(e)[:200]}"
        ) from None
    return (other.file.sha256 if other.file else ""), other.trained_on[0]


def unfreeze(component: Any) -> None:
    """Let the parameters of the network be trained, apart from those that `build` froze."""
    for name, parameter in component.net.named_parameters():
        parameter.requires_grad_(name not in component.frozen_in_build)


def add_knowledge(latest: TrainedOn, earlier: TrainedOn) -> TrainedOn:
    """Return what a training knows that went on from an earlier one: both.

    The greater knowledge decides the kind, with its attack. Weights that were trained on attacks
    do not become clean by some more steps on clean images.
    """
    both = {**earlier.classifiers, **latest.classifiers}
    kept_kind = max(latest, earlier, key=lambda known: KNOWLEDGE.index(known.kind))
    return replace(
        kept_kind, classifiers=both, behind=latest.behind, behind_weights=latest.behind_weights
    )


def make_score(
    component: Any, recipe: Recipe, val: Batch, display: TrainingProgress
) -> Callable[[nn.Module], float]:
    """Return the score of an epoch: the quality of the component, with progress."""
    x, y = limit_images(val, recipe.val_images)

    def score(_: nn.Module) -> float:
        with display.measuring(len(x)) as advance:
            recipe.advance = advance
            try:
                return recipe.quality(component, x, y).value
            finally:
                recipe.advance = no_display

    return score


def limit_images(val: Batch, images: int) -> Batch:
    """Return at most this many of the validation images, the first ones."""
    x, y = val
    return x[:images], y[:images]
