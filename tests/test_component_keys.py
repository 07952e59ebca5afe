"""What identifies a component in a unit's key: settings, weights, contents, code and versions."""

import hashlib
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench_suite import SMALL
from tiny_priors import tiny, write_prior

import defend
from defend.benchmarks.component_keys import (
    component_key,
    content_hash,
    modules_of,
    optional_versions,
    requirement_versions,
)
from defend.benchmarks.components import Components
from defend.benchmarks.expand import expand
from defend.benchmarks.suite import make_suite
from defend.benchmarks.units import _LIBRARIES, KeyInputs, shard_size
from defend.numerics import NumericSettings
from defend.registry import REGISTRY


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


# Units.


@pytest.mark.parametrize(
    ("size", "uniform", "task", "images"),
    [
        (768, True, "classification", 256),  # as before there were photographs
        (768, False, "classification", 4),
        (768, True, "reconstruction", 4),
        (768, False, "reconstruction", 4),
        (224, True, "reconstruction", 256),
    ],
)
def test_few_photographs_make_a_unit_where_no_older_unit_would_be_lost(size, uniform, task, images):
    data = SimpleNamespace(channels=3, size=size, uniform=uniform)
    components = SimpleNamespace(data=data, device=torch.device("cpu"))
    assert shard_size("auto", components, task) == images
    assert shard_size(7, components, task) == 7


# Optional libraries.

WITH_EXTRAS = {
    ("defense", "two-stage"): {"diffusers"},
    ("defense", "diffpure"): {"diffusers"},
    ("classifier", "huggingface"): {"huggingface_hub", "transformers"},
    ("classifier", "timm"): {"timm"},
}


def test_extras_count_for_the_components_that_import_them_and_for_no_other():
    for kind in ("defense", "classifier", "attack"):
        for entry in REGISTRY.entries(kind):
            module = entry.target.partition(":")[0]
            expected = WITH_EXTRAS.get((kind, entry.name), set())
            assert set(optional_versions({module})) == expected, entry.name


@pytest.mark.parametrize(
    ("text", "libraries"),
    [
        ("def build():\n    net = import_extra('click.core', 'x[y]')", {"click"}),
        ("import defend.weights.third_party as t\nt.import_extra('click', 'x')", {"click"}),
        ("from . import deep", {"filelock"}),
        ("import_extra('nowhere_to_be_found', 'x')", set()),
        ("import click", set()),
        ("from defend.weights.third_party import load_pretrained", set()),
    ],
)
def test_an_extra_is_what_import_extra_names_however_deep(text, libraries, tmp_path, monkeypatch):
    """What is not installed has no version; what the bench itself may take is no extra."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = f"extra_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "main.py").write_text(text)
    (tmp_path / package / "deep.py").write_text("import_extra('filelock', 'x')")
    versions = optional_versions({f"{package}.main"})
    assert versions == {name: metadata.version(name) for name in libraries}


def test_a_package_to_import_is_known_by_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "with_pil.py").write_text("import_extra('PIL.Image', 'x')")
    (number,) = optional_versions({"with_pil"}).values()
    assert metadata.version("pillow") in number


def libraries_of(defense):
    """Return the libraries in the key of a cell of digits behind a defense, and in the key of a
    BPDA network that imitates the defense.
    """
    suite = make_suite(
        SMALL | {"defenses": [defense], "attacks": ["fgsm"], "knowledge": ["oblivious"]}
    )
    components = Components("digits", None, torch.device("cpu"))
    (cell, *_), _ = expand(suite, components)
    numerics = NumericSettings(precision="float32", layout="contiguous", threads=1, device="cpu")
    fitted = components.bpda._key_inputs(cell.classifier, defense)
    return KeyInputs(components, numerics).of_cell(cell)["libraries"], fitted.get("libraries")


@pytest.mark.filterwarnings("ignore:two-stage. grey images")
def test_the_version_of_an_extra_is_in_the_keys_of_its_cells_alone(tmp_path):
    prior = write_prior(tmp_path / "prior.safetensors", tiny(channels=1, steps=1))
    extra = {"diffusers": metadata.version("diffusers")}
    with_extra = libraries_of(f"two-stage:weights={prior},steps=1+median")
    without = libraries_of("median")
    assert set(without[0]) == set(_LIBRARIES) and without[1] is None
    assert with_extra == (without[0] | extra, extra)
