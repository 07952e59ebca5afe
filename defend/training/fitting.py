"""Train a component by its recipe: what is the same for all of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from defend.classifier import Classifier
from defend.errors import BadWeights, Mismatch, one_line
from defend.hashing import cache_key, hash_source
from defend.progress import TrainingProgress
from defend.trained_on import TrainedOn
from defend.training.data import Batch, Source
from defend.training.knowledge import add_earlier_files, add_knowledge
from defend.training.loop import train
from defend.training.objectives import freeze_frozen_modules
from defend.training.quality import device_of, no_display
from defend.weights.third_party import loaded_weights

if TYPE_CHECKING:
    from defend.training.recipe import Recipe


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
    check_channels(component, source)
    load_start(component, recipe.start)
    unfreeze(component)
    try:
        trainee = make_trainee(component, recipe, source)
        component.frozen_in_fit = list_frozen(component, trainee)
        display = TrainingProgress(progress)
        score = None if val is None else make_score(component, recipe, val, display)
        objectives = recipe.objectives()
        earlier: TrainedOn = component.trained_on[0]
        note_start(component)
        note_knowledge(component, recipe, earlier)
        identity = identify_run(component, recipe)
        try:
            train(trainee, source, objectives, recipe, score, resume, save_every, display, identity)
        finally:  # a loss may have loaded more classifiers
            note_knowledge(component, recipe, earlier)
    finally:
        component.net.requires_grad_(False).eval()


def check_channels(component: Any, source: Source) -> None:
    """Raise Mismatch for images whose channels the component's network does not take."""
    if isinstance(component, Classifier):
        expected: tuple[int, ...] = (component.channels,)
    else:
        expected = component.card.channels
    shape = source.batch(0, 1, 0)[0].shape
    if len(shape) == 4 and shape[1] not in expected:
        channels = " or ".join(map(str, expected))
        raise Mismatch(
            f"fit: {component.component} takes images of {channels} channels, got {shape[1]};"
            f" give other images, or write channels={shape[1]} if it has such a field"
        )


def list_frozen(component: Any, trainee: nn.Module) -> frozenset[str]:
    """Return the names of the component's parameters that are frozen in the trainee."""
    freeze_frozen_modules(trainee)
    parameters = component.net.named_parameters()
    return frozenset(name for name, parameter in parameters if not parameter.requires_grad)


def identify_run(component: Any, recipe: Recipe) -> dict[str, Any]:
    """Return what a resume file must agree with, beside the options, the data and the network."""
    return {
        "component": component.component,
        "fields": {name: v for name, v in component.settings.items() if name != "weights"},
        "started_from": component.started_from,
        "loaded": dict(recipe.loaded),  # a copy: what a loss loads is not there before a new run
        "code": hash_code(type(recipe), type(component)),
    }


def hash_code(*classes: type) -> str:
    """Return the hash of the modules of these classes, without prose and layout.

    It is "" where a module has no source, as in an interactive session.
    """
    try:
        modules = sorted({cls.__module__ for cls in classes})
        sources = [inspect.getsource(sys.modules[module]) for module in modules]
    except (OSError, TypeError, KeyError):
        return ""
    return cache_key({"code": [hash_source(source) for source in sources]})


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
    component._loaded = other._loaded  # of another library: nobody knows what it was trained on
    component.started_from, component.fitted_on = other.started_from, other.fitted_on


def make_trainee(component: Any, recipe: Recipe, source: Source) -> nn.Module:
    """Return the recipe's trainee on the component's device, with seeded initial weights.

    What depends on the images is set unless the component has weights.
    """
    device = device_of(component)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        trainee = recipe.trainee(component).to(device)
    if not has_all_weights(component):
        recipe.initialise(trainee, source.to(device))
    elif component._loaded:
        recipe.complete(trainee, source.to(device))
    return trainee


def sha256_of_start(component: Any) -> str:
    """Return the sha256 of the file that the component's weights come from, or "".

    Of several files that `build` loaded, those are joined by commas.
    """
    if component.file:
        return str(component.file.sha256)
    return component.started_from or ", ".join(dict.fromkeys(component._loaded.values()))


def has_all_weights(component: Any) -> bool:
    """Return True if the whole network has weights from files, and not only a part of it."""
    return bool(component.file or component.started_from) or is_filled(component.net)


def is_filled(net: nn.Module) -> bool:
    """Return True if files of other libraries filled all parameters of the network."""
    children = list(net.children())
    if loaded_weights(net).keys() - loaded_weights(*children).keys():
        return True
    own = any(True for _ in net.parameters(recurse=False))
    with_parameters = [child for child in children if next(child.parameters(), None) is not None]
    return not own and bool(with_parameters) and all(map(is_filled, with_parameters))


def note_start(component: Any) -> None:
    """Note in the component what its training begins from. No file holds its weights any more."""
    component.started_from = sha256_of_start(component)
    component.file, component.weights = None, "untrained"
    component._loaded = {}


def note_knowledge(component: Any, recipe: Recipe, earlier: TrainedOn) -> None:
    """Note in the component what it knows from now on; `earlier` is what it knew before."""
    knowledge = recipe.trained_on
    classifiers = add_earlier_files(recipe.classifiers, knowledge.classifiers)
    component.fitted_on = add_knowledge(replace(knowledge, classifiers=classifiers), earlier)


def unfreeze(component: Any) -> None:
    """Let the parameters of the network be trained, apart from those that `build` froze."""
    for name, parameter in component.net.named_parameters():
        parameter.requires_grad_(name not in component.frozen_in_build)


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
