"""Every check of a classifier has one that breaks it: a check nothing can fail is not a check."""

import urllib.request
from dataclasses import replace

import pytest
import torch
from torch import nn

from defend.classifier import Classifier, ClassifierCard, Normalise
from defend.learned import Frozen
from defend.loading import load
from defend.testing import classifier_checks as cc
from defend.testing.runner import NotApplicable
from defend.weights.header import Header, file_sha256, save_weights


class Step(nn.Module):
    """A layer from a function."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


class Tiny(Classifier):
    """One linear layer for the digits of scikit-learn."""

    card = ClassifierCard(paper="none: made for this test", licence="MIT")
    channels: int = 1
    size: int = 8

    def build(self):
        return nn.Sequential(Normalise((0.5,), (0.25,)), nn.Flatten(), nn.Linear(64, 10))


def broken(weights="untrained", **methods):
    return type("Tiny", (Tiny,), {"__doc__": "broken", **methods})(weights=weights)


def before(f):
    return lambda: broken(build=lambda s: nn.Sequential(Step(f), *Tiny.build(s)))


def after(f, weights="untrained"):
    return lambda: broken(weights, build=lambda s: nn.Sequential(*Tiny.build(s), Step(f)))


def takes_any_weights(self):
    self.file = None


def knows_no_error(self):
    self.file = None
    if self.weights != "untrained":
        raise KeyError(self.weights)


def asks_the_network_again():
    built = []

    def build(self):
        if built:
            urllib.request.urlopen("http://localhost:9/weights", timeout=1)
        built.append(self)
        return Tiny.build(self)

    return broken(build=build)


def other_weights_at_every_build(self):
    net = Tiny.build(self)
    nn.init.normal_(net[2].weight, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
    return net


def remembers():
    calls = []

    def drift(z):
        calls.append(len(z))
        return z + 0.1 * len(calls)

    return broken(build=lambda s: nn.Sequential(*Tiny.build(s), Step(drift)))


def lies_about_its_hash():
    c = broken("tiny")
    c.file = replace(c.file, sha256="0" * 64)
    return c


def changed_after_birth():
    c = broken("tiny")
    c.net[2].weight.data.mul_(2)
    return c


ZEROS = torch.zeros(1, 8, 8)
BROKEN = {
    "check_returns_logits": [after(lambda z: z.softmax(1)), after(lambda z: z.log_softmax(1))],
    "check_shape_and_dtype": [
        after(lambda z: z[:, :9]),
        after(lambda z: z.double()),
        after(lambda z: z / 0),
    ],
    "check_takes_pixels_from_0_to_1": [
        before(lambda x: x.mul_(0.5)),
        before(lambda x: (x - 127) / 64),
    ],
    "check_eval_mode": [
        after(lambda z: nn.functional.dropout(z, 0.1)),
        lambda: broken(
            _build=lambda s: nn.Sequential(*Tiny.build(s), nn.Dropout(0.1)).requires_grad_(False)
        ),
    ],
    "check_batch_mates_do_not_matter": [before(lambda x: x - 0.1 * x.mean(0))],
    "check_gradient_reaches_input": [
        before(torch.round),
        before(torch.detach),
        before(lambda x: torch.cat([x[:1], x[1:].detach()])),
    ],
    "check_keeps_no_gradients": [
        lambda: broken(_build=lambda s: Frozen(Tiny.build(s)).requires_grad_(True))
    ],
    "check_fits_its_data_set": [
        after(lambda z: z.roll(1, 1), "tiny"),
        after(lambda z: z[:, [1, 0, *range(2, 10)]], "tiny"),
        lambda: broken("tiny-elsewhere"),
    ],
    "check_declared_accuracy": [lambda: broken("tiny-proud"), lambda: broken("tiny-modest")],
    "check_weights_load_by_hash_and_offline": [
        lambda: broken(_adopt=takes_any_weights),
        lambda: broken(_adopt=knows_no_error),
        lambda: broken(build=other_weights_at_every_build),
        asks_the_network_again,
        lies_about_its_hash,
        changed_after_birth,
    ],
    "check_works_inside_art": [before(torch.round), remembers],
    "check_moves_to_a_device_and_back": [
        before(lambda x: x - ZEROS),
        after(lambda z: z.cpu() if z.is_cuda else torch.zeros(len(z), 10)),
    ],
}


def trained():
    """Full-batch training: 96 % of the test digits."""
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


@pytest.fixture(scope="module", autouse=True)
def zoo(tmp_path_factory):
    """An installed package of weights: one honest entry, and those that are not."""
    top = tmp_path_factory.mktemp("site")
    state, accuracy = trained()
    entries = {
        "tiny": ("digits", accuracy),
        "tiny-elsewhere": ("digits-m", accuracy),
        "tiny-proud": ("digits", 0.9999),
        "tiny-modest": ("digits", 0.8),
    }
    (top / "tinyzoo").mkdir()
    (top / "tinyzoo" / "__init__.py").touch()
    rows = []
    for name, (dataset, declared) in entries.items():
        file = top / "tinyzoo" / f"{name}.safetensors"
        head = Header(
            kind="classifier",
            component="Tiny",
            dataset=dataset,
            fields={},
            trained_on="clean",
            command="none",
            seed=0,
            commit="none",
        )
        save_weights(file, state, head)
        rows.append(f'''
            [{name}]
            file = "{file.name}"
            sha256 = "{file_sha256(file)}"
            kind = "classifier"
            component = "Tiny"
            dataset = "{dataset}"
            licence = "MIT"
            command = "none"
            seed = 0
            trained_on = "clean"
            measured = {{clean_accuracy = {declared}}}
        ''')
    (top / "tinyzoo" / "zoo.toml").write_text("".join(rows))
    (top / "tinyzoo-1.0.dist-info").mkdir()
    (top / "tinyzoo-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tinyzoo\nVersion: 1.0\n"
    )
    (top / "tinyzoo-1.0.dist-info" / "entry_points.txt").write_text(
        "[defend.weights]\ntiny = tinyzoo\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(top))
        yield accuracy


def test_every_check_has_a_breaker():
    assert {c.__name__ for c in cc.classifier_checks()} == set(BROKEN)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, id=f"{name}-{i}")
        for name, makes in BROKEN.items()
        for i, make in enumerate(makes)
    ],
)
def test_check_catches(name, make):
    with pytest.raises(AssertionError):
        getattr(cc, name)(make())


@pytest.mark.parametrize("check", list(cc.classifier_checks()), ids=lambda c: c.__name__)
def test_a_sound_classifier_passes(check):
    check(Tiny(weights="tiny"))


def test_its_declared_accuracy_was_measured(zoo):
    assert 0.9 < zoo < 0.99


@pytest.mark.parametrize(
    "check", [cc.check_fits_its_data_set, cc.check_declared_accuracy], ids=lambda c: c.__name__
)
def test_untrained_weights_are_a_reason_not_a_failure(check):
    with pytest.raises(NotApplicable):
        check(Tiny(weights="untrained"))
