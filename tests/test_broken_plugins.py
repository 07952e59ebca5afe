"""Plugins and files of the user that crash or break the contract: one line names theirs."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import defend
from defend.benchmarks.engines.local import describe_death
from defend.cli import main
from defend.errors import BrokenPlugin, BrokenPurifier, DefendError, MissingPackage
from defend.noise import Noise
from defend.plugin_checks import DEBUG, describe_crash, locate_plugin
from defend.target import Target

HEAD = """import os, signal
import torch
from defend import Attack, AttackCard, Card, Purifier

class P(Purifier):
    card = Card(paper="none: x", gradient="exact", stochastic=False)
"""
FIRST = len(HEAD.splitlines()) + 1


def purifier(body):
    return HEAD + "".join(f"    {line}\n" for line in body.splitlines())


GOOD = "def purify(self, x, noise):\n    return x"
BREAKS = {  # body of the class, the line that is named, what is said of it
    "parameters": (
        f"def __init__(self, radius=1):\n    self.radius = radius\n{GOOD}",
        FIRST,
        "as in `radius: int = 1`",
    ),
    "no super": (f"def __init__(self):\n    self.k = 1\n{GOOD}", FIRST, r"super\(\).__init__\(\)"),
    "post init": (
        f"def __post_init__(self):\n    self.k = 1\n{GOOD}",
        FIRST,
        r"super\(\).__post_init__\(\)",
    ),
    "no noise": ("def purify(self, x):\n    return x", FIRST, r"purify\(self, x, noise\)"),
    "validate": (f"def validate(self):\n    {{}}['a']\n{GOOD}", FIRST + 1, "KeyError: 'a'"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_class_that_breaks_the_contract_is_named_with_its_line(tmp_path, name):
    body, line, message = BREAKS[name]
    (tmp_path / "mine.py").write_text(purifier(body))
    with pytest.raises(BrokenPlugin, match=message) as error:
        defend.load(f"{tmp_path}/mine.py:P")
    assert f"mine.py, line {line}: " in str(error.value)


def test_an_init_that_passes_its_fields_on_is_left_alone(tmp_path):
    body = f"def __init__(self, **fields):\n    super().__init__(**fields)\n{GOOD}"
    (tmp_path / "mine.py").write_text(purifier(body))
    made = defend.load(f"{tmp_path}/mine.py:P,max_batch=3")
    assert made.max_batch == 3
    assert made(np.zeros((1, 1, 8, 8), np.float32))[0].shape == (1, 1, 8, 8)


CLASSIFIER = """
from torch import nn
from defend import Classifier, ClassifierCard


class Mine(Classifier):
    card = ClassifierCard(paper="none: test", licence="none")
    channels: int = 1
    size: int = 8

    def {head}:
        super().{call}
        self.own = 1

    def build(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
INITS = {"__init__(self, **f)": "__init__(**f)", "__post_init__(self)": "__post_init__()"}


@pytest.mark.parametrize("head", INITS)
def test_a_classifier_that_calls_super_is_taken(tmp_path, head):
    (tmp_path / "mine.py").write_text(CLASSIFIER.format(head=head, call=INITS[head]))
    assert defend.load(f"{tmp_path}/mine.py:Mine,weights=untrained", "classifier").own == 1


@pytest.mark.parametrize("value", ["None", "(x, x)", "x.numpy()", "x.tolist()"])
def test_purify_returns_one_tensor(tmp_path, value):
    (tmp_path / "mine.py").write_text(purifier(f"def purify(self, x, noise):\n    return {value}"))
    made = defend.load(f"{tmp_path}/mine.py:P")
    with pytest.raises(BrokenPurifier, match=r"P: purify returned .*; let it return one tensor"):
        made.purified(torch.zeros(1, 1, 8, 8))


CRASH = "def purify(self, x, noise):\n    return torch.stack([x, x[:, :, 1:]])"
PLACE = f"mine.py, line {FIRST + 1}"


@pytest.fixture
def crashing(tmp_path, monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)
    (tmp_path / "mine.py").write_text(purifier(CRASH))
    return f"{tmp_path}/mine.py:P"


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_crash_in_purify_is_one_line_of_a_cell(crashing, tmp_path, capfd):
    keys = {"dataset": "digits", "classifiers": ["convnet"], "attacks": ["fgsm"], "n": 4}
    keys |= {"defenses": ["none", crashing], "eps": 0.1}
    records = defend.bench(keys, out=tmp_path / "run", workers=1)
    for record in records:
        if record.defense == "none":
            assert record.error is None
        else:
            assert record.error.startswith("RuntimeError: stack expects each tensor")
            assert PLACE in record.error
            assert str(tmp_path) not in record.error  # no folders of a machine in a record
    assert "Traceback" not in capfd.readouterr().err


def test_debug_shows_the_traceback_of_a_cell(crashing, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(DEBUG, "1")
    keys = {"dataset": "digits", "classifiers": ["convnet"], "attacks": ["fgsm"], "n": 4}
    defend.bench({**keys, "defenses": [crashing], "eps": 0.1}, out=tmp_path / "run", workers=1)
    assert "Traceback" in (error := capfd.readouterr().err)
    assert "torch.stack([x, x[:, :, 1:]])" in error


def test_purify_lists_what_a_plugin_crashed_at(crashing, tmp_path):
    (tmp_path / "in").mkdir()
    for side in (8, 9):
        Image.new("L", (side, side)).save(tmp_path / f"in/{side}.png")
    done = run("purify", crashing, tmp_path / "in", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "left out 2 of 2: " in done.stderr
    assert done.stderr.count(PLACE) == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_command_says_the_line_of_a_crash_and_debug_shows_all(tmp_path, monkeypatch):
    monkeypatch.setenv(DEBUG, "")
    body = "def networks(self):\n    return [][1]\n" + GOOD
    (tmp_path / "mine.py").write_text(purifier(body))
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    args = ["purify", f"{tmp_path}/mine.py:P", tmp_path / "x.png", "--out", tmp_path / "out"]
    done = run(*args)
    assert done.exit_code == 2, done.output
    assert f"{PLACE}: IndexError: list index out of range" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert isinstance(run("--debug", *args).exception, IndexError)


def test_only_code_of_others_is_a_plugin():
    def error_of(call):
        try:
            call()
        except Exception as e:
            return e

    ours = error_of(lambda: torch.zeros(2) + torch.zeros(3))
    assert locate_plugin(ours).startswith("tests/test_broken_plugins.py, line ")
    ours.__traceback__ = None
    assert locate_plugin(ours) is None
    assert describe_crash(ours).startswith("RuntimeError: The size of tensor")
    inside = error_of(lambda: defend.load("pgd:steps=0", "attack"))
    assert isinstance(inside, DefendError)


# Workers that die.

DEATHS = {
    -signal.SIGKILL: r"killed \(SIGKILL\); out of memory\?",
    137: r"killed \(SIGKILL\); out of memory\?",
    -signal.SIGSEGV: r"crashed \(SIGSEGV\) in compiled code",
    -signal.SIGABRT: r"crashed \(SIGABRT\)",
    3: "exit code 3",
    0: "exit code 0",
}


@pytest.mark.parametrize("code", DEATHS)
def test_the_death_of_a_worker_is_called_what_it_is(code):
    import re

    text = describe_death(int(code))
    assert re.search(DEATHS[code], text)
    assert ("memory" in text) == (code in (-signal.SIGKILL, 137))


def test_a_segmentation_fault_is_not_called_out_of_memory(tmp_path):
    kill = "def purify(self, x, noise):\n    os.kill(os.getpid(), signal.SIGSEGV)\n    return x"
    (tmp_path / "mine.py").write_text(purifier(kill))
    args = ["bench", "--dataset", "digits", "--classifier", "convnet", "--attack", "fgsm"]
    args += [
        "--defense",
        f"{tmp_path}/mine.py:P",
        "--eps",
        "0.1,0.2",
        "-n",
        "300",
        "--workers",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "defend", *args, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 1, done.stderr
    assert "the worker crashed (SIGSEGV) in compiled code" in done.stderr
    assert "out of memory" not in done.stderr
    assert f'mine.py", line {FIRST + 1} in purify' in done.stderr  # of faulthandler


# ART.


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (ModuleNotFoundError("No module named 'numba'", name="numba"), MissingPackage, "numba$"),
        (ImportError("cannot import x"), MissingPackage, "install it"),
        (IndexError("list index out of range"), DefendError, "IndexError: list index"),
        (KeyError("shape"), DefendError, "KeyError: 'shape'"),
    ],
)
@pytest.mark.parametrize("where", ["__init__", "generate"])
def test_what_an_attack_of_art_raises_is_one_line(monkeypatch, raised, expected, message, where):
    attack = defend.load("art:name=DeepFool", "attack")

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(attack.attack_class, where, fail)
    x = torch.full((2, 1, 8, 8), 0.5)
    noise = Noise.of(0, torch.arange(2))
    net = defend.load("convnet", "classifier", "digits").network
    with pytest.raises(expected, match=f"^art:name=DeepFool: .*{message}"):
        attack.run(Target(net, defend.load("none"), noise), x, torch.tensor([1, 2]), 0.1, noise)
