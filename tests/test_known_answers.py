"""No defense changes silently: a change here is a new version of every number that was measured with it."""

import pytest
import torch
from known_answers import PRINTS, TOLERANCE, images, print_of

from defend.registry import HOME, REGISTRY
from defend.spec import parse


@pytest.mark.parametrize("spec", PRINTS)
def test_output_is_what_it_was(spec):
    assert print_of(spec) == pytest.approx(PRINTS[spec], abs=TOLERANCE)


def test_every_defense_has_a_known_answer():
    """Those that need no weights; what a network computes is as known as its weights are."""
    plain = {
        e.name
        for e in REGISTRY.entries("defense")
        if e.dist == HOME and "weights" not in getattr(e.load(), "__dataclass_fields__", {})
    }
    assert plain == {s.name for spec in PRINTS for s in parse(spec)}


def test_a_grey_level_in_one_pixel_shows(monkeypatch):
    def moved():
        x = images()
        x[0, 1, 11, 7] += 1 / 255 if x[0, 1, 11, 7] < 0.5 else -1 / 255
        return x

    before = print_of("none")
    monkeypatch.setattr("known_answers.images", moved)
    assert max(abs(a - b) for a, b in zip(print_of("none"), before, strict=True)) > TOLERANCE
    assert torch.equal(images(), images())
