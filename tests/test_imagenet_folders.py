"""Folders as those of ImageNet: some of a classifier's classes, crops, one split alone."""

import csv
import json

import pytest
import torch
from click.testing import CliRunner
from image_files import all_rows, write_images
from made_runs import change, printed
from PIL import Image
from torch import nn
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms.functional import pil_to_tensor

import defend
from defend.classifier import Classifier, ClassifierCard
from defend.cli import main
from defend.datasets.class_labels import read_class_labels
from defend.datasets.image_folder import ImageFolder
from defend.errors import BadParameter, Mismatch, MissingData
from defend.pairing import check_pair
from defend.testing import NotApplicable, kit
from defend.testing.runner import ComponentLender
from defend.training.bpda_network import RECIPE
from defend.training.data import choose_fitting_split, fitting_images

# WordNet ids and names with their labels in ILSVRC 2012.
KNOWN = {
    "n01440764": 0,
    "tench": 0,
    "golden retriever": 207,
    "golden_retriever": 207,
    "Golden Retriever": 207,
    "n02123045": 281,  # tabby
    "n15075141": 999,
}


def folder_of(top, names, split="test", images=3):
    write_images(top, [f"{split}/{name}/{i}.png" for name in names for i in range(images)])
    return str(top)


@pytest.mark.parametrize("name", KNOWN)
def test_classes_of_imagenet_have_their_numbers(name):
    classes = read_class_labels("imagenet")
    assert classes.find(name) == KNOWN[name]
    assert len(classes.names) == 1000 and classes.find("defend") is None


def test_three_of_a_thousand_classes_keep_their_labels(tmp_path):
    names = ["n02123045", "golden_retriever", "tench"]
    data = ImageFolder(path=folder_of(tmp_path, names), size=9, labels="imagenet")
    x, y = all_rows(data, "test")
    assert (data.classes, len(x)) == (1000, 9)
    assert sorted(y.tolist()) == [0] * 3 + [207] * 3 + [281] * 3


# The same two classes in every form that a file may have; the folder has one of them.
CONTENTS = {
    "a list": ["cat", "dog"],
    "a list with synonyms": [["n1", "cat"], ["n2", "dog"]],
    "names by label": {"0": "cat, house cat", "1": "dog"},
    "ids and names by label": {"0": ["n1", "cat"], "1": ["n2", "dog"]},
    "a configuration": {"id2label": {"0": "cat", "1": "dog, Canis"}},
    "labels by name": {"cat": 0, "dog": 1},
    "a table": [["cat", 0], ["dog", 1]],
    "a table with a header": [["name", "label"], ["cat", 0], ["dog", 1]],
}


def write_labels(path, content):
    """Write a table as CSV, anything else as JSON, and return the path of the file."""
    is_table = isinstance(content, list) and not isinstance(content[0], str)
    if is_table and any(isinstance(cell, int) for row in content for cell in row):
        file = path / "classes.csv"
        with file.open("w", newline="") as f:
            csv.writer(f).writerows(content)
        return file
    file = path / "classes.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("form", CONTENTS)
def test_a_file_maps_folders_to_labels(form, tmp_path):
    file, path = write_labels(tmp_path, CONTENTS[form]), folder_of(tmp_path / "x", ["dog"])
    data = ImageFolder(path=path, size=9, labels=str(file))
    assert data.classes == 2
    assert all_rows(data, "test")[1].tolist() == [1, 1, 1]


def test_a_file_may_name_only_some_of_the_classes(tmp_path):
    file, path = write_labels(tmp_path, {"dog": 7}), folder_of(tmp_path / "x", ["dog"])
    data = ImageFolder(path=path, size=9, labels=str(file), class_count=20)
    assert (data.names[7], data.names[19], data.classes) == ("dog", "19", 20)


BAD_LABELS = {
    "no such file": ("nothing.json", None, "FileNotFoundError"),
    "no JSON": ("bad.json", "{", "expected a list of names"),
    "a number": ("bad.json", "3", "expected a list of names"),
    "three columns": ("bad.csv", "a,b,1\n", "expected a list of names"),
    "a negative label": ("bad.json", '{"a": -2}', "expected labels from 0"),
    "more than class_count": ("bad.json", '{"a": 7}', "expected labels from 0 to 4"),
    "nothing": ("bad.json", "[]", "got none"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_file_without_labels_is_refused(name, tmp_path):
    file, content, message = BAD_LABELS[name]
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(BadParameter, match=message) as caught:
        read_class_labels(str(tmp_path / file), 5 if name == "more than class_count" else 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(["cat"], "the folder dog is no class"), (["dog", ["wolf", "dog"]], "of several classes")],
)
def test_a_folder_that_is_no_class_is_named(content, message, tmp_path):
    file, path = write_labels(tmp_path, content), folder_of(tmp_path / "x", ["dog"])
    with pytest.raises(MissingData, match=message):
        ImageFolder(path=path, size=9, labels=str(file)).count("test")


class Thousand(Classifier):
    """One linear layer with a logit for each class of ImageNet."""

    card = ClassifierCard(paper="none: made for this test", licence="MIT")
    size: int = 9
    classes: int = 1000

    def build(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 81, self.classes))


def test_the_error_of_too_few_classes_says_what_helps(tmp_path):
    path, classifier = folder_of(tmp_path, ["tench", "n02123045"]), Thousand(weights="untrained")
    with pytest.raises(Mismatch, match=r"has 1000 classes.* has 2; .* labels=imagenet"):
        check_pair(classifier, ImageFolder(path=path, size=9))
    check_pair(classifier, ImageFolder(path=path, size=9, labels="imagenet"))


# Crops.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(40, 60), (61, 40), (20, 31)])
def test_images_are_resized_and_cropped_as_in_evaluations(shape, channels, tmp_path):
    """As torchvision's transforms do it, for larger and for smaller images."""
    write_images(tmp_path, ["test/a/0.png", "test/b/0.png"], shape)
    data = ImageFolder(path=str(tmp_path), resize=32, crop=28, channels=channels)
    transform = Compose([Resize(32), CenterCrop(28)])
    x, y = all_rows(data, "test")
    assert x.shape == (2, channels, 28, 28)
    for image, label in zip(x, y.tolist(), strict=True):
        file = Image.open(tmp_path / "test" / "ab"[label] / "0.png")
        expected = pil_to_tensor(transform(file.convert("L" if channels == 1 else "RGB")))
        assert torch.equal((255 * image).round().byte(), expected)


BAD_CROPS = {
    "a larger crop": ({"resize": 24, "crop": 28}, "resize=24.*at least 28"),
    "a crop alone": ({"crop": 28}, "resize=0.*at least 28"),
    "two sizes": ({"resize": 32, "crop": 28, "size": 30}, "crop=28.*size=30"),
    "a count alone": ({"class_count": 3}, "class_count=3.*0 without labels"),
}


@pytest.mark.parametrize("name", BAD_CROPS)
def test_fields_that_contradict_each_other_are_refused(name):
    fields, message = BAD_CROPS[name]
    with pytest.raises(BadParameter, match=message):
        ImageFolder(path="x", **fields)


# One split alone.

SPLITS = {
    ("test",): ("test",),
    ("val",): ("val",),
    ("val", "test"): ("val", "test"),
    ("train", "test"): ("train", "val", "test"),
    ("train",): ("train", "val"),
}


@pytest.mark.parametrize("present", SPLITS)
def test_the_splits_are_those_that_have_images(present, tmp_path):
    for split in present:
        folder_of(tmp_path, "ab", split, 30)
    data = ImageFolder(path=str(tmp_path), size=9)
    assert data.splits == SPLITS[present]
    assert all(data.count(split) for split in data.splits)
    for split in {"train", "val", "test"} - set(data.splits):
        with pytest.raises(MissingData, match=f"expected {split}/CLASS.*--split {present[0]}"):
            data.count(split)


def test_a_folder_without_train_passes_the_kit(tmp_path):
    path = folder_of(tmp_path, ["tench", "n02123045"], images=40)
    spec = f'image-folder:path="{path}",size=9,labels=imagenet'
    lender = ComponentLender(lambda: defend.load(spec, "dataset"))
    for check in kit("dataset"):
        try:
            lender.run(check)
        except NotApplicable:
            continue
    result = CliRunner().invoke(main, ["check", "dataset", spec])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("count", "fitted"), [(40, (36, 4)), (1, (1, 1)), (2, (1, 1))])
def test_a_network_is_fitted_on_what_there_is(count, fitted, tmp_path):
    write_images(tmp_path, [f"test/{'ab'[i % 2]}/{i}.png" for i in range(max(count, 2))])
    data = ImageFolder(path=str(tmp_path), size=9)
    if count == 1:
        (tmp_path / "test/b/1.png").unlink()
    x, y, x_val, y_val = fitting_images(data, 100, 100)
    assert choose_fitting_split(data) == "test"
    assert (len(x), len(x_val)) == fitted == (len(y), len(y_val))
    if count > 1:
        both = {image.numpy().tobytes() for image in torch.cat([x, x_val])}
        assert len(both) == count


def test_a_learned_gradient_says_on_what_it_was_fitted(tmp_path, monkeypatch):
    """Arrays of the caller are one split, too. Two steps are enough to be a network."""
    monkeypatch.setitem(RECIPE, "steps", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    x, y = defend.load("digits", "dataset").rows("test", 0, 30)
    (record,) = defend.bench(
        dataset=(x, y),
        classifiers=["convnet:weights=convnet-digits"],
        defenses=["bitdepth:bits=2"],
        attacks=["fgsm"],
        knowledge=["adaptive"],
        gradient=["learned"],
        eps=0.1,
        n=30,
        out=tmp_path / "run",
    )
    assert record.fitting_split == "test"
    words = " ".join(printed([record]).split())
    assert "was fitted on images of test, as object/OwnArrays-" in words
    assert "fitted on images" not in printed([change(record, fitting_split="train")])
