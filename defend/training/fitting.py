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
    load_start(component, recipe.start)
    unfreeze(component)
    try:
        trainee = make_trainee(component, recipe, source)
        display = TrainingProgress(progress)
        score = None if val is None else make_score(component, recipe, val, display)
        note_training(component, recipe)
        identity = {
            "started_from": component.started_from,
            "classifiers": recipe.classifiers,
        }
        objectives = recipe.objectives()
        train(trainee, source, objectives, recipe, score, resume, save_every, display, identity)
    finally:
        component.net.requires_grad_(False).eval()


def load_start(component: Any, start: str) -> None:
    """Load the weights named `start` into the component, if there is such a name.

    Raise UnknownName or BadWeights if there are no such weights, or if they do not fit.
    """
    has_them = component.file and start in (component.weights, component.file.name)
    if not start or has_them:
        return
    fields = {name: value for name, value in component.settings.items() if name != "weights"}
    other = type(component)(**fields, weights=start, dataset=component.dataset)
    try:
        component.net.load_state_dict(other.net.state_dict())
    except RuntimeError as e:
        raise BadWeights(
            f"start={start}: does not fit {type(component).__name__}: {one_line(e)[:200]}"
        ) from None
    component.file, component.weights = other.file, other.weights


def make_trainee(component: Any, recipe: Recipe, source: Source) -> nn.Module:
    """Return the recipe's trainee on the component's device, with seeded initial weights.

    What depends on the images is set unless the component has weights.
    """
    device = device_of(component)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        trainee = recipe.trainee(component).to(device)
    if not sha256_of_start(component):
        recipe.initialise(trainee, source.to(device))
    return trainee


def sha256_of_start(component: Any) -> str:
    """Return the sha256 of the file that the component's weights come from, or ""."""
    sha256: str = component.file.sha256 if component.file else component.started_from
    return sha256


def note_training(component: Any, recipe: Recipe) -> None:
    """Note in the component what it knows from now on. No file holds its weights yet."""
    component.started_from = sha256_of_start(component)
    knowledge, earlier = recipe.trained_on, component.trained_on[0]
    classifiers = {**knowledge.classifiers, **recipe.classifiers}
    component.fitted_on = add_knowledge(replace(knowledge, classifiers=classifiers), earlier)
    component.file, component.weights = None, "untrained"


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
