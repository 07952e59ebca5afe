"""Two names of one gradient are one unit, but not for an attack that goes on to other gradients."""

import pytest
import torch
from bench_suite import SMALL
from made_runs import cell, keep

from defend.benchmarks.components import Components
from defend.benchmarks.expand import expand
from defend.benchmarks.suite import make_suite
from defend.benchmarks.units import KeyInputs
from defend.hashing import cache_key
from defend.numerics import NumericSettings
from defend.record_parts import SearchRounds
from defend.results.verify import verify_run

NUMERICS = NumericSettings(precision="float32", layout="contiguous", threads=1, device="cpu")
UNITS = [
    ("persist", "none", 2),  # from the identity that is declared it goes on to autograd
    ("persist", "bitdepth", 2),
    ("apgd", "none", 1),
    ("apgd", "jpeg", 2),
]


@pytest.mark.parametrize(("attack", "defense", "count"), UNITS)
def test_both_names_of_the_identity_are_one_unit_if_the_attack_keeps_to_it(attack, defense, count):
    keys = {"attacks": [attack], "defenses": [defense], "knowledge": "adaptive", "eps": "0.1"}
    suite = make_suite(SMALL | keys | {"gradients": ["declared", "identity"]})
    components = Components("digits", None, torch.device("cpu"))
    cells, _ = expand(suite, components)
    key_inputs = KeyInputs(components, NUMERICS)
    assert len(cells) == 2
    assert len({cache_key(key_inputs.of_cell(one)) for one in cells}) == count


@pytest.mark.parametrize("is_search", [False, True])
def test_a_unit_through_the_identity_confirms_no_search_from_the_declared_gradient(
    tmp_path, is_search
):
    keys = {"component": "none", "settings": {}}
    pipeline = {"classifier": {"component": "convnet"}, "defense": keys}
    attacked = {**pipeline, "gradient": "identity", "drops": True}
    record = cell(
        tmp_path,
        [1, 0, 1],
        inputs={"attacked": attacked, "scored": pipeline},
        defense="none",
        knowledge="adaptive",
        gradient="declared",
        declared_gradient="identity",
    )
    if is_search:
        rounds = SearchRounds(standing=(1.0, 2 / 3), broken_by={})
        record = record.replace(rounds=rounds)
    texts = [problem.text for problem in verify_run(keep(tmp_path, [record])).problems]
    told = "gradient declared in the record, identity in its units" in texts
    assert told is is_search
