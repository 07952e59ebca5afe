"""Networks that a purifier holds anywhere are found, frozen, cast, registered and hashed."""

from collections import deque
from functools import partial

import pytest
import torch
from torch import nn

from defend.benchmarks.component_keys import content_hash
from defend.chain import Chain
from defend.purifier import Card, Purifier
from defend.testing import defense_checks


class Holder:
    """An object of another library, which holds a network."""

    def __init__(self, network):
        self.network = network

    def restore(self, x):
        return self.network(x)


def new_network():
    """Return a network in training mode whose output then depends on chance."""
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))


PLACES = {
    "attribute": lambda network: network,
    "list": lambda network: [None, [network]],
    "tuple": lambda network: (1, network),
    "dict": lambda network: {"first": {"second": network}},
    "plain object": Holder,
    "bound method": lambda network: Holder(network).restore,
    "deque": lambda network: deque([network]),
    "partial": lambda network: partial(Holder.restore, Holder(network)),
    "keyword of a partial": lambda network: partial(torch.add, other=network),
}


class HoldsSomewhere(Purifier):
    """Apply a network that is held at one of PLACES."""

    card = Card(paper="none: made for this test", gradient="exact", stochastic=False)
    place: str = "attribute"

    def validate(self):
        self.held = PLACES[self.place](new_network())

    def purify(self, x, noise):
        return self.networks()[0](x).sigmoid()


PURIFIERS = {place: partial(HoldsSomewhere, place=place) for place in PLACES}
PURIFIERS["chain"] = lambda: Chain(members=(HoldsSomewhere(), HoldsSomewhere(place="dict")))
CHECKS = [
    "check_networks_are_found",
    "check_networks_are_frozen",
    "check_exact_gradient_claim",  # on a copy that is cast to float64
    "check_leaves_global_rng_alone",
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("make", PURIFIERS.values(), ids=PURIFIERS)
def test_a_raw_network_passes_the_kit(make, check):
    getattr(defense_checks, check)(make())


@pytest.mark.parametrize("place", PLACES)
def test_a_raw_network_is_cast_and_registered(place):
    purifier = HoldsSomewhere(place=place)
    module = purifier.as_module()
    assert len(list(module.parameters())) == 4
    module.double()
    dtypes = {w.dtype for network in purifier.networks() for w in network.parameters()}
    assert dtypes == {torch.float64}
    assert module(purifier.example(2).double()).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("make", PURIFIERS.values(), ids=PURIFIERS)
def test_a_raw_network_is_moved(make):
    purifier = make()
    purifier.move("cuda")
    purifier.purified(purifier.example(2).cuda())
    devices = {t.device.type for net in purifier.networks() for t in net.state_dict().values()}
    assert devices == {"cuda"}


def trains_its_last_parameter(network):
    network.requires_grad_(False).eval()[-2].bias.requires_grad_(True)


def trains_an_inner_part(network):
    network.requires_grad_(False).eval()[-1].train()


PARTLY_TRAINED = [trains_its_last_parameter, trains_an_inner_part]


@pytest.mark.parametrize("change", PARTLY_TRAINED)
def test_a_network_that_is_frozen_in_part_is_frozen_before_it_purifies(change):
    """It is made after `__post_init__`, or an author sets it to training again."""
    purifier = HoldsSomewhere()
    change(purifier.held)
    purifier.purified(purifier.example(2))
    assert not any(module.training for module in purifier.held.modules())
    assert not any(w.requires_grad for w in purifier.held.parameters())


@pytest.mark.parametrize("place", PLACES)
def test_a_raw_network_is_part_of_the_key(place):
    """Other tensors are another purifier."""
    one, other = (HoldsSomewhere(place=place) for _ in range(2))
    with torch.no_grad():
        for network in other.networks():
            network[0].bias += 1
    assert "" != content_hash(one) != content_hash(other)
