"""Numbers and arrays of numpy and torch where a number is meant."""

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

import defend
from defend.benchmarks.suite import make_suite
from defend.defenses.jpeg import Jpeg
from defend.eps import parse_eps
from defend.errors import BadParameter, Mismatch
from defend.plain_numbers import plain_scalar, whole_number

X, Y = defend.load("digits", "dataset").rows("test", 0, 8)
KEYS = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "defenses": ["none"],
    "attacks": ["fgsm"],
    "eps": 0.1,
    "n": 8,
}

EPS = {
    "float32": (np.float32(0.1), ["0.1"]),
    "float32 of levels": (np.float32(8 / 255), ["8/255"]),
    "float16": (np.float16(0.25), ["0.25"]),
    "float64": (np.float64(0.3), ["0.3"]),
    "no dimension": (np.array(0.1), ["0.1"]),
    "an array": (np.array([0.1, 0.25]), ["0.1", "0.25"]),
    "a range": (np.linspace(0, 0.3, 3), ["0.0", "0.15", "0.3"]),
    "float32 levels": (np.arange(3, dtype=np.float32) * 4 / 255, ["0", "4/255", "8/255"]),
    "a list of scalars": ([np.float32(0.1), np.int64(1)], ["0.1", "1"]),
    "a tensor": (torch.tensor(0.1), ["0.1"]),
    "tensors": (torch.tensor([0.1, 0.2]), ["0.1", "0.2"]),
}


@pytest.mark.parametrize("name", EPS)
def test_eps_of_numpy_and_torch_are_the_numbers_that_were_typed(name):
    value, texts = EPS[name]
    parsed = parse_eps(value)
    assert [eps.value for eps in parsed] == [parse_eps(text)[0].value for text in texts]


@pytest.mark.parametrize("value", [np.eye(2), np.array(["a"]), np.float32("nan"), np.True_, None])
def test_other_arrays_are_no_eps(value):
    with pytest.raises(BadParameter, match=r"eps .*: expected a number >= 0"):
        parse_eps(value)


@pytest.mark.parametrize("field", ["n", "seed", "draws", "eot", "threads", "shard"])
@pytest.mark.parametrize("make", [np.int64, np.uint8, np.array, torch.tensor])
def test_whole_numbers_of_numpy_and_torch_are_whole_numbers(field, make):
    suite = make_suite({**KEYS, field: make(3)})
    assert getattr(suite, field) == 3
    assert type(getattr(suite, field)) is int


@pytest.mark.parametrize("value", [np.float64(3), np.array([3]), np.True_, torch.tensor(3.0)])
def test_other_values_are_no_whole_numbers(value):
    with pytest.raises(BadParameter, match=r"n .*: expected a whole number"):
        make_suite({**KEYS, "n": value})
    with pytest.raises(BadParameter, match=r"workers .*: expected a whole number"):
        whole_number(value, "workers")


def test_a_short_float_is_the_decimal_that_means_it():
    generator = np.random.default_rng(0)
    for value in generator.random(200).astype(np.float32):
        plain = plain_scalar(value)
        assert type(plain) is float
        assert np.float32(plain) == value


def test_fields_of_numpy_are_recorded_as_numbers(tmp_path):
    purifiers = [Jpeg(quality=np.int64(60)), defend.load("jpeg", quality=np.array(60))]
    for i, purifier in enumerate(purifiers):
        assert purifier.settings["quality"] == 60
        records = defend.bench(
            {**KEYS, "defenses": [purifier]}, workers=np.int64(1), out=tmp_path / str(i)
        )
        assert [record.error for record in records] == [None] * len(records)
        assert type(purifier.settings["quality"]) is int


@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), np.uint64(3)])
def test_a_seed_of_numpy_is_that_seed(seed):
    expected = defend.load("gaussian", seed=3)(X.numpy())[0]
    assert np.array_equal(defend.load("gaussian", seed=seed)(X.numpy())[0], expected)
    assert np.array_equal(type(defend.load("gaussian"))(seed=seed)(X.numpy())[0], expected)


RANGES = {
    "an array": np.array([0, 255]),
    "scalars": (np.float32(0), np.float32(255)),
    "arrays": (np.zeros(1), np.full((3, 1, 1), 255.0)),
    "a tensor": torch.tensor([0.0, 255.0]),
    "a list": [0, 255],
}


@pytest.mark.parametrize("name", RANGES)
def test_a_range_of_numpy_is_that_range(name):
    purifier = defend.load("jpeg", clip_values=RANGES[name])
    assert purifier.clip_values == (0.0, 255.0)
    expected = defend.load("jpeg", clip_values=(0, 255))(255 * X.numpy())[0]
    assert np.array_equal(purifier(255 * X.numpy())[0], expected)


BAD_RANGES = {
    "infinite": ((-np.inf, np.inf), "finite numbers"),
    "half infinite": ((0, np.inf), "finite numbers"),
    "NaN": ((0, np.nan), "finite numbers"),
    "by channel": ((0, np.array([1.0, 2.0, 1.0])), "the same for all channels"),
    "three": ((0, 1, 2), "the same for all channels"),
    "one": (1.0, "expected"),
    "reversed": ((1, 0), "low < high"),
    "texts": (("a", "b"), r"expected \(low, high\)"),
}


@pytest.mark.parametrize("name", BAD_RANGES)
def test_a_range_that_cannot_be_scaled_is_one_line(name):
    value, message = BAD_RANGES[name]
    with pytest.raises(BadParameter, match=message) as error:
        Jpeg(clip_values=value)
    assert "\n" not in str(error.value)


def test_an_infinite_range_of_a_classifier_of_art_is_refused(tmp_path):
    classifier = PyTorchClassifier(
        torch.nn.Flatten(),
        torch.nn.CrossEntropyLoss(),
        (1, 8, 8),
        10,
        clip_values=(-np.inf, np.inf),
    )
    with pytest.raises(BadParameter, match=r"PyTorchClassifier.*finite numbers"):
        defend.bench({**KEYS, "classifiers": [classifier]}, out=tmp_path)


BATCHES = {
    "a tensor": (X, r"got a Tensor; call purifier.purified\(x\)"),
    "with a gradient": (X.clone().requires_grad_(), "got a Tensor"),
    "a list": (X.tolist(), "expected a numpy array, got list"),
    "one image": (X[0].numpy(), r"x\[None\]"),
    "8 bits": ((255 * X).byte().numpy(), "divide 8 bits by 255"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_call_takes_arrays_of_floats_alone(name):
    value, message = BATCHES[name]
    with pytest.raises(BadParameter, match=message):
        defend.load("jpeg")(value)


def test_the_other_layout_is_named_with_the_field_that_declares_it():
    last = np.ascontiguousarray(X.numpy().transpose(0, 2, 3, 1))
    with pytest.raises(Mismatch, match=r"load it with channels_first=False"):
        defend.load("jpeg")(last)
    assert defend.load("jpeg", channels_first=False)(last)[0].shape == last.shape
    with pytest.raises(Mismatch, match=r"leave channels_first=False out"):
        defend.load("jpeg", channels_first=False)(X.numpy())


def test_an_audit_takes_numbers_of_numpy():
    with pytest.raises(BadParameter, match=r"eps 7.0: pixels are in \[0, 1\]"):
        defend.audit(
            "jpeg", "digits", "convnet", n=np.int64(32), seed=np.int64(3), eps=np.float32(7)
        )


def test_help_of_load_names_range_and_layout():
    for word in ("clip_values=", "channels_first=False", "seed"):
        assert word in defend.load.__doc__
