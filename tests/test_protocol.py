"""What `--protocol ladder-1`, `--knowledge all` and `--surrogate` expand to, and what transfers from what."""

from dataclasses import replace

import pytest
import torch

from defend.benchmarks.components import Components
from defend.benchmarks.controls import is_control
from defend.benchmarks.expand import expand
from defend.benchmarks.suite import make_suite
from defend.benchmarks.surrogates import default_surrogate
from defend.errors import DefendError
from defend.loading import load
from defend.protocols.ladder_1 import ladder_1
from defend.weights import zoo

BASE = {"dataset": "digits", "classifiers": ["convnet"], "defenses": ["median"], "n": 8}
AGAIN = "convnet:weights=convnet-digits-again"
GRADIENTS = ("declared", "identity", "learned")


@pytest.fixture(scope="module")
def parts():
    return Components("digits", None, torch.device("cpu"))


def expanded(parts, **keys):
    return expand(make_suite(BASE | keys), parts)


def ladder(parts, **keys):
    return expanded(parts, protocol="ladder-1", **keys)[0]


def lines(cells):
    """attack -> the ways in which it was run."""
    found = {}
    for c in cells:
        found.setdefault(c.bare_attack, set()).add(
            c.gradient if c.knowledge == "adaptive" else c.knowledge
        )
    return found


# the protocol

BLIND = {"oblivious", "transfer"}
EVERY = {
    "apgd:loss=ce,steps=100": BLIND | set(GRADIENTS),
    "pgd:steps=40": BLIND,
    "apgd:loss=dlr-targeted,steps=100": set(GRADIENTS),
    "pgd:random_start=false,steps=40": set(GRADIENTS),
}


def test_ladder_1_of_a_deterministic_purifier(parts):
    cells = ladder(parts)
    assert lines(cells) == EVERY | {"square:queries=5000": {"query"}}
    assert {c.eps.value for c in cells if c.bare_attack != "pgd:random_start=false,steps=40"} == {
        0.2
    }
    assert {c.eps.value for c in cells if c.bare_attack == "pgd:random_start=false,steps=40"} == {
        1.0
    }
    assert {c.eot for c in cells} == {1} and {c.protocol for c in cells} == {"ladder-1"}


def test_ladder_1_of_a_stochastic_purifier_adds_eot_and_as_many_controls_as_candidates(parts):
    cells = ladder(parts, defenses=["gaussian"])
    controls = [c for c in cells if is_control(c.attack)]
    attacks = [c for c in cells if c not in controls]
    assert lines(attacks) == EVERY | {
        "square:queries=1000": {"query"},
        "pgd:steps=200": set(GRADIENTS),
    }
    assert {c.eot for c in attacks if c.knowledge != "oblivious"} == {20}
    assert len(controls) == len(set(controls)) == sum(c.eps.value == 0.2 for c in attacks)
    assert {(c.knowledge, c.eps.value, c.protocol) for c in controls} == {
        ("query", 0.2, "ladder-1")
    }


def test_behind_no_purifier_nothing_is_learned(parts):
    cells, skipped = expanded(parts, protocol="ladder-1", defenses=["none"])
    assert "learned" not in {c.gradient for c in cells}
    (line,) = [line for line in skipped if "learned" in line]
    assert (
        line
        == "skipped gradient learned for none: there is no purifier to imitate, its gradient is the identity"
    )


def test_every_norm_of_the_claim_is_run(parts, monkeypatch):
    monkeypatch.setattr(
        type(parts.data), "card", replace(parts.data.card, claim={"Linf": 0.2, "L2": 0.5})
    )
    cells = ladder(parts)
    by_norm = {
        n: {c.bare_attack.replace("norm=L2,", "") for c in cells if c.norm == n}
        for n in ("Linf", "L2")
    }
    assert by_norm["Linf"] - by_norm["L2"] == {
        "pgd:random_start=false,steps=40"
    }  # in L-inf it speaks for both
    assert {c.eps.value for c in cells if c.norm == "L2"} == {0.5}


def test_a_claim_in_one_norm_alone_is_asked_for_any_image_too(parts, monkeypatch):
    monkeypatch.setattr(type(parts.data), "card", replace(parts.data.card, claim={"L2": 0.5}))
    assert {c.gradient for c in ladder(parts) if c.eps.value == 1 and c.norm == "Linf"} == set(
        GRADIENTS
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_targeted_dlr_needs_four_classes(classes):
    assert not any("dlr" in step.attack for step in ladder_1("Linf", False, classes))
    assert any("dlr" in step.attack for step in ladder_1("Linf", False, 4))


def test_attacks_beside_the_protocol_are_added_and_not_of_it(parts):
    alone = ladder(parts)
    more = ladder(parts, attacks=["fgsm", "pgd:steps=40"], eps="0.1,0.2")
    assert more[: len(alone)] == alone
    beside = more[len(alone) :]
    assert {c.protocol for c in beside} == {None}
    assert {(c.attack, c.knowledge, c.eps.value) for c in beside} == {
        *(("fgsm", level, e) for level in ("oblivious", "adaptive") for e in (0.1, 0.2)),
        *(("pgd:steps=40", level, 0.1) for level in ("oblivious", "adaptive")),
        ("pgd:steps=40", "adaptive", 0.2),  # oblivious at the claim eps is the protocol's already
    }


def test_without_a_claim_eps_there_is_no_protocol(parts, monkeypatch):
    monkeypatch.setattr(type(parts.data), "card", replace(parts.data.card, claim={}))
    with pytest.raises(DefendError, match="has no claim eps"):
        ladder(parts)


# knowledge


def test_all_is_every_level_every_gradient_and_what_can_be_transferred_from(parts):
    cells, _ = expanded(parts, attacks=["pgd"], knowledge="all")
    assert lines(cells) == {"pgd": BLIND | set(GRADIENTS)}
    assert {c.surrogate for c in cells if c.knowledge == "transfer"} == {f"median+{AGAIN}"}


def test_a_surrogate_that_is_given_is_asked_for(parts):
    cells, _ = expanded(parts, attacks=["pgd"], surrogates=[AGAIN])
    assert {c.surrogate for c in cells if c.knowledge == "transfer"} == {AGAIN}
    assert {c.knowledge for c in cells} == {"oblivious", "adaptive", "transfer"}


@pytest.mark.parametrize(
    "surrogate",
    ["meddian+convnet", "median+convnett", "median:sise=3+convnet", "convnet:weights=nothing"],
)
def test_a_surrogate_that_nothing_uses_must_be_right_too(parts, surrogate):
    with pytest.raises(DefendError):
        expanded(parts, attacks=["pgd"], knowledge="oblivious", surrogates=[surrogate])


def test_a_protocol_adds_the_default_surrogate_whatever_is_given(parts):
    """A weak pipeline of the same name must not take its place."""

    def seen(*given):
        return {
            c.surrogate for c in ladder(parts, surrogates=list(given)) if c.knowledge == "transfer"
        }

    assert seen() == {f"median+{AGAIN}"}
    assert seen(AGAIN) == {AGAIN, f"median+{AGAIN}"}
    assert seen(f"median:size=2+{AGAIN}") == {f"median:size=2+{AGAIN}", f"median+{AGAIN}"}
    assert seen(f"median+{AGAIN}") == {f"median+{AGAIN}"}


@pytest.mark.parametrize("marked", [True, False])
def test_a_trained_purifier_is_transferred_from_one_trained_anew(parts, monkeypatch, marked):
    there = zoo.read_zoos()
    row = replace(
        next(iter(there.values())), kind="defense", component="split-vqvae", fields={"codes": 9}
    )
    mine = {
        name: replace(row, name=name, sha256=name, surrogate=marked and name == "anew")
        for name in ("first", "anew")
    }
    monkeypatch.setattr(zoo, "read_zoos", lambda: there | mine)
    spec = "split-vqvae:codes=9,hidden=8+median"
    trained = load("split-vqvae:weights=untrained,hidden=8,codes=9+median", "defense", parts.data)
    trained.members[0].fitted_on = row.trained_on
    monkeypatch.setitem(parts._kept, ("defense", spec), trained)
    found, why = default_surrogate(parts, "convnet", spec)
    assert found == ("split-vqvae:hidden=8,weights=anew+median+convnet" if marked else None)
    assert ("marked `surrogate`" in why) is not marked


@pytest.mark.parametrize(
    ("codes", "nearest", "said"),
    [
        (9, "nine", ""),
        (7, "seven", ""),
        (8, "seven", "seven, the nearest marked `surrogate`, has codes=7 (not 8)"),
    ],
)
def test_it_is_trained_anew_with_the_same_fields_where_there_is_one_else_the_nearest(
    parts, monkeypatch, codes, nearest, said
):
    row = replace(
        next(iter(zoo.read_zoos().values())),
        kind="defense",
        component="split-vqvae",
        dataset="digits",
        surrogate=True,
    )
    fields = {"nine": {"codes": 9, "hidden": 16}, "seven": {"codes": 7, "hidden": 8}}
    monkeypatch.setattr(
        zoo,
        "read_zoos",
        lambda: {
            name: replace(row, name=name, sha256=name, fields=f) for name, f in fields.items()
        },
    )
    spec = f"split-vqvae:codes={codes}"
    trained = load(
        f"split-vqvae:weights=untrained,hidden={16 if codes == 9 else 8},codes={codes}",
        "defense",
        parts.data,
    )
    trained.fitted_on = row.trained_on
    monkeypatch.setitem(parts._kept, ("defense", spec), trained)
    assert default_surrogate(parts, "convnet", spec) == (
        f"split-vqvae:weights={nearest}+convnet",
        said,
    )


@pytest.mark.parametrize(("trained_on", "nearest"), [("clean", "a"), ("corrupted", "b")])
def test_of_two_trained_anew_the_one_trained_on_the_same_images_is_nearer(
    parts, monkeypatch, trained_on, nearest
):
    row = replace(
        next(iter(zoo.read_zoos().values())),
        kind="defense",
        component="split-vqvae",
        dataset="digits",
        surrogate=True,
        fields={},
    )
    twins = {"a": "clean", "b": "corrupted"}
    monkeypatch.setattr(
        zoo,
        "read_zoos",
        lambda: {
            name: replace(row, name=name, sha256=name, trained_on=on) for name, on in twins.items()
        },
    )
    trained = load("split-vqvae:weights=untrained,hidden=8,codes=9", "defense", parts.data)
    trained.fitted_on = trained_on
    monkeypatch.setitem(parts._kept, ("defense", "split-vqvae"), trained)
    assert default_surrogate(parts, "convnet", "split-vqvae") == (
        f"split-vqvae:weights={nearest}+convnet",
        "",
    )
    trained.fitted_on = "adversarial(pgd, 0.1, convnet)"
    assert default_surrogate(parts, "convnet", "split-vqvae")[1].endswith(
        "has trained_on=clean (not adversarial(pgd, 0.1, convnet))"
    )


def test_the_scored_pipeline_is_known_by_any_spelling(parts):
    cells, skipped = expanded(
        parts,
        attacks=["pgd"],
        surrogates=["none+median+convnet", "median+none+convnet", "none+median:size=2+convnet"],
    )
    assert {c.surrogate for c in cells if c.knowledge == "transfer"} == {
        "none+median:size=2+convnet"
    }
    assert sum("it is the scored pipeline itself" in line for line in skipped) == 2


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


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_an_attack_that_cannot_meet_a_pipeline_is_skipped_with_one_line(parts, what):
    keys, levels, said = UNSUPPORTED[what]
    cells, skipped = expanded(parts, **keys)
    assert {c.knowledge for c in cells} == levels
    assert [said in line for line in skipped] == [True] * bool(said)
    if said:
        with pytest.raises(DefendError, match="nothing is left to run"):
            expanded(parts, knowledge="adaptive", **keys)


@pytest.mark.parametrize(
    ("attack", "level"),
    [
        ("art:name=DeepFool,norm=Linf", "adaptive"),
        ("art:name=SquareAttack,access=scores,max_iter=5", "query"),
    ],
)
def test_before_a_stochastic_purifier_nothing_may_stop_at_the_first_lucky_draw(
    parts, attack, level
):
    """A chain that holds one is stochastic too; attacks that go to the end are run."""
    randomised = ["gaussian", "median+gaussian"]
    cells, skipped = expanded(
        parts,
        attacks=[attack, "art:name=ProjectedGradientDescent"],
        eps="0.1",
        defenses=["median", *randomised],
        knowledge=level,
    )
    assert {c.defense for c in cells if c.attack == attack} == {"median"}
    assert {c.defense for c in cells if c.attack != attack} == (
        {"median", *randomised} if level == "adaptive" else set()
    )
    refused = [line for line in skipped if line.startswith(f"skipped {attack} at {level}")]
    assert [line.split(": it stops")[0].split(" for ")[1] for line in refused] == randomised
    assert all("lucky draw" in line for line in refused)


@pytest.mark.parametrize(("loss", "needs"), [("dlr-targeted", 4), ("dlr", 3), ("ce", 2)])
def test_an_attack_whose_loss_needs_more_classes_is_not_asked_for(loss, needs):
    refused = [
        load(f"apgd:loss={loss}", "attack").unsupported(False, classes) != ""
        for classes in (2, 3, 4)
    ]
    assert refused == [classes < needs for classes in (2, 3, 4)]


def test_where_no_other_classifier_is_known_transfer_is_skipped_with_a_line(parts, monkeypatch):
    monkeypatch.setattr(zoo, "read_zoos", dict)
    cells, skipped = expanded(parts, attacks=["pgd"], knowledge=["oblivious", "transfer"])
    assert {c.knowledge for c in cells} == {"oblivious"}
    assert skipped == [
        "skipped pgd at transfer for median: no other classifier of digits is in a zoo: give --surrogate median+C"
    ]


# controls


def test_a_control_is_as_many_as_there_are_candidates(parts):
    cells, _ = expanded(
        parts, attacks=["pgd", "fgsm", "control"], defenses=["gaussian", "median"], eps="0.1,0.2"
    )
    count = {
        (d, e): sum(is_control(c.attack) and (c.defense, c.eps.value) == (d, e) for c in cells)
        for d in ("gaussian", "median")
        for e in (0.1, 0.2)
    }
    assert count == {
        ("gaussian", 0.1): 6,
        ("gaussian", 0.2): 6,
        ("median", 0.1): 1,
        ("median", 0.2): 1,
    }
    assert {c.attack for c in expanded(parts, attacks=["control:draw=3"], eps="0.1")[0]} == {
        "control:draw=3"
    }
