"""Targeted attacks: y are the classes that the images are to become, as in ART."""

import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn

import defend
from defend.errors import BadParameter, Mismatch
from defend.losses import cross_entropy
from defend.noise import Noise
from defend.results.cell_notes import list_measures
from defend.target import Target
from defend.tasks.reconstruction import Reconstruction
from defend.tasks.targeted import TARGETED, next_class
from defend.unit_files import read_unit

X, Y = defend.load("digits", "dataset").rows("test", 0, 16)
NET = defend.load("convnet", "classifier", "digits").network
GOAL = next_class(Y, 10)
ATTACKS = ["pgd:steps=10", "pgd:steps=10,restarts=2", "pgd:steps=10,norm=L2", "apgd:steps=15"]
ATTACKS += ["apgd:steps=10,restarts=2", "square:queries=200"]
EPS = {"Linf": 0.2, "L2": 1.5}


def noise():
    return Noise.of(0, torch.arange(len(X)))


def run(spec, y, scored=False, purifier="none", **fields):
    attack = defend.load(spec, "attack", **fields)
    target = Target(NET, defend.load(purifier), noise(), scored=scored, eot=2)
    return attack.run(target, X, y, EPS[attack.norm], noise())


def reached(x_adv):
    return (NET(x_adv).argmax(1) == GOAL).double().mean().item()


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("spec", ATTACKS)
def test_a_targeted_attack_reaches_more_targets_than_an_untargeted_one(spec, scored):
    targeted, untargeted = run(spec, GOAL, scored, targeted=True), run(spec, Y, scored)
    assert reached(targeted) > reached(untargeted) + 0.2
    assert (cross_entropy(NET(targeted), GOAL) < cross_entropy(NET(X), GOAL)).all()


@pytest.mark.parametrize("spec", ["pgd:steps=5", "apgd:steps=8", "square:queries=60"])
def test_a_stochastic_pipeline_can_be_targeted(spec):
    x_adv = run(spec, GOAL, purifier="gaussian:sigma=0.02", targeted=True)
    closer = cross_entropy(NET(x_adv), GOAL) < cross_entropy(NET(X), GOAL)
    assert closer.double().mean() > 0.9


def test_of_two_classes_the_target_is_the_other_one():
    two = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    y = torch.arange(len(X)) % 2
    for spec in ("pgd:steps=5", "apgd:steps=8", "square:queries=60"):
        results = []
        for labels, targeted in ((y, False), (1 - y, True)):
            attack = defend.load(spec, "attack", targeted=targeted)
            target = Target(two, defend.load("none"), noise())
            results.append(attack.run(target, X, labels, 0.1, noise()))
        assert torch.allclose(*results, atol=1e-6)


def test_the_convention_is_that_of_art():
    classifier = PyTorchClassifier(
        NET, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
    )
    art = ProjectedGradientDescentPyTorch(
        classifier, eps=0.2, eps_step=0.05, max_iter=10, targeted=True, verbose=False
    )
    theirs = torch.from_numpy(art.generate(X.numpy(), GOAL.numpy()))
    ours = run("pgd:steps=10,step=0.25,random_start=false", GOAL, targeted=True)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_targeted_attack_is_refused_where_it_means_nothing():
    with pytest.raises(BadParameter, match=r"targeted=True.*loss=dlr"):
        defend.load("apgd:loss=dlr,targeted=true", "attack")
    attack = defend.load("pgd:steps=1,targeted=true", "attack")
    target = Target(nn.Identity(), defend.load("none"), noise(), task=Reconstruction())
    with pytest.raises(Mismatch, match="targeted=true: expected the task classification"):
        attack.run(target, X, X, 0.1, noise())


def test_the_loss_and_the_score_of_a_target():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    goal = torch.tensor([0, 0])
    assert TARGETED.score(logits, goal).tolist() == [0, 1]
    assert TARGETED.is_broken(logits, goal).tolist() == [True, False]
    assert torch.equal(TARGETED.loss(logits, goal), -cross_entropy(logits, goal))
    assert next_class(torch.tensor([0, 8, 9]), 10).tolist() == [1, 9, 0]


def test_a_bench_records_how_many_targets_are_reached(tmp_path):
    keys = {"dataset": "digits", "classifiers": ["convnet"], "defenses": ["none"], "n": 16}
    keys |= {"attacks": ["pgd:steps=10,targeted=true", "pgd:steps=10"], "eps": 0.2}
    records = defend.bench({**keys, "knowledge": ["adaptive"]}, out=tmp_path, workers=1)
    targeted = next(r for r in records if "targeted" in r.attack and r.eps > 0)
    untargeted = next(r for r in records if "targeted" not in r.attack and r.eps > 0)
    assert untargeted.measures == {}
    measured = targeted.measures["target_reached"]
    unit = read_unit(tmp_path, targeted.units[0])
    assert unit.tensors["note_target_reached"].double().mean().item() == measured.value > 0.3
    assert measured.low < measured.value < measured.high
    # An image that became another class than its target is wrong, too.
    assert targeted.robust_accuracy <= 1 - measured.value
    assert targeted.settings.attack["targeted"] is True
    (line,) = list_measures([untargeted, targeted])
    assert f"classified as the target of the attack {100 * measured.value:.1f}" in line
