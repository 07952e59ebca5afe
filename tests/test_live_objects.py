"""`defend.bench` with the caller's own objects: networks, purifiers and arrays."""

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

import defend
from defend.benchmarks.live_objects import name_objects
from defend.errors import BadParameter, MissingData
from defend.object_hash import hash_object
from defend.own_arrays import OwnArrays


class Linear(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Squared(Linear):
    """The tensors of Linear, and another function."""

    def forward(self, x):
        return self.layer((x**2).flatten(1))


def images(n=40):
    return defend.load("digits", "dataset").rows("test", 0, n)


def bench(out, **keys):
    common = {"attacks": ["fgsm"], "defenses": ["none"], "knowledge": ["oblivious"], "eps": 0.1}
    return defend.bench(out=out, n=40, **{**common, **keys})


def test_a_network_and_arrays_are_benched(tmp_path):
    network, (x, y) = Linear(), images()
    (record,) = bench(tmp_path, classifiers=[network], dataset=(x, y))
    assert record.clean_accuracy == (network(x).argmax(1) == y).float().mean()
    (same,) = bench(tmp_path, classifiers=[network], dataset="digits")
    assert same.robust_accuracy == record.robust_accuracy
    assert record.classifier.startswith("object/Linear-")


def test_a_purifier_object_is_benched_like_its_spec(tmp_path):
    purifier = defend.load("bitdepth:bits=1")
    keys = {"classifiers": ["convnet"], "dataset": "digits", "knowledge": ["oblivious", "adaptive"]}
    records = bench(tmp_path, defenses=[purifier, "bitdepth:bits=1"], **keys)
    by_defense = {}
    for record in records:
        by_defense.setdefault(record.defense, []).append(record.robust_accuracy)
    own, spec = by_defense.values()
    assert own == spec and len(own) > 1


def test_an_art_classifier_keeps_its_normalisation(tmp_path):
    """Its pixels are in 0..255, and it subtracts 127.5 and divides by 64."""
    network, (x, y) = Linear(), images()
    classifier = PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0, 255),
        preprocessing=(127.5, 64.0),
    )
    (record,) = bench(tmp_path, classifiers=[classifier], dataset=(x, y))
    predicted = classifier.predict(255 * x.numpy()).argmax(1)
    assert record.clean_accuracy == pytest.approx((predicted == y.numpy()).mean())
    assert record.clean_accuracy != (network(x).argmax(1) == y).float().mean()


def test_defences_inside_an_art_classifier_are_refused():
    classifier = PyTorchClassifier(
        Linear(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        preprocessing_defences=defend.load("jpeg"),
    )
    with pytest.raises(BadParameter, match="give purifiers as defenses"):
        name_objects({"classifiers": [classifier], "dataset": "digits"})


def test_names_are_those_of_what_objects_hold():
    def name(value, kind="classifiers"):
        return name_objects({kind: [value], "dataset": "digits"})[0][kind][0]

    assert name(Linear()) == name(Linear())
    assert name(Linear()) != name(Linear(seed=1))
    assert name(Squared()).partition("-")[2] != name(Linear()).partition("-")[2]
    rounded = [defend.load(f"bitdepth:bits={bits}") for bits in (1, 1, 2)]
    names = [name(purifier, "defenses") for purifier in rounded]
    assert names[0] == names[1] != names[2]


def test_the_code_of_a_network_is_hashed():
    assert hash_object(Linear()) != hash_object(Squared())
    assert hash_object(nn.Sequential(nn.ReLU())) != hash_object(nn.Sequential(nn.SiLU()))


def test_arrays_have_as_many_classes_as_the_classifier():
    x, y = images(5)
    keys, has_objects = name_objects(
        {"dataset": (x, y), "classifiers": ["convnet:weights=convnet-digits"]}
    )
    assert has_objects and defend.load(keys["dataset"], "dataset").classes == 10


BAD_DATA = {
    "channels last": (lambda x, y: (x.permute(0, 2, 3, 1), y), r"x.transpose\(0, 3, 1, 2\)"),
    "0..255 floats": (lambda x, y: (255 * x, y), "divide by 255"),
    "normalised": (lambda x, y: (x - 0.5, y), "undo the normalisation"),
    "whole images": (lambda x, y: ((255 * x).long(), y), "expected uint8, or finite floats"),
    "NaN": (lambda x, y: (x * float("nan"), y), "finite floats"),
    "one-hot": (lambda x, y: (x, torch.eye(10)[y]), r"y.argmax\(1\)"),
    "float labels": (lambda x, y: (x, y.float()), "expected whole labels"),
    "too few labels": (lambda x, y: (x, y[1:]), "one label for each image"),
    "negative": (lambda x, y: (x, y - 1), "labels from 0 on"),
    "complex": (lambda x, y: (x + 0j, y), "expected numbers, got"),
    "bits": (lambda x, y: (x.to(torch.float8_e5m2), y), "expected numbers, got"),
    "lists": (lambda x, y: (x.tolist(), y), "expected an array or a tensor, got list"),
    "three": (lambda x, y: (x, y, 3), r"two arrays \(x, y\), got 3"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_other_arrays_are_refused(name):
    make, message = BAD_DATA[name]
    x, y = images(5)
    with pytest.raises(BadParameter, match=message):
        name_objects({"dataset": make(x, 0 * y if name == "negative" else y)})


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64])
def test_whole_labels_of_any_type_and_bytes_as_images(dtype):
    x, y = images(5)
    pixels = (255 * x).round().to(torch.uint8).numpy()
    data = OwnArrays(x=pixels, y=y.numpy().astype(dtype))
    rows, labels = data.rows("test", 0, 5)
    torch.testing.assert_close(rows, torch.from_numpy(pixels).float() / 255)
    assert torch.equal(labels, y)
    rows += 1  # what is handed out is a copy
    torch.testing.assert_close(data.rows("test", 0, 5)[0], rows - 1)
    with pytest.raises(MissingData, match="expected no split but test"):
        data.rows("train", 0, 1)


def test_images_in_bfloat16_are_taken():
    x, y = images(5)
    rows, _ = OwnArrays(x=x.bfloat16(), y=y).rows("test", 0, 5)
    assert torch.equal(rows, x.bfloat16().float())


BAD_OBJECTS = {
    "classifiers": (3, "expected a spec or an nn.Module, an ART PyTorchClassifier or a Classifier"),
    "defenses": (Linear(), "expected a spec or a Purifier, got Linear"),
    "attacks": (defend.load("jpeg"), "expected a spec or an Attack, got Jpeg"),
}


@pytest.mark.parametrize("key", BAD_OBJECTS)
def test_other_objects_are_refused(key):
    value, message = BAD_OBJECTS[key]
    with pytest.raises(BadParameter, match=message):
        name_objects({key: [value], "dataset": "digits"})
    with pytest.raises(BadParameter, match="expected no seed"):
        name_objects({"defenses": [defend.load("gaussian", seed=3)], "dataset": "digits"})
