"""Pairs of defenses by the vulnerability index: which cells are compared, and what is told."""

from types import SimpleNamespace

import numpy as np
import pytest
from made_runs import DECLARED, IDENTITY, LEARNED, PLAIN, change

from defend.results.measure_pairs import list_measure_pairs

N = 40
NOISE = np.random.default_rng(0).uniform(0.9, 1.1, (N, 1))


class Reader:
    """Outcomes that are made by hand, in place of unit files."""

    def __init__(self):
        self.details = {}

    def read_one(self, record):
        return self.details.get(record.units)


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def cell_of(reader):
    """Return cell_of(defense, index in dB, fields): a record whose outcomes the reader has."""

    def make(defense, index, noise=40.0, **fields):
        key = (f"unit{len(reader.details)}",)
        mse_in = 10 ** (-noise / 10)
        mse_shift = mse_in * 10 ** (index / 10)
        errors = {"mse_in": np.full((N, 1), mse_in), "mse_shift": mse_shift * NOISE}
        reader.details[key] = SimpleNamespace(details=errors)
        changes = {
            "task": "reconstruction",
            "classifier": "none",
            "defense": defense,
            "pipeline": {"defense": defense},
            "n": N,
            "units": key,
            "measures": {"psnr_in": {"value": noise, "low": noise, "high": noise}},
        }
        return change(PLAIN, **changes | DECLARED | fields)

    return make


def test_each_stands_with_the_worst_of_the_gradients_by_which_both_were_attacked(cell_of, reader):
    """The learned gradient is the worst for the median, and nobody attacked jpeg by it."""
    records = [
        cell_of("median", 3, **DECLARED),
        cell_of("median", 5, **IDENTITY),
        cell_of("median", 30, **LEARNED),
        cell_of("jpeg", 9, **DECLARED),
        cell_of("jpeg", 1, **IDENTITY),
    ]
    (line,) = list_measure_pairs(records, reader)
    assert line.startswith(
        "vulnerability index, median (pgd, adaptive BPDA) against jpeg (pgd, adaptive declared),"
    )
    assert ": -4.0 dB (" in line


def test_defenses_that_share_no_gradient_are_no_pair(cell_of, reader):
    records = [cell_of("median", 3, **DECLARED), cell_of("jpeg", 9, **IDENTITY)]
    assert list_measure_pairs(records, reader) == ()


OTHER_THREATS = {
    "level": {"knowledge": "transfer", "gradient": None, "surrogate": "bitdepth+none"},
    "attack": {"attack": "fgsm"},
    "eps": {"eps": 0.5, "eps_text": "0.5"},
    "section": {"seed": 1},
}


@pytest.mark.parametrize("name", OTHER_THREATS)
def test_cells_of_another_threat_are_no_pair(name, cell_of, reader):
    records = [cell_of("median", 3), cell_of("jpeg", 9, **OTHER_THREATS[name])]
    assert list_measure_pairs(records, reader) == ()
    both = [*records, cell_of("median", 4, **OTHER_THREATS[name])]
    (line,) = list_measure_pairs(both, reader)
    assert "jpeg (" in line and ("-5.0 dB (" in line or "+5.0 dB (" in line)


def test_transfers_from_different_codecs_are_no_pair(cell_of, reader):
    fields = {"knowledge": "transfer", "gradient": None}
    sides = [
        cell_of(name, 3, surrogate=surrogate, **fields)
        for name, surrogate in (("median", "jpeg+none"), ("jpeg", "median+none"))
    ]
    assert list_measure_pairs(sides, reader) == ()


@pytest.mark.parametrize("noise", [40.0, 37.5])
def test_the_noise_of_both_attacks_is_told(noise, cell_of, reader):
    records = [cell_of("median", 3, noise=40.0), cell_of("jpeg", 9, noise=noise)]
    (line,) = list_measure_pairs(records, reader)
    assert line.endswith(f"; PSNR in 40.0 dB and {noise} dB")


def test_a_cell_without_outcomes_is_no_side(cell_of, reader):
    lost = cell_of("median", 8, **IDENTITY).replace(units=("lost",))
    records = [cell_of("median", 3, **DECLARED), lost, cell_of("jpeg", 9, **DECLARED)]
    (line,) = list_measure_pairs(records, reader)
    assert "median (pgd, adaptive declared)" in line
    assert list_measure_pairs([lost, records[2]], reader) == ()
