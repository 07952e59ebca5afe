"""A third-party package, installed by pip and used by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import defend
from defend.errors import BrokenPlugin
from defend.registry import REGISTRY

PLUGIN_FOLDER = Path(__file__).parent / "plugin_package"


def run_python(*args, cwd=None):
    """Run Python with these arguments in a process of its own."""
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=cwd)


@pytest.mark.usefixtures("plugin")
def test_its_names_stand_beside_the_built_in_ones():
    names = {e.full_name for e in REGISTRY.entries("defense")}
    assert {"defend-bitcut/bitcut", "defend-bitcut/broken", "defend/none"} <= names
    assert defend.load("bitcut:bits=2").bits == 2
    assert defend.load("defend-bitcut/bitcut").bits == 3
    assert defend.load("stripes", "dataset").count("test") == 256


def test_it_is_gone_when_the_test_ends():
    assert "bitcut" not in {e.name for e in REGISTRY.entries("defense")}


@pytest.mark.usefixtures("plugin")
def test_a_broken_entry_is_named_and_the_others_work():
    with pytest.raises(BrokenPlugin) as error:
        REGISTRY.create("defense", "broken")
    for part in ("defense 'broken'", "defend-bitcut 0.1.0", "ModuleNotFoundError"):
        assert part in str(error.value)
    assert defend.load("bitcut+gaussian").card.stochastic


@pytest.mark.usefixtures("plugin")
def test_its_own_test_file_passes():
    """The author of a plugin runs the conformance kit outside this repository's settings."""
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", "."]
    process = run_python("-m", "pytest", *options, "test_bitcut.py", cwd=PLUGIN_FOLDER)
    assert process.returncode == 0, process.stdout


BENCH = """
    --dataset digits --defense bitcut:bits=2 --defense defend-bitcut/bitcut+gaussian
    --attack fgm:eps=0.5 --n 24 --draws 3 --eot 2 --device cpu --workers 2 --json
"""


@pytest.mark.usefixtures("plugin")
def test_by_name_through_the_bench(tmp_path):
    """The bench has a process of its own, and its workers are processes too."""
    out = ["--out", str(tmp_path / "run")]
    process = run_python("-m", "defend", "bench", *BENCH.split(), *out)
    assert process.returncode == 0, process.stderr
    records = [json.loads(line) for line in process.stdout.splitlines()]
    assert {r["defense"] for r in records} == {"bitcut:bits=2", "defend-bitcut/bitcut+gaussian"}
    for record in records:
        assert record["attack"].startswith("fgm")
        assert (record["norm"], record["eps"], record["error"]) == ("L2", 0.5, None)
    bitcut = next(r for r in records if r["defense"] == "bitcut:bits=2")
    assert bitcut["settings"]["defense"] == {"bits": 2}
