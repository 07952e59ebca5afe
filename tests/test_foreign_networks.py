"""Models of timm and transformers as classifiers, from local folders with random weights."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from model_folders import NEEDED, SAVE, normalised, save_huggingface, save_timm, spec_of
from safetensors.torch import load_file, save_file

import defend
from defend.benchmarks.component_keys import component_key
from defend.classifiers.huggingface import read_normalisation, read_size
from defend.cli import main
from defend.errors import BadParameter, BadWeights, MissingData, MissingPackage
from defend.pairing import check_logits
from defend.records import read_records

BENCH = (
    "bench --dataset digits-m --defense none --defense jpeg --attack fgsm --knowledge oblivious"
    " --eps 8/255 --n 8 --device cpu --workers 1"
)
LIBRARIES = [pytest.param(name, marks=NEEDED[name]) for name in ("timm", "huggingface")]
needs_timm, needs_huggingface = NEEDED["timm"], NEEDED["huggingface"]


def images(size=32, n=3):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def load(library, folder, **fields):
    return defend.load(spec_of(library, folder, **fields), "classifier")


@needs_timm
def test_a_timm_model_has_its_own_normalisation(tmp_path):
    net = save_timm(tmp_path)
    classifier, x = load("timm", tmp_path), images()
    assert (classifier.channels, classifier.size, classifier.classes) == (3, 32, 10)
    torch.testing.assert_close(classifier.network(x), net(normalised(x)).detach())


@needs_huggingface
def test_a_hugging_face_model_has_the_normalisation_of_its_processor(tmp_path):
    """Pixels are whole, as those that the processor takes."""
    net, processor = save_huggingface(tmp_path, classes=7)
    classifier = load("huggingface", tmp_path)
    pixels = (255 * images()).to(torch.uint8)
    expected = net(**processor(images=list(pixels), return_tensors="pt")).logits.detach()
    assert (classifier.channels, classifier.size, classifier.classes) == (3, 32, 7)
    torch.testing.assert_close(classifier.network(pixels / 255), expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_images_of_another_size_are_scaled_inside_the_network(library, tmp_path):
    """An attack sees 16x16 pixels, each of which has a slope."""
    SAVE[library](tmp_path)
    small, own = load(library, tmp_path, size=16), load(library, tmp_path)
    x = images(16).requires_grad_()
    scaled = torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(small.network(x), own.network(scaled))
    (slopes,) = torch.autograd.grad(small.network(x)[:, 0].sum(), x)
    assert small.size == 16 and (slopes != 0).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_from_a_folder_is_benched_in_one_command(library, tmp_path):
    SAVE[library](tmp_path / "model")
    model, out = spec_of(library, tmp_path / "model"), str(tmp_path / "run")
    options = [*BENCH.split(), "--classifier", model, "--out", out]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    record = read_records(tmp_path / "run")[0]
    assert "model/model.safetensors" in record.scored_weights.classifier
    assert [training.kind for training in record.classifier_trained_on] == ["unknown"]


CHANGES = {
    "a weight": ("model.safetensors", lambda state: {k: v * 1.5 for k, v in state.items()}),
    "the mean": (None, None),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_and_normalisation_decide_the_key(library, change, tmp_path):
    SAVE[library](tmp_path)

    def key():
        return component_key(load(library, tmp_path), "classifier")

    before = key()
    assert key() == before
    file, make = CHANGES[change]
    if file:
        save_file(make(load_file(tmp_path / file)), tmp_path / file, {"format": "pt"})
    else:
        config = tmp_path / ("config.json" if library == "timm" else "preprocessor_config.json")
        config.write_text(config.read_text().replace("0.4", "0.45"))
    assert key() != before


@pytest.mark.parametrize("library", LIBRARIES)
def test_running_for_long_changes_no_logit(library, tmp_path):
    """Batch norms are folded and the layout is another one: the function stays."""
    SAVE[library](tmp_path)
    classifier, x = load(library, tmp_path), images()
    expected = classifier.network(x)
    classifier.run_as("float32", "channels_last")
    torch.testing.assert_close(classifier.network(x), expected, rtol=1e-3, atol=1e-4)
    check_logits(classifier)


# timm: names, files and what cannot be read.


@needs_timm
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_fills_an_architecture_of_timm(suffix, tmp_path):
    net, file = save_timm(tmp_path), tmp_path / f"mine{suffix}"
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save({"model": state}, file)
    spec = f'timm:model=test_resnet,weights="{file}",classes=10,size=64'
    classifier = defend.load(spec, "classifier")
    filled = classifier.network.net[-1].net.state_dict()
    assert all(torch.equal(filled[name], tensor) for name, tensor in net.state_dict().items())
    assert classifier.network.net[-2].mean.flatten().tolist() == [0.5, 0.5, 0.5]  # of timm's
    assert classifier.weights_sha256.keys() == {file.name}


@needs_timm
def test_a_folder_with_a_pickle_of_tensors_is_read(tmp_path):
    net = save_timm(tmp_path, safe=False)
    assert not (tmp_path / "model.safetensors").exists()
    x = images()
    torch.testing.assert_close(load("timm", tmp_path).network(x), net(normalised(x)).detach())


class WritesMarker:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@needs_timm
@pytest.mark.parametrize("named", [False, True])
def test_no_pickle_of_other_objects_is_run(named, tmp_path):
    save_timm(tmp_path, safe=False)
    file, marker = tmp_path / "pytorch_model.bin", tmp_path / "marker"
    file.write_bytes(pickle.dumps({"x": WritesMarker(str(marker))}))
    spec = spec_of("timm", tmp_path)
    if named:
        spec = f'timm:model=test_resnet,weights="{file}"'
    with pytest.raises(BadWeights, match="expected a file of tensors alone"):
        defend.load(spec, "classifier")
    assert not marker.exists()


NOT_TIMM = {
    "timm:model=resnet81": (BadParameter, r"no model 'resnet81'.*Did you mean resnet18"),
    "timm:model=resnet18.of_mine": (BadParameter, r"no weights 'resnet18.of_mine'.*resnet18.a1"),
    "timm:model=./nothing": (BadWeights, r"expected the folder ./nothing, which does not exist"),
    "timm:model=resnet18,weights=nothing.pth": (BadWeights, r"weights=nothing.pth"),
    "timm:model=test_resnet,weights={tmp}/mine.pth,classes=7": (BadWeights, r"check model= and"),
    "timm:model={tmp}/empty": (BadWeights, r"config.json: expected a JSON file"),
    "timm:model={tmp}/other": (BadWeights, r"huggingface:path={tmp}/other"),
    "timm:model={tmp}/no-weights": (BadWeights, r"expected one of model.safetensors"),
}


@needs_timm
@pytest.mark.parametrize("spec", NOT_TIMM)
def test_a_model_that_timm_does_not_have_is_refused(spec, tmp_path):
    net = save_timm(tmp_path / "no-weights")
    (tmp_path / "no-weights" / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    error, message = NOT_TIMM[spec]
    with pytest.raises(error, match=message.format(tmp=tmp_path)):
        defend.load(spec.format(tmp=tmp_path), "classifier")


@needs_timm
def test_without_a_network_the_error_names_the_model(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingData, match=r"timm: test_resnet.r160_in1k.*give a local folder"):
        defend.load("timm:model=test_resnet.r160_in1k", "classifier")


# transformers: what a processor says.

PROCESSORS = {
    "plain": ({"image_mean": [0.5], "image_std": [0.25]}, 0.5, 0.25),
    "no normalisation": ({"do_normalize": False}, 0.0, 1.0),
    "pixels in 0..255": (
        {"do_rescale": False, "image_mean": [127.5], "image_std": [51.0]},
        0.5,
        0.2,
    ),
    "pixels in -1..1": (
        {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
        0.5,
        0.5,
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_way_to_rescale_becomes_a_mean_and_a_deviation(name):
    pixels, mean, std = PROCESSORS[name]
    means, stds = read_normalisation(pixels, 1, "file")
    assert (means, stds) == (pytest.approx((mean,)), pytest.approx((std,)))


SIZES = {
    "a square": ({"size": {"height": 24, "width": 24}}, None, 24),
    "the shortest edge": ({"size": {"shortest_edge": 24}}, None, 24),
    "a number": ({"size": 24}, None, 24),
    "the crop": (
        {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 24}},
        None,
        24,
    ),
    "the configuration": ({}, 24, 24),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_size_is_that_which_the_network_gets(name):
    pixels, image_size, expected = SIZES[name]
    assert read_size(pixels, image_size, "file") == expected


BAD_PROCESSORS = {
    "no mean": ({"image_std": [0.5]}, "expected image_mean, got none"),
    "two means": ({"image_mean": [0, 1], "image_std": [1]}, "a number for each of 3 channels"),
}


@pytest.mark.parametrize("name", BAD_PROCESSORS)
def test_a_processor_without_a_normalisation_is_refused(name):
    pixels, message = BAD_PROCESSORS[name]
    with pytest.raises(BadWeights, match=message):
        read_normalisation(pixels, 3, "file")
    with pytest.raises(BadWeights, match="expected the size of square images"):
        read_size({"size": {"height": 3, "width": 4}}, None, "file")


@needs_huggingface
def test_a_folder_without_a_processor_is_refused(tmp_path):
    save_huggingface(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(BadWeights, match=r"expected preprocessor_config.json with image_mean"):
        load("huggingface", tmp_path)


@needs_huggingface
def test_a_folder_without_weights_is_refused(tmp_path):
    save_huggingface(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadWeights, match="AutoModelForImageClassification cannot be loaded"):
        load("huggingface", tmp_path)


# Without the extras.

MODULES = {
    "timm:model=resnet18": ("timm", r"pip install 'defend\S*\[timm\]'"),
    "huggingface:path=x": ("transformers", r"pip install 'defend\S*\[huggingface\]'"),
    "robustbench:model=Standard,dataset=cifar10": (
        "robustbench",
        r"pip install 'defend\S*\[robustbench\]'",
    ),
}


@pytest.mark.parametrize("spec", MODULES)
def test_a_missing_extra_is_one_line(spec, monkeypatch):
    module, message = MODULES[spec]
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=message) as caught:
        defend.load(spec, "classifier")
    assert "\n" not in str(caught.value)
