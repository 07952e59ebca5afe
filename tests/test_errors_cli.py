"""Errors of the user at the command line.

Each gives one clear line on stderr and exit code 2, no traceback, and nothing on stdout.
"""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from defend.cli import main
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights

BENCH = "bench --dataset digits --device cpu --workers 1 --out {tmp}/run"
SMALL = f"{BENCH} --defense none --attack fgsm --eps 0.1 --n 4"
HEADER = Header(
    kind="classifier",
    component="convnet",
    architecture="convnet",
    dataset="digits",
    fields={"channels": 1, "size": 8, "classes": 10},
    trained_on=TrainedOn(kind="clean"),
    command="",
    seed=0,
    commit="",
)
TENSORS = {"w": torch.zeros(1)}
STRIPES = "defend-bitcut/stripes"  # the name of a plugin's data set in the header of weights


@pytest.fixture
def folder(tmp_path, monkeypatch, install):
    """Return a folder of files to name wrongly, while no network answers."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "suite.toml").write_text("= 3")
    (tmp_path / "near.toml").write_text("dataset = 'digits'\ndefences = ['none']")
    (tmp_path / "file").write_text("x")
    (tmp_path / "image.png").write_text("x")
    (tmp_path / "empty").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    write_weights_files(tmp_path)
    write_zoo_package(tmp_path)
    install(tmp_path)
    return tmp_path


def write_weights_files(folder):
    save_weights(folder / "mine.safetensors", TENSORS, HEADER)
    save_weights(
        folder / "another.safetensors",
        TENSORS,
        replace(HEADER, component="resnet20", architecture="resnet20"),
    )
    (folder / "damaged.safetensors").write_bytes((folder / "mine.safetensors").read_bytes()[:-2])
    (folder / "pickle.pt").write_bytes(b"\x80\x04K\x01.")


def write_zoo_package(folder):
    """Write a package of weights: one file of a wrong hash, and two defaults for one data set."""
    zoo, info = folder / "errors_zoo", folder / "errors_zoo-1.0.dist-info"
    zoo.mkdir()
    info.mkdir()
    (zoo / "__init__.py").touch()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: errors-zoo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[defend.weights]\nzoo = errors_zoo\n")
    names = {"one": STRIPES, "two": STRIPES, "wrong-hash": "digits"}
    tables = [write_zoo_entry(zoo, name, dataset) for name, dataset in names.items()]
    (zoo / "zoo.toml").write_text("\n".join(tables))
    replaced = zoo / "wrong-hash.safetensors"
    replaced.write_bytes(b"\0" + replaced.read_bytes()[1:])


def write_zoo_entry(zoo, name, dataset):
    """Write a file of weights, and return its table for zoo.toml."""
    path = zoo / f"{name}.safetensors"
    save_weights(path, TENSORS, replace(HEADER, dataset=dataset))
    values = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "kind": "classifier",
        "component": "convnet",
        "dataset": dataset,
        "licence": "MIT",
        "command": "none",
        "seed": 0,
        "trained_on": "clean",
        "default": dataset == STRIPES,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([f"[{name}]", *lines])


# Arguments -> what the line must contain: the wrong value, and what would be right.

COMMAND = {
    "bnch": ["'bnch'", "Did you mean bench?", "`defend --help`"],
    "bench --defence none": ["No such option '--defence'"],
    "bench --n many": ["'many' is not a valid integer"],
    "report": ["Missing argument"],
    "purify none": ["Missing argument"],
}
NAMES = {
    "list defence": ["'defence'", "defenses"],
    "show gausian": ["'gausian'", "Did you mean gaussian?"],
    "show defence gaussian": [
        "'defence'",
        "defense, attack, classifier, dataset",
        "Did you mean defense?",
    ],
    "show art": ["'art'", "defense, attack", "`defend show defense art`"],
    "show": ["[KIND] NAME", "nothing"],
    "show a b c": ["[KIND] NAME", "a b c"],
    "show weights nothing": ["weights 'nothing'"],
    "check medan": ["'medan'", "Did you mean median?"],
    f"{SMALL} --defense meddian": ["defense 'meddian'", "Did you mean median?"],
    f"{SMALL} --defense lenet": ["defense 'lenet'", "classifier"],
    f"{SMALL} --attack pdg": ["attack 'pdg'", "Did you mean pgd?"],
    f"{SMALL} --classifier convnett": ["classifier 'convnett'", "Did you mean convnet?"],
    f"{SMALL} --dataset digit": ["dataset 'digit'", "Did you mean digits"],
    f"{SMALL} --knowledge adaptiv": [
        "knowledge 'adaptiv'",
        "oblivious, transfer, query, adaptive, bpda, all",
        "Did you mean adaptive?",
    ],
    f"{SMALL} --gradient declard": ["'declard'", "Did you mean declared?"],
    f"{SMALL} --protocol ladder-0": ["protocol 'ladder-0'", "ladder-1"],
    f"{SMALL} --split training": ["split", "training"],
}
FIELDS = {
    f"{SMALL} --defense median:sise=3": ["'median'", "'sise'", "size"],
    f"{SMALL} --defense median:size=\uff13": ["'median'", "size=", "a whole number"],
    f"{SMALL} --defense gaussian:sigma=much": ["'gaussian'", "sigma=much", "a number"],
    f"{SMALL} --defense gaussian:sigma=-1": ["sigma=-1", ">= 0"],
    f"{SMALL} --defense gaussian:sigma": ["key=value", "'sigma'"],
    f"{SMALL} --defense gaussian:seed=1": ["gaussian:seed=1", "--seed"],
    f"{SMALL} --attack pgd:steps=2.5": ["'pgd'", "steps=2.5", "a whole number"],
    f"{SMALL} --attack pgd:steps=0": ["steps=0", ">= 1"],
    f"{SMALL} --attack pgd+fgsm": ["pgd+fgsm", "only defenses"],
    "check gaussian:sigma=x": ["sigma=x", "a number"],
}
NUMBERS = {
    f"{SMALL} --eps -0.1": ["eps", "-0.1", ">= 0"],
    f"{SMALL} --eps abc": ["eps", "'abc'", ">= 0"],
    f"{SMALL} --eps 8/0": ["8/0", "8/255"],
    f"{SMALL} --eps 0:0.3": ["0:0.3", "start:stop:step"],
    f"{SMALL} --attack fgsm:eps=-1": ["eps", "-1", ">= 0"],
    f"{SMALL} --n 0": ["n:", "greater than or equal to 1", "0"],
    f"{SMALL} --n -5": ["n:", "greater than or equal to 1", "-5"],
    f"{SMALL} --n 1000000": ["1000000", "--n"],
    f"{SMALL} --draws 0": ["draws"],
    f"{SMALL} --seed -1": ["seed"],
    f"{SMALL} --workers 0": ["workers 0", ">= 1"],
    f"{BENCH} --defense none --attack pgd:norm=L2 --n 4": ["L2", "--eps"],
    f"{SMALL} --attack pgd:norm=L2": ["norms"],
    f"{SMALL} --knowledge query": ["nothing is left to run"],
}
FILES = {
    "bench {tmp}/nothing.toml": ["{tmp}/nothing.toml", "No such file"],
    "bench {tmp}/suite.toml": ["{tmp}/suite.toml", "not TOML"],
    "bench {tmp}/near.toml --out {tmp}/run": ["'defences'", "Did you mean defenses"],
    f"{SMALL} --out {{tmp}}/file/run": ["--out {tmp}/file/run", "cannot be written"],
    "report {tmp}/nothing": ["{tmp}/nothing"],
    "report {tmp}/empty": ["{tmp}/empty"],
    f"{SMALL} --dataset mnist --data-root {{tmp}}/empty": ["MNIST", "{tmp}/empty/MNIST/raw"],
    f"{SMALL} --dataset image-folder:path={{tmp}}/nothing": ["{tmp}/nothing"],
    "check dataset mnist --data-root {tmp}/empty": ["MNIST", "{tmp}/empty/MNIST/raw"],
    "purify none {tmp}/nothing.png --out {tmp}/clean": ["{tmp}/nothing.png", "no such image"],
    "purify none {tmp}/image.png --out {tmp}/clean": ["{tmp}/image.png", "no image"],
    "purify none {tmp}/deep.png --out {tmp}/clean": ["{tmp}/deep.png", "8 bits per channel"],
    "purify none {tmp}/empty --out {tmp}/clean": ["{tmp}/empty", "no images"],
    "purify none {tmp}/grey.png --out {tmp}": ["{tmp}/grey.png", "would overwrite an input"],
    "purify none {tmp}/grey.png --out {tmp}/file/x": ["{tmp}/file/x", "cannot be written"],
    "audit median --dataset digits --classifier convnet --out page.txt": ["page.txt", "page.html"],
}
DEVICES = {
    f"{SMALL} --device cuda:99": ["device 'cuda:99'"],
    f"{SMALL} --device gpu": ["device 'gpu'"],
    "purify none {tmp}/grey.png --out {tmp}/clean --device tpu": ["device 'tpu'"],
}
CONVNET = f"{SMALL} --classifier convnet:weights="
WEIGHTS = {
    f"{CONVNET}untrained": ["weights=untrained"],
    f"{SMALL} --surrogate convnet:weights=untrained": ["`defend train classifier convnet`"],
    f"{SMALL} --surrogate split-vqvae:weights=untrained+convnet": [
        "`defend train defense split-vqvae`"
    ],
    f"{CONVNET}conv": ["weights", "'conv'"],
    f"{CONVNET}{{tmp}}/damaged.safetensors": ["{tmp}/damaged.safetensors", "damaged"],
    f"{CONVNET}{{tmp}}/pickle.pt": ["{tmp}/pickle.pt", "not a weights file of defend"],
    f"{CONVNET}{{tmp}}/another.safetensors": ["'resnet20'", "'convnet'"],
    f"{CONVNET}{{tmp}}/mine.safetensors,channels=3": ["channels=1", "channels=3"],
    f"{CONVNET}{{tmp}}/mine.safetensors": ["{tmp}/mine.safetensors", "does not fit"],
    f"{CONVNET}wrong-hash": ["wrong-hash.safetensors", "zoo.toml"],
}
ERRORS = {**COMMAND, **NAMES, **FIELDS, **NUMBERS, **FILES, **DEVICES, **WEIGHTS}
PLUGIN_ERRORS = {
    "show broken": ["'broken'", "defend-bitcut 0.1.0"],
    "check broken": ["'broken'", "defend-bitcut 0.1.0"],
    f"{SMALL} --defense broken": ["'broken'", "defend-bitcut 0.1.0"],
    f"{SMALL} --defense bitcut:bits=9": ["BitCut(bits=9)", "1..8"],
    f"{SMALL} --defense grey": ["channels"],
    "purify grey {tmp}/grey.png --out {tmp}/clean": ["Grey", "3 channels", "got 1"],
    f"{SMALL} --dataset stripes": ["convnet", "defend-bitcut/stripes", "one, two", "weights=NAME"],
}


def shorten(args):
    """Return a short test id."""
    return args.replace(SMALL, "bench").replace(BENCH, "bench")


def run_refused(args, folder):
    """Run a command that must be refused, and return its line on stderr."""
    done = CliRunner().invoke(main, [word.format(tmp=folder) for word in args.split()])
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("defend: ")
    return lines[0]


def check_error(args, fragments, folder):
    line = run_refused(args, folder)
    absent = [f for f in fragments if f.format(tmp=folder) not in line]
    assert not absent, line


@pytest.mark.parametrize("args", ERRORS, ids=shorten)
def test_one_clear_line(args, folder):
    check_error(args, ERRORS[args], folder)
    assert not list((folder / "run").glob("units/*/*"))


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("args", PLUGIN_ERRORS, ids=shorten)
def test_one_clear_line_about_a_plugin(args, folder):
    check_error(args, PLUGIN_ERRORS[args], folder)


def test_debug_shows_the_traceback():
    done = CliRunner().invoke(main, ["--debug", "show", "gausian"])
    assert type(done.exception).__name__ == "UnknownName"
