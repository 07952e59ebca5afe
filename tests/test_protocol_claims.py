"""What `--protocol` runs is what a claim needs, no less and no more."""

import pytest
import torch
from made_runs import missing_codes, sample_of

from defend.benchmarks.components import Components
from defend.benchmarks.controls import is_control
from defend.benchmarks.describe_images import DescribedImages
from defend.benchmarks.expand import expand
from defend.benchmarks.make_record import make_record
from defend.benchmarks.suite import make_suite
from defend.numerics import NumericSettings
from defend.protocols import PROTOCOLS

BASE = {"dataset": "digits", "classifiers": ["convnet"], "n": 8, "protocol": "ladder-1"}
AGAIN = "convnet:weights=convnet-digits-again"
NUMERICS = NumericSettings(precision="float32", layout="contiguous", threads=1, device="cpu")
THOUSAND = DescribedImages(clusters=1000, largest_class=0.1, sample=sample_of(1000, 1000))
PROVENANCE = {"versions": {}, "commit": None, "device": "cpu"}


@pytest.fixture(scope="module")
def components():
    return Components("digits", None, torch.device("cpu"))


def expand_ladder(components, **keys):
    """Return the cells of the protocol, and their records as if 1,000 images had been run."""
    cells, _ = expand(make_suite(BASE | keys), components)
    records = []
    for cell in cells:
        nothing = (NUMERICS, (), (), PROVENANCE, "nothing was run", THOUSAND)
        record = make_record(cell, components, *nothing)
        records.append(record.replace(n=1000, images=1000, error=None))
    return cells, records


@pytest.mark.parametrize(
    "defense", ["none", "median", "gaussian", "median+bitdepth", "gaussian+median"]
)
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_what_the_protocol_runs_is_what_a_claim_needs(components, defense, protocol):
    """Nothing is missing; and without any of the attacks something is."""
    cells, records = expand_ladder(components, defenses=[defense], protocol=protocol.name)
    assert missing_codes(records, protocol=protocol) == []
    for attack in {cell.bare_attack for cell in cells if not is_control(cell.attack)}:
        without = [r for c, r in zip(cells, records, strict=True) if c.bare_attack != attack]
        assert missing_codes(without, protocol=protocol), attack


def test_another_strength_of_a_purifier_is_no_pipeline_to_transfer_from(components):
    _, records = expand_ladder(
        components, defenses=["median"], surrogates=[f"median:size=2+{AGAIN}"]
    )
    assert missing_codes(records) == []
    weaker_alone = [r for r in records if r.surrogate != f"median+{AGAIN}"]
    assert missing_codes(weaker_alone) == ["transfer"]
