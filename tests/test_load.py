"""`defend.load`: specs become objects."""

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import defend
from defend import Attack, AttackCard, Card, Purifier
from defend.chain import Chain
from defend.errors import AmbiguousName, BadParameter, BadSpec, BadWeights, DefendError, UnknownName
from defend.loading import dataset_name, load, pick_device
from defend.noise import Noise
from defend.spec import Spec, parse, write_value


def test_a_spec_becomes_its_component():
    purifier = defend.load("gaussian:sigma=1/4")
    assert type(purifier).__name__ == "GaussianNoise" and purifier.settings == {"sigma": 0.25}
    assert defend.load(Spec("gaussian", (("sigma", 0.25),))).settings == purifier.settings
    assert defend.load(parse("gaussian:sigma=1/4")).settings == purifier.settings
    assert defend.load("pgd:steps=3", "attack").steps == 3
    assert defend.load("digits", "dataset").size == 8


def test_a_chain_runs_from_left_to_right():
    chain = defend.load("bitdepth:bits=1+gaussian:sigma=0.1")
    assert isinstance(chain, Chain)
    assert [type(m).__name__ for m in chain.members] == ["BitDepth", "GaussianNoise"]
    x, noise = torch.rand(3, 1, 8, 8), Noise.of(0, torch.arange(3))
    out = chain.purified(x, noise)
    assert torch.equal(out, (x.round() + 0.1 * noise.fork("1").normal(x)).clamp(0, 1))
    reversed_out = defend.load("gaussian:sigma=0.1+bitdepth:bits=1").purified(x, noise)
    assert set(reversed_out.unique().tolist()) <= {0.0, 1.0}


def test_options_beside_the_spec_decide_how_it_runs():
    purifier = defend.load("gaussian", seed=3, max_batch=2, clip_values=(0, 255))
    assert (purifier.seed, purifier.max_batch, purifier.clip_values) == (3, 2, (0, 255))
    assert purifier.settings == {"sigma": 0.1}
    chain = defend.load("none+gaussian", seed=3)
    x = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)
    assert np.array_equal(chain(x)[0], chain(x)[0])


@pytest.mark.parametrize("name", ["digits", "digits-m"])
def test_an_untrained_component_takes_the_shape_of_the_data(name):
    data = defend.load(name, "dataset")
    net = defend.load("convnet:weights=untrained", "classifier", data)
    net.check_fits(data.channels, data.size, data.classes, name)
    assert net.network(data.rows("test", 0, 2)[0]).shape == (2, data.classes)
    channels = 4 - data.channels
    spec = f"convnet:weights=untrained,channels={channels}"
    assert defend.load(spec, "classifier", data).channels == channels


def test_data_sets_know_their_registered_name():
    assert dataset_name(defend.load("digits-m", "dataset")) == "digits-m"


WRONG = {
    "a kind": (
        lambda: defend.load("gaussian", "defence"),
        UnknownName,
        "unknown kind 'defence': expected defense",
    ),
    "a name": (lambda: defend.load("gausian"), UnknownName, "Did you mean gaussian?"),
    "a chain of attacks": (
        lambda: defend.load("pgd+fgsm", "attack"),
        BadSpec,
        "only defenses are chained",
    ),
    "no member": (lambda: defend.load(()), BadParameter, "at least one purifier"),
    "a device": (
        lambda: defend.load("none", device="gpu"),
        BadParameter,
        "expected auto, cpu, cuda or cuda:N",
    ),
    "a device for a classifier": (
        lambda: defend.load("convnet:weights=untrained", "classifier", device="cuda:99"),
        BadParameter,
        "device 'cuda:99' is not there",
    ),
    "an option": (
        lambda: defend.load("gaussian", max_bach=3),
        BadParameter,
        "has no field 'max_bach'. Did you mean max_batch?",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_named(mistake):
    call, error, message = WRONG[mistake]
    with pytest.raises(error) as e:
        call()
    assert message in str(e.value) and isinstance(e.value, DefendError)


@pytest.mark.usefixtures("install")
def test_two_packages_with_one_name(tmp_path, install):
    for dist in ("one-pack", "two-pack"):
        info = tmp_path / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[defend.defenses]\nsmooth = defend.defenses.none:NoDefense\n"
        )
    install(tmp_path)
    with pytest.raises(AmbiguousName, match=r"one-pack/smooth, two-pack/smooth; write one in full"):
        defend.load("smooth")
    assert type(defend.load("two-pack/smooth+none").members[0]).__name__ == "NoDefense"


def test_auto_is_the_first_gpu_or_the_cpu():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == pick_device(None).type == expected
    assert defend.load("none", device="auto").device.type == expected


@pytest.mark.gpu
def test_networks_move_to_the_device():
    net = defend.load("convnet:weights=untrained", "classifier", device="cuda:0")
    assert {p.device.type for p in net.net.parameters()} == {"cuda"}
    noisy = defend.load("gaussian", device="cuda", seed=0)
    assert noisy(np.zeros((2, 1, 4, 4), np.float32))[0].shape == (2, 1, 4, 4)


def test_importing_the_module_does_not_hide_the_function():
    assert import_module("defend.loading").load is defend.load
    assert defend.load("none").settings == load("none").settings == {}


def test_the_package_loads_no_torch_until_it_is_used():
    lines = [
        "import sys, defend",
        "assert 'torch' not in sys.modules",
        "defend.Noise",
        "assert 'torch' in sys.modules and 'art' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.parametrize("name", defend.__all__)
def test_every_public_name_is_documented(name):
    assert getattr(defend, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Purifyer'"):
        defend.Purifyer  # noqa: B018


class Cardless(Purifier):
    def purify(self, x, noise):
        return x


class CardlessAttack(Attack):
    def run(self, target, x, y, eps, noise):
        return x


@pytest.mark.parametrize("kind", [Cardless, CardlessAttack])
def test_a_missing_card_is_an_error_that_shows_one(kind):
    with pytest.raises(BadParameter, match=r"has no card.*write card = (Attack)?Card\("):
        kind()


def test_a_misspelt_word_on_a_card_is_an_error():
    """A misspelt claim would be a claim that no check asks for."""
    words = "exact, approximate, identity, surrogate"
    message = rf"Card\(gradient='exactly'\): expected {words}. Did you mean exact"
    with pytest.raises(BadParameter, match=message):
        Card(paper="none: a test", gradient="exactly", stochastic=False)
    message = r"AttackCard\(access='score'\): expected gradient, scores, labels"
    with pytest.raises(BadParameter, match=message):
        AttackCard(paper="none: a test", access="score")


def test_a_data_set_may_be_named_with_its_fields(tmp_path):
    """Untrained networks take its shape. Weights that are looked for are those of its name."""
    for label in ("a", "b"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        Image.new("RGB", (12, 12)).save(folder / "1.png")
    data = f"image-folder:path={write_value(str(tmp_path))},size=12"
    untrained = defend.load("convnet:weights=untrained", "classifier", data)
    assert (untrained.channels, untrained.size, untrained.classes) == (3, 12, 2)
    with pytest.raises(BadWeights, match="trained on image-folder;"):
        defend.load("convnet", "classifier", data)
