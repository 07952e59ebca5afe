"""Frozen parts of a trained module do not change by one bit, in training and in the file."""

import pytest
import torch
from recipe_toys import (
    FIXED,
    Denoiser,
    DenoiseRecipe,
    FrozenInBuildDenoiser,
    FrozenInTraineeDenoiser,
    FrozenTypeDenoiser,
    NothingFrozenDenoiser,
    changed_tensors,
    copy_state,
    grey_images,
    make_backbone,
    save_toy,
)
from safetensors import safe_open
from torch import nn
from train_toys import make_noise

from defend.classifier import Classifier
from defend.defenses.corrupt import attack_surrogates, recognition_loss
from defend.errors import BadParameter
from defend.learned import Frozen
from defend.trained_on import TrainedOn
from defend.training.objectives import train_mode
from defend.training.perturbations import attack_by_pgd
from defend.training.recipes import ClassifierRecipe
from defend.training.store import store_weights
from defend.weights.header import read_header


def untrained(component_type):
    return component_type(weights="untrained")


FREEZING = {
    "type Frozen": FrozenTypeDenoiser,
    "in build": FrozenInBuildDenoiser,
    "in trainee": FrozenInTraineeDenoiser,
}


FIXED_OPTIONS = {name: value for name, value in FIXED.items() if name != "progress"}


def train_with_decay(purifier, **options):
    purifier.fit(*grey_images(), ema=0.5, weight_decay=0.1, **FIXED, **options)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("component_type", FREEZING.values(), ids=FREEZING)
def test_frozen_parts_do_not_change_by_one_bit(component_type, optimiser):
    purifier = untrained(component_type)
    before = copy_state(purifier.net)
    train_with_decay(purifier, optimiser=optimiser)
    changed = changed_tensors(purifier.net, before)
    assert not [name for name in changed if name.startswith("backbone")]
    head = {name for name in before if name.startswith("head")}
    assert changed == head  # its running statistics too


def test_what_is_not_frozen_changes():
    purifier = untrained(NothingFrozenDenoiser)
    before = copy_state(purifier.net)
    train_with_decay(purifier)
    assert changed_tensors(purifier.net, before) == set(before)


def test_what_only_an_earlier_training_froze_is_trained_by_the_next():
    purifier = untrained(FrozenInTraineeDenoiser)
    train_with_decay(purifier)
    before = copy_state(purifier.net)
    assert purifier.frozen_in_fit == {
        name for name, _ in purifier.net.named_parameters() if name.startswith("backbone")
    }
    DenoiseRecipe.fit(
        purifier, *grey_images(), FIXED_OPTIONS, val=None, resume=None, save_every=1, progress=False
    )
    trained = {"backbone.0.weight", "backbone.1.weight", "backbone.1.running_mean"}
    assert trained <= changed_tensors(purifier.net, before)
    assert not purifier.frozen_in_fit


def test_frozen_parts_get_no_dropout_and_no_gradient():
    """The loss sees the same backbone at every step, in eval mode."""
    modes, gradients = [], []

    class Watching(FrozenInBuildDenoiser):
        class recipe(DenoiseRecipe):
            def loss(self, net, x, y, noise):
                modes.append([module.training for module in net.backbone.modules()])
                modes.append([not module.training for module in net.head.modules()])
                gradients.extend(p.grad for p in net.backbone.parameters())
                return super().loss(net, x, y, noise)

    untrained(Watching).fit(*grey_images(), **FIXED)
    assert modes
    assert not any(training for step in modes for training in step)
    assert all(gradient is None for gradient in gradients)


class FrozenBackboneClassifier(Classifier):
    """A classifier of images (b, 1, 8, 8) whose backbone `build` froze."""

    recipe = ClassifierRecipe
    channels: int = 1
    size: int = 8
    classes: int = 10

    def build(self):
        backbone = make_backbone().requires_grad_(False)
        head = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10))
        return nn.Sequential(backbone, head)


def test_adversarial_training_leaves_frozen_running_statistics():
    classifier = untrained(FrozenBackboneClassifier)
    before = copy_state(classifier.net)
    options = {"adversarial": 0.1, "adversarial_steps": 1, "epochs": 1}
    classifier.fit(*grey_images(), **options, **FIXED)
    changed = changed_tensors(classifier.net, before)
    assert changed == {name for name in before if name.startswith("1.")}


ATTACKS = {
    "pgd": lambda net, x, y, noise: attack_by_pgd(net, x, y, 0.1, "Linf", 1, noise),
    "surrogates": lambda net, x, y, noise: attack_surrogates(
        nn.ModuleList([net]), x, y, 0.1, noise
    ),
    "recognition": lambda net, x, y, _: recognition_loss(nn.ModuleList([net]), x, y),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_measures_in_eval_mode_leaves_each_module_in_its_own(attack):
    net = untrained(FrozenBackboneClassifier).build()
    train_mode(net)
    modes = [module.training for module in net.modules()]
    assert set(modes) == {True, False}
    images = grey_images()
    attack(net, *images, make_noise(len(images[0])))
    assert [module.training for module in net.modules()] == modes


def test_a_network_without_a_parameter_to_train_is_refused():
    class AllFrozen(Denoiser):
        def build(self):
            return Frozen(super().build())

    with pytest.raises(BadParameter, match=r"a parameter.*to train.*all are frozen"):
        untrained(AllFrozen).fit(*grey_images(), **FIXED)


@pytest.mark.parametrize("component_type", FREEZING.values(), ids=FREEZING)
def test_frozen_parts_are_stored_in_their_precision(component_type, tmp_path):
    purifier = untrained(component_type)
    header = read_header(save_toy(purifier, tmp_path / "a", TrainedOn(kind="clean")))
    recipe = purifier.fit(*grey_images(), epochs=1, **FIXED)
    summary = store_weights(purifier, grey_images(), tmp_path / "b", header, False, recipe)
    assert summary.startswith("float16, PSNR")
    with safe_open(tmp_path / "b", "pt") as f:
        dtypes = {name: f.get_tensor(name).dtype for name in f.keys()}  # noqa: SIM118
    assert {d for n, d in dtypes.items() if n.startswith("head") and "num_" not in n} == {
        torch.float16
    }
    frozen = {d for n, d in dtypes.items() if n.startswith("backbone") and "num_" not in n}
    assert frozen == {torch.float32}
