"""Purifiers inside ART: its classifier, its attacks, its conventions.

The classifier is linear; the images are real digits, 8 x 8 and grey.
"""

import copy

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
    """Return test images (150, 1, 8, 8) in [0, 1], their labels, and a fitted linear layer."""
    x, y = load_digits(return_X_y=True)
    fitted = LogisticRegression(max_iter=500).fit(x[400:] / 16, y[400:])
    layer = torch.nn.Linear(64, 10)
    layer.weight.data = torch.tensor(fitted.coef_, dtype=torch.float32)
    layer.bias.data = torch.tensor(fitted.intercept_, dtype=torch.float32)
    return (x[:150] / 16).astype(np.float32).reshape(-1, 1, 8, 8), y[:150], layer


def in_art(layer, purifier, first_layers=(), **options):
    """Return ART's classifier with a purifier (or a list) as preprocessing defence."""
    return PyTorchClassifier(
        model=torch.nn.Sequential(*first_layers, torch.nn.Flatten(), layer),
        loss=torch.nn.CrossEntropyLoss(),
        nb_classes=10,
        preprocessing_defences=purifier,
        preprocessing=None,
        device_type="cpu",
        **{"clip_values": (0.0, 1.0), "input_shape": (1, 8, 8), **options},
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
def test_arts_gradient_does_not_vanish_and_its_pgd_breaks_the_defense(digits, spec):
    x, y, layer = digits
    classifier = in_art(layer, defend.load(spec))
    assert classifier.all_framework_preprocessing
    grad = classifier.loss_gradient(x, one_hot(y))
    assert np.isfinite(grad).all() and (np.abs(grad).reshape(len(x), -1).max(1) > 0).all()
    adv = attacked(classifier, x, y)
    assert np.abs(adv - x).max() < EPS + 1e-5
    clean_accuracy = accuracy(classifier, x, y)
    assert clean_accuracy > 0.6
    assert accuracy(classifier, adv, y) < 0.25 * clean_accuracy


@pytest.mark.parametrize("spec", ["bitdepth:bits=1", "gaussian+bitdepth:bits=1"])
@pytest.mark.parametrize("apply_fit", [False, True])
def test_arts_fit_trains_on_purified_images_where_apply_fit_says_so(digits, spec, apply_fit):
    x, y, layer = digits
    pixels, trained = [], copy.deepcopy(layer)
    trained.register_forward_pre_hook(lambda _, inputs: pixels.append(inputs[0].detach()))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    purifier = defend.load(spec, apply_fit=apply_fit)
    classifier = in_art(trained, purifier, optimizer=optimizer)
    classifier.fit(x, one_hot(y), batch_size=8, nb_epochs=1)
    are_one_bit = set(torch.cat(pixels).unique().tolist()) == {0.0, 1.0}
    assert are_one_bit == apply_fit


class AsDocumented(PreprocessorPyTorch):
    """A quantiser as ART's documentation asks for it: its gradient is in estimate_forward."""

    def __init__(self):
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x, y=None):
        return torch.round(x * 7) / 7, y

    def estimate_forward(self, x, y=None):
        return x


def test_the_same_quantiser_as_art_documents_it_is_never_attacked(digits):
    """Show why `forward` is final in a Purifier.

    If this fails one day, ART calls estimate_forward, and purifier.py may be simplified.
    """
    x, y, layer = digits
    classifier = in_art(layer, AsDocumented())
    assert np.abs(classifier.loss_gradient(x, one_hot(y))).max() == 0
    adv = FastGradientMethod(classifier, eps=EPS).generate(x, y)
    assert accuracy(classifier, adv, y) > 0.8  # although its real robust accuracy is below 0.1:
    honest = in_art(layer, defend.load("bitdepth:bits=3"))
    assert accuracy(honest, attacked(honest, x, y), y) < 0.1


def record_batch_sizes(purifier):
    """Return a list that grows by the number of images at each call of `purify`."""
    batch_sizes, purify = [], purifier.purify

    def counting(x, noise):
        batch_sizes.append(len(x))
        return purify(x, noise)

    purifier.purify = counting
    return batch_sizes


@pytest.mark.parametrize(
    "spec", ["bitdepth:bits=3", "gaussian", "median", "bitdepth:bits=3+gaussian"]
)
def test_never_more_than_max_batch_images_are_inside_purify(digits, spec):
    x, y, layer = digits
    purifier = defend.load(spec, max_batch=64)
    classifier, batch_sizes = in_art(layer, purifier), record_batch_sizes(purifier)
    leaf = torch.tensor(x, requires_grad=True)
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
        "a backward pass": lambda: purifier.purified(leaf).sum().backward(),
    }
    for caller, call in callers.items():
        batch_sizes.clear()
        call()
        assert batch_sizes, caller
        assert max(batch_sizes) <= 64, f"{caller}: {max(batch_sizes)} images"


class ToUnit(torch.nn.Module):
    """The first layer of a model for channels-last pixels from 0 to 255."""

    def forward(self, x):
        return x.permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("spec", ["bitdepth:bits=3", "jpeg", "median"])
def test_a_callers_range_layout_and_precision(digits, spec):
    x, y, layer = digits
    plain = in_art(layer, defend.load(spec))
    purifier = defend.load(spec, clip_values=(0.0, 255.0), channels_first=False)
    scaled = in_art(
        layer,
        purifier,
        first_layers=[ToUnit()],
        clip_values=(0.0, 255.0),
        input_shape=(8, 8, 1),
        channels_first=False,
    )
    # float64, the default of numpy
    bytes_x = (x * 256).round().transpose(0, 2, 3, 1).astype(np.float64) * (255 / 256)
    unit_x = (bytes_x / 255).transpose(0, 3, 1, 2).astype(np.float32)
    assert np.allclose(scaled.predict(bytes_x), plain.predict(unit_x), atol=1e-3)
    g = scaled.loss_gradient(bytes_x, one_hot(y)).transpose(0, 3, 1, 2) * 255
    expected = plain.loss_gradient(unit_x, one_hot(y))
    assert np.allclose(g, expected, atol=1e-3 * np.abs(expected).max())
    adv = attacked(scaled, bytes_x.astype(np.float32), y, eps=EPS * 255)
    assert accuracy(scaled, adv, y) < 0.1 < 0.6 < accuracy(scaled, bytes_x, y)
    purified = purifier(bytes_x)[0]
    assert purified.dtype == np.float32 and purified.max() <= 255


def test_pixels_outside_of_clip_values_cause_a_warning(digits):
    x, purifier = digits[0], defend.load("bitdepth:bits=3")
    with pytest.warns(UserWarning, match=r"pixels from 0 to 255.*clip_values=\(0.0, 1.0\)"):
        purifier(x * 255)
    with pytest.raises(BadParameter, match="finite pixels, got nan"):
        purifier(x * np.nan)


def test_deployed_noise_differs_between_calls_and_a_seed_repeats_it(digits):
    x, _, layer = digits
    deployed = in_art(layer, defend.load("bitdepth:bits=3+gaussian"))
    seeded = in_art(layer, defend.load("bitdepth:bits=3+gaussian", seed=3))
    assert not np.array_equal(deployed.predict(x), deployed.predict(x))
    assert np.array_equal(seeded.predict(x), seeded.predict(x))


def test_two_purifiers_are_chained_by_art_too(digits):
    x, _, layer = digits
    listed = in_art(layer, [defend.load("bitdepth:bits=3"), defend.load("median:size=2")])
    chained = in_art(layer, defend.load("bitdepth:bits=3+median:size=2"))
    assert np.allclose(listed.predict(x), chained.predict(x), atol=1e-5)


def test_without_art(digits):
    x, _, layer = digits
    purifier = defend.load("jpeg")
    guarded = torch.nn.Sequential(purifier.as_module(), torch.nn.Flatten(), layer)
    with torch.no_grad():
        logits = guarded(torch.tensor(x)).numpy()
    assert np.allclose(logits, in_art(layer, purifier).predict(x), atol=1e-5)
