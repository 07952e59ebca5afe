"""Accuracy along the queries of a search, and whether it still falls."""

import pytest
import torch

from defend.cell_numbers.query_curve import QueryCurve
from defend.unit_files import Unit


def curve(wrong_after, clean, queries):
    """Return the curve of a cell of two units."""
    half = len(clean) // 2
    units = []
    for part in (slice(half), slice(half, None)):
        tensors = {
            "clean_score": torch.tensor(clean)[part, None],
            "note_wrong_after": torch.tensor(wrong_after)[part],
        }
        units.append(Unit(tensors, {}))
    return QueryCurve.of_units(units, queries)


def of_eight(queries):
    return curve([-1, 100, 101, 1, 4001, 5000, -1, 3], [1, 1, 1, 1, 1, 1, 0, 1], queries)


def test_accuracy_after_queries_is_over_all_images():
    marks = of_eight(5000).accuracy_at_marks()
    assert marks == {"100": 5 / 8 - 1 / 8, "1000": 3 / 8, "5000": 1 / 8}
    assert of_eight(1000).accuracy_at_marks() == {"100": 4 / 8, "1000": 3 / 8, "5000": None}


def test_an_attack_that_notes_no_queries_has_no_curve():
    assert QueryCurve.of_units([Unit({"clean_score": torch.ones(2, 1)}, {})], 5000) is None


def test_what_falls_late_is_counted_in_the_last_fifth():
    assert of_eight(5000).accuracy_lost_late() == 2 / 8  # at 4,001 and 5,000
    assert of_eight(100_000).accuracy_lost_late() == 0


def test_half_a_point_in_the_last_fifth_is_unconverged():
    def lost(late):
        return curve([4500] * late + [-1] * (1000 - late), [1] * 1000, 5000).accuracy_lost_late()

    assert lost(4) == 0 and lost(5) == pytest.approx(0.005)
