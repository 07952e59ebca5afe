"""The hash of code forgives prose and layout, and nothing else."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from defend import tasks
from defend.benchmarks import code_hash
from defend.benchmarks.code_hash import hash_module, hash_packages, hash_source
from defend.benchmarks.no_classifier import NoClassifier
from defend.benchmarks.units import KeyInputs
from defend.errors import DefendError
from defend.loading import load
from defend.tasks.registry import load_task
from defend.threat_models import Pipeline

SOURCE = '''
"""A module."""

class Blur:
    """A purifier."""

    def purify(self, x):
        """Return x blurred."""
        if x is None:
            raise ValueError(f"expected a batch, got {x}")
        return x * 2  # twice
'''
FORGIVEN = {
    "a docstring": ('"""A purifier."""', '"""Blur an image."""'),
    "a comment": ("# twice", "# doubled"),
    "layout": ("x * 2", "(\n            x * 2\n        )"),
    "a blank line": ("class Blur", "\n\nclass Blur"),
    "the text of an error": ("expected a batch, got {x}", "no batch: {x}"),
}
COUNTED = {
    "a constant": ("x * 2", "x * 3"),
    "a name": ("purify", "purified"),
    "a condition": ("x is None", "x is not None"),
    "the class of an error": ("ValueError", "TypeError"),
    "a text that is returned": ("x * 2", "'x * 2'"),
}


@pytest.mark.parametrize("change", FORGIVEN)
def test_prose_and_layout_are_forgiven(change):
    old, new = FORGIVEN[change]
    assert old in SOURCE
    assert hash_source(SOURCE.replace(old, new)) == hash_source(SOURCE)


@pytest.mark.parametrize("change", COUNTED)
def test_everything_else_counts(change):
    old, new = COUNTED[change]
    assert old in SOURCE
    assert hash_source(SOURCE.replace(old, new)) != hash_source(SOURCE)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return write(name=source, ...) -> the hash of the package's module `main`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        for name in [m for m in sys.modules if m.startswith("hashed_package")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        for name in ("hash_module", "_tree", "_file", "_imports"):
            getattr(code_hash, name).cache_clear()

    def write(**sources):
        folder = tmp_path / "hashed_package"
        folder.mkdir(exist_ok=True)
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        forget()
        return hash_packages({"hashed_package.main"})["hashed_package"]

    yield write
    forget()


IMPORTS = {
    "import": "import hashed_package.used",
    "from a package": "from hashed_package import used",
    "a name of a module": "from hashed_package.used import f",
    "relative": "from . import used",
    "relative, a name": "from .used import f",
    "inside a function": "def g():\n    from hashed_package.used import f",
    "by a computed name": "import importlib\nimportlib.import_module('hashed_package.' + 'used')",
}


@pytest.mark.parametrize("style", IMPORTS)
def test_an_imported_module_counts(package, style):
    before = package(main=IMPORTS[style], used="x = 1", __init__="")
    assert package(used="x = 2") != before


def test_a_module_that_is_not_imported_does_not_count(package):
    before = package(main="from . import used", used="x = 1", other="x = 1", __init__="")
    assert package(other="x = 2") == before


def test_a_module_imported_by_an_imported_one_counts(package):
    before = package(main="from . import used", used="from . import deep", deep="x = 1")
    assert package(deep="x = 2") != before


def test_a_package_without_init_is_hashed(package):
    before = package(main="x = 1")
    assert package(main="x = 2") != before


def test_code_of_the_bench_counts_for_every_component_and_reports_for_none(package):
    package(main="x = 1")
    reached = code_hash._reachable({"defend.benchmarks.execute"}, {"defend"})
    assert {"defend.attack", "defend.noise", "defend.benchmarks.scoring"} <= reached
    rooms = {module.split(".")[1] for module in reached - {"defend"}}
    assert not rooms & {"cli", "results", "audit", "testing"}


def test_a_module_without_source_is_refused():
    with pytest.raises(DefendError, match="math"):
        hash_packages({"math"})


OWN_MODULES = {  # task -> modules of defend/tasks whose code its cells are computed by
    "classification": {"task", "classification"},
    "identification": {"task", "goals", "identification"},
    "verification:goal=impersonation": {"task", "goals", "verification", "error_rates"},
    "reconstruction": {"task", "reconstruction"},
}


@pytest.mark.parametrize("spec", OWN_MODULES)
def test_a_cell_is_known_by_the_code_of_its_own_task_and_of_no_other(spec, monkeypatch):
    task = load_task(spec)
    components = SimpleNamespace(
        attack=lambda _: load("fgsm", "attack"),
        classifier=lambda _: NoClassifier(),
        defense=lambda _: load("none"),
    )
    pipeline = Pipeline(classifier="none", defense="none")
    cell = SimpleNamespace(task=task, bare_attack="fgsm", attacked=pipeline, scored=pipeline)

    def code():
        return KeyInputs(components, None).code_of(cell)

    before = code()
    for path in Path(tasks.__file__).parent.glob("[a-z]*.py"):
        name = f"defend.tasks.{path.stem}"
        with monkeypatch.context() as patch:
            edited = {name: "edited"}
            patch.setattr(code_hash, "hash_module", lambda m, e=edited: e.get(m) or hash_module(m))
            assert (code() != before) == (path.stem in OWN_MODULES[spec]), path.stem
