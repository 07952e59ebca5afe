"""Fixtures and markers that all tests share."""

import os
import shutil
import subprocess
import sys
from importlib import invalidate_caches
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# One thread for each process, subprocesses included. It must be set before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("defend", deadline=None)  # no test asserts a time
settings.load_profile("defend")

# The folders that a test with @pytest.mark.data needs if it names none.
DATA_FOLDERS = ("MNIST", "FashionMNIST", "cifar-10-batches-py", "lfw158")


def pytest_configure():
    installed = [p.dist.name for p in entry_points(group="defend.defenses") if p.dist]
    if "defend-purifiers" not in installed:
        pytest.exit(
            "expected the entry points of defend-purifiers, got none; run `pip install -e .` first",
            returncode=4,
        )


def pytest_runtest_setup(item):
    """Skip tests that need a GPU or data that this machine does not have.

    The markers are @pytest.mark.gpu, and @pytest.mark.data("MNIST", ...) with folders of
    DEFEND_DATA.
    """
    import torch

    torch.set_num_threads(1)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, which this machine does not have")
    for mark in item.iter_markers("data"):
        reason = reason_to_skip(mark.args or DATA_FOLDERS)
        if reason:
            pytest.skip(reason)


def reason_to_skip(folders):
    """Return why a test cannot run that needs these folders of DEFEND_DATA, or ""."""
    root = os.environ.get("DEFEND_DATA")
    if not root:
        return f"needs DEFEND_DATA, a folder that holds {', '.join(folders)}"
    missing = [f for f in folders if not (Path(root) / f).is_dir()]
    return f"{root} has no {', '.join(missing)}" if missing else ""


@pytest.fixture
def data_root():
    """The folder of real data; the test is skipped if DEFEND_DATA is not set."""
    reason = reason_to_skip(())
    if reason:
        pytest.skip(reason)
    return Path(os.environ["DEFEND_DATA"])


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A folder that all workers of a test run share; without pytest-xdist there is one worker."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(run_folder):
    """Keep the tests out of the user's cache. Files in a cache are written atomically, so that
    workers may share one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run_folder / "cache"))
        yield


@pytest.fixture(scope="session")
def plugin_folder(run_folder):
    """A folder with tests/plugin_package, installed by pip: the user's environment stays as it was.

    The first worker that needs it installs it.
    """
    folder = run_folder / "plugin"
    with FileLock(run_folder / "plugin.lock"):
        if not folder.exists():
            install_plugin_package(folder, run_folder)
    return folder


def install_plugin_package(folder, run_folder):
    """Install tests/plugin_package into a folder, which exists only once it is complete."""
    source, incomplete = run_folder / "plugin-source", run_folder / "plugin-incomplete"
    # pip builds in the source folder and leaves files behind, so it gets a copy.
    shutil.copytree(Path(__file__).parent / "plugin_package", source, dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    process = subprocess.run(
        [*pip, *offline, "--target", str(incomplete), str(source)], capture_output=True, text=True
    )
    if process.returncode:
        pytest.fail(
            "pip could not install tests/plugin_package; it builds with setuptools>=77, which "
            f"`pip install -e .[test]` brings:\n{process.stderr}"
        )
    incomplete.rename(folder)


@pytest.fixture
def install(monkeypatch):
    """A function install(folder): its packages and entry points are installed until the test ends,
    for subprocesses too.
    """
    from defend.registry import REGISTRY
    from defend.weights.zoo import read_zoo

    def clear_caches():
        invalidate_caches()
        REGISTRY.__dict__.pop("_entries", None)
        read_zoo.cache_clear()

    def install_folder(folder):
        monkeypatch.syspath_prepend(str(folder))
        paths = [str(folder)]
        if os.environ.get("PYTHONPATH"):
            paths.append(os.environ["PYTHONPATH"])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        clear_caches()
        return folder

    modules = set(sys.modules)
    yield install_folder
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] == "defend_bitcut":
            del sys.modules[name]
    monkeypatch.undo()
    clear_caches()


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
