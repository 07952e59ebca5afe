"""What a unit's key is made of: settings, weights, what a component holds, code, and the versions of what is not hashed."""

from importlib import metadata

import numpy as np
import pytest
import torch

import defend
from defend.benchmarks.components import (
    code_hash,
    component_key,
    content_hash,
    requirement_versions,
)
from defend.errors import DefendError

HELD = {
    "a tensor": lambda v: torch.tensor([v]),
    "in bfloat16": lambda v: torch.tensor([v], dtype=torch.bfloat16),
    "an array in a list": lambda v: {"deep": [np.array([v])]},
    "a network": lambda v: (
        torch.nn.Conv2d(1, 1, 1, bias=False)
        .requires_grad_(False)
        .apply(lambda m: m.weight.fill_(v))
    ),
}


@pytest.mark.parametrize("what", HELD)
def test_what_a_component_holds_is_in_its_identity(what):
    """Not what it was given as settings, nor what a header of weights says."""

    def hashed(value):
        made = defend.load("bitdepth")
        assert content_hash(made) == ""
        object.__setattr__(made, "model", value)
        return content_hash(made)

    first, other, again = (hashed(HELD[what](v)) for v in (1.0, 2.0, 2.0))
    assert first != other == again


@pytest.mark.usefixtures("plugin")
def test_settings_called_weights_and_code_are_in_the_key():
    """Only a learned component's `weights` is a name for what is hashed; a package's files are hashed wherever they lie."""

    class Window(defend.Purifier):
        """Not learned."""

        card = defend.Card(paper="none: test", gradient="exact", stochastic=False)
        weights: str = "flat"

        def purify(self, x, noise):
            return x

    assert component_key(Window(weights="flat"), "defense") != component_key(
        Window(weights="peaked"), "defense"
    )
    assert code_hash("defend_bitcut") != code_hash("defend")
    with pytest.raises(DefendError, match=r"no \.py files"):
        code_hash("math")


@pytest.mark.usefixtures("plugin")
def test_what_a_plugin_needs_is_in_the_key_by_its_version(tmp_path, install):
    """Its own requirements alone, and of these what is here."""
    folder = tmp_path / "needy-0.1.dist-info"
    folder.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        "Name: needy",
        "Version: 0.1",
        "Requires-Dist: torch",
        "Requires-Dist: Click>=8",
        "Requires-Dist: nowhere; extra == 'x'",
    ]
    (folder / "METADATA").write_text("\n".join([*lines, ""]))
    (folder / "entry_points.txt").write_text("[defend.defenses]\nneedy = needy_package:Needy\n")
    install(tmp_path)
    assert requirement_versions("needy_package") == {"click": metadata.version("click")}
    assert requirement_versions("defend") == {}


HELD_BY_LEARNED = {
    "a tensor beside its network": ({"table": torch.ones(1)}, True),
    "its network": ({}, False),
}


@pytest.mark.parametrize("what", HELD_BY_LEARNED)
def test_a_learned_components_network_is_known_by_its_file_and_the_rest_by_what_it_is(what):
    more, held = HELD_BY_LEARNED[what]
    made = defend.load("split-vqvae", dataset="digits-m")
    vars(made).update(more)
    assert bool(content_hash(made)) == held


def test_the_files_of_two_roles_cannot_be_swapped():
    class Pair(type(defend.load("bitdepth"))):
        """Two files."""

        weights_sha256 = {}

    one, other = Pair(), Pair()
    one.weights_sha256, other.weights_sha256 = (
        {"coarse": "a", "fine": "b"},
        {"coarse": "b", "fine": "a"},
    )
    assert component_key(one, "defense") != component_key(other, "defense")


def test_code_of_a_package_without_init_is_hashed(tmp_path, monkeypatch):
    (tmp_path / "bare_package").mkdir()
    file = tmp_path / "bare_package" / "part.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = set()
    for text in ("x = 1", "x = 2"):
        file.write_text(text)
        code_hash.cache_clear()
        seen.add(code_hash("bare_package"))
    code_hash.cache_clear()
    assert len(seen) == 2
