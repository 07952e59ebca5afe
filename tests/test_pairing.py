"""Which classifier may classify a data set: weights for other images, too many or few logits."""

import pytest
import torch
from click.testing import CliRunner
from made_runs import change, printed, record
from torch import nn

import defend
from defend.classifier import Classifier, ClassifierCard
from defend.cli import main
from defend.dataset import DatasetCard
from defend.datasets.digits import Digits
from defend.errors import BadParameter, Mismatch
from defend.losses import cross_entropy, margin, targeted_margin
from defend.own_network import OwnNetwork
from defend.pairing import check_logits, find_other_data, has_known_images

ELSE = "resnet20:weights=resnet20-cifar10"  # 3x32x32 and ten classes, as digits-m
RUNS = {
    "bench": "bench --dataset digits-m --classifier {} --defense none --attack fgsm --n 8",
    "a surrogate": (
        "bench --dataset digits-m --classifier convnet --defense none --attack fgsm --n 8"
        " --knowledge transfer --surrogate {}"
    ),
    "audit": "audit median --dataset digits-m --classifier {} --n 8",
    "tune": (
        "tune two-stage:weights=untrained,size=32,blocks=8-8,layers=1,steps=1,stages=sr"
        " --dataset digits-m --classifier {} --scales 1 --n 8"
    ),
    "train": (
        "train comdefend:width=16 --dataset digits-m"
        " -o recipe=denoise -o against={} --out w.safetensors"
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_weights_for_another_data_set_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, RUNS[name].format(ELSE).split())
    assert result.exit_code == 2, result.output
    assert (
        "weights for cifar10 (resnet20-cifar10), data set digits-m; choose other weights, or pass"
        " any_dataset=true" in " ".join(result.output.split())
    )


def test_weights_that_are_meant_are_told_in_the_table(tmp_path):
    """The names of the weights stand below, of the classifier and of the purifier."""
    records = defend.bench(
        dataset="digits-m",
        classifiers=[f"{ELSE},any_dataset=true"],
        defenses=["none", "comdefend:weights=comdefend-cifar10+jpeg"],
        attacks=["fgsm"],
        knowledge=["oblivious"],
        eps=0.1,
        n=12,
        workers=1,
        out=tmp_path,
    )
    assert records[0].other_data == {"resnet20-cifar10": "cifar10"}
    assert records[-1].other_data == {
        "resnet20-cifar10": "cifar10",
        "comdefend-cifar10": "cifar10",
    }
    labels = defend.load("digits-m", "dataset").rows("test", 0, 12)[1]
    assert records[0].largest_class == labels.bincount().max().item() / 12
    assert "comdefend-cifar10 for cifar10, and the images are of digits-m" in said(records)


def test_weights_for_the_data_set_itself_are_not_told():
    classifier = defend.load("convnet", "classifier", "digits-m")
    assert find_other_data(classifier, "digits-m") == {}
    assert find_other_data(classifier, "digits") == {"convnet-digits-m": "digits-m"}
    assert "another data set" not in said([record(100)])


@pytest.mark.parametrize(
    ("name", "known"),
    [("mnist", True), ("defend/mnist", True), ("image-folder", False), ("identity-folder", False)],
)
def test_images_of_the_user_may_be_those_of_any_data_set(name, known):
    assert has_known_images(name) == known
    assert not has_known_images("OwnArrays") and not has_known_images("./mine.py:MyData")


# A clean accuracy that a constant answer reaches.


def said(records):
    return " ".join(printed(records).split())


@pytest.mark.parametrize(("clean", "told"), [(21, False), (20, True), (0, True)])
def test_a_clean_accuracy_of_a_constant_answer_is_told(clean, told):
    cell = change(record(0, clean=clean), largest_class=0.1)
    words = said([cell])
    assert ("not above 10.0 %, the share of the most frequent label" in words) == told
    assert (f"{clean / 2:.1f} % of median before convnet" in words) == told


def test_nothing_is_told_of_other_tasks_or_of_records_without_a_share():
    others = [record(0, clean=0), change(record(0, clean=0), task="identification")]
    assert "most frequent label" not in said([others[0]])
    assert "most frequent label" not in said([others[1].replace(largest_class=0.5)])


# As many logits as classes.


class Wide(Classifier):
    """One linear layer with any number of logits."""

    card = ClassifierCard(paper="none: made for this test", licence="MIT")
    channels: int = 1
    size: int = 8
    logits: int = 10

    def build(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.logits))


@pytest.mark.parametrize("logits", [15, 7, 1])
def test_other_logits_than_classes_are_refused(logits):
    message = rf"expected logits of shape \(2, 10\).* got \(2, {logits}\)"
    classifier = Wide(weights="untrained", logits=logits)
    with pytest.raises(Mismatch, match=message):
        check_logits(classifier)
    with pytest.raises(Mismatch, match=message):
        defend.audit("median", dataset="digits", classifier=classifier, n=4)
    check_logits(Wide(weights="untrained", logits=10))


@pytest.mark.parametrize("logits", [15, 7])
def test_a_network_of_the_user_has_the_classes_that_its_spec_says(logits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, logits))
    with pytest.raises(Mismatch, match=f"expected 10 logits.* got {logits}"):
        OwnNetwork(module=net, label="net", channels=1, size=8, classes=10)
    with pytest.raises(Mismatch, match=f"of {logits} classes, data set digits has"):
        defend.bench(classifiers=[net], defenses=["none"], attacks=["fgsm"], dataset="digits", n=4)


def test_a_network_that_cannot_take_the_images_is_named():
    classifier = Wide(weights="untrained")
    classifier.network.net = nn.Linear(5, 5)
    with pytest.raises(Mismatch, match="classifier Wide: the network cannot take 1x8x8 images"):
        check_logits(classifier)


# Labels that are classes.

LOSSES = {
    "cross entropy": (cross_entropy, torch.tensor([0, 10])),
    "margin": (margin, torch.tensor([-1, 3])),
    "targeted margin": (targeted_margin, torch.tensor([[0, 1], [2, 10]])),
}


@pytest.mark.parametrize("name", LOSSES)
def test_labels_without_a_logit_are_refused(name):
    loss, labels = LOSSES[name]
    with pytest.raises(BadParameter, match="expected labels from 0 to 9, as there are 10 logits"):
        loss(torch.zeros(2, 10), labels)


class OneMore(Digits):
    """The digits, of which one has a label that no name has."""

    card = DatasetCard(source="none: made for this test", licence="MIT", claim={})

    def _rows(self, split, start, stop):
        x, y = super()._rows(split, start, stop)
        return x, y + (y == 9)


def test_labels_without_a_name_are_refused():
    with pytest.raises(BadParameter, match=r"expected labels from 0 to 9.* got 0 to 10"):
        OneMore().rows("test", 0, 40)
