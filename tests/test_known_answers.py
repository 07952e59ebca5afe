"""No defense changes silently: a change here is a new version of every number measured with it."""

import pytest
import torch
from known_answers import FINGERPRINTS, TOLERANCE, fingerprint, make_images

from defend.registry import HOME, REGISTRY
from defend.spec import parse


@pytest.mark.parametrize("spec", FINGERPRINTS)
def test_the_output_has_not_changed(spec):
    assert fingerprint(spec) == pytest.approx(FINGERPRINTS[spec], abs=TOLERANCE)


def needs_no_weights(entry):
    return "weights" not in getattr(entry.load(), "__dataclass_fields__", {})


def test_every_defense_without_weights_has_a_known_answer():
    """A defense with weights has none here: its output is pinned by the hash of its weights."""
    entries = [entry for entry in REGISTRY.entries("defense") if entry.dist == HOME]
    expected = {entry.name for entry in entries if needs_no_weights(entry)}
    tested = set()
    for spec in FINGERPRINTS:
        tested |= {member.name for member in parse(spec)}
    assert tested == expected


def test_a_change_of_one_grey_level_in_one_pixel_is_detected(monkeypatch):
    def change_one_pixel():
        x = make_images()
        x[0, 1, 11, 7] += 1 / 255 if x[0, 1, 11, 7] < 0.5 else -1 / 255
        return x

    before = fingerprint("none")
    monkeypatch.setattr("known_answers.make_images", change_one_pixel)
    changes = [abs(a - b) for a, b in zip(fingerprint("none"), before, strict=True)]
    assert max(changes) > TOLERANCE
    assert torch.equal(make_images(), make_images())
