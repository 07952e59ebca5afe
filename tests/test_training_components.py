"""Other components in a training: what is known of them, and which resume files belong to it."""

import sys
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from recipe_toys import (
    FIXED,
    Denoiser,
    DenoiseRecipe,
    GuidedRecipe,
    changed_tensors,
    copy_state,
    grey_images,
    save_toy,
)
from train_toys import Killed

import defend
from defend.errors import BadParameter
from defend.loading import load
from defend.purifier import Purifier
from defend.trained_on import ITSELF, TrainedOn
from defend.training.fitting import hash_code
from defend.training.knowledge import add_earlier_files, add_knowledge
from defend.weights.header import file_sha256


def convnet_sha256():
    return load("convnet", "classifier", "digits").file.sha256


class LoadedInObjectives(DenoiseRecipe):
    def objectives(self):
        self.load_frozen("convnet", self.component)
        return super().objectives()

    def trainee(self, component):
        self.component = component
        return component.net


class LoadedInLoss(LoadedInObjectives):
    """Load a classifier at the first step."""

    guide = None

    def objectives(self):
        return DenoiseRecipe.objectives(self)

    def loss(self, net, x, y, noise):
        if self.guide is None:
            self.guide = self.load_frozen("convnet", self.component).network
        return super().loss(net, x, y, noise) + F.cross_entropy(self.guide(net(x)), y)


def make_denoiser(recipe_type, **fields):
    class GuidedLater(Denoiser):
        recipe = recipe_type
        component = "Denoiser"

    return GuidedLater(weights="untrained", dataset="digits", **fields)


# What is known.


@pytest.mark.parametrize("recipe", [GuidedRecipe, LoadedInObjectives, LoadedInLoss])
def test_a_classifier_is_known_wherever_it_was_loaded(recipe):
    purifier = make_denoiser(recipe)
    purifier.fit(*grey_images(), epochs=1, **FIXED)
    assert purifier.trained_on[0].classifiers == {"convnet-digits": convnet_sha256()}


def test_a_training_that_dies_knows_what_it_loaded():
    class Dying(LoadedInLoss):
        def loss(self, *arguments):
            super().loss(*arguments)
            raise Killed

    purifier = make_denoiser(Dying)
    with pytest.raises(Killed):
        purifier.fit(*grey_images(), **FIXED)
    assert set(purifier.trained_on[0].classifiers) == {"convnet-digits"}


class TrainedPurifier(Purifier):
    """A defense whose training knew a classifier, and itself."""

    card = defend.Card(paper="none: a toy", gradient="exact", stochastic=False)
    trained_on = (TrainedOn(kind="adversarial", classifiers={"spy": "5" * 64, ITSELF: ""}),)

    def purify(self, x, noise):
        return x


def test_what_a_frozen_defense_knew_is_known(monkeypatch):
    monkeypatch.setattr("defend.training.recipe.load", lambda *_: TrainedPurifier())

    class BesideDefense(DenoiseRecipe):
        def trainee(self, component):
            self.load_frozen("trained", component, "defense")
            return component.net

    purifier = make_denoiser(BesideDefense)
    purifier.fit(*grey_images(), epochs=1, **FIXED)
    assert purifier.trained_on == (TrainedOn(kind="corrupted", classifiers={"spy": "5" * 64}),)


OLD, NEW = "0" * 64, "1" * 64
MERGED = {
    "same": ({"a": OLD}, {"a": OLD}, {"a": OLD}),
    "other names": ({"a": NEW}, {"b": OLD}, {"a": NEW, "b": OLD}),
    "another file of one name": ({"a": NEW}, {"a": OLD}, {"a": NEW, "a@000000000000": OLD}),
    "no file before": ({"a": NEW}, {"a": ""}, {"a": NEW, "a@no-file": ""}),
    "twice": (
        {"a": NEW},
        {"a": OLD, "a@111111111111": NEW},
        {"a": NEW, "a@000000000000": OLD, "a@111111111111": NEW},
    ),
}


@pytest.mark.parametrize(("latest", "earlier", "expected"), MERGED.values(), ids=MERGED)
def test_no_file_is_lost_when_hashes_are_merged(latest, earlier, expected):
    assert add_earlier_files(latest, earlier) == expected
    assert add_earlier_files(latest, expected) == expected
    known = [TrainedOn(kind="clean", classifiers=hashes) for hashes in (latest, earlier)]
    assert add_knowledge(*known).classifiers == expected


# Which resume files belong to a run.


def interrupt(purifier, path, calls=3, **options):
    """Train until the recipe has computed so many losses, and leave the resume file."""
    recipe_type = purifier.recipe

    class Dying(recipe_type):
        steps = 0

        def loss(self, net, x, y, noise):
            self.steps += 1
            if self.steps == calls:
                raise Killed
            return super().loss(net, x, y, noise)

    type(purifier).recipe = Dying
    try:
        with pytest.raises(Killed):
            purifier.fit(*grey_images(), resume=path, save_every=0, **FIXED, **options)
    finally:
        type(purifier).recipe = recipe_type


def test_a_run_that_loads_a_classifier_in_its_loss_resumes_to_the_bit(tmp_path):
    undisturbed, killed, resumed = (make_denoiser(LoadedInLoss) for _ in range(3))
    undisturbed.fit(*grey_images(), **FIXED)
    interrupt(killed, tmp_path / "r")
    resumed.fit(*grey_images(), resume=tmp_path / "r", **FIXED)
    assert not changed_tensors(resumed.net, copy_state(undisturbed.net))
    assert resumed.trained_on == undisturbed.trained_on


def test_a_run_resumed_behind_its_last_step_knows_what_its_losses_loaded(tmp_path):
    class DyingLater(LoadedInLoss):
        dies = True

        def quality(self, component, x, y):
            if DyingLater.dies:
                raise KeyboardInterrupt
            return super().quality(component, x, y)

    purifiers = [make_denoiser(DyingLater) for _ in range(2)]
    options = {"val": grey_images(), "resume": tmp_path / "r", "epochs": 1, **FIXED}
    with pytest.raises(KeyboardInterrupt):
        purifiers[0].fit(*grey_images(), **options)
    DyingLater.dies = False
    recipe = purifiers[1].fit(*grey_images(), **options)
    assert recipe.guide is None  # no loss was computed any more
    assert purifiers[1].trained_on[0].classifiers == {"convnet-digits": convnet_sha256()}


class Adjustable(Denoiser):
    """It has a field that does not change the number of parameters."""

    component = "Adjustable"
    strength: float = 1.0


class Renamed(Adjustable):
    """Another component, which differs in its name alone."""

    component = "Renamed"


OTHER_RUNS = {
    "another component": (Renamed, {}, "component='Adjustable' in the file, component='Renamed'"),
    "another field": (
        Adjustable,
        {"strength": 0.5},
        r"fields=\{.*'strength': 1\.0\} in the file, fields=\{.*'strength': 0\.5\} now",
    ),
}


@pytest.mark.parametrize(("other_type", "fields", "message"), OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_a_resume_file_of_another_component_is_refused(other_type, fields, message, tmp_path):
    interrupt(Adjustable(weights="untrained"), tmp_path / "r")
    other = other_type(weights="untrained", **fields)
    with pytest.raises(BadParameter, match=message) as error:
        other.fit(*grey_images(), resume=tmp_path / "r", **FIXED)
    assert "\n" not in str(error.value)


class BesideFile(DenoiseRecipe):
    """A defense takes part, which is loaded in `trainee` or in the first loss."""

    other: str = ""
    late: bool = False

    def trainee(self, component):
        self.component = component
        if not self.late:
            self.load_frozen(self.other, component, "defense")
        return component.net

    def loss(self, net, x, y, noise):
        self.load_frozen(self.other, self.component, "defense")
        return super().loss(net, x, y, noise)


@pytest.mark.parametrize("late", [False, True])
def test_a_resume_file_of_a_run_beside_other_weights_is_refused(late, tmp_path, monkeypatch):
    path = tmp_path / "other.safetensors"

    def load_other(*_):
        return Denoiser(weights=str(path))

    monkeypatch.setattr("defend.training.recipe.load", load_other)
    options = {"other": "toy", "late": late}
    other = Denoiser(weights="untrained")
    save_toy(other, path, TrainedOn(kind="clean"))
    before = file_sha256(path)
    interrupt(make_denoiser(BesideFile), tmp_path / "r", **options)
    torch.nn.init.ones_(other.net[0].weight)
    save_toy(other, path, TrainedOn(kind="clean"))
    with pytest.raises(BadParameter, match=f"{before}.*{file_sha256(path)}") as error:
        make_denoiser(BesideFile).fit(*grey_images(), resume=tmp_path / "r", **FIXED, **options)
    assert "\n" not in str(error.value)


MODULE = """
class Part:
    def loss(self, x):
        return x.square()
"""


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("square", "abs", False),
        ("(self, x):", "(self, x):  # the error", True),
        ("Part", "Part", True),
    ],
)
def test_a_run_is_known_by_its_code_and_not_by_comments(tmp_path, monkeypatch, old, new, is_same):
    hashes = []
    for number, text in enumerate((MODULE, MODULE.replace(old, new))):
        (tmp_path / f"recipe_{number}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, f"recipe_{number}", raising=False)
        hashes.append(hash_code(import_module(f"recipe_{number}").Part))
    assert (hashes[0] == hashes[1]) is is_same
    assert all(hashes)
