"""What tells two objects, and two functions of one file, apart: all that decides their results."""

import copy
import functools
import os
import subprocess
import sys
import threading

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

import defend
from defend.benchmarks.component_keys import component_key
from defend.benchmarks.live_objects import name_objects
from defend.classifier import Normalise
from defend.object_hash import NoHash, hash_object


class Net(nn.Module):
    """The same tensors, whatever it holds beside them."""

    def __init__(self, held=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.held = nn.Linear(64, 10), held

    def forward(self, x):
        return self.layer(x.flatten(1)) * (self.held if isinstance(self.held, float) else 1)


def multiply(k):
    return lambda x: k * x


def with_global(value):
    namespace = {"__name__": "own_code", "SCALE": value}
    exec("def f(x):\n    return SCALE * x", namespace)
    return namespace["f"]


def class_of(k):
    class Scale(nn.Module):
        def forward(self, x):
            return k * x

    return Scale()


def hooked(k):
    net = Net()
    net.register_forward_hook(lambda _module, _x, y: k * y)
    return net


PAIRS = {  # two values that differ, each made anew by each call
    "float": (lambda: Net(1.0), lambda: Net(50.0)),
    "text": (lambda: Net("relu"), lambda: Net("gelu")),
    "type": (lambda: Net(1), lambda: Net(True)),
    "tuple": (lambda: Net((1, [2])), lambda: Net((1, [3]))),
    "mapping": (lambda: Net({"a": 1}), lambda: Net({"a": 2})),
    "set": (lambda: Net({"a", "b", "c"}), lambda: Net({"a", "b", "d"})),
    "code": (lambda: Net(lambda x: x + 1), lambda: Net(lambda x: x * 1)),
    "constant": (lambda: Net(lambda x: x + 1), lambda: Net(lambda x: x + 2)),
    "closure": (lambda: Net(multiply(1)), lambda: Net(multiply(50))),
    "default": (lambda: Net(lambda x, k=1: k * x), lambda: Net(lambda x, k=2: k * x)),
    "global": (lambda: Net(with_global(1)), lambda: Net(with_global(2))),
    "partial": (
        lambda: Net(functools.partial(torch.mul, other=2)),
        lambda: Net(functools.partial(torch.mul, other=3)),
    ),
    "function": (lambda: Net(torch.relu), lambda: Net(torch.sigmoid)),
    "hook": (lambda: hooked(1), lambda: hooked(2)),
    "class in a function": (lambda: class_of(1), lambda: class_of(2)),
    "tensor": (lambda: Net(torch.ones(2)), lambda: Net(torch.zeros(2))),
    "buffer that no state dict has": (
        lambda: nn.Sequential(Normalise((0.5,), (1.0,))),
        lambda: nn.Sequential(Normalise((0.5,), (2.0,))),
    ),
}


def name_of(value, kind="classifiers"):
    return name_objects({kind: [value], "dataset": "digits"})[0][kind][0]


@pytest.mark.parametrize("pair", PAIRS)
def test_objects_have_one_hash_if_they_hold_the_same(pair):
    first, other = PAIRS[pair]
    assert hash_object(first()) == hash_object(first()) != hash_object(other())
    assert hash_object(copy.deepcopy(first())) == hash_object(first())
    assert name_of(first()) == name_of(first()) != name_of(other())


def test_an_object_inside_itself_has_a_hash():
    first, other = Net([1]), Net([2])
    for net in (first, other):
        net.held.append(net.held)
    assert hash_object(first) != hash_object(other)


def test_the_hash_is_the_same_in_another_process():
    code = "import defend; from defend.object_hash import hash_object; import torch\n"
    code += "f = lambda x: x * 2\nprint(hash_object([f, {'a', 'b'}, torch.ones(2)]), end='')"
    code += "\nprint(hash_object(defend.load('jpeg')))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_what_has_no_hash_shares_its_name_with_nothing():
    with pytest.warns(UserWarning, match="never reused"):
        names = {name_of(Net(iter([1]))) for _ in range(2)}
    assert len(names) == 2
    with pytest.raises(NoHash):
        hash_object(threading.Lock())


def test_art_classifiers_with_other_normalisations_have_other_names():
    def wrapped(std):
        return PyTorchClassifier(
            Net(),
            nn.CrossEntropyLoss(),
            (1, 8, 8),
            10,
            clip_values=(0, 1),
            preprocessing=(0.5, std),
        )

    assert name_of(wrapped(0.5)) == name_of(wrapped(0.5)) != name_of(wrapped(0.25))


def test_a_run_computes_for_each_of_two_networks(tmp_path):
    keys = {"dataset": "digits", "defenses": ["none"], "attacks": ["fgsm"], "n": 20, "eps": 0.1}
    keys["knowledge"] = ["oblivious"]
    networks = [Net(1.0), Net(-1.0)]
    records = defend.bench(classifiers=networks, out=tmp_path, workers=1, **keys)
    x, y = defend.load("digits", "dataset").rows("test", 0, 20)
    for record, net in zip(records, networks, strict=True):
        assert record.clean_accuracy == pytest.approx(float((net(x).argmax(1) == y).float().mean()))


# Purifiers of the caller.


def purifier_class(k):
    class Scaled(defend.Purifier):
        card = defend.Card(paper="none: test", gradient="exact", stochastic=False)

        def purify(self, x, noise):
            return (k * x).clamp(0, 1)

    return Scaled


def changed(bits):
    purifier = defend.load("bitdepth")
    purifier.own_scale = bits
    return purifier


@pytest.mark.parametrize(
    "make", [lambda k: purifier_class(k)(), changed], ids=["class in a function", "attribute"]
)
def test_purifiers_that_their_settings_do_not_tell_apart(make):
    names = [name_of(make(k), "defenses") for k in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    keys = [component_key(defend.load(name), "defense") for name in names]
    assert keys[0] == keys[1] != keys[2]


def test_an_object_that_its_settings_decide_shares_the_results_of_its_spec():
    name = name_of(defend.load("jpeg:quality=60"), "defenses")
    spec_key = component_key(defend.load("jpeg:quality=60"), "defense")
    assert component_key(defend.load(name), "defense") == spec_key


# Functions of a file.

FILE = """
from pathlib import Path

import torch
from torch import nn

import defend


class Net(nn.Module):
    def __init__(self, act, scale):
        super().__init__()
        self.act, self.scale, self.layer = act, scale, nn.Linear(64, 10)

    def forward(self, x):
        return self.act(self.layer(x.flatten(1)) * self.scale)


def relu(scale=1, config=""):
    return Net(torch.relu, float(Path(config).read_text()) if config else scale)


def gelu(scale=1):
    return Net(nn.GELU(), scale)


def rounds(extra=1):
    purifier = defend.load("bitdepth")
    purifier.extra = extra
    return purifier


def halves(extra=1):
    return rounds(extra)
"""
SPECS = {  # two specs of one file, and whether they are one component
    ("relu", "gelu"): False,
    ("relu", "relu,scale=50"): False,
    ("relu", "relu,scale=1"): True,
    ("relu,scale=2,mean=0.5", "relu,mean=0.5,scale=2"): True,
    ("rounds", "halves"): False,
    ("rounds", "rounds,extra=2"): False,
    ("rounds", "rounds,extra=1"): True,
}


def key_of(folder, spec):
    kind = "defense" if spec.startswith(("rounds", "halves")) else "classifier"
    return component_key(defend.load(f"{folder}/mine.py:{spec}", kind, "digits"), kind)


@pytest.mark.parametrize("specs", SPECS)
def test_functions_of_a_file_and_their_arguments_are_in_the_key(tmp_path, specs):
    (tmp_path / "mine.py").write_text(FILE)
    first, second = (key_of(tmp_path, spec) for spec in specs)
    assert (first == second) == SPECS[specs]


def test_a_file_among_the_arguments_counts_by_its_contents(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    config = tmp_path / "scale.txt"
    keys = []
    for scale in ("1", "1", "2"):
        config.write_text(scale)
        keys.append(key_of(tmp_path, f"relu,config={config}"))
    assert keys[0] == keys[1] != keys[2]
