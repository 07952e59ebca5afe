"""Attacks by the names that papers give them, where ART has the attack."""

import pytest

import defend
from defend.errors import UnknownName
from defend.registry import _ART_NAMES

WRITTEN = ["cw", "CW-L2", "deepfool", "DeepFool", "hopskipjump", "hop_skip_jump", "bim", "zoo"]


@pytest.mark.parametrize("name", WRITTEN)
def test_an_attack_of_art_is_hinted_at(name):
    with pytest.raises(UnknownName, match=f"unknown attack '{name}'. ART has it: write art:name="):
        defend.load(name, "attack")


@pytest.mark.parametrize("spec", sorted(set(_ART_NAMES.values())))
def test_what_a_hint_says_can_be_typed(spec):
    assert defend.load(f"art:name={spec}", "attack").name == spec.partition(",")[0]


def test_a_name_close_to_ours_is_still_suggested():
    with pytest.raises(UnknownName, match="Did you mean pgd"):
        defend.load("pdg", "attack")
    with pytest.raises(UnknownName) as error:
        defend.load("cw", "defense")
    assert "ART" not in str(error.value)
