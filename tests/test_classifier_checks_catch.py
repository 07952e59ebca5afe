"""Each check of the classifier kit fails for classifiers that break its property."""

import urllib.request
from dataclasses import replace

import pytest
import torch
from torch import nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.errors import BrokenPlugin
from defend.learned import Frozen
from defend.loading import load
from defend.registry import Entry
from defend.testing import NotApplicable, classifier_checks, kit
from defend.trained_on import TrainedOn
from defend.weights.header import Header, file_sha256, save_weights


class FunctionLayer(nn.Module):
    """A layer that applies a function."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


class Tiny(Classifier):
    """One linear layer, for the digits of scikit-learn."""

    card = ClassifierCard(paper="none: made for this test", licence="MIT")
    channels: int = 1
    size: int = 8

    def build(self):
        return nn.Sequential(Normalise((0.5,), (0.25,)), nn.Flatten(), nn.Linear(64, 10))


def broken(weights="untrained", **methods):
    """Return a classifier of a class with these methods."""
    return type("Tiny", (Tiny,), {"__doc__": "broken", **methods})(weights=weights)


def with_layer_before(f):
    """Return a function that makes Tiny with f before its layers."""

    def build(self):
        return nn.Sequential(FunctionLayer(f), *Tiny.build(self))

    return lambda: broken(build=build)


def with_layer_after(f, weights="untrained"):
    """Return a function that makes Tiny with f behind its layers."""

    def build(self):
        return nn.Sequential(*Tiny.build(self), FunctionLayer(f))

    return lambda: broken(weights, build=build)


def first_image_only(x):
    return torch.cat([x[:1], x[1:].detach()])


def swap_two_classes(z):
    return z[:, [1, 0, *range(2, 10)]]


def stays_on_the_cpu(z):
    return z.cpu() if z.is_cuda else torch.zeros(len(z), 10)


def dropout_that_is_not_frozen(self):
    return nn.Sequential(*Tiny.build(self), nn.Dropout(0.1)).requires_grad_(False)


def ignores_weights(self):
    self.file = None


def raises_key_error(self):
    self.file = None
    if self.weights != "untrained":
        raise KeyError(self.weights)


def asks_the_network_at_rebuild():
    built = []

    def build(self):
        if built:
            urllib.request.urlopen("http://localhost:9/weights", timeout=1)
        built.append(self)
        return Tiny.build(self)

    return broken(build=build)


def random_weights_at_every_build(self):
    net = Tiny.build(self)
    nn.init.normal_(net[2].weight, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
    return net


def adds_to_each_call():
    calls = []

    def drift(z):
        calls.append(len(z))
        return z + 0.1 * len(calls)

    return broken(build=lambda s: nn.Sequential(*Tiny.build(s), FunctionLayer(drift)))


def reports_a_wrong_hash():
    c = broken("tiny")
    c.file = replace(c.file, sha256="0" * 64)
    return c


def changed_after_creation():
    c = broken("tiny")
    c.net[2].weight.data.mul_(2)
    return c


ZEROS = torch.zeros(1, 8, 8)
BROKEN = {
    "check_returns_logits": [
        with_layer_after(lambda z: z.softmax(1)),
        with_layer_after(lambda z: z.log_softmax(1)),
    ],
    "check_shape_and_dtype": [
        with_layer_after(lambda z: z[:, :9]),
        with_layer_after(lambda z: z.double()),
        with_layer_after(lambda z: z / 0),
    ],
    "check_takes_pixels_from_0_to_1": [
        with_layer_before(lambda x: x.mul_(0.5)),
        with_layer_before(lambda x: (x - 127) / 64),
    ],
    "check_eval_mode": [
        with_layer_after(lambda z: nn.functional.dropout(z, 0.1)),
        lambda: broken(_build=dropout_that_is_not_frozen),
    ],
    "check_batch_mates_do_not_matter": [with_layer_before(lambda x: x - 0.1 * x.mean(0))],
    "check_gradient_reaches_input": [
        with_layer_before(torch.round),
        with_layer_before(torch.detach),
        with_layer_before(first_image_only),
    ],
    "check_keeps_no_gradients": [
        lambda: broken(_build=lambda s: Frozen(Tiny.build(s)).requires_grad_(True))
    ],
    "check_fits_its_data_set": [
        with_layer_after(lambda z: z.roll(1, 1), "tiny"),
        with_layer_after(swap_two_classes, "tiny"),
        lambda: broken("tiny-of-other-data"),
    ],
    "check_declared_accuracy": [
        lambda: broken("tiny-declares-too-much"),
        lambda: broken("tiny-declares-too-little"),
    ],
    "check_weights_load_by_hash_and_offline": [
        lambda: broken(_adopt=ignores_weights),
        lambda: broken(_adopt=raises_key_error),
        lambda: broken(build=random_weights_at_every_build),
        asks_the_network_at_rebuild,
        reports_a_wrong_hash,
        changed_after_creation,
    ],
    "check_works_inside_art": [with_layer_before(torch.round), adds_to_each_call],
    "check_moves_to_a_device_and_back": [
        with_layer_before(lambda x: x - ZEROS),
        with_layer_after(stays_on_the_cpu),
    ],
}


def train_tiny():
    """Return trained weights and their accuracy on the test digits, about 96 %."""
    data = load("digits", "dataset")
    x, y = data.rows("train", 0, data.count("train"))
    net = Tiny.build(None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net[2].reset_parameters()
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    x, y = data.rows("test", 0, data.count("test"))
    return net.state_dict(), (net(x).argmax(1) == y).float().mean().item()


ZOO_TABLE = """
[{name}]
file = "{name}.safetensors"
sha256 = "{sha256}"
kind = "classifier"
component = "Tiny"
dataset = "{dataset}"
licence = "MIT"
command = "none"
seed = 0
trained_on = "clean"
measured = {{clean_accuracy = {accuracy}}}
"""


def write_zoo_entry(package, name, state, dataset, accuracy):
    """Write a weights file into the package, and return its table for zoo.toml."""
    header = Header(
        kind="classifier",
        component="Tiny",
        architecture="Tiny",
        dataset=dataset,
        fields={},
        trained_on=TrainedOn(kind="clean"),
        command="none",
        seed=0,
        commit="none",
    )
    file = package / f"{name}.safetensors"
    save_weights(file, state, header)
    sha256 = file_sha256(file)
    return ZOO_TABLE.format(name=name, sha256=sha256, dataset=dataset, accuracy=accuracy)


def write_installed_package(folder):
    """Write the metadata that make `tinyzoo` an installed package of weights."""
    metadata = folder / "tinyzoo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyzoo\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[defend.weights]\ntiny = tinyzoo\n")


@pytest.fixture(scope="module", autouse=True)
def tiny_accuracy(tmp_path_factory):
    """Install a package of weights, with one honest entry and three others; return the accuracy."""
    folder = tmp_path_factory.mktemp("site")
    package = folder / "tinyzoo"
    package.mkdir()
    (package / "__init__.py").touch()
    state, accuracy = train_tiny()
    tables = [
        write_zoo_entry(package, "tiny", state, "digits", accuracy),
        write_zoo_entry(package, "tiny-of-other-data", state, "digits-m", accuracy),
        write_zoo_entry(package, "tiny-declares-too-much", state, "digits", 0.9999),
        write_zoo_entry(package, "tiny-declares-too-little", state, "digits", 0.8),
    ]
    (package / "zoo.toml").write_text("".join(tables))
    write_installed_package(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield accuracy


# Those of embeddings have broken examples of their own: tests/test_embedding.py.
CHECKS = [c for c in kit("classifier") if c.__module__ == classifier_checks.__name__]


def test_every_check_has_a_broken_example():
    assert {check.__name__ for check in CHECKS} == set(BROKEN)


CASES = []
for name, makers in BROKEN.items():
    for i, make_classifier in enumerate(makers):
        CASES.append(pytest.param(name, make_classifier, id=f"{name}-{i}"))


@pytest.mark.parametrize(("name", "make_classifier"), CASES)
def test_check_catches(name, make_classifier):
    check = getattr(classifier_checks, name)
    with pytest.raises(AssertionError):
        check(make_classifier())


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_a_sound_classifier_passes(check):
    check(Tiny(weights="tiny"))


def test_the_declared_accuracy_was_measured(tiny_accuracy):
    assert 0.9 < tiny_accuracy < 0.99


NEEDS_WEIGHTS = [
    classifier_checks.check_fits_its_data_set,
    classifier_checks.check_declared_accuracy,
]


@pytest.mark.parametrize("check", NEEDS_WEIGHTS, ids=lambda c: c.__name__)
def test_checks_of_absent_weights_are_not_applicable(check):
    with pytest.raises(NotApplicable):
        check(Tiny(weights="untrained"))


@pytest.mark.parametrize("check", NEEDS_WEIGHTS, ids=lambda c: c.__name__)
def test_a_broken_plugin_of_the_data_set_is_not_hidden(check, monkeypatch):
    def load_broken(entry):
        raise BrokenPlugin(f"{entry.name} could not be imported")

    classifier = Tiny(weights="tiny")
    monkeypatch.setattr(Entry, "load", load_broken)
    with pytest.raises(BrokenPlugin):
        check(classifier)
