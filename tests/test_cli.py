"""The command line as a user meets it: help, list, show, bench, report and check."""

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from image_files import write_images

import defend
from defend.cli import main
from defend.cli.bench import suite_keys
from defend.loading import load
from defend.records import read_records
from defend.registry import GROUPS, REGISTRY

COMMANDS = main.list_commands(None)
SMALL = "--dataset digits --attack fgsm --eps 0.1 --n 8 --draws 2 --device cpu --workers 1"


def run(args, code=0):
    done = CliRunner().invoke(main, args.split() if isinstance(args, str) else args)
    assert done.exit_code == code, done.output
    return done


def run_json(args):
    """Return the JSON objects that a command prints, one for each line."""
    return [json.loads(line) for line in run(args).stdout.splitlines()]


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    text = run(f"{command} --help").stdout
    assert text.startswith(f"Usage: defend {command} ")
    assert len(text.splitlines()) > 5


def test_help_lists_every_command():
    text = run("--help").stdout
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert run([]).stdout == text == run("-h").stdout
    assert defend.__version__ in run("--version").stdout


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "--json"],
        ["list", "weights"],
        ["bench", "--help"],
        ["lisst"],
    ],
    ids=" ".join,
)
def test_quick_commands_load_nothing_heavy(args):
    code = f"""
import sys
from defend.cli import main
try:
    main({args!r})
except SystemExit:
    print("loaded", {{"torch", "art", "numpy", "pydantic"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded set()", done


def test_python_m_defend_is_the_command():
    command = [sys.executable, "-m", "defend", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == run("--help").stdout.split()


# list and show.


@pytest.mark.parametrize("kind", GROUPS)
def test_list_names_every_component(kind):
    names = [entry.name for entry in REGISTRY.entries(kind)]
    rows = run_json(f"list {kind}s --json")
    assert [row["name"] for row in rows] == names
    assert all(row["kind"] == kind and row["package"] == "defend-purifiers" for row in rows)
    assert all(row["version"] for row in rows)
    printed = run(f"list {kind}").stdout.splitlines()[2:-1]
    assert [line.split()[0] for line in printed] == names


PLUGIN_DEFENSES = ("bitcut", "broken", "careless", "detached", "from-file", "grey", "misbehaves")


@pytest.mark.usefixtures("plugin")
def test_list_shows_a_broken_plugin_beside_the_others():
    lines = run("list defenses").stdout.splitlines()
    rows = [line.split() for line in lines if "bitcut" in line]
    assert rows == [[name, "defend-bitcut", "0.1.0"] for name in PLUGIN_DEFENSES]


ALL_COMPONENTS = [(kind, entry.name) for kind in GROUPS for entry in REGISTRY.entries(kind)]


@pytest.mark.parametrize(("kind", "name"), ALL_COMPONENTS)
def test_show_describes_every_component(kind, name):
    (facts,) = run_json(f"show {kind} {name} --json")
    assert facts["name"] == f"defend/{name}"
    assert facts["about"]
    assert facts["source"].partition(":")[0].endswith(".py")
    assert facts["card"] or name == "art"  # a function that wraps any class of ART
    text = run(f"show {kind} {name}").stdout
    for field, description in facts["fields"].items():
        assert f"{field}: {description['type']}" in text


def test_show_writes_defaults_as_in_a_spec():
    (facts,) = run_json("show gaussian --json")
    assert facts["fields"]["sigma"] == {"type": "float", "default": "0.1"}
    assert facts["card"]["stochastic"] is True


def test_show_shows_the_fields_of_the_spec():
    assert "size: int = 5" in run("show median:size=5").stdout
    assert "size: int = 3" in run("show median").stdout


@pytest.mark.usefixtures("plugin")
def test_show_names_the_package_of_a_plugin():
    assert run_json("show bitcut --json")[0]["package"] == "defend-bitcut 0.1.0"


# bench and report.

TWO_DEFENSES = f"bench {SMALL} --json --defense none --defense gaussian:sigma=0.05 --eot 1"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Return a run folder and its records as JSON."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_json(f"{TWO_DEFENSES} --out {folder}")


def test_json_is_one_record_per_line_in_the_order_of_the_options(finished_run):
    _, records = finished_run
    half = len(records) // 2
    defenses = [record["defense"] for record in records]
    assert defenses == ["none"] * half + ["gaussian:sigma=0.05"] * half
    assert all(r["n"] == 8 and r["eps"] == 0.1 and r["error"] is None for r in records)


def test_the_same_command_again_computes_nothing(finished_run):
    folder, records = finished_run

    def unit_times():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}

    before = unit_times()
    assert run_json(f"{TWO_DEFENSES} --out {folder}") == records
    assert unit_times() == before


def test_bench_prints_a_table_and_writes_a_report(finished_run):
    folder, _ = finished_run
    text = run(f"bench {SMALL} --defense none --eot 1 --out {folder}").stdout
    assert "none" in text
    assert "fgsm" in text
    assert "no claim" in text
    assert (folder / "report.html").stat().st_size
    assert (folder / "results.csv").stat().st_size


def test_report_prints_the_names_of_its_files(finished_run):
    folder, _ = finished_run
    (folder / "report.html").unlink()
    names = run(f"report {folder}").stdout.split()
    assert names == [str(folder / "report.html"), str(folder / "results.csv")]
    assert "<html" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("plugin")
def test_a_failed_cell_is_exit_1_and_the_others_finish(tmp_path):
    args = "--json --attack leaves-the-ball --defense none --knowledge oblivious"
    done = run(f"bench {SMALL} {args} --out {tmp_path}", 1)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["attack"]: r["error"] is None for r in records} == {
        "fgsm": True,
        "leaves-the-ball": False,
    }
    assert "failed: none, leaves-the-ball, oblivious, before convnet, eps " in done.stderr


def test_options_replace_the_keys_of_a_suite(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "dataset = 'digits'\nclassifiers = ['convnet']\ndefenses = ['none']\n"
        "attacks = ['fgsm']\neps = [0.1]\nn = 8\n"
    )
    assert suite_keys(file, {"n": 4, "defenses": ["median"]}) == {
        "name": "mine",
        "dataset": "digits",
        "classifiers": ["convnet"],
        "defenses": ["median"],
        "attacks": ["fgsm"],
        "eps": [0.1],
        "n": 4,
    }


def test_without_a_suite_options_replace_those_of_the_embedded_one():
    embedded = suite_keys(None, {})
    assert embedded["name"] == "embedded"
    assert embedded["dataset"] == "digits-m"
    assert suite_keys(None, {"n": 4}) == {**embedded, "name": "adhoc", "n": 4}


@pytest.mark.parametrize("overrides", [{"dataset": "mnist"}, {"attacks": ["pgd:norm=L2"]}], ids=str)
def test_the_embedded_eps_is_for_its_own_data_and_norm(overrides):
    assert "eps" not in suite_keys(None, overrides)
    assert suite_keys(None, {**overrides, "eps": "0.3"})["eps"] == "0.3"


def test_a_protocol_decides_attacks_eps_eot_and_n():
    keys = suite_keys(None, {"protocol": "ladder-1"})
    assert not keys.keys() & {"attacks", "eps", "eot", "n"}
    assert suite_keys(None, {"protocol": "ladder-1", "n": 16})["n"] == 16


@pytest.mark.parametrize("others", [{}, {"protocol": "ladder-1"}, {"n": 4}], ids=str)
def test_the_default_task_changes_nothing_when_it_is_named(others):
    keys = suite_keys(None, {"task": "classification", **others})
    assert keys.pop("task") == "classification"
    assert keys == suite_keys(None, others) | {"name": "adhoc"}


def test_another_task_has_its_own_attacks_at_the_claim_eps():
    keys = suite_keys(None, {"task": "reconstruction"})
    assert keys["attacks"] == ["codec-distortion"]
    assert not keys.keys() & {"eps", "classifiers"}


def test_without_n_a_small_data_set_is_run_whole(tmp_path):
    """The embedded suite has 200 images, this folder five."""
    write_images(tmp_path / "plain", [f"{i}.png" for i in range(50)], size=(16, 16))
    dataset = f"image-folder:size=16,path={tmp_path / 'plain'}"
    count = load(dataset, "dataset").count("test")
    assert 0 < count < 50
    command = ["bench", "--task", "reconstruction", "--dataset", dataset, "--defense", "jpeg"]
    command += [
        "--attack",
        "codec-distortion:steps=1,eps=0.03",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    run([*command, "--workers", "1", "--device", "cpu"])
    assert {record.n for record in read_records(tmp_path / "run")} == {count}
    suite = {
        "task": "reconstruction",
        "dataset": dataset,
        "defense": "none",
        "attack": "fgsm:eps=0.1",
    }
    records = defend.bench(suite, out=tmp_path / "other", workers=1, device="cpu")
    assert {record.n for record in records} == {count}


LONG_SUITE = """
dataset = "digits"
classifiers = ["convnet"]
defenses = ["none"]
attacks = ["pgd:steps=1000"]
knowledge = ["oblivious"]
eps = [0.1]
n = 128
shard = 8
"""


def start_bench(suite, workers, out):
    """Start a run in a process group of its own, as a terminal does."""
    args = ["bench", suite, "--device", "cpu", "--workers", workers, "--out", out]
    return subprocess.Popen(
        [sys.executable, "-m", "defend", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore SIGINT, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_unit(process, run_dir):
    """Return when the run has written its first unit; fail if it ends before.

    Until then it imports modules. Python ends by the signal itself, with exit code -2, if SIGINT
    arrives while a module evaluates text by `exec`, as dataclasses do.
    """
    while not list(run_dir.glob("units/*/*.safetensors")):
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(process.stderr.read())


@pytest.mark.parametrize(
    ("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (1, signal.SIGTERM)]
)
def test_an_interrupted_run_is_exit_130_and_keeps_its_units(tmp_path, workers, number):
    """Control-C reaches the whole group of processes; a batch system's SIGTERM has that effect."""
    suite, run_dir = tmp_path / "long.toml", tmp_path / "run"
    suite.write_text(LONG_SUITE)
    process = start_bench(suite, workers, run_dir)
    try:
        wait_for_unit(process, run_dir)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "defend: interrupted"
    assert "Traceback" not in err
    assert "run the same command again" in err
    assert str(run_dir) in err
    assert list(run_dir.glob("units/*/*.safetensors"))
    assert not list(tmp_path.rglob("*.part"))


# check.


def test_check_passes_a_sound_component():
    lines = run("check gaussian:sigma=0.05").stdout.splitlines()
    assert lines[0] == "defense gaussian:sigma=0.05"
    assert not any(" fail" in line for line in lines)
    assert "pass" in lines[-1]


@pytest.mark.usefixtures("plugin")
def test_check_is_exit_1_if_a_check_fails():
    text = run("check leaves-the-ball", code=1).stdout
    assert "fail" in text
    assert "left the Linf ball" in text
    assert run("check defense defend-bitcut/bitcut+gaussian")
