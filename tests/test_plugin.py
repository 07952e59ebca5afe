"""A third-party package, installed by pip and used by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import defend
from defend.errors import BrokenPlugin
from defend.registry import REGISTRY


def run(*args, **kwargs):
    """Exit status, standard output, standard error."""
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, **kwargs)
    return done.returncode, done.stdout, done.stderr


def bench(options, folder):
    return run(
        "-m", "defend", "bench", *options.split(), "--device", "cpu", "--out", str(folder / "run")
    )


@pytest.mark.usefixtures("plugin")
def test_names_are_found_beside_those_at_home():
    assert {"defend-bitcut/bitcut", "defend-bitcut/broken", "defend/none"} <= {
        e.full_name for e in REGISTRY.entries("defense")
    }
    assert defend.load("bitcut:bits=2").bits == 2
    assert defend.load("defend-bitcut/bitcut").bits == 3
    assert defend.load("stripes", "dataset").count("test") == 256


def test_it_is_gone_when_the_test_ends():
    assert "bitcut" not in {e.name for e in REGISTRY.entries("defense")}


@pytest.mark.usefixtures("plugin")
def test_a_broken_entry_is_named_and_the_others_live():
    with pytest.raises(
        BrokenPlugin,
        match=r"defense 'broken' from defend-bitcut 0\.1\.0 could not be imported .*ModuleNotFoundError",
    ):
        REGISTRY.create("defense", "broken")
    assert defend.load("bitcut+gaussian").card.stochastic


@pytest.mark.usefixtures("plugin")
def test_its_own_test_file_passes():
    """The conformance kit as a plugin's author runs it, outside this repository's settings."""
    here = Path(__file__).parent / "plugin_package"
    code, out, _ = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "test_bitcut.py", cwd=here
    )
    assert code == 0, out


@pytest.mark.usefixtures("plugin")
def test_by_name_through_the_bench(tmp_path):
    """In a process of its own, whose workers are processes too."""
    options = [
        "--dataset",
        "digits",
        "--defense",
        "bitcut:bits=2",
        "--defense",
        "defend-bitcut/bitcut+gaussian",
        "--attack",
        "fgm:eps=0.5",
        "--n",
        "24",
    ]
    code, out, err = run(
        "-m",
        "defend",
        "bench",
        *options,
        "--draws",
        "3",
        "--eot",
        "2",
        "--device",
        "cpu",
        "--workers",
        "2",
        "--json",
        "--out",
        str(tmp_path / "run"),
    )
    assert code == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert {r["defense"] for r in records} == {"bitcut:bits=2", "defend-bitcut/bitcut+gaussian"}
    assert all(
        r["attack"].startswith("fgm")
        and r["norm"] == "L2"
        and r["eps"] == 0.5
        and r["error"] is None
        for r in records
    )
    assert next(r["settings"]["defense"] for r in records if r["defense"] == "bitcut:bits=2") == {
        "bits": 2
    }
