"""Components in files of the user, ./FILE.py:NAME: found, known by their code, run by a bench."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import defend
from defend.benchmarks.code_hash import hash_packages
from defend.benchmarks.suite import load_suite
from defend.errors import BadParameter, BadSpec, BadWeights, DefendError, Mismatch
from defend.local_files import LocalCode
from defend.own_network import OwnNetwork
from defend.registry import REGISTRY
from defend.spec import Spec, parse

MODEL = """
from torch import nn


def build(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(width * 36, 10))
"""
PURIFIER = '''
from defend import Card, Purifier


class Round(Purifier):
    """Round pixels to few levels."""

    card = Card(paper="none: made for this test", gradient="identity", stochastic=False)
    bits: int = 3

    def purify(self, x, noise):
        levels = 2**self.bits - 1
        return (x * levels).round() / levels
'''
ATTACK = """
from defend import Attack, AttackCard


class Invert(Attack):
    card = AttackCard(paper="none: made for this test", access="gradient", norms=("Linf",))

    def run(self, target, x, y, eps, noise):
        return 1 - x
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the user, which is the working directory."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "mine.py").write_text(PURIFIER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


# Names.

NAMES = {
    "./mine.py:Round": ("./mine.py:Round", {}),
    "./mine.py:Round,bits=2": ("./mine.py:Round", {"bits": 2}),
    "'/a b/mine.py':Round,bits=2": ("/a b/mine.py:Round", {"bits": 2}),
    "mine.py:Round , bits = 2": ("mine.py:Round", {"bits": 2}),
    "'a+b.py':f,weights='x,y.pt'": ("a+b.py:f", {"weights": "x,y.pt"}),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_file_stands_in_place_of_a_name(text):
    name, params = NAMES[text]
    (spec,) = parse(text)
    assert (spec.name, dict(spec.params)) == (name, params)
    assert parse(str(spec)) == (spec,)


def test_files_are_chained_like_names():
    assert [spec.name for spec in parse("jpeg:quality=50+./mine.py:Round,bits=1+none")] == [
        "jpeg",
        "./mine.py:Round",
        "none",
    ]


@pytest.mark.parametrize("text", ["./mine.py", "./mine.py:", "./mine.py:bits=2", "mine.py:a b"])
def test_a_file_without_a_name_is_refused(text):
    with pytest.raises(BadSpec, match=r"mine\.py:NAME,key=value"):
        parse(text)


# Code.


@pytest.mark.usefixtures("folder")
def test_a_purifier_of_a_file_is_loaded():
    purifier = defend.load("./mine.py:Round,bits=1")
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(purifier.purified(x, defend.Noise.of(0, torch.arange(2))), x.round())
    assert REGISTRY.component("defense", type(purifier)) == "mine.py:Round"


BROKEN = {  # the text of a file, and what the one line says
    "syntax": ("def f(:", "mine.py, line 1: expected Python code"),
    "crash": ("x = 1\ny = x / 0\n", "mine.py, line 2: ZeroDivisionError"),
    "no such name": ("def round(): pass", r"has no Round. Did you mean round\?"),
    "a number": ("Round = 3", "expected a class or a function, got int"),
    "another class": ("class Round: pass", "expected a Purifier, got Round"),
    "no package": ("import nosuchpackage", "line 1: needs the package nosuchpackage"),
    "exits": ("raise SystemExit(3)", "line 1: SystemExit"),
    "own init": (
        PURIFIER + "\n    def __post_init__(self):\n        self.nosuch.attribute\n",
        "mine.py, line 16: Round: AttributeError",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(folder, name):
    text, message = BROKEN[name]
    (folder / "mine.py").write_text(text)
    with pytest.raises(DefendError, match=message) as caught:
        defend.load("./mine.py:Round")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("folder")
def test_no_file_is_one_line():
    with pytest.raises(BadParameter, match=r"nofile\.py: expected a file of Python code"):
        defend.load("./nofile.py:Round")


def test_code_is_known_by_its_syntax_tree_and_not_by_its_place(folder):
    module = LocalCode.of_name("./mine.py:Round").module_name
    (folder / "elsewhere").mkdir()
    other = folder / "elsewhere" / "mine.py"
    other.write_text("# a comment\n" + PURIFIER)
    assert LocalCode.of_name(f"{other}:Round").module_name == module
    other.write_text(PURIFIER.replace("2**", "3**"))
    assert LocalCode.of_name(f"{other}:Round").module_name != module


def test_a_module_beside_the_file_is_part_of_its_code(folder):
    (folder / "beside_mine.py").write_text("LEVELS = 4\n")
    (folder / "unused_beside.py").write_text("LEVELS = 4\n")
    (folder / "mine.py").write_text("from beside_mine import LEVELS\n" + PURIFIER)
    purifier = defend.load("./mine.py:Round")
    hashes = hash_packages({type(purifier).__module__})
    assert "beside_mine" in hashes and "unused_beside" not in hashes


@pytest.mark.parametrize("import_first", [True, False], ids=["at the top", "in the function"])
def test_each_folder_has_the_modules_beside_its_own_file(folder, import_first):
    text = "{}\nfrom torch import nn\ndef build():\n    {}\n"
    text += "    return nn.Sequential(nn.Flatten(), nn.Linear(64, own_net.CLASSES))\n"
    lines = ("import own_net", "pass") if import_first else ("", "import own_net")
    for name, classes in (("v1", 10), ("v2", 7)):
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(text.format(*lines))
        (folder / name / "own_net.py").write_text(f"CLASSES = {classes}\n")
    loaded = [defend.load(f"./{name}/model.py:build", "classifier", "digits") for name in VERSIONS]
    assert [classifier.classes for classifier in loaded] == [10, 7, 10]
    modules = [classifier.code_modules for classifier in loaded]
    assert modules[0] == modules[2] != modules[1]


VERSIONS = ("v1", "v2", "v1")

# Networks.


@pytest.mark.usefixtures("folder")
def test_a_network_is_a_classifier_for_the_images_of_the_data():
    data = defend.load("digits", "dataset")
    classifier = defend.load("./model.py:build,width=2", "classifier", data)
    assert isinstance(classifier, OwnNetwork)
    assert (classifier.channels, classifier.size, classifier.classes) == (1, 8, 10)
    x, _ = data.rows("test", 0, 3)
    again = defend.load("./model.py:build,width=2", "classifier", "digits")
    assert torch.equal(classifier.network(x), again.network(x))  # the generator is seeded
    assert classifier.weights_sha256 == again.weights_sha256
    assert defend.load("./model.py:build", "classifier", data).weights_sha256 != (
        classifier.weights_sha256
    )


@pytest.mark.usefixtures("folder")
def test_mean_and_std_normalise_the_pixels():
    data = defend.load("digits", "dataset")
    plain = defend.load("./model.py:build", "classifier", data)
    normalised = defend.load("./model.py:build,mean=0.5,std=0.25", "classifier", data)
    x, _ = data.rows("test", 0, 3)
    torch.testing.assert_close(normalised.network(x), plain.network((x - 0.5) / 0.25))


CHECKPOINTS = {
    "state dict": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "net": lambda state: {"net": state, "acc": 0.9},
    "model": lambda state: {"model": state},
    "DataParallel": lambda state: {f"module.{name}": t for name, t in state.items()},
    "Lightning": lambda state: {"state_dict": {f"model.{name}": t for name, t in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{name}": t for name, t in state.items()},
    "compiled DataParallel": lambda state: {f"_orig_mod.module.{n}": t for n, t in state.items()},
    "averaged": lambda state: {
        "n_averaged": torch.tensor(7),
        **{f"module.{name}": t for name, t in state.items()},
    },
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_as_people_save_them(name):
    data = defend.load("digits", "dataset")
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    torch.save(CHECKPOINTS[name](network.state_dict()), "model.pt")
    classifier = defend.load("./model.py:build,weights=model.pt", "classifier", data)
    x, _ = data.rows("test", 0, 3)
    torch.testing.assert_close(classifier.network(x), network(x).detach())
    assert list(classifier.weights_sha256) == ["model.pt"]


@pytest.mark.usefixtures("folder")
def test_weights_that_do_not_fit_name_what_is_there_and_what_is_wanted():
    save_file({"head.weight": torch.zeros(1)}, "other.safetensors")
    with pytest.raises(
        BadWeights, match=r"wants 0\.weight, 0\.bias, 2\.weight and 1 others"
    ) as caught:
        defend.load("./model.py:build,weights=other.safetensors", "classifier", "digits")
    assert "the file also has head.weight" in str(caught.value)
    with pytest.raises(BadWeights, match=r"nofile\.pt, which does not exist"):
        defend.load("./model.py:build,weights=nofile.pt", "classifier", "digits")


def test_code_in_a_checkpoint_is_not_run(folder):
    (folder / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch marker'\ntR.")
    with pytest.raises(BadWeights, match="expected a file of tensors alone"):
        defend.load("./model.py:build,weights=evil.pt", "classifier", "digits")
    assert not (folder / "marker").exists()


@pytest.mark.usefixtures("folder")
def test_images_that_the_network_cannot_take_are_one_line():
    with pytest.raises(Mismatch, match="cannot take 3x32x32 images"):
        defend.load("./model.py:build", "classifier")
    with pytest.raises(BadParameter, match="has no field 'depth'"):
        defend.load("./model.py:build,depth=3", "classifier", "digits")


CLASSIFIER = """
import defend


def ready():
    return defend.load("convnet:weights=convnet-digits", "classifier")
"""


@pytest.mark.parametrize("field", ["weights=/nowhere.pt", "mean=0.5", "typo=3"])
def test_fields_that_a_function_of_a_classifier_does_not_take_are_refused(folder, field):
    (folder / "ready.py").write_text(CLASSIFIER)
    assert defend.load("./ready.py:ready", "classifier", "digits").classes == 10
    with pytest.raises(BadParameter, match=f"has no field '{field.partition('=')[0]}'"):
        defend.load(f"./ready.py:ready,{field}", "classifier", "digits")


# The bench.


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "defend", *arguments], capture_output=True, text=True, check=False
    )


def test_one_command_benches_a_network_a_purifier_and_an_attack_of_files(folder):
    (folder / "attack.py").write_text(ATTACK)
    done = run(
        *("bench", "--dataset", "digits", "--classifier", "./model.py:build,width=2"),
        *("--defense", "./mine.py:Round,bits=2", "--attack", "./attack.py:Invert"),
        *("--attack", "fgsm", "--eps", "1", "-n", "20", "--workers", "2", "--json"),
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["attack"] for r in records} == {"fgsm", "./attack.py:Invert"}
    assert {r["classifier"] for r in records} == {"./model.py:build,width=2"}
    assert all(r["error"] is None for r in records)
    assert all(list(r["weights"]) == ["model.py:build"] for r in records)


SUITE = """
dataset = "digits"
classifiers = ["./model.py:build"]
defenses = [{name = "./evil.py:Round", bits = 2}]
attacks = ["fgsm"]
eps = 0.1
n = 10
"""


def test_a_suite_runs_no_code_of_a_file_without_trust(folder):
    marker = folder / "marker"
    suite = folder / "sub" / "suite.toml"
    suite.parent.mkdir()
    suite.write_text(SUITE)
    (suite.parent / "model.py").write_text(MODEL)
    (suite.parent / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n{PURIFIER}")
    done = run("bench", "sub/suite.toml")
    assert done.returncode == 2 and not marker.exists()
    assert "would run the code of sub/model.py, sub/evil.py" in done.stderr
    with pytest.raises(BadParameter, match="trust=True"):
        defend.bench(suite)
    done = run("bench", "sub/suite.toml", "--trust")
    assert done.returncode == 0 and marker.exists(), done.stderr


def test_paths_of_a_suite_are_those_from_its_folder(folder):
    suite = folder / "suite.toml"
    suite.write_text(SUITE.replace("bits = 2", 'weights = "model.py"'))
    keys = load_suite(suite, trust=True)
    assert keys["classifiers"] == [f"{folder}/model.py:build"]
    assert parse(keys["defenses"][0]) == (
        Spec(f"{folder}/evil.py:Round", (("weights", f"{folder}/model.py"),)),
    )
    assert keys["attacks"] == ["fgsm"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["./mine.py:Round"], "fail"),
        (["./model.py:build"], "expected its kind before it"),
    ],
    ids=["defense", "function"],
)
def test_check_finds_the_kind_of_a_class(words, message):
    done = run("check", *words)
    if "build" in words[0]:
        assert done.returncode == 2 and message in done.stderr
    else:
        assert done.returncode == 0 and message not in done.stdout, done.stdout


DATA = """
import defend


def digits():
    return defend.load("digits", "dataset")


def nothing():
    return 3
"""


def test_a_function_may_return_a_data_set(folder):
    (folder / "data.py").write_text(DATA)
    done = run(
        *("bench", "--dataset", "./data.py:digits", "--classifier", "./model.py:build"),
        *("--defense", "none", "--attack", "fgsm", "--eps", "0.1", "-n", "8"),
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(BadParameter, match="expected a Dataset, got int"):
        defend.load("./data.py:nothing", "dataset")


@pytest.mark.usefixtures("folder")
def test_wrong_normalisations_name_the_network():
    for fields, message in [
        ("std=0", "model.py:build: std=0: expected numbers above 0"),
        ("mean='0.5,0.5'", "expected one number, or 1 joined by commas"),
        ("mean=half", "expected one number"),
    ]:
        with pytest.raises(BadParameter, match=message):
            defend.load(f"./model.py:build,{fields}", "classifier", "digits")
