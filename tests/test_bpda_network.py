"""The BPDA network: fitted to imitate a purifier, it gives the gradient that the purifier lacks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import defend
from defend.benchmarks import bpda_networks
from defend.benchmarks.components import Components
from defend.noise import Noise
from defend.purifier import Card, Purifier
from defend.target import Target
from defend.training.bpda_network import (
    UNet,
    fit_bpda_network,
    images_of_equal_cost,
    measure_relative_error,
    perturb_images,
)


class Halve(Purifier):
    """x' = x / 2, without any gradient."""

    card = Card(paper="none: test", gradient="exact", stochastic=False)

    def purify(self, x, noise):
        return (x / 2).detach()


class NoisyHalve(Purifier):
    """x' = x / 2 + N(0, .1^2), without any gradient."""

    card = Card(paper="none: test", gradient="exact", stochastic=True)

    def purify(self, x, noise):
        return (x / 2 + 0.1 * noise.normal(x)).detach()


def make_images(n=160, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(3))


def make_linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    return net.requires_grad_(False)


def root_mean_square(x):
    return x.square().mean().sqrt()


@pytest.fixture(scope="module")
def fitted_to_halve():
    return fit_bpda_network(Halve(), make_images(), steps=150)


def test_it_imitates_the_purifier(fitted_to_halve):
    net, error = fitted_to_halve
    x = make_images(32).flip(-1)
    assert error < 0.1  # of what the purifier changes
    assert root_mean_square(net(x) - x / 2) < 0.1 * root_mean_square(x / 2)


def test_its_gradient_replaces_a_gradient_of_zero(fitted_to_halve):
    """The purifier's own gradient is zero; the network's is that of the classifier, halved."""
    x, y, classifier = make_images(8), torch.arange(8) % 3, make_linear()

    def loss(logits, y):
        return F.cross_entropy(logits, y, reduction="none")

    def gradient_through(backward):
        target = Target(classifier, Halve(), Noise.of(0, torch.arange(8)), backward)
        return target.gradient(x, y, loss)[0]

    halved = (x / 2).requires_grad_()
    expected = torch.autograd.grad(loss(classifier(halved), y).sum(), halved)[0] / 2
    learned = gradient_through(fitted_to_halve[0])
    assert not gradient_through(None).any()
    assert F.cosine_similarity(learned.flatten(1), expected.flatten(1)).min() > 0.95


def test_it_imitates_the_mean_of_a_stochastic_purifier():
    net, error = fit_bpda_network(NoisyHalve(), make_images(), steps=150)
    x = make_images(32).flip(-1)
    assert root_mean_square(net(x) - x / 2) < 0.03  # the noise of one draw is 0.1
    assert error < 0.2


def test_it_is_the_same_for_a_seed(fitted_to_halve):
    net, error = fit_bpda_network(Halve(), make_images(), steps=150)
    first_net, first_error = fitted_to_halve
    assert error == first_error
    pairs = zip(net.parameters(), first_net.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    seed_0 = fit_bpda_network(Halve(), make_images(), steps=3)
    seed_1 = fit_bpda_network(Halve(), make_images(), steps=3, seed=1)
    assert seed_0[1] != seed_1[1]


def test_it_is_frozen_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    net, _ = fit_bpda_network(Halve(), make_images(), steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("net", "error"), [(nn.Identity(), 1.0), (Halve().purified, 0.0), (lambda x: 0.75 * x, 0.5)]
)
def test_the_error_is_relative_to_what_the_purifier_changes(net, error):
    x, y = make_images(32), torch.zeros(32, dtype=torch.int64)
    measured = measure_relative_error(net, Halve(), x, y, None, 0.1, 0)
    assert measured == pytest.approx(error, abs=1e-6)


def test_it_is_fitted_on_clean_and_on_perturbed_images():
    x, y, classifier = make_images(40), torch.arange(40) % 3, make_linear()
    perturbed = perturb_images(x, y, classifier, 0.1, Noise.of(0, torch.arange(40)))
    distance = (perturbed - x).abs().flatten(1).amax(1)
    assert not distance[0::4].any()
    assert distance.max() <= 0.1 + 1e-6
    assert all((distance[kind::4] > 0.05).all() for kind in (1, 2, 3))

    loss_before = F.cross_entropy(classifier(x), y, reduction="none")
    rise = F.cross_entropy(classifier(perturbed), y, reduction="none") - loss_before
    assert (rise[2::4] > 0).all()
    assert (rise[3::4] > 0).all()
    assert not (rise[1::4] > 0).all()  # uniform noise lowers the loss of about half of the images


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 31, 28), (1, 1, 5, 6)])
def test_it_takes_every_size_and_mixes_no_images(shape):
    torch.manual_seed(0)
    net = UNet(shape[1], 4)
    nn.init.normal_(net.last.weight)
    x = torch.rand(shape)
    assert net(x).shape == x.shape
    assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)


@pytest.mark.parametrize(("size", "count"), [(8, 512), (32, 512), (64, 128), (512, 64)])
def test_larger_images_are_fewer_but_at_least_an_eighth(size, count):
    assert images_of_equal_cost(torch.empty(3, size, size), 512) == count


# The cache of the benchmark.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(bpda_networks.RECIPE, "steps", 4)
    return tmp_path / "defend" / "learned"


PIPELINE = ("convnet", "median")


def make_components():
    return Components("digits", None, torch.device("cpu"))


def test_it_is_fitted_once(cache):
    messages = []
    make_components().bpda.fit_all([PIPELINE, PIPELINE], messages.append)
    (file,) = cache.iterdir()
    first, written = make_components().bpda.get(*PIPELINE), file.stat().st_mtime_ns
    make_components().bpda.fit_all([PIPELINE], messages.append)
    assert len(messages) == 1
    assert "imitate median" in messages[0]
    assert make_components().bpda.get(*PIPELINE).sha256 == first.sha256
    assert file.stat().st_mtime_ns == written
    assert 0 < first.error < 2


@pytest.mark.parametrize(
    "other", [("convnet", "median:size=2"), ("convnet:weights=convnet-digits-again", "median")]
)
def test_another_purifier_or_classifier_has_another(cache, other):
    hashes = {make_components().bpda.hash(*pipeline) for pipeline in (PIPELINE, other)}
    assert len(hashes) == len(list(cache.iterdir())) == 2


def test_another_claim_eps_or_code_of_the_data_has_another():
    usual, other_claim, other_code = make_components(), make_components(), make_components()
    data_type = type(usual.data)
    card = replace(usual.data.card, claim={"Linf": 0.05})
    other_claim.data.__class__ = type(
        "OtherClaim", (data_type,), {"card": card, "__module__": data_type.__module__}
    )
    # The same rows, by the code of another package.
    other_code.data.__class__ = type("OtherCode", (data_type,), {"__module__": "pytest"})
    files = {c.bpda._file(*PIPELINE) for c in (usual, other_claim, other_code)}
    assert len(files) == 3


def test_a_damaged_file_is_fitted_again(cache):
    sha256 = make_components().bpda.get(*PIPELINE).sha256
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert make_components().bpda.get(*PIPELINE).sha256 == sha256


SUITE = {
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
    suite = {**SUITE, "defenses": ["none", "median"], "gradients": ["learned", "identity"]}
    one, two = (defend.bench(suite, out=tmp_path / str(k), workers=k) for k in (1, 2))

    def without_times(records):
        return [r.replace(seconds=None, purify_images_per_second=None) for r in records]

    assert without_times(one) == without_times(two)
    # The workers read the network that the parent process fitted.
    assert len(list((tmp_path / "defend" / "learned").iterdir())) == 1
    assert [(r.defense, r.gradient, r.gradient_error is None) for r in one] == [
        ("none", "identity", True),
        ("median", "learned", False),
        ("median", "identity", True),
    ]
    assert one[1].units != one[2].units


@pytest.mark.usefixtures("plugin", "cache")
def test_a_purifier_that_cannot_be_imitated_fails_its_own_cells_alone(tmp_path):
    suite = {**SUITE, "defenses": ["misbehaves:how=nan", "median"], "gradients": ["learned"]}
    records = defend.bench(suite, out=tmp_path, workers=1)
    assert records[0].failed
    assert records[0].gradient_error is None
    assert not records[1].failed
