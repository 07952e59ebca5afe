"""What `--protocol ladder-1` and `--knowledge all` expand to."""

from dataclasses import replace

import pytest
import torch
from expanded_suites import (
    GRADIENTS,
    OTHER_CLASSIFIER,
    expand_suite,
    ladder,
    levels_of,
    surrogates_of,
)

from defend.benchmarks.components import Components
from defend.benchmarks.controls import is_control
from defend.errors import DefendError
from defend.loading import load
from defend.protocols import LADDER_1

BLIND = {"oblivious", "transfer"}
UNBOUNDED = "pgd:random_start=false,steps=40"
EVERY_ATTACK = {
    "apgd:loss=ce,steps=100": BLIND | set(GRADIENTS),
    "pgd:steps=40": BLIND,
    "apgd:loss=dlr-targeted,steps=100": set(GRADIENTS),
    UNBOUNDED: set(GRADIENTS),
}


@pytest.fixture(scope="module")
def components():
    return Components("digits", None, torch.device("cpu"))


def set_claim(monkeypatch, components, claim):
    card = replace(components.data.card, claim=claim)
    monkeypatch.setattr(type(components.data), "card", card)


# The protocol.


def test_ladder_1_of_a_deterministic_purifier(components):
    cells = ladder(components)
    assert levels_of(cells) == EVERY_ATTACK | {"square:queries=5000": {"query"}}
    assert {c.eps.value for c in cells if c.bare_attack != UNBOUNDED} == {0.2}
    assert {c.eps.value for c in cells if c.bare_attack == UNBOUNDED} == {1.0}
    assert {c.eot for c in cells} == {1}
    assert {c.protocol for c in cells} == {"ladder-1"}


def test_ladder_1_of_a_stochastic_purifier_adds_eot_and_controls(components):
    """There are as many controls as candidates."""
    cells = ladder(components, defenses=["gaussian"])
    controls = [c for c in cells if is_control(c.attack)]
    attacks = [c for c in cells if c not in controls]
    added = {"square:queries=1000": {"query"}, "pgd:steps=200": set(GRADIENTS)}
    assert levels_of(attacks) == EVERY_ATTACK | added
    assert {c.eot for c in attacks if c.knowledge != "oblivious"} == {20}
    assert len(controls) == len(set(controls)) == sum(c.eps.value == 0.2 for c in attacks)
    places = {(c.knowledge, c.eps.value, c.protocol) for c in controls}
    assert places == {("query", 0.2, "ladder-1")}


def test_nothing_is_learned_where_there_is_no_purifier(components):
    cells, skipped = expand_suite(components, protocol="ladder-1", defenses=["none"])
    assert "learned" not in {c.gradient for c in cells}
    assert sum("skipped gradient learned for none" in line for line in skipped) == 1


def test_every_norm_of_the_claim_is_run(components, monkeypatch):
    set_claim(monkeypatch, components, {"Linf": 0.2, "L2": 0.5})
    cells = ladder(components)
    linf = {c.bare_attack for c in cells if c.norm == "Linf"}
    l2 = {c.bare_attack.replace("norm=L2,", "") for c in cells if c.norm == "L2"}
    assert linf - l2 == {UNBOUNDED}  # in L-inf it speaks for both
    assert {c.eps.value for c in cells if c.norm == "L2"} == {0.5}


def test_a_claim_in_l2_alone_needs_the_unbounded_attack_too(components, monkeypatch):
    set_claim(monkeypatch, components, {"L2": 0.5})
    unbounded = [c for c in ladder(components) if c.eps.value == 1 and c.norm == "Linf"]
    assert {c.gradient for c in unbounded} == set(GRADIENTS)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_targeted_dlr_needs_four_classes(classes):
    attacks = LADDER_1.attacks_on(stochastic=False, classes=classes, unbounded=True)
    assert any("dlr" in attack.spec("Linf") for attack in attacks) == (classes >= 4)


def test_attacks_beside_the_protocol_are_added_and_not_of_it(components):
    alone = ladder(components)
    more = ladder(components, attacks=["fgsm", "pgd:steps=40"], eps="0.1,0.2")
    assert more[: len(alone)] == alone
    beside = more[len(alone) :]
    assert {c.protocol for c in beside} == {None}
    assert {(c.attack, c.knowledge, c.eps.value) for c in beside} == {
        ("fgsm", "oblivious", 0.1),
        ("fgsm", "oblivious", 0.2),
        ("fgsm", "adaptive", 0.1),
        ("fgsm", "adaptive", 0.2),
        ("pgd:steps=40", "oblivious", 0.1),  # at the claim eps it is the protocol's already
        ("pgd:steps=40", "adaptive", 0.1),
        ("pgd:steps=40", "adaptive", 0.2),
    }


def test_a_data_set_without_a_claim_eps_has_no_protocol(components, monkeypatch):
    set_claim(monkeypatch, components, {})
    with pytest.raises(DefendError, match="has no claim eps"):
        ladder(components)


# Levels of knowledge.


def test_all_is_every_level_every_gradient_and_the_default_surrogate(components):
    cells, _ = expand_suite(components, attacks=["pgd"], knowledge="all")
    assert levels_of(cells) == {"pgd": BLIND | set(GRADIENTS)}
    assert surrogates_of(cells) == {f"median+{OTHER_CLASSIFIER}"}


UNSUPPORTED = {
    "autoattack behind a stochastic purifier": (
        {"attacks": ["autoattack"], "defenses": ["gaussian"]},
        {"oblivious"},
        "write autoattack:version=rand",
    ),
    "autoattack:version=rand": (
        {"attacks": ["autoattack:version=rand"], "defenses": ["gaussian"]},
        {"oblivious", "adaptive"},
        "",
    ),
    "autoattack": ({"attacks": ["autoattack"]}, {"oblivious", "adaptive"}, ""),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_attack_that_cannot_meet_a_pipeline_is_skipped_with_one_line(components, name):
    keys, levels, reason = UNSUPPORTED[name]
    cells, skipped = expand_suite(components, **keys)
    assert {c.knowledge for c in cells} == levels
    if not reason:
        assert skipped == []
        return
    assert len(skipped) == 1
    assert reason in skipped[0]
    with pytest.raises(DefendError, match="nothing is left to run"):
        expand_suite(components, knowledge="adaptive", **keys)


@pytest.mark.parametrize(
    ("attack", "level"),
    [
        ("art:name=DeepFool,norm=Linf", "adaptive"),
        ("art:name=SquareAttack,access=scores,max_iter=5", "query"),
    ],
)
def test_no_attack_may_stop_at_a_lucky_draw_of_a_stochastic_purifier(components, attack, level):
    """A chain that holds one is stochastic too; attacks that go to the end are run."""
    stochastic = ["gaussian", "median+gaussian"]
    cells, skipped = expand_suite(
        components,
        attacks=[attack, "art:name=ProjectedGradientDescent"],
        eps="0.1",
        defenses=["median", *stochastic],
        knowledge=level,
    )
    assert {c.defense for c in cells if c.attack == attack} == {"median"}
    others = {c.defense for c in cells if c.attack != attack}
    assert others == ({"median", *stochastic} if level == "adaptive" else set())
    refused = [line for line in skipped if line.startswith(f"skipped {attack} at {level}")]
    assert [line.split(": it stops")[0].split(" for ")[1] for line in refused] == stochastic
    assert all("lucky draw" in line for line in refused)


@pytest.mark.parametrize(("loss", "needed"), [("dlr-targeted", 4), ("dlr", 3), ("ce", 2)])
def test_an_attack_whose_loss_needs_more_classes_is_not_run(loss, needed):
    attack = load(f"apgd:loss={loss}", "attack")
    refused = [attack.unsupported(False, classes) != "" for classes in (2, 3, 4)]
    assert refused == [classes < needed for classes in (2, 3, 4)]


# Controls.


def test_there_are_as_many_controls_as_candidates(components):
    cells, _ = expand_suite(
        components,
        attacks=["pgd", "fgsm", "control"],
        defenses=["gaussian", "median"],
        eps="0.1,0.2",
    )
    counts = {}
    for cell in cells:
        if is_control(cell.attack):
            key = (cell.defense, cell.eps.value)
            counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("gaussian", 0.1): 6,
        ("gaussian", 0.2): 6,
        ("median", 0.1): 1,
        ("median", 0.2): 1,
    }


def test_a_control_with_a_number_is_that_one(components):
    cells, _ = expand_suite(components, attacks=["control:draw=3"], eps="0.1")
    assert {c.attack for c in cells} == {"control:draw=3"}
