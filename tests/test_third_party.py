"""Networks of other libraries: plain files, folders, optional packages, and their hashes."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from defend.classifier import Classifier, ClassifierCard
from defend.errors import BadWeights, DefendError, MissingPackage
from defend.noise import Noise
from defend.purifier import Card, LearnedPurifier, Purifier
from defend.testing import run_checks
from defend.weights.third_party import (
    fill_network,
    import_extra,
    load_pretrained,
    loaded_weights,
    read_state_dict,
)

EXACT = Card(paper="none: made for this test", gradient="exact", stochastic=False, channels=(3,))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Unit(nn.Module):
    """A network of one layer, in the manner of a library whose networks load themselves."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.layer(x)

    @classmethod
    def from_pretrained(cls, folder, local_files_only=False):
        assert local_files_only
        network = cls()
        network.load_state_dict(load_file(Path(folder, "model.safetensors")))
        return network

    @classmethod
    def from_state_dict(cls, state):
        network = cls()
        network.load_state_dict(state)
        return network


@pytest.fixture
def state():
    return {"layer.weight": torch.randn(3, 3, 1, 1), "layer.bias": torch.randn(3)}


@pytest.fixture
def folder(state, tmp_path):
    """Return a folder with weights, a configuration and a picture."""
    path = tmp_path / "unit"
    path.mkdir()
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    (path / "samples.png").write_bytes(b"")
    return path


# Plain files.


def behind_module(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


CHECKPOINTS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state},
    "DataParallel": behind_module,
    "both": lambda state: {"state_dict": behind_module(state)},
}


@pytest.mark.parametrize("wrap", CHECKPOINTS.values(), ids=CHECKPOINTS)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_checkpoint_is_unwrapped(state, wrap, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    torch.save(wrap(state), path)
    tensors = read_state_dict(path)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def write_code(path):
    torch.save({"network": Unit()}, path)


NO_STATE_DICTS = {
    "code": write_code,
    "a list": lambda path: torch.save([1, 2], path),
    "text": lambda path: path.write_text("no tensors"),
    "no file": lambda path: path.with_suffix(".other").touch(),
}


@pytest.mark.parametrize("write", NO_STATE_DICTS.values(), ids=NO_STATE_DICTS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_anything_but_tensors_is_refused_in_one_line(write, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    write(path)
    with pytest.raises(BadWeights, match="expected a file of tensors alone") as e:
        read_state_dict(path)
    assert "\n" not in str(e.value)


def test_a_filled_network_remembers_its_file(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    network = Unit()
    fill_network(network, path)
    assert torch.equal(network.layer.bias, state["layer.bias"])
    assert loaded_weights(network) == {str(path): sha256(path)}
    with pytest.raises(BadWeights, match=r"does not fit Linear: the network wants weight, bias"):
        fill_network(nn.Linear(2, 2), path)
    wide = {name: torch.zeros(9, *t.shape) for name, t in Unit().state_dict().items()}
    save_file(wide, path)
    with pytest.raises(BadWeights) as raised:
        fill_network(Unit(), path)
    assert "layer.bias (" in str(raised.value) and "the file (9, " in str(raised.value)
    assert str(raised.value).endswith("; give weights of this network")


# Folders.


class AroundUnit(Purifier):
    """Apply a network from a folder."""

    card = EXACT
    folder: str

    def validate(self):
        self.unit = load_pretrained(Unit, self.folder)

    def purify(self, x, noise):
        return self.unit(x).sigmoid()


class LearnedAroundUnit(LearnedPurifier):
    """Build its network from a folder."""

    card = EXACT
    folder: str
    weights: str = "untrained"

    def build(self):
        return load_pretrained(Unit, self.folder)

    def purify(self, x, noise):
        return self.frozen(x).sigmoid()


class ClassifierAroundUnit(Classifier):
    """Classify by a network from a folder."""

    card = ClassifierCard(paper="none: made for this test", licence="MIT")
    folder: str
    weights: str = "untrained"
    size: int = 2

    def build(self):
        unit = load_pretrained(Unit, self.folder)
        return nn.Sequential(unit, nn.Flatten(), nn.Linear(12, 10))


@pytest.mark.parametrize("kind", [AroundUnit, LearnedAroundUnit, ClassifierAroundUnit])
def test_a_folder_is_known_by_its_hashes(folder, kind):
    component = kind(folder=str(folder))
    assert component.weights_sha256 == {
        "unit/model.safetensors": sha256(folder / "model.safetensors"),
        "unit/config.json": sha256(folder / "config.json"),
    }
    assert [known.kind for known in component.trained_on] == ["unknown"]


def test_hashes_survive_the_folding_of_batch_norms(folder):
    classifier = ClassifierAroundUnit(folder=str(folder))
    before = classifier.weights_sha256
    classifier.run_as("float32", "channels_last")
    assert classifier.weights_sha256 == before


def test_a_purifier_around_a_folder_passes_the_kit(folder):
    results = run_checks("defense", lambda: AroundUnit(folder=str(folder)))
    assert [result for result in results if result[1] == "fail"] == []


def test_a_unet_passes_the_kit(ddpm):
    results = run_checks("defense", lambda: Denoise(folder=str(ddpm)))
    assert [result for result in results if result[1] == "fail"] == []


def test_loading_leaves_the_global_generator_alone(folder):
    before = torch.get_rng_state()
    load_pretrained(Unit, folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_file_is_read_by_a_class_that_knows_how(state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    network = load_pretrained(Unit, path)
    assert torch.equal(network.layer.bias, state["layer.bias"])
    assert loaded_weights(network) == {"w.pth": sha256(path)}


class OnlyFolders:
    """A class that reads no single file."""


def remove_weights(folder):
    (folder / "model.safetensors").unlink()
    return folder


def damage_weights(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    return folder


WRONG_SOURCES = {
    "no folder": (Unit, lambda folder: folder / "nowhere", "a path that does not exist"),
    "no weights": (Unit, remove_weights, "cannot be loaded from there: FileNotFoundError"),
    "damaged weights": (Unit, damage_weights, "cannot be loaded from there: SafetensorError"),
    "a file": (OnlyFolders, lambda folder: folder / "config.json", "expected a folder"),
}


@pytest.mark.parametrize(("cls", "spoil", "message"), WRONG_SOURCES.values(), ids=WRONG_SOURCES)
def test_a_source_without_weights_is_refused_in_one_line(folder, cls, spoil, message):
    with pytest.raises(BadWeights, match=message) as e:
        load_pretrained(cls, spoil(folder))
    assert isinstance(e.value, DefendError) and "\n" not in str(e.value)


# Optional packages.


def test_a_missing_package_is_one_line_with_the_command():
    with pytest.raises(MissingPackage) as e:
        import_extra("no_such_package.inner", "my-plugin[diffusion]")
    assert str(e.value) == (
        "expected the package no_such_package, which is not installed; type"
        " `pip install 'my-plugin[diffusion]'`"
    )


def test_a_missing_package_of_a_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_package")
    (tmp_path / "outdated.py").write_text("from json import no_such_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage, match="package no_such_package for half_installed, which"):
        import_extra("half_installed", "x")
    with pytest.raises(
        MissingPackage, match=r"outdated cannot be imported .*install --upgrade 'x'"
    ):
        import_extra("outdated", "x")


def test_an_installed_package_is_returned():
    assert import_extra("json.decoder", "x").JSONDecoder


# diffusers, where it is installed.


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture
def ddpm(diffusers, tmp_path):
    """Return the folder of a small untrained UNet, as `save_pretrained` writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
        )
    unet.save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


class Denoise(Purifier):
    """Predict the noise of an image once, and subtract it."""

    card = EXACT
    folder: str
    step: int = 50  # of the training's 1,000

    def validate(self):
        diffusers = import_extra("diffusers", "my-plugin[diffusion]")
        self.unet = load_pretrained(diffusers.UNet2DModel, self.folder)

    def purify(self, x, noise):
        return (x - 0.05 * self.unet(2 * x - 1, self.step).sample).clamp(0, 1)


def test_a_unet_of_diffusers_is_loaded_from_a_folder(ddpm):
    purifier = Denoise(folder=str(ddpm))
    weights = ddpm / "diffusion_pytorch_model.safetensors"
    assert purifier.weights_sha256[f"{ddpm.name}/{weights.name}"] == sha256(weights)
    x = purifier.example(2)
    noise = Noise.of(0, torch.arange(2))
    assert not torch.equal(purifier.purified(x, noise), x)
    assert not any(w.requires_grad for w in purifier.unet.parameters())


def drop_a_tensor(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)


def write_a_pickle(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), folder / "diffusion_pytorch_model.bin")
    path.unlink()


SPOILT = {
    "a gap": (drop_a_tensor, "none that fit for 1 of its tensors, as conv_in.weight"),
    "a pickle": (write_a_pickle, "safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_a_folder_that_diffusers_would_accept_or_refuse_is_one_line(ddpm, spoil, message):
    spoil(ddpm)
    with pytest.raises(BadWeights, match=message) as e:
        Denoise(folder=str(ddpm))
    assert "\n" not in str(e.value)


@pytest.mark.usefixtures("diffusers")
def test_a_model_that_is_not_in_the_cache_is_one_line(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # no proxy listens at this port
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadWeights, match="nobody/nothing: UNet2DModel cannot be loaded") as e:
        Denoise(folder="nobody/nothing")
    assert "\n" not in str(e.value)


def test_a_model_in_the_hubs_cache_is_loaded_by_its_name(diffusers, ddpm, tmp_path):
    """The layout is that of huggingface_hub."""
    cache = tmp_path / "cache"
    model = cache / "models--somebody--ddpm"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    shutil.copytree(ddpm, model / "snapshots" / ("0" * 40))
    unet = load_pretrained(diffusers.UNet2DModel, "somebody/ddpm", cache_dir=str(cache))
    weights = ddpm / "diffusion_pytorch_model.safetensors"
    assert loaded_weights(unet)[f"somebody/ddpm/{weights.name}"] == sha256(weights)
