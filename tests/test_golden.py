"""The outcomes of a small bench are those of the code before it was moved and renamed."""

import json

import numpy as np
import pytest
from golden import FILE, compute, decode

# On the CPU that wrote the file all outcomes are equal. Another CPU may round a few images that
# lie on a boundary to the other side.
MAX_SHARE = 0.05


def difference(expected, actual):
    return float(np.mean(decode(expected) != decode(actual)))


@pytest.fixture(scope="module")
def outcomes():
    return json.loads(FILE.read_text()), compute()


def test_the_cells_are_the_same(outcomes):
    expected, actual = outcomes
    assert list(actual) == list(expected)


def test_the_outcomes_are_the_same_in_every_cell(outcomes):
    expected, actual = outcomes
    for cell, texts in expected.items():
        assert actual[cell].keys() == texts.keys(), cell
        for outcome, text in texts.items():
            assert difference(text, actual[cell][outcome]) <= MAX_SHARE, (cell, outcome)


def test_other_outcomes_would_be_noticed(outcomes):
    """Two attacks of the file differ by more than the tolerance."""
    expected, _ = outcomes
    weak, strong = ("none fgsm oblivious declared 0.1", "none apgd:steps=5 oblivious declared 0.2")
    assert difference(expected[weak]["score"], expected[strong]["score"]) > MAX_SHARE
