"""The learned gradient: a network that imitates a purifier, fitted once, and what its gradient is worth."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import defend
from defend.benchmarks import bpda_network as learned
from defend.benchmarks.bpda_network import _file, bpda_network, bpda_network_hash, fit_bpda_networks
from defend.benchmarks.components import Components
from defend.noise import Noise
from defend.purifier import Card, Purifier
from defend.target import Target
from defend.training.bpda_network import UNet, fit_bpda_network, perturbed, relative_error


class Halve(Purifier):
    """x' = x / 2, and no gradient at all."""

    card = Card(paper="none: test", gradient="exact", stochastic=False)

    def purify(self, x, noise):
        return (x / 2).detach()


class Shake(Purifier):
    """x' = x / 2 + N(0, .1^2)."""

    card = Card(paper="none: test", gradient="exact", stochastic=True)

    def purify(self, x, noise):
        return (x / 2 + 0.1 * noise.normal(x)).detach()


def images(n=160, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(3))


def linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def halved():
    return fit_bpda_network(Halve(), images(), steps=150)


def test_it_finds_what_the_purifier_does(halved):
    net, error = halved
    x = images(32).flip(-1)
    assert error < 0.1  # of the purifier's change
    assert (net(x) - x / 2).square().mean().sqrt() < 0.1 * (x / 2).square().mean().sqrt()


def test_its_gradient_stands_where_there_is_none(halved):
    """Through the purifier nothing comes back; through the network what would: that of the classifier, halved."""
    x, y, net = images(8), torch.arange(8) % 3, linear()

    def slope(backward):
        target = Target(net, Halve(), Noise.of(0, torch.arange(8)), backward)
        return target.gradient(
            x, y, lambda z, y: nn.functional.cross_entropy(z, y, reduction="none")
        )[0]

    half = (x / 2).requires_grad_()
    wanted = (
        torch.autograd.grad(nn.functional.cross_entropy(net(half), y, reduction="sum"), half)[0] / 2
    )
    assert not slope(None).any()
    assert (
        nn.functional.cosine_similarity(slope(halved[0]).flatten(1), wanted.flatten(1)).min() > 0.95
    )


def test_of_a_stochastic_purifier_it_is_the_mean():
    net, error = fit_bpda_network(Shake(), images(), steps=150)
    x = images(32).flip(-1)
    assert (net(x) - x / 2).square().mean().sqrt() < 0.03 < 0.1  # far below the noise of one draw
    assert error < 0.2


def test_it_is_the_same_for_a_seed_frozen_and_silent(halved):
    state = torch.get_rng_state()
    again, error = fit_bpda_network(Halve(), images(), steps=150)
    assert torch.equal(torch.get_rng_state(), state)
    assert error == halved[1]
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), halved[0].parameters(), strict=True)
    )
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert (
        fit_bpda_network(Halve(), images(), steps=3, seed=1)[1]
        != fit_bpda_network(Halve(), images(), steps=3)[1]
    )


@pytest.mark.parametrize(
    ("net", "error"), [(nn.Identity(), 1.0), (Halve().purified, 0.0), (lambda x: 0.75 * x, 0.5)]
)
def test_the_error_is_relative_to_what_the_purifier_changes(net, error):
    assert relative_error(
        net, Halve(), images(32), torch.zeros(32, dtype=torch.int64), None, 0.1, 0
    ) == pytest.approx(error, abs=1e-6)


def test_it_is_fitted_on_clean_and_on_moved_images():
    x, y, net = images(40), torch.arange(40) % 3, linear()
    moved = perturbed(x, y, net, 0.1, Noise.of(0, torch.arange(40)))
    by = (moved - x).abs().flatten(1).amax(1)
    rise = nn.functional.cross_entropy(
        net(moved), y, reduction="none"
    ) - nn.functional.cross_entropy(net(x), y, reduction="none")
    assert (
        not by[0::4].any()
        and (by.max() <= 0.1 + 1e-6)
        and all((by[k::4] > 0.05).all() for k in (1, 2, 3))
    )
    assert (rise[2::4] > 0).all() and (
        rise[3::4] > 0
    ).all()  # noise alone does not: half of it goes down
    assert not (rise[1::4] > 0).all()


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 31, 28), (1, 1, 5, 6)])
def test_every_size_is_taken_and_no_image_sees_another(shape):
    torch.manual_seed(0)
    net = UNet(shape[1], 4)
    nn.init.normal_(net.last.weight)
    x = torch.rand(shape)
    assert net(x).shape == x.shape
    assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)


# kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(learned.RECIPE, "steps", 4)
    return tmp_path / "defend" / "learned"


def components():
    return Components("digits", None, torch.device("cpu"))


def test_it_is_fitted_once(cache):
    said = []
    fit_bpda_networks([("convnet", "median"), ("convnet", "median")], components(), said.append)
    (file,) = cache.iterdir()
    first, before = bpda_network(components(), "convnet", "median"), file.stat().st_mtime_ns
    fit_bpda_networks([("convnet", "median")], components(), said.append)
    assert len(said) == 1 and "imitate median" in said[0]
    assert (bpda_network(components(), "convnet", "median").sha256, file.stat().st_mtime_ns) == (
        first.sha256,
        before,
    )
    assert 0 < first.error < 2


@pytest.mark.parametrize(
    "other", [("convnet", "median:size=2"), ("convnet:weights=convnet-digits-again", "median")]
)
def test_another_purifier_or_classifier_has_another(cache, other):
    keys = {
        bpda_network_hash(components(), *pipeline) for pipeline in (("convnet", "median"), other)
    }
    assert len(keys) == len(list(cache.iterdir())) == 2


def test_another_claim_eps_or_code_of_the_data_has_another():
    class Elsewhere(type(components().data)):
        """The same rows, by the code of another package."""

        __module__ = "pytest"

    here, wider, moved = components(), components(), components()
    wider.data.__class__ = type(
        "Wider",
        (type(here.data),),
        {
            "card": replace(here.data.card, claim={"Linf": 0.05}),
            "__module__": type(here.data).__module__,
        },
    )
    moved.data.__class__ = Elsewhere
    assert len({_file(p, "convnet", "median") for p in (here, wider, moved)}) == 3


def test_a_damaged_file_is_made_again(cache):
    sha256 = bpda_network(components(), "convnet", "median").sha256
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert bpda_network(components(), "convnet", "median").sha256 == sha256


SMALL = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "attacks": ["pgd:steps=3"],
    "eps": "0.1",
    "n": 32,
    "shard": 16,
    "knowledge": "adaptive",
}


def test_a_cell_through_it_is_recorded_and_the_same_however_the_work_is_spread(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    suite = SMALL | {"defenses": ["none", "median"], "gradients": ["learned", "identity"]}
    one, two = (defend.bench(suite, out=tmp_path / str(k), workers=k) for k in (1, 2))
    timeless = [
        [
            {k: v for k, v in r.items() if k not in ("seconds", "purify_images_per_second")}
            for r in run
        ]
        for run in (one, two)
    ]
    assert timeless[0] == timeless[1]
    assert (
        len(list((tmp_path / "defend" / "learned").iterdir())) == 1
    )  # the workers found the parent's
    assert [(r["defense"], r["gradient"], r["gradient_error"] is None) for r in one] == [
        ("none", "identity", True),
        ("median", "learned", False),
        ("median", "identity", True),
    ]
    assert one[1]["units"] != one[2]["units"]


@pytest.mark.usefixtures("plugin", "cache")
def test_a_purifier_that_cannot_be_imitated_fails_those_cells_alone(tmp_path):
    records = defend.bench(
        SMALL | {"defenses": ["misbehaves:how=nan", "median"], "gradients": ["learned"]},
        out=tmp_path,
        workers=1,
    )
    assert records[0]["error"] and records[0]["gradient_error"] is None
    assert records[1]["error"] is None
