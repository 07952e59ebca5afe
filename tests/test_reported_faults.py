"""Faults that people reported of tools like this one, each with its kind: the right values."""

import numpy as np
import pytest
import torch
from torch import nn

import defend
from defend.attacks.fgsm import FGSM
from defend.attacks.pgd import PGD
from defend.benchmarks.purifier_checks import logits_after_purify
from defend.dataset import ArrayDataset, DatasetCard
from defend.errors import BadParameter, BrokenPurifier, Mismatch
from defend.losses import cross_entropy, margin, targeted_margin
from defend.noise import Noise
from defend.norms import norm_of
from defend.target import Target

X, Y = defend.load("digits", "dataset").rows("test", 0, 8)
NET = defend.load("convnet", "classifier", "digits").network
BUILT_IN = ["bitdepth", "gaussian", "jpeg", "median", "tvm", "none"]


def noise(n=8):
    return Noise.of(0, torch.arange(n))


def run(attack, y=Y, net=NET, eps=0.1):
    return attack.run(Target(net, defend.load("none"), noise()), X, y, eps, noise())


# Arrays that are handed out.


def data_of(x, y):
    class Data(ArrayDataset):
        card = DatasetCard(source="none: made for this test", licence="MIT", claim={})
        channels, size, names = 1, 8, tuple("0123456789")

        def arrays(self, split):
            return x, y

    return Data()


PIXELS = (255 * X.numpy()).round().astype(np.uint8)
ARRAYS = {
    "uint8": PIXELS,
    "float32": (PIXELS / 255).astype(np.float32),
    "float64": PIXELS / 255,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_rows_are_the_same_each_time_whatever_the_caller_does_with_them(name):
    data, before = data_of(ARRAYS[name], Y.numpy()), ARRAYS[name].copy()
    for _ in range(3):
        x, y = data.rows("test", 0, 8)
        torch.testing.assert_close(x, torch.from_numpy(PIXELS).float() / 255)
        assert torch.equal(y, Y)
        x.zero_()
        y.zero_()
    assert np.array_equal(ARRAYS[name], before)


BAD_ARRAYS = {
    "floats to 255": (255 * X.numpy(), Y.numpy(), "divide by 255"),
    "normalised": (X.numpy() - 0.5, Y.numpy(), "leave normalisation to the classifier"),
    "NaN": (X.numpy() * np.nan, Y.numpy(), "floats in \\[0, 1\\]"),
    "int64 images": (PIXELS.astype(np.int64), Y.numpy(), "got int64"),
    "flat images": (X.numpy().reshape(8, -1), Y.numpy(), r"expected images \(n, c, h, w\)"),
    "float labels": (PIXELS, Y.numpy().astype(float), "expected 8 whole labels"),
    "one-hot": (PIXELS, np.eye(10)[Y.numpy()], "expected 8 whole labels"),
    "too few": (PIXELS, Y.numpy()[1:], "expected 8 whole labels"),
    "too large": (PIXELS, Y.numpy() + 10, "from 0 to 9"),
    "negative": (PIXELS, Y.numpy() - 10, "from 0 to 9"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_other_arrays_of_a_data_set_are_refused(name):
    x, y, message = BAD_ARRAYS[name]
    with pytest.raises(BadParameter, match=message):
        data_of(x, y).rows("test", 0, 1)


# Ranges.


@pytest.mark.parametrize("path", ["__call__", "forward", "estimate_forward"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_pixels_in_another_range_are_warned_of_once_on_every_path(name, path):
    purifier, x = defend.load(name), 255 * X
    call = getattr(purifier, path)
    with pytest.warns(UserWarning, match="give the range that your images have") as warned:
        call(x.numpy() if path == "__call__" else x)
    assert len(warned) == 1
    call(x.numpy() if path == "__call__" else x)  # warnings are errors here


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", BUILT_IN)
def test_pixels_that_are_not_finite_never_become_an_image(name, value):
    x = X.clone()
    x[1, 0, 3, 3] = value
    y = defend.load(name).purified(x, noise())
    is_finite = y.isfinite().flatten(1).all(1)
    assert is_finite.tolist() == [True, False, *6 * [True]]
    with pytest.raises(BadParameter, match="expected finite pixels"):
        defend.load(name)(x.numpy())


# Recorded programs.


@pytest.mark.parametrize("name", BUILT_IN)
def test_compiled_purifiers_equal_eager_ones(name):
    torch.compiler.reset()
    module = defend.load(name, seed=3).as_module()
    compiled = torch.compile(module, backend="eager")
    assert torch.equal(compiled(X), module(X))
    drawing = torch.compile(defend.load("gaussian").as_module(), backend="eager")
    assert not torch.equal(drawing(X), drawing(X))


@pytest.mark.filterwarnings("ignore")  # of torch, about tracing
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_recorded_program_never_repeats_one_draw(name):
    purifier = defend.load(name)
    module = purifier.as_module()
    record = [
        lambda: torch.export.export(module, (X,)).module(),
        lambda: torch.jit.trace(module, (X,), check_trace=False),
    ]
    for make in record:
        if purifier.card.stochastic:
            with pytest.raises(BadParameter, match="would repeat one draw"):
                make()
        else:
            assert torch.equal(make()(X.flip(0)), module(X.flip(0)))


# Networks in training mode.


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.5), nn.InstanceNorm2d(1)])
def test_a_classifier_that_queries_would_change_is_refused(layer):
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 10)).train()
    with pytest.raises(BadParameter, match="expected a classifier in eval mode"):
        Target(net, defend.load("none"), noise())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    run(PGD(steps=2), net=net.eval())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# Gradients of zero.


class Constant(nn.Module):
    """Logits that do not depend on the image, or do so with a slope that is no number."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return torch.zeros(len(x), 10) + self.slope * x.flatten(1)[:, :1] * torch.arange(10)


AT_ZERO = {
    "fgsm": FGSM(),
    "fgsm L2": FGSM(norm="L2"),
    "pgd from the image": PGD(random_start=False, steps=3),
    "pgd L2 from the image": PGD(random_start=False, steps=3, norm="L2"),
    "ART's FGM": defend.load("art:name=FastGradientMethod", "attack"),
}


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("name", AT_ZERO)
def test_no_attack_returns_the_clean_image_where_the_gradient_is_zero(name, scored):
    attack = AT_ZERO[name]
    target = Target(Constant(0.0), defend.load("none"), noise(), scored=scored)
    x_adv = attack.run(target, X, torch.zeros_like(Y), 0.1, noise())
    distance = norm_of(x_adv - X, attack.norm)
    assert (distance > 0.09).all() and (distance < 0.1001).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()


@pytest.mark.parametrize("name", ["fgsm", "pgd from the image"])
def test_one_slope_that_is_no_number_leaves_the_other_images_alone(name):
    class OneBad(nn.Module):
        def forward(self, x):
            logits = NET(x)
            bad = torch.zeros(len(x), 10)
            bad[1] = float("nan")
            return logits + bad * x.flatten(1)[:, :1]

    x_adv = run(AT_ZERO[name], net=OneBad())
    expected = run(AT_ZERO[name])
    assert x_adv.isfinite().all()
    keep = [0, *range(2, 8)]
    assert torch.equal(x_adv[keep], expected[keep])


# Labels.


ATTACKS = [
    "fgsm",
    "pgd:steps=2",
    "apgd:steps=10",
    "apgd:loss=dlr,steps=10",
    "fab:steps=3",
    "square:queries=20",
    "autoattack:steps=5,queries=20",
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("spec", ATTACKS)
def test_whole_labels_of_any_type_are_the_same_labels(spec, dtype):
    attack = defend.load(spec, "attack")
    assert torch.equal(run(attack, Y.to(dtype)), run(attack))


@pytest.mark.parametrize("make", [lambda y: torch.eye(10)[y], lambda y: y.float()])
@pytest.mark.parametrize("spec", ATTACKS)
def test_other_labels_are_refused(spec, make):
    with pytest.raises(BadParameter, match="expected whole labels"):
        run(defend.load(spec, "attack"), make(Y))


@pytest.mark.parametrize("loss", [cross_entropy, margin, targeted_margin])
def test_losses_refuse_labels_of_another_shape(loss):
    with pytest.raises(BadParameter, match="expected whole labels of shape"):
        loss(torch.zeros(8, 10), torch.zeros(7, dtype=torch.int64))


# ART's set_params.


def test_set_params_changes_fields_or_is_refused():
    purifier = defend.load("bitdepth:bits=3")
    assert purifier.params == ["bits"]
    purifier.set_params(bits=1)
    assert torch.equal(purifier.purified(X, noise()), X.round())
    for fields, message in [
        ({"bits": 0}, "1 to 8|1..8"),
        ({"bit": 2}, "has no field 'bit'"),
        ({"bits": "two"}, "expected a whole number"),
    ]:
        with pytest.raises(BadParameter, match=message):
            purifier.set_params(**fields)
        assert purifier.bits == 1


def test_set_params_leaves_the_shape_of_a_network_alone():
    purifier = defend.load("comdefend:weights=untrained,width=16")
    purifier.set_params(noise=2.0)
    assert purifier.noise == 2 and purifier.card.stochastic
    with pytest.raises(BadParameter, match="free once its network is there"):
        purifier.set_params(width=32)


# Logits.


def test_infinite_logits_are_those_of_the_classifier():
    class Infinite(nn.Module):
        def forward(self, x):
            return NET(x).masked_fill(torch.eye(10)[:1].bool(), -float("inf"))

    with pytest.raises(Mismatch, match="classifier Infinite: expected finite logits"):
        logits_after_purify(defend.load("none"), Infinite(), X)
    with pytest.raises(BrokenPurifier, match="logits behind it"):
        logits_after_purify(defend.load("none"), NET, X * float("nan"))
