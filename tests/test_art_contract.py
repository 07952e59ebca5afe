"""Through ART itself: its classifier, its attacks, its conventions. A linear classifier of real digits, 8 x 8 and grey."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import defend
from defend.errors import BadParameter

EPS = 0.2


@pytest.fixture(scope="module")
def digits():
    """Test images (150, 1, 8, 8) in [0, 1], their labels, and a fitted linear layer."""
    x, y = load_digits(return_X_y=True)
    fitted = LogisticRegression(max_iter=500).fit(x[400:] / 16, y[400:])
    layer = torch.nn.Linear(64, 10)
    layer.weight.data, layer.bias.data = (
        torch.tensor(v, dtype=torch.float32) for v in (fitted.coef_, fitted.intercept_)
    )
    return (x[:150] / 16).astype(np.float32).reshape(-1, 1, 8, 8), y[:150], layer


def in_art(layer, purifier, **how):
    how = {"clip_values": (0.0, 1.0), "input_shape": (1, 8, 8), **how}
    before = how.pop("before", ())
    model = torch.nn.Sequential(*before, torch.nn.Flatten(), layer)
    loss = torch.nn.CrossEntropyLoss()
    return PyTorchClassifier(
        model=model,
        loss=loss,
        nb_classes=10,
        preprocessing_defences=purifier,
        preprocessing=None,
        device_type="cpu",
        **how,
    )


def accuracy(classifier, x, y):
    return (classifier.predict(x).argmax(1) == y).mean()


def attacked(classifier, x, y, steps=20, eps=EPS):
    return ProjectedGradientDescent(
        classifier,
        eps=eps,
        eps_step=2.5 * eps / steps,
        max_iter=steps,
        verbose=False,
        batch_size=100,
    ).generate(x, y)


def one_hot(y):
    return np.eye(10, dtype=np.float32)[y]


@pytest.mark.parametrize("spec", ["bitdepth:bits=3", "bitdepth:bits=3+gaussian", "jpeg", "median"])
def test_arts_gradient_is_alive_and_its_pgd_breaks_the_defense(digits, spec):
    x, y, layer = digits
    classifier = in_art(layer, defend.load(spec))
    assert classifier.all_framework_preprocessing
    grad = classifier.loss_gradient(x, one_hot(y))
    assert np.isfinite(grad).all() and (np.abs(grad).reshape(len(x), -1).max(1) > 0).all()
    adv = attacked(classifier, x, y)
    assert np.abs(adv - x).max() < EPS + 1e-5
    assert (
        accuracy(classifier, adv, y) < 0.25 * accuracy(classifier, x, y)
        and accuracy(classifier, x, y) > 0.6
    )


class AsDocumented(PreprocessorPyTorch):
    """What ART's documentation asks of a quantiser: its gradient in estimate_forward."""

    def __init__(self):
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x, y=None):
        return torch.round(x * 7) / 7, y

    def estimate_forward(self, x, y=None):
        return x


def test_the_same_quantiser_as_art_documents_it_is_never_attacked(digits):
    """Why `forward` is final here. Should this fail one day, ART asks estimate_forward, and purifier.py may be simplified."""
    x, y, layer = digits
    classifier = in_art(layer, AsDocumented())
    assert np.abs(classifier.loss_gradient(x, one_hot(y))).max() == 0
    assert (
        accuracy(classifier, FastGradientMethod(classifier, eps=EPS).generate(x, y), y) > 0.8
    )  # while it really keeps:
    ours = in_art(layer, defend.load("bitdepth:bits=3"))
    assert accuracy(ours, attacked(ours, x, y), y) < 0.1


def watch(purifier):
    """A list that grows by the number of images at each call of `purify`."""
    seen, purify = [], purifier.purify

    def counting(x, noise):
        seen.append(len(x))
        return purify(x, noise)

    object.__setattr__(purifier, "purify", counting)
    return seen


@pytest.mark.parametrize(
    "spec", ["bitdepth:bits=3", "gaussian", "median", "bitdepth:bits=3+gaussian"]
)
def test_never_more_than_max_batch_images_are_inside_purify(digits, spec):
    x, y, layer = digits
    purifier = defend.load(spec, max_batch=64)
    classifier, seen = in_art(layer, purifier), watch(purifier)
    live = torch.tensor(x, requires_grad=True)
    callers = {
        "predict": lambda: classifier.predict(x),
        "predict in batches": lambda: classifier.predict(x, batch_size=16),
        "loss_gradient": lambda: classifier.loss_gradient(x, one_hot(y)),
        "class_gradient": lambda: classifier.class_gradient(x, label=0),
        "compute_loss": lambda: classifier.compute_loss(x, one_hot(y)),
        "PGD": lambda: attacked(classifier, x, y, steps=2),
        "FGSM": lambda: FastGradientMethod(classifier, eps=EPS, batch_size=200).generate(x, y),
        "numpy": lambda: purifier(x),
        "forward": lambda: purifier.forward(torch.tensor(x)),
        "estimate_gradient": lambda: purifier.estimate_gradient(x, np.ones_like(x)),
        "a backward pass": lambda: purifier.purified(live).sum().backward(),
    }
    for caller, call in callers.items():
        seen.clear()
        call()
        assert seen and max(seen) <= 64, f"{caller}: {max(seen, default=0)} images"


class ToUnit(torch.nn.Module):
    """What a model for channels-last pixels from 0 to 255 does first."""

    def forward(self, x):
        return x.permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("spec", ["bitdepth:bits=3", "jpeg", "median"])
def test_a_callers_range_layout_and_precision(digits, spec):
    x, y, layer = digits
    plain = in_art(layer, defend.load(spec))
    purifier = defend.load(spec, clip_values=(0.0, 255.0), channels_first=False)
    theirs = in_art(
        layer,
        purifier,
        before=[ToUnit()],
        clip_values=(0.0, 255.0),
        input_shape=(8, 8, 1),
        channels_first=False,
    )
    wide = (x * 256).round().transpose(0, 2, 3, 1).astype(np.float64) * (
        255 / 256
    )  # float64, as numpy makes images
    unit = (wide / 255).transpose(0, 3, 1, 2).astype(np.float32)
    assert np.allclose(theirs.predict(wide), plain.predict(unit), atol=1e-3)
    got, want = theirs.loss_gradient(wide, one_hot(y)), plain.loss_gradient(unit, one_hot(y))
    assert np.allclose(got.transpose(0, 3, 1, 2) * 255, want, atol=1e-3 * np.abs(want).max())
    adv = attacked(theirs, wide.astype(np.float32), y, eps=EPS * 255)
    assert accuracy(theirs, adv, y) < 0.1 < 0.6 < accuracy(theirs, wide, y)
    assert purifier(wide)[0].dtype == np.float32 and purifier(wide)[0].max() <= 255


def test_pixels_of_another_range_are_said(digits):
    x, purifier = digits[0], defend.load("bitdepth:bits=3")
    with pytest.warns(UserWarning, match=r"pixels from 0 to 255.*clip_values=\(0.0, 1.0\)"):
        purifier(x * 255)
    with pytest.raises(BadParameter, match="finite pixels, got nan"):
        purifier(x * np.nan)


def test_deployed_noise_differs_between_calls_and_a_seed_repeats_it(digits):
    x, _, layer = digits
    deployed, seeded = (
        in_art(layer, defend.load("bitdepth:bits=3+gaussian", **kw)) for kw in ({}, {"seed": 3})
    )
    assert not np.array_equal(deployed.predict(x), deployed.predict(x))
    assert np.array_equal(seeded.predict(x), seeded.predict(x))


def test_two_purifiers_are_chained_by_art_too(digits):
    x, _, layer = digits
    listed = in_art(layer, [defend.load("bitdepth:bits=3"), defend.load("median:size=2")])
    assert np.allclose(
        listed.predict(x),
        in_art(layer, defend.load("bitdepth:bits=3+median:size=2")).predict(x),
        atol=1e-5,
    )


def test_without_art(digits):
    x, _, layer = digits
    purifier = defend.load("jpeg")
    guarded = torch.nn.Sequential(purifier.as_module(), torch.nn.Flatten(), layer)
    with torch.no_grad():
        assert np.allclose(
            guarded(torch.tensor(x)).numpy(), in_art(layer, purifier).predict(x), atol=1e-5
        )
