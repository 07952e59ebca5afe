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
    save_toy,
)
from safetensors import safe_open

from defend.errors import BadParameter
from defend.learned import Frozen
from defend.trained_on import TrainedOn
from defend.training.store import store_weights
from defend.weights.header import read_header


def untrained(component_type):
    return component_type(weights="untrained")


FREEZING = {
    "type Frozen": FrozenTypeDenoiser,
    "in build": FrozenInBuildDenoiser,
    "in trainee": FrozenInTraineeDenoiser,
}


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


def test_a_network_without_a_parameter_to_train_is_refused():
    class AllFrozen(Denoiser):
        def build(self):
            return Frozen(super().build())

    with pytest.raises(BadParameter, match=r"a parameter.*to train.*all are frozen"):
        untrained(AllFrozen).fit(*grey_images(), **FIXED)


def test_frozen_parts_are_stored_in_their_precision(tmp_path):
    purifier = untrained(FrozenInBuildDenoiser)
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
