"""Networks and images of other precisions, and components that are made in inference mode."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import defend
from defend.attacks.pgd import PGD
from defend.errors import BadParameter
from defend.noise import Noise
from defend.target import Target

X, Y = defend.load("digits", "dataset").rows("test", 0, 8)
NET = defend.load("convnet", "classifier", "digits").network
COLOUR = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CODES = "split-vqvae:weights=untrained,channels=3,size=32"
PURIFIERS = ["none", "jpeg", "tvm", "median", "bitdepth", "comdefend:weights=untrained", CODES]
ATTACKS = ["fgsm", "pgd:steps=3", "apgd:steps=10", "fab:steps=3", "square:queries=20"]
HALF = [torch.float16, torch.bfloat16]


def noise(n=8):
    return Noise.of(0, torch.arange(n))


def run(spec, net, purifier="none"):
    attack = defend.load(spec, "attack")
    return attack.run(Target(net, defend.load(purifier), noise()), X, Y, 0.1, noise())


class Linear(nn.Module):
    """A network that takes the type of its parameters alone."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, 10, generator=generator))

    def forward(self, x):
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("spec", [*ATTACKS, "art:name=FastGradientMethod"])
@pytest.mark.parametrize("purifier", ["none", "jpeg"])
def test_a_network_of_double_precision_is_attacked_in_single(spec, purifier):
    x_adv = run(spec, Linear().double(), purifier)
    assert x_adv.dtype == torch.float32
    expected = run(spec, Linear(), purifier)
    assert (x_adv - expected).abs().max() <= 0.2001
    assert torch.isclose(x_adv, expected, atol=1e-3).float().mean() > 0.95


@pytest.mark.parametrize("spec", ATTACKS)
def test_a_network_of_bfloat16_is_attacked_in_single(spec):
    x_adv = run(spec, Linear().bfloat16())
    assert x_adv.dtype == torch.float32
    assert ((x_adv - X).abs() <= 0.1001).all()
    assert (x_adv != X).flatten(1).any(1).all()


def test_a_network_of_float16_is_refused_for_its_gradients_become_zero():
    with pytest.raises(BadParameter, match=r"got float16, .* call classifier.float\(\)"):
        run("fgsm", Linear().half())
    steep = 1e-9 * Linear()(X)  # its slopes are smaller than the least number of float16
    assert (steep != 0).any()
    assert (steep.half() == 0).all()


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
def test_a_bench_measures_networks_in_single_precision(dtype, tmp_path):
    accuracies = []
    rounded = copy.deepcopy(NET).to(dtype)
    for i, net in enumerate([rounded, copy.deepcopy(rounded).float()]):
        records = defend.bench(
            classifiers=[net],
            defenses=["jpeg"],
            attacks=["fgsm"],
            knowledge="adaptive",
            dataset=(X.numpy(), Y.numpy()),
            eps=0.2,
            n=8,
            workers=1,
            out=tmp_path / str(i),
        )
        accuracies.append([(r.clean_accuracy, r.robust_accuracy, r.error) for r in records])
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("spec", PURIFIERS)
def test_a_module_purifies_half_images_in_single_precision(spec, dtype):
    module, x = defend.load(spec, seed=0).as_module(), COLOUR.to(dtype)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    expected = module(x.float()).to(dtype)
    for converted in (module, module.to(dtype)):
        y = converted(x)
        assert y.dtype == dtype
        assert torch.equal(y, expected)
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("spec", PURIFIERS)
def test_a_module_takes_images_of_double_precision(spec):
    module, x = defend.load(spec, seed=0).as_module(), COLOUR.double()
    y = module(x)
    assert y.dtype == torch.float64
    assert torch.isclose(y, module(COLOUR).double(), atol=1e-4).double().mean() > 0.99


def test_a_half_model_behind_a_purifier_has_its_gradient():
    model = nn.Sequential(defend.load("jpeg").as_module(), nn.Flatten(), nn.Linear(64, 10)).half()
    x = X.half().requires_grad_()
    model(x).sum().backward()
    assert x.grad.dtype == torch.float16
    assert (x.grad != 0).any()


@pytest.mark.parametrize("spec", ["none", "jpeg", "tvm", "gaussian", "median"])
def test_what_is_loaded_in_inference_mode_can_be_attacked(spec):
    with torch.inference_mode():
        net = defend.load("convnet", "classifier", "digits").network
        purifier, x = defend.load(spec), X.clone()
    x_adv = PGD(steps=2).run(Target(net, purifier, noise()), x, Y, 0.1, noise())
    expected = PGD(steps=2).run(Target(NET, defend.load(spec), noise()), X, Y, 0.1, noise())
    assert torch.equal(x_adv, expected)


def test_a_learned_purifier_that_is_loaded_in_inference_mode_has_its_gradient():
    with torch.inference_mode():
        purifier = defend.load(CODES)
    x = COLOUR.clone().requires_grad_()
    purifier.purified(x, noise(2)).sum().backward()
    assert (x.grad != 0).any()


def test_a_network_that_is_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        net = Linear()
    with pytest.raises(BadParameter, match=r"made\s+under torch.inference_mode"):
        run("fgsm", net)
    assert run("fgsm", copy.deepcopy(net)).isfinite().all()


def test_a_bench_in_inference_mode_is_that_outside_of_it(tmp_path):
    def measure(name):
        records = defend.bench(
            classifiers=[Linear()],
            defenses=["none"],
            attacks=["pgd:steps=2"],
            dataset=(X.numpy(), Y.numpy().astype(np.int32)),
            eps=0.1,
            n=8,
            workers=1,
            out=tmp_path / name,
        )
        return [(r.clean_accuracy, r.robust_accuracy, r.error) for r in records]

    with torch.inference_mode():
        inside = measure("inside")
    assert inside == measure("outside")
