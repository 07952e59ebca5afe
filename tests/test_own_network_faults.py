"""Faults of a network of the user are said of the network, by the name that its user typed."""

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import defend
from defend.benchmarks.network_checks import check_classified_alone, check_network
from defend.cli import main
from defend.errors import Mismatch

NETWORKS = """
import torch


class Net(torch.nn.Module):
    def __init__(self, fault, classes=10):
        super().__init__()
        self.fault, self.linear = fault, torch.nn.Linear(64, classes)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        if self.fault == "nan":
            logits = logits * float("nan")
        elif self.fault == "one-nan":
            logits[:, 3] = torch.where(x.flatten(1).max(1).values > 0.999, torch.nan, logits[:, 3])
        elif self.fault == "random":
            logits = logits + torch.randn_like(logits)
        elif self.fault == "batch":
            logits = logits - logits.mean(0)
        elif self.fault == "gradient":
            logits = logits * (-1 if x.requires_grad else 1)
        return logits


def build(fault="none", classes=10):
    torch.manual_seed(0)
    return Net(fault, classes)
"""
FAULTS = {
    "nan": "expected finite logits",
    "one-nan": "expected finite logits",
    "random": "two calls give the same images other logits",
    "gradient": "logits change when gradients are enabled",
    "batch": "images get other logits alone than in their batch",
}
KEYS = {"dataset": "digits", "attacks": ["fgsm"], "knowledge": ["oblivious", "adaptive"], "n": 8}


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "net.py"
    path.write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("fault", "defense"), [*((fault, "none") for fault in FAULTS), ("nan", "gaussian")]
)
def test_a_run_names_the_classifier_and_no_purifier(fault, defense):
    classifier = f"./net.py:build,fault={fault}"
    records = defend.bench(
        KEYS, classifiers=[classifier], defenses=[defense], eps="0.1", out="run", workers=1
    )
    for record in records:
        assert record.error.startswith("Mismatch: classifier net.py:build: ")
        assert FAULTS[fault] in record.error


def _network(fault):
    namespace = {}
    exec(NETWORKS, namespace)
    return namespace["build"](fault)


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_each_check_of_a_network_raises_for_its_fault_alone(fault):
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    raised = []
    for check in (check_network, check_classified_alone):
        try:
            check(_network(fault), x)
        except Mismatch as e:
            raised.append((check.__name__, str(e)))
    if fault == "none":
        assert not raised
    else:
        assert any(FAULTS[fault] in text for _, text in raised)


def test_images_that_are_not_finite_say_nothing_about_the_network():
    check_network(nn.Identity(), torch.full((2, 1, 8, 8), torch.nan))


ADVICE_OF_TRAINING = "defend train"


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("classifier", "named"),
    [
        ("./net.py:build,classes=15", "net.py:build"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 15)), "object/Sequential-"),
    ],
    ids=["file", "object"],
)
def test_a_network_with_other_classes_is_named_as_its_user_named_it(classifier, named):
    with pytest.raises(Mismatch) as raised:
        defend.bench(KEYS, classifiers=[classifier], defenses=["none"], eps="0.1", workers=1)
    message = str(raised.value)
    assert f"classifier {named}" in message and "of 15 classes" in message
    assert "return one logit for each class" in message
    assert "OwnNetwork" not in message and ADVICE_OF_TRAINING not in message


def test_a_classifier_with_a_recipe_is_told_how_to_train_it():
    with pytest.raises(Mismatch, match=ADVICE_OF_TRAINING):
        defend.load("convnet", "classifier", "digits").check_fits(3, 32, 10, "other")


@pytest.mark.usefixtures("file")
def test_arrays_of_the_user_are_named_as_such():
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 4
    classifier = "./net.py:build,classes=2"
    with pytest.raises(Mismatch, match=r"data \(x, y\) has 1x8x8 of 4"):
        defend.bench(
            classifiers=[classifier], defenses=["none"], attacks=["fgsm"], eps="0.1", dataset=(x, y)
        )


@pytest.mark.usefixtures("file")
def test_check_names_the_file():
    done = CliRunner().invoke(
        main, ["check", "classifier", "./net.py:build,fault=nan", "--dataset", "digits"]
    )
    assert "OwnNetwork" not in done.output and "net.py:build" in done.output, done.output
