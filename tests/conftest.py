"""Fixtures and markers that all tests share."""

import os
import shutil
import subprocess
import sys
from importlib import invalidate_caches
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # for subprocesses too, and before torch is loaded

settings.register_profile("defend", deadline=None)  # no asserted times
settings.load_profile("defend")

SETS = (
    "MNIST",
    "FashionMNIST",
    "cifar-10-batches-py",
    "lfw158",
)  # folders that `data` asks for where a test names none


def pytest_configure():
    if not any(p.dist and p.dist.name == "defend" for p in entry_points(group="defend.defenses")):
        pytest.exit(
            "defend is not installed, so its entry points are missing: run `pip install -e .` first",
            returncode=4,
        )


def pytest_runtest_setup(item):
    """@pytest.mark.gpu, and @pytest.mark.data("MNIST", ...): folders in DEFEND_DATA."""
    import torch

    torch.set_num_threads(1)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, this machine has none")
    for mark in item.iter_markers("data"):
        if reason := absent(mark.args or SETS):
            pytest.skip(reason)


def absent(folders):
    """Why a test on these folders cannot run; nothing where it can."""
    root = os.environ.get("DEFEND_DATA")
    if not root:
        return f"needs DEFEND_DATA, a folder that holds {', '.join(folders)}"
    missing = [f for f in folders if not (Path(root) / f).is_dir()]
    return f"{root} has no {', '.join(missing)}" if missing else None


@pytest.fixture
def data_root():
    """The folder of real data; the test is skipped where there is none."""
    if reason := absent(()):
        pytest.skip(reason)
    return Path(os.environ["DEFEND_DATA"])


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory):
    """tests/plugin_package, installed by pip into a folder of its own: the user's environment stays as it was."""
    source = tmp_path_factory.mktemp("source") / "package"  # a copy: building leaves folders behind
    shutil.copytree(Path(__file__).parent / "plugin_package", source)
    folder = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*pip, "--target", str(folder), str(source)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.fail(
            f"pip could not install tests/plugin_package (it builds with setuptools>=77, which `pip install -e .[test]` brings):\n{done.stderr}"
        )
    return folder


@pytest.fixture
def install(monkeypatch):
    """install(folder): its packages and entry points are found from here on, by subprocesses too, until the test ends."""
    from defend.registry import REGISTRY
    from defend.weights.zoo import read_zoo

    def forget():
        invalidate_caches()
        REGISTRY.__dict__.pop("_entries", None)
        read_zoo.cache_clear()

    def seen(folder):
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv(
            "PYTHONPATH",
            os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        )
        forget()
        return folder

    modules = set(sys.modules)
    yield seen
    for name in {m for m in sys.modules if m.partition(".")[0] == "defend_bitcut"} - modules:
        del sys.modules[name]
    monkeypatch.undo()
    forget()


@pytest.fixture
def plugin(install, plugin_folder):
    """The third-party package, installed."""
    return install(plugin_folder)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The folder and the records of one small bench that nothing disturbed."""
    from bench_suite import SMALL

    import defend

    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, defend.bench(SMALL, out=folder, workers=1)
