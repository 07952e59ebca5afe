"""What identifies a component in a unit's key: settings, weights, contents, code and versions."""

from importlib import metadata

import numpy as np
import pytest
import torch

import defend
from defend.benchmarks.component_keys import (
    component_key,
    content_hash,
    modules_of,
    requirement_versions,
)


def network_of(value):
    net = torch.nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False)
    net.weight.fill_(value)
    return net


CONTENTS = {
    "a tensor": lambda value: torch.tensor([value]),
    "in bfloat16": lambda value: torch.tensor([value], dtype=torch.bfloat16),
    "an array in a list": lambda value: {"deep": [np.array([value])]},
    "a network": network_of,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_a_component_holds_is_in_its_key(name):
    """Contents are neither a setting nor in a header of weights."""

    def hash_with(value):
        component = defend.load("bitdepth")
        assert content_hash(component) == ""
        component.model = CONTENTS[name](value)
        return content_hash(component)

    first, other, again = (hash_with(value) for value in (1.0, 2.0, 2.0))
    assert first != other == again


def test_a_setting_called_weights_is_in_the_key_of_a_component_that_is_not_learned():
    class Window(defend.Purifier):
        """A purifier that is not learned."""

        card = defend.Card(paper="none: test", gradient="exact", stochastic=False)
        weights: str = "flat"

        def purify(self, x, noise):
            return x

    flat, peaked = (component_key(Window(weights=w), "defense") for w in ("flat", "peaked"))
    assert flat != peaked


@pytest.mark.usefixtures("plugin")
def test_requirements_of_a_plugin_are_in_the_key_by_their_versions(tmp_path, install):
    """Only its own requirements count, and of these only the installed ones."""
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


CONTENTS_OF_LEARNED = {
    "a tensor beside its network": ({"table": torch.ones(1)}, True),
    "its network": ({}, False),
}


@pytest.mark.parametrize("name", CONTENTS_OF_LEARNED)
def test_the_network_of_a_learned_component_is_known_by_its_file(name):
    attributes, has_content = CONTENTS_OF_LEARNED[name]
    component = defend.load("split-vqvae", dataset="digits-m")
    vars(component).update(attributes)
    assert bool(content_hash(component)) == has_content


def test_the_files_of_two_roles_cannot_be_swapped():
    class Pair(type(defend.load("bitdepth"))):
        """A component with two files of weights."""

        weights_sha256 = {}

    one, other = Pair(), Pair()
    one.weights_sha256 = {"coarse": "a", "fine": "b"}
    other.weights_sha256 = {"coarse": "b", "fine": "a"}
    assert component_key(one, "defense") != component_key(other, "defense")


def test_modules_of_a_chain_are_those_of_its_members():
    modules = modules_of(defend.load("median+gaussian:sigma=0.1"))
    assert {"defend.defenses.median", "defend.defenses.gaussian"} <= modules
    assert not any(module.startswith(("torch", "art")) for module in modules)
