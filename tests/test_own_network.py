"""A network of the caller as a classifier, whatever it returns."""

import pytest
import torch
from torch import nn

from defend.benchmarks.live_objects import name_objects
from defend.errors import Mismatch
from defend.own_network import OwnNetwork


class Output:
    def __init__(self, logits):
        self.logits = logits


HEADS = {
    "logits": lambda z: z,
    "tuple": lambda z: (z, "features"),
    "dictionary": lambda z: {"logits": z, "loss": None},
    "object": Output,
    "probabilities": lambda z: z.softmax(1),
}


class Headed(nn.Module):
    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(64, 10), head

    def forward(self, x):
        return self.head(self.layer(x.flatten(1)))


@pytest.mark.parametrize("name", HEADS)
def test_what_networks_return(name):
    network, x = Headed(HEADS[name]), torch.rand(5, 1, 8, 8)
    if name == "probabilities":
        with pytest.warns(UserWarning, match="the network returns probabilities"):
            classifier = OwnNetwork(module=network, label="net", channels=1, size=8)
    else:
        classifier = OwnNetwork(module=network, label="net", channels=1, size=8)
    expected = network.layer(x.flatten(1)).detach().log_softmax(1)
    torch.testing.assert_close(classifier.network(x).log_softmax(1), expected)


@pytest.mark.parametrize("keep", [slice(0, 1), 0], ids=["(b, 1)", "(b,)"])
def test_one_logit_is_that_of_the_second_of_two_classes(keep):
    network, x = Headed(lambda z: z[:, keep]), torch.rand(5, 1, 8, 8)
    classifier = OwnNetwork(module=network, label="net", channels=1, size=8)
    logit = network.layer(x.flatten(1)).detach()[:, 0]
    expected = torch.stack([1 - logit.sigmoid(), logit.sigmoid()], 1)
    torch.testing.assert_close(classifier.network(x).softmax(1), expected)
    assert classifier.classes == 2


@pytest.mark.parametrize("keep", [slice(0, 1), 0], ids=["(b, 1)", "(b,)"])
def test_one_probability_is_that_of_the_second_of_two_classes(keep):
    network, x = Headed(lambda z: z[:, keep].sigmoid()), torch.rand(5, 1, 8, 8)
    with pytest.warns(UserWarning, match="the network returns probabilities"):
        classifier = OwnNetwork(module=network, label="net", channels=1, size=8)
    p = network.layer(x.flatten(1)).detach()[:, 0].sigmoid()
    torch.testing.assert_close(classifier.network(x).softmax(1), torch.stack([1 - p, p], 1))


def test_a_network_that_cannot_be_copied_is_one_line():
    network = Headed(lambda z: z)
    network.held = network.layer.weight * 2
    with pytest.raises(Mismatch, match=r"net: expected a network that can be copied.*weight_norm"):
        OwnNetwork(module=network, label="net", channels=1, size=8)
    with pytest.raises(Mismatch, match="classifier Headed: expected a network that can be copied"):
        name_objects({"classifiers": [network], "dataset": "digits"})


REFUSED = {
    "text": (str, "got str"),
    "maps": (lambda z: z[:, :, None, None], r"got \(4, 10, 1, 1\)"),
    "mean": (lambda z: z.mean(0, keepdim=True), r"got \(1, 10\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_outputs_are_refused(name):
    head, message = REFUSED[name]
    with pytest.raises(Mismatch, match=message):
        OwnNetwork(module=Headed(head), label="net", channels=1, size=8)


def test_the_network_of_the_caller_stays_as_it_is():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).train().double()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    classifier = OwnNetwork(module=network, label="net", channels=1, size=8)
    classifier.run_as("float32", "channels_last")
    classifier.network(torch.rand(7, 1, 8, 8))
    assert network.training and network[2].weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
