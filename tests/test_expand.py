"""Expanding a suite into cells: levels, eps, and what cannot be run."""

import pytest
import torch

from defend.benchmarks.components import Components
from defend.benchmarks.expand import expand
from defend.benchmarks.suite import make_suite
from defend.eps import Eps
from defend.errors import DefendError
from defend.threat_models import RELAXED_GRADIENTS

SMALL = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "defenses": ["none", "gaussian:sigma=0.1"],
    "attacks": ["pgd:steps=3"],
    "eps": "0.1,0.2",
    "n": 48,
}


def expanded(**keys):
    suite = make_suite(SMALL | keys)
    return expand(suite, Components(suite.dataset, None, torch.device("cpu")))


LEVELS_OF = {
    "defaults": (
        {},
        [("oblivious", "declared"), ("adaptive", "identity"), ("adaptive", "declared")],
    ),
    "bpda": ({"knowledge": "bpda"}, [("adaptive", "identity")]),
    "one gradient": (
        {"gradients": ["declared"]},
        [("oblivious", "declared"), ("adaptive", "declared")],
    ),
    "a purifier with a relaxation": (
        {"defenses": ["bitdepth"]},
        [
            ("oblivious", "declared"),
            ("adaptive", "identity"),
            ("adaptive", "declared"),
            ("adaptive", "relaxed:temperature=0.1"),
            ("adaptive", "relaxed:temperature=0.3"),
            ("adaptive", "relaxed:temperature=1"),
        ],
    ),
    "a temperature": (
        {"defenses": ["median+bitdepth"], "gradients": "relaxed:temperature=1/2"},
        [("oblivious", "declared"), ("adaptive", "relaxed:temperature=0.5")],
    ),
    "every temperature, one of them twice": (
        {
            "defenses": ["jpeg"],
            "knowledge": "adaptive",
            "gradients": ["relaxed", {"name": "relaxed", "temperature": 1.0}],
        },
        [("adaptive", gradient) for gradient in RELAXED_GRADIENTS],
    ),
    "twice the same": (
        {"knowledge": ["bpda", "adaptive"]},
        [("adaptive", "identity"), ("adaptive", "declared")],
    ),
    "transfer": (
        {"knowledge": "transfer", "surrogates": ["jpeg+convnet"]},
        [("transfer", "declared")],
    ),
    "stops early": (
        {"attacks": ["art:name=DeepFool"], "eps": "0.1"},
        [("adaptive", "identity"), ("adaptive", "declared")],
    ),
    "an attack that tries the other gradients by itself": (
        {"attacks": ["persist"], "defenses": ["jpeg"]},
        [("oblivious", "declared"), ("adaptive", "declared")],
    ),
    "such an attack through named gradients": (
        {"attacks": ["persist"], "knowledge": "adaptive", "gradients": ["identity", "declared"]},
        [("adaptive", "identity"), ("adaptive", "declared")],
    ),
    "scores": ({"attacks": ["art:name=SquareAttack,access=scores,max_iter=5"]}, [("query", None)]),
}


@pytest.mark.parametrize("what", LEVELS_OF)
def test_levels(what):
    keys, expected = LEVELS_OF[what]
    cells, _ = expanded(**{"eps": "0.1", "defenses": ["none"]} | keys)
    assert [(c.knowledge, c.gradient) for c in cells] == expected


def test_an_unsupported_pair_is_skipped_with_one_line_and_nothing_left_is_an_error():
    cells, skipped = expanded(knowledge=["oblivious", "query"])
    assert {c.knowledge for c in cells} == {"oblivious"}
    assert len(skipped) == 1 and "query" in skipped[0]
    with pytest.raises(DefendError, match="nothing is left to run"):
        expanded(knowledge=["query"])


def test_a_purifier_without_a_relaxation_is_skipped_with_one_line():
    keys = {"defenses": ["median", "bitdepth"], "gradients": ["relaxed"], "eps": "0.1"}
    cells, skipped = expanded(knowledge="adaptive", **keys)
    assert {cell.defense for cell in cells} == {"bitdepth"}
    assert [line for line in skipped if "median" in line] == [
        "skipped gradient relaxed for median: it declares no relaxation; use declared, identity or"
        " learned"
    ]


def test_oblivious_and_transfer_never_drop():
    cells, _ = expanded(knowledge=["oblivious", "adaptive", "transfer"], surrogates=["convnet"])
    assert {c.knowledge: c.threat_model.may_drop for c in cells} == {
        "oblivious": False,
        "transfer": False,
        "adaptive": True,
    }


def test_eps_comes_from_the_attack_then_the_suite_then_the_claim():
    assert {c.eps.value for c in expanded(attacks=["fgsm:eps=1/4"])[0]} == {0.25}
    assert {c.eps.value for c in expanded(eps="0.1")[0]} == {0.1}
    assert {c.eps.value for c in expanded(eps=None)[0]} == {0.2}  # the claim eps of digits


EPS = [
    (0.2, "0.2"),
    (8 / 255, "8/255"),
    (1 / 255, "1/255"),
    (1.0, "1"),
    (0.1 + 0.2, "0.3"),
]  # 0.2 is 51/255 too


@pytest.mark.parametrize(("value", "text"), EPS)
def test_an_eps_is_written_as_papers_write_it(value, text):
    assert Eps.of(value) == Eps(text=text, value=value)


REFUSED = {
    "no claim eps": ({"attacks": ["pgd:norm=L2"], "eps": None}, "no claim eps for the norm L2"),
    "grey levels": ({"eps": "8"}, "for grey levels write 8/255"),
    "two norms": ({"attacks": ["pgd:norm=L2", "fgsm"]}, "attacks of two norms"),
    "too many images": ({"n": 10**6}, "give --n"),
    "unknown defense": ({"defenses": ["meddian"]}, "Did you mean median"),
    "wrong parameter": ({"attacks": ["pgd:stepz=3"]}, "Did you mean step, steps?"),
    "surrogate": (
        {"knowledge": ["transfer"], "surrogates": ["none+convnet"], "defenses": ["none"]},
        "it is the scored pipeline itself",
    ),
    "size": ({"defenses": ["split-vqvae:weights=untrained"]}, "untrained"),
    "of another shape": (
        {"dataset": "digits-m", "classifiers": ["convnet:weights=convnet-digits"]},
        "takes 1x",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_line(what):
    keys, message = REFUSED[what]
    with pytest.raises(DefendError) as e:
        expanded(**keys)
    assert message in str(e.value)
    assert "\n" not in str(e.value)
