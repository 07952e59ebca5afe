"""`defend enrol`: other people for a trained network, and the measurement of sized weights."""

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from source_files import REPOSITORY

import defend
from defend.cli.enrol import enrol
from defend.cli.train import train
from defend.cli.zoo import zoo
from defend.errors import BadParameter, MissingData
from defend.weights.header import file_sha256, read_header
from defend.weights.zoo import read_folder

NET = "face-resnet:width=8,embedding=16"


def run(command, *args):
    return CliRunner().invoke(command, [str(a) for a in args], catch_exceptions=False)


def write_people(top, names, pictures, splits=("train", "val", "test"), size=16):
    """Write pictures of people, who differ in a smooth pattern, into top/SPLIT/NAME."""
    for number, name in enumerate(names):
        base = np.random.default_rng([7, number]).integers(0, 256, (4, 4, 3))
        for split in splits:
            generator = np.random.default_rng([*split.encode(), number])
            (top / split / name).mkdir(parents=True)
            for i in range(pictures):
                pixels = base + generator.integers(-20, 20, (4, 4, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image = image.resize((size, size), Image.Resampling.BICUBIC)
                image.save(top / split / name / f"{i}.png")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """A data root with four people in `faces`, and with three others in `staff` and `gap`."""
    root = tmp_path_factory.mktemp("data")
    write_people(root / "lfw158", ["ann", "bob", "cid", "dan"], 6)
    write_people(root / "staff", ["eve", "fay", "gus"], 3, ("train", "test"))
    write_people(root / "gap", ["eve", "fay", "gus"], 2, ("train", "test"))
    for picture in (root / "gap/train/fay").iterdir():
        picture.unlink()
    return root


@pytest.fixture(scope="module")
def trained(data_root):
    """The weights of a network that was trained on the four people."""
    out = data_root / "trained.safetensors"
    options = ("-o", "epochs=15", "-o", "batch=8", "-o", "lr=0.02", "-o", "precision=float32")
    args = (NET, "--dataset", "faces:size=16", "--data-root", data_root, "--out", out, *options)
    assert run(train, "classifier", *args).exit_code == 0
    return out


def test_new_people_are_identified_by_weights_that_load_again(data_root, trained):
    out = data_root / "staff.safetensors"
    people = f"image-folder:path={data_root}/staff,size=16"
    spec = f"face-resnet:weights={trained}"
    outcome = run(enrol, spec, "--dataset", people, "--out", out)
    assert "3 people enrolled" in outcome.stderr
    c = defend.load(f"face-resnet:weights={out}", "classifier")
    data = defend.load(people, "dataset")
    assert (c.classes, c.width, c.embedding) == (3, 8, 16)
    x, y = data.rows("test", 0, data.count("test"))
    assert (c.network(x).argmax(1) == y).float().mean() > 0.8
    before = defend.load(f"face-resnet:weights={trained}", "classifier")
    assert torch.allclose(before.embed(x), c.embed(x), atol=1e-3)
    header = read_header(out)
    assert header.started_from == file_sha256(trained)
    assert str(header.trained_on) == "clean"
    assert header.dataset == "image-folder"
    assert header.command.startswith(read_header(trained).command + " && defend enrol ")


def test_the_means_of_the_training_pictures_are_the_gallery(data_root, trained):
    out = data_root / "means.safetensors"
    spec = f"face-resnet:weights={trained}"
    args = ("--dataset", "faces:size=16", "--data-root", data_root, "--out", out)
    assert run(enrol, spec, *args).exit_code == 0
    data = defend.load("faces:size=16", "dataset", root=str(data_root))
    c = defend.load(f"face-resnet:weights={out}", "classifier")
    expected = c.enrol(*data.rows("train", 0, data.count("train"))).gallery
    assert torch.allclose(c.gallery, expected, atol=2e-3)  # the file has 16 bits


def test_weights_are_measured_at_their_own_size(data_root, trained, tmp_path):
    """`faces` has 112 pixels by default; the weights are for 16."""
    toml = "--package", tmp_path
    assert run(zoo, "add", trained, "--licence", "MIT", *toml).exit_code == 0
    assert run(zoo, "measure", "trained", "--data-root", data_root, *toml).exit_code == 0
    measured = read_folder(tmp_path, "")["trained"].measured
    assert measured["images"] == 24
    c = defend.load(f"face-resnet:weights={trained}", "classifier")
    data = defend.load("faces:size=16", "dataset", root=str(data_root))
    x, y = data.rows("test", 0, 24)
    accuracy = float((c.network(x).argmax(1) == y).float().mean())
    assert measured["clean_accuracy"] == round(accuracy, 4)


WRONG = {
    "no picture of a person": ("image-folder:path={root}/gap,size=16", MissingData, "none of fay"),
    "another size": ("image-folder:path={root}/staff,size=12", BadParameter, "as in size=16"),
    "grey": ("image-folder:path={root}/staff,size=16,channels=1", BadParameter, "takes 3x16x16"),
    "no folder": ("image-folder:path={root}/nobody,size=16", MissingData, "no folder"),
}


@pytest.mark.parametrize(("dataset", "error", "message"), WRONG.values(), ids=WRONG)
def test_people_who_cannot_be_enrolled(data_root, trained, tmp_path, dataset, error, message):
    people = dataset.format(root=data_root)
    args = ("--dataset", people, "--out", tmp_path / "out.safetensors")
    with pytest.raises((error, BadParameter), match=message):
        run(enrol, f"face-resnet:weights={trained}", *args)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_classifier_without_embeddings_is_refused(data_root, tmp_path):
    people = f"image-folder:path={data_root}/staff,size=8,channels=1"
    args = ("--dataset", people, "--out", tmp_path / "out.safetensors")
    with pytest.raises(BadParameter, match="convnet:weights=convnet-digits, which has none"):
        run(enrol, "convnet:weights=convnet-digits", *args)


def test_the_page_about_faces_runs(data_root, monkeypatch):
    """Three people, whom the weights that ship have never seen, are enrolled as the page says."""
    monkeypatch.setenv("DEFEND_DATA", str(data_root))
    text = (REPOSITORY / "docs/faces.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    names = {}
    exec(compile(block, "faces.md", "exec"), names)
    assert names["staff"].classes == 3
    assert (names["predicted"] == names["y"]).float().mean() > 0.8
