"""Checkpoints as RobustBench saves them: by its own list of models, or by a function of the user.

The library pins old versions of its dependencies, so that CI does not install it: what needs it is
skipped there. How tensors get into a network is tested without it.
"""

from collections import OrderedDict

import pytest
import torch
from model_folders import (
    NEEDED,
    SMALLEST_FILE,
    prefixed,
    save_robustbench,
    without_normalisation,
)
from torch import nn

import defend
from defend.classifiers.robustbench import fill_normalised
from defend.errors import BadParameter, BadWeights, Mismatch, MissingData
from defend.pairing import check_pair

needs_robustbench = NEEDED["robustbench"]


class Normalising(nn.Module):
    """A network with the buffers mu and sigma, as several of RobustBench have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.4))
        self.register_buffer("sigma", torch.full((1, 3, 1, 1), 0.2))

    def forward(self, x):
        x = (x - self.mu) / self.sigma
        return self.fc(self.conv1(x).relu().mean((2, 3)))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))

    def forward(self, x):
        return x - self.mean


def in_two_parts():
    """Return a network as the library makes those of ImageNet: a normalisation, then the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 3, 8, 8))
    return nn.Sequential(OrderedDict(normalize=Layer(), model=model))


def bare(state):
    return {name.removeprefix("model."): t for name, t in without_normalisation(state).items()}


FILES = {
    "plain": (Normalising, lambda s: s),
    "of DataParallel": (Normalising, lambda s: prefixed("module.", s)),
    "of DataParallel around a wrapper": (Normalising, lambda s: prefixed("module.model.", s)),
    "without the normalisation": (Normalising, without_normalisation),
    "with scores of a pruning": (Normalising, lambda s: {**s, "conv1.scores": torch.ones(2)}),
    "in two parts": (in_two_parts, lambda s: s),
    "the model of two parts alone": (in_two_parts, bare),
    "the model alone, of DataParallel": (in_two_parts, lambda s: prefixed("module.", bare(s))),
}


@pytest.mark.parametrize("name", FILES)
def test_every_spelling_of_the_names_fills_the_network(name):
    make, change = FILES[name]
    original, filled, x = make(), make(), torch.rand(2, 3, 8, 8)
    for parameter in original.parameters():
        parameter.data.mul_(2)
    fill_normalised(filled, change(original.state_dict()), "file")
    assert torch.equal(filled(x), original(x))


MISFITS = {
    "a layer too few": lambda s: {k: v for k, v in s.items() if k != "fc.bias"},
    "a layer too many": lambda s: {**s, "fc2.bias": torch.zeros(10)},
    "another shape": lambda s: {**s, "fc.bias": torch.zeros(7)},
}


@pytest.mark.parametrize("name", MISFITS)
def test_other_tensors_are_refused(name):
    with pytest.raises(BadWeights, match=r"does not fit Normalising.*fc"):
        fill_normalised(Normalising(), MISFITS[name](Normalising().state_dict()), "file")


MODEL = '''
import torch
from model_folders import (
    NEEDED,
    SMALLEST_FILE,
    prefixed,
    save_robustbench,
    without_normalisation,
)
from torch import nn


class Robust(nn.Module):
    """A network whose names are those of the library: block1.layer.0.conv1, fc, mu, sigma."""

    def __init__(self):
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.4))
        self.register_buffer("sigma", torch.full((1, 3, 1, 1), 0.2))

    def forward(self, x):
        x = (x - self.mu) / self.sigma
        return self.fc(self.conv1(x).relu().mean((2, 3)))
'''


@pytest.mark.parametrize("wrapper", ["state_dict", "last", ""])
def test_a_checkpoint_fills_a_network_of_the_user(wrapper, tmp_path):
    """Without the library: a function of the user, and the file as the library has it."""
    (tmp_path / "model.py").write_text(MODEL)
    original, file = Normalising(), tmp_path / "Mine2026Robust.pt"
    state = prefixed("module.", original.state_dict())
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, file)
    spec = f"'{tmp_path}/model.py':Robust,weights='{file}'"
    classifier = defend.load(spec, "classifier", defend.load("digits-m", "dataset"))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(classifier.network(x), original(x).detach())


# With the library.

SPEC = (
    "robustbench:model=Hendrycks2020AugMix_WRN,dataset=cifar10,threat=corruptions,"
    'model_dir="{folder}"'
)


@needs_robustbench
def test_a_model_of_the_list_has_its_architecture_and_normalisation(tmp_path):
    """A file of the smallest network of the list, which lacks mu and sigma, as the library's."""
    net, file = save_robustbench(tmp_path), tmp_path / SMALLEST_FILE
    classifier = defend.load(SPEC.format(folder=tmp_path), "classifier")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(classifier.network(x), net(x).detach())
    assert classifier.weights_sha256.keys() == {file.name}
    assert (classifier.size, classifier.classes) == (32, 10)
    with pytest.raises(Mismatch, match=r"weights for cifar10 .* data set digits-m"):
        check_pair(classifier, defend.load("digits-m", "dataset"))


REFUSED = {
    "robustbench:model=Carmon2019Unlabelled,dataset=cifar10": (
        BadParameter,
        "no model 'Carmon2019Unlabelled'.*Did you mean Carmon2019Unlabeled",
    ),
    "robustbench:model=Standard,dataset=cifar10,threat=L1": (BadParameter, "threat=Linf or L2"),
    "robustbench:model=Standard,dataset=mnist": (BadParameter, "cifar10 or cifar100 or imagenet"),
    "robustbench:model=Standard,dataset=cifar10,model_dir=nowhere": (
        MissingData,
        "nowhere/cifar10/Linf/Standard.pt, which does not exist",
    ),
    "robustbench:model=Diffenderfer2021Winning_LRR_CARD_Deck,dataset=cifar10,threat=corruptions": (
        BadParameter,
        "not one network in one file",
    ),
}


@needs_robustbench
@pytest.mark.parametrize("spec", REFUSED)
def test_what_the_library_does_not_have_is_refused(spec):
    error, message = REFUSED[spec]
    with pytest.raises(error, match=message):
        defend.load(spec, "classifier")
