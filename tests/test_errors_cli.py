"""What a user can get wrong at the command line: one clear line on stderr, exit 2, no traceback, nothing on stdout."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from defend.cli import main
from defend.weights.header import Header, save_weights

BENCH = "bench --dataset digits --device cpu --workers 1 --out {tmp}/run"
SMALL = f"{BENCH} --defense none --attack fgsm --eps 0.1 --n 4"
HEAD = Header(
    kind="classifier",
    component="convnet",
    dataset="digits",
    fields={"channels": 1, "size": 8, "classes": 10},
    trained_on="clean",
    command="",
    seed=0,
    commit="",
)

STRIPES = "defend-bitcut/stripes"  # the full name: what weights for a stranger's data set are labelled with


@pytest.fixture
def world(tmp_path, monkeypatch, install):
    """Files to get wrong, and a network that answers nobody."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("suite.toml", "near.toml", "file", "image.png"):
        (tmp_path / name).write_text(
            {"suite.toml": "= 3", "near.toml": "dataset = 'digits'\ndefences = ['none']"}.get(
                name, "x"
            )
        )
    (tmp_path / "empty").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    package(tmp_path)
    install(tmp_path)
    return tmp_path


def package(folder):
    """Weights of a third party: of a wrong hash, and two defaults for one data set."""
    zoo, info = folder / "errors_zoo", folder / "errors_zoo-1.0.dist-info"
    for f in (zoo, info):
        f.mkdir()
    (zoo / "__init__.py").touch()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: errors-zoo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[defend.weights]\nzoo = errors_zoo\n")
    rows = []
    for name, dataset in (("one", STRIPES), ("two", STRIPES), ("wrong-hash", "digits")):
        path = zoo / f"{name}.safetensors"
        save_weights(path, {"w": torch.zeros(1)}, replace(HEAD, dataset=dataset))
        row = {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "kind": "classifier",
            "component": "convnet",
            "dataset": dataset,
        }
        row |= {
            "licence": "MIT",
            "command": "none",
            "seed": 0,
            "trained_on": "clean",
            "default": dataset == STRIPES,
        }
        rows += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in row.items())]
    (zoo / "zoo.toml").write_text("\n".join(rows))
    (zoo / "wrong-hash.safetensors").write_bytes(b"\0" + path.read_bytes()[1:])
    save_weights(folder / "mine.safetensors", {"w": torch.zeros(1)}, HEAD)
    save_weights(
        folder / "another.safetensors", {"w": torch.zeros(1)}, replace(HEAD, component="resnet20")
    )
    (folder / "damaged.safetensors").write_bytes((folder / "mine.safetensors").read_bytes()[:-2])
    (folder / "pickle.pt").write_bytes(b"\x80\x04K\x01.")


WRONG = {  # arguments -> what the line must say
    # the command itself
    "bnch": "no command 'bnch'. Did you mean bench? `defend --help` lists them",
    "bench --defence none": "No such option '--defence'",
    "bench --n many": "'many' is not a valid integer",
    "report": "Missing argument",
    "purify none": "Missing argument",
    # names
    "list defence": "unknown kind 'defence'",
    "show gausian": "unknown component 'gausian'. Did you mean gaussian?",
    "show defence gaussian": "unknown kind 'defence': expected defense, attack, classifier, dataset. Did you mean defense?",
    "show art": "names a component of several kinds: defense, attack. Say which: `defend show defense art`",
    "show": "expected [KIND] NAME, got nothing",
    "show a b c": "expected [KIND] NAME, got a b c",
    "show weights nothing": "unknown weights 'nothing'",
    "check medan": "Did you mean median?",
    f"{SMALL} --defense meddian": "unknown defense 'meddian'. Did you mean median?",
    f"{SMALL} --attack pdg": "unknown attack 'pdg'. Did you mean pgd?",
    f"{SMALL} --classifier convnett": "unknown classifier 'convnett'. Did you mean convnet?",
    f"{SMALL} --dataset digit": "unknown dataset 'digit'. Did you mean digits",
    f"{SMALL} --knowledge adaptiv": "knowledge 'adaptiv': expected oblivious, transfer, query, adaptive, bpda, all. Did you mean adaptive?",
    f"{SMALL} --gradient declard": "Did you mean declared?",
    f"{SMALL} --protocol ladder-0": "protocol 'ladder-0'",
    f"{SMALL} --split training": "split",
    # parameters
    f"{SMALL} --defense median:sise=3": "defense 'median' has no field 'sise'",
    f"{SMALL} --defense gaussian:sigma=much": "defense 'gaussian': sigma=much: expected a number",
    f"{SMALL} --defense gaussian:sigma=-1": "expected >= 0",
    f"{SMALL} --defense gaussian:sigma": "expected key=value, got 'sigma'",
    f"{SMALL} --defense gaussian:seed=1": "seed= says how a purifier runs",
    f"{SMALL} --attack pgd:steps=2.5": "attack 'pgd': steps=2.5: expected a whole number",
    f"{SMALL} --attack pgd:steps=0": "expected >= 1",
    f"{SMALL} --attack pgd+fgsm": "only defenses are chained",
    "check gaussian:sigma=x": "expected a number",
    # numbers
    f"{SMALL} --eps -0.1": "eps -0.1: expected a number >= 0",
    f"{SMALL} --eps abc": "eps 'abc': expected a number >= 0",
    f"{SMALL} --eps 8/0": "division by zero; a fraction is written as 8/255",
    f"{SMALL} --eps 0:0.3": "a range is start:stop:step",
    f"{SMALL} --attack fgsm:eps=-1": "eps -1: expected a number >= 0",
    f"{SMALL} --n 0": "n: input should be greater than or equal to 1, got 0",
    f"{SMALL} --n -5": "greater than or equal to 1",
    f"{SMALL} --n 1000000": "give --n",
    f"{SMALL} --draws 0": "draws",
    f"{SMALL} --seed -1": "seed",
    f"{SMALL} --workers 0": "workers 0: expected a whole number >= 1",
    f"{BENCH} --defense none --attack pgd:norm=L2 --n 4": "no claim eps for the norm L2",
    f"{SMALL} --attack pgd:norm=L2": "two norms",
    f"{SMALL} --knowledge query": "nothing is left to run",
    # files and folders
    "bench {tmp}/nothing.toml": "cannot be read: No such file",
    "bench {tmp}/suite.toml": "not TOML",
    "bench {tmp}/near.toml --out {tmp}/run": "a suite has no key 'defences'. Did you mean defenses",
    f"{SMALL} --out {{tmp}}/file/run": "--out {tmp}/file/run: cannot be written",
    "report {tmp}/nothing": "{tmp}/nothing",
    "report {tmp}/empty": "{tmp}/empty",
    f"{SMALL} --dataset mnist --data-root {{tmp}}/empty": "MNIST: not in {tmp}/empty/MNIST/raw",
    f"{SMALL} --dataset image-folder:path={{tmp}}/nothing": "{tmp}/nothing",
    "check dataset mnist --data-root {tmp}/empty": "MNIST: not in {tmp}/empty/MNIST/raw",
    "purify none {tmp}/nothing.png --out {tmp}/clean": "{tmp}/nothing.png: no such image or folder",
    "purify none {tmp}/image.png --out {tmp}/clean": "{tmp}/image.png: no image that can be read",
    "purify none {tmp}/deep.png --out {tmp}/clean": "more than 8 bits per channel",
    "purify none {tmp}/empty --out {tmp}/clean": "no images in this folder",
    "purify none {tmp}/grey.png --out {tmp}": "would overwrite an input",
    "purify none {tmp}/grey.png {tmp}/grey.png --out {tmp}/clean": "would both become",
    "purify none {tmp}/grey.png --out {tmp}/file/x": "cannot be written",
    # devices
    f"{SMALL} --device cuda:99": "device 'cuda:99' is not there",
    f"{SMALL} --device gpu": "device 'gpu'",
    "purify none {tmp}/grey.png --out {tmp}/clean --device tpu": "device 'tpu'",
    # weights
    f"{SMALL} --classifier convnet:weights=untrained": "weights=untrained measures nothing",
    f"{SMALL} --surrogate convnet:weights=untrained": "measures nothing; train it with `defend train classifier convnet`",
    f"{SMALL} --surrogate split-vqvae:weights=untrained+convnet": "train it with `defend train defense split-vqvae`",
    f"{SMALL} --defense lenet": "unknown defense 'lenet'. It is a classifier.",
    f"{SMALL} --defense median:size=\uff13": "expected",
    "audit median --dataset digits --classifier convnet --out page.txt": "expected a name that ends in .html, as page.html",
    f"{SMALL} --classifier convnet:weights=conv": "no weights named 'conv'",
    f"{SMALL} --classifier convnet:weights={{tmp}}/damaged.safetensors": "{tmp}/damaged.safetensors: damaged",
    f"{SMALL} --classifier convnet:weights={{tmp}}/pickle.pt": "not a weights file of defend",
    f"{SMALL} --classifier convnet:weights={{tmp}}/another.safetensors": "holds weights of the classifier 'resnet20', wanted the classifier 'convnet'",
    f"{SMALL} --classifier convnet:weights={{tmp}}/mine.safetensors,channels=3": "contradict the spec: channels=1 in the file, 3 given",
    f"{SMALL} --classifier convnet:weights={{tmp}}/mine.safetensors": "does not fit",
    f"{SMALL} --classifier convnet:weights=wrong-hash": "its zoo.toml says",
}
WITH_PLUGIN = {
    "show broken": "defense 'broken' from defend-bitcut 0.1.0 could not be imported",
    "check broken": "could not be imported",
    f"{SMALL} --defense broken": "defense 'broken' from defend-bitcut 0.1.0 could not be imported",
    f"{SMALL} --defense bitcut:bits=9": "BitCut(bits=9): expected 1..8",
    f"{SMALL} --defense grey": "channels",
    "purify grey {tmp}/grey.png --out {tmp}/clean": "Grey: takes images of 3 channels, got 1",
    f"{SMALL} --dataset stripes": "convnet: weights=auto is ambiguous on defend-bitcut/stripes: one, two. Write weights=NAME",
}


def short(args):
    return args.replace(SMALL, "bench").replace(BENCH, "bench")


def refused(args, world):
    done = CliRunner().invoke(main, [a.format(tmp=world) for a in args.split()])
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("defend: "), done.stderr
    return lines[0]


@pytest.mark.parametrize("args", WRONG, ids=short)
def test_one_clear_line(args, world):
    assert WRONG[args].format(tmp=world) in refused(args, world)
    assert not list((world / "run").glob("units/*/*"))


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("args", WITH_PLUGIN, ids=short)
def test_one_clear_line_about_a_plugin(args, world):
    assert WITH_PLUGIN[args].format(tmp=world) in refused(args, world)


def test_debug_shows_the_traceback():
    done = CliRunner().invoke(main, ["--debug", "show", "gausian"])
    assert type(done.exception).__name__ == "UnknownName"
