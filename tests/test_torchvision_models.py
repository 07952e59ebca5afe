"""torchvision's models: where their weights come from, and specs that cannot work."""

import hashlib
import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from untrained_classifiers import untrained

from defend.classifiers.torchvision import TorchvisionModel
from defend.errors import BadParameter, BadWeights, DefendError, MissingData
from defend.loading import load
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights

MODEL = "squeezenet1_1"


@pytest.fixture
def state():
    """Return a state dict of MODEL for five classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return torchvision.models.get_model(MODEL, weights=None, num_classes=5).state_dict()


def load_model(weights, classes=5, model=MODEL):
    """Return the classifier of a spec with these weights."""
    text = json.dumps(str(weights))
    spec = f"torchvision:model={model},size=64,classes={classes},weights={text}"
    return load(spec, "classifier")


def write_state(state, path):
    """Write a state dict as the suffix says; .pth is a checkpoint of DataParallel."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".pt":
        torch.save(state, path)
    else:
        parallel = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": parallel, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_local_file_fills_the_network(state, suffix, tmp_path):
    path = write_state(state, tmp_path / f"w{suffix}")
    classifier = load_model(path)
    plain = torchvision.models.get_model(MODEL, weights=None, num_classes=5).eval()
    plain.load_state_dict(state)
    x = classifier.example(2)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    torch.testing.assert_close(classifier.network(x), plain((x - mean) / std))
    assert classifier.weights_sha256 == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert str(classifier.trained_on[0]) == "unknown"


def test_weights_in_the_hub_cache_are_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    imagenet = torchvision.models.get_model(MODEL, weights=None).state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.get_model_weights(MODEL)["DEFAULT"].url
    torch.save(imagenet, folder / url.rpartition("/")[2])
    by_default = load(f"torchvision:model={MODEL},size=64", "classifier")
    by_name = load_model("IMAGENET1K_V1", classes=1000)
    first_layer = by_default.net.state_dict()["1.features.0.weight"]
    assert torch.equal(first_layer, imagenet["features.0.weight"])
    assert str(by_default.trained_on[0]) == "clean"
    assert by_default.weights_sha256.keys() == {"DEFAULT"}
    assert set(by_default.weights_sha256.values()) == set(by_name.weights_sha256.values())


def test_without_a_network_the_error_names_path_and_address(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # no proxy listens at this port
    with pytest.raises(MissingData) as e:
        load_model("DEFAULT", classes=1000)
    message = str(e.value)
    assert "checkpoints" in message
    assert "could not be downloaded" in message
    assert "https://download.pytorch.org/" in message
    assert "weights=FILE" in message


def test_a_file_of_defend_train_is_read_by_its_header(tmp_path):
    fitted = untrained(TorchvisionModel, model=MODEL, size=64, classes=5)
    header = Header(
        kind="classifier",
        component="torchvision",
        architecture="torchvision",
        dataset="d",
        fields={k: v for k, v in fitted.settings.items() if k != "weights"},
        trained_on=TrainedOn(kind="clean"),
        command="defend train",
        seed=0,
        commit="",
    )
    path = tmp_path / "w.safetensors"
    save_weights(path, fitted.net.state_dict(), header)
    classifier = load(f'torchvision:weights="{path}",model={MODEL}', "classifier")
    assert (classifier.size, classifier.classes, str(classifier.trained_on[0])) == (64, 5, "clean")
    x = classifier.example(2)
    assert torch.equal(classifier.network(x), fitted.network(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": "untrained", "model": "resnet51"}, BadParameter, "Did you mean .*resnet50"),
        (
            {"weights": "untrained", "model": "fasterrcnn_resnet50_fpn"},
            BadParameter,
            "no classification model",
        ),
        ({"weights": "IMAGENET1K_V9"}, BadWeights, "IMAGENET1K_V1"),
    ],
    ids=["model", "detector", "weights"],
)
def test_a_spec_that_cannot_work_is_refused(options, error, message):
    assert issubclass(error, DefendError)
    with pytest.raises(error, match=message):
        load_model(**options)


def test_grey_images_are_refused():
    with pytest.raises(BadParameter, match="colour"):
        untrained(TorchvisionModel, model=MODEL, channels=1)


def write_weights_of_other_classes(path):
    write_state(torchvision.models.get_model(MODEL, weights=None).state_dict(), path)


def write_damaged_file(path):
    path.write_bytes(b"\x80\x02 no state dict")


def write_empty_file(path):
    path.write_bytes(b"")


def write_pickled_code(path):
    torch.save({"a": nn.Linear(1, 1)}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_weights_of_other_classes, "classes="),
        (write_damaged_file, "expected a file of tensors alone"),
        (write_empty_file, "expected a file of tensors alone"),
        (write_pickled_code, "expected a file of tensors alone"),
    ],
)
def test_a_file_without_fitting_weights_is_refused(write, message, tmp_path):
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(BadWeights, match=message):
        load_model(path)
