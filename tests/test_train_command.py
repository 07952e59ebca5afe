"""Recipes as a user writes them, `fit` of components, and the command `defend train`."""

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from train_toys import Killed, brightness_images, make_noise

import defend
from defend.classifiers.convnet import ConvNet
from defend.cli.train import train as train_command
from defend.errors import BadParameter, BadWeights, DefendError
from defend.loading import load
from defend.training.loop import TrainingRun
from defend.training.perturbations import attack_by_pgd
from defend.training.recipe import Recipe, read_recipe
from defend.weights.header import file_sha256, read_header


def make_classifier():
    return ConvNet(weights="untrained", width=2, channels=1, size=6, classes=3)


def make_images(n=64):
    x, y = brightness_images(n)
    return x[:, :1], y


# Recipes.

WRONG_OPTIONS = {
    "name": ({"epoch": 3}, "'epoch'.*epochs"),
    "type": ({"epochs": "three"}, "epochs.*a number"),
    "choice": ({"optimiser": "adam"}, "adam.*'sgd' or 'adamw'"),
    "range": ({"lr": 0}, "lr=0.0.*> 0"),
    "own choice": ({"augment": "flip"}, "flip.*'none' or 'crop' or 'crop-flip'"),
    "own range": ({"label_smoothing": 1}, "label_smoothing"),
}


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(BadParameter, match=message):
        make_classifier().fit(*make_images(), progress=False, **options)


def test_a_recipe_reads_the_values_of_a_command_line():
    recipe = read_recipe(Recipe, {"epochs": 3, "lr": 1, "ema": 0.5}, "x")
    assert (recipe.epochs, recipe.lr, recipe.ema) == (3.0, 1.0, 0.5)


# `fit`.


def test_fit_needs_labels():
    with pytest.raises(BadParameter, match="64 images and none"):
        make_classifier().fit(make_images()[0])


def test_fit_refuses_labels_that_the_classifier_does_not_have():
    x, y = make_images()
    with pytest.raises(BadParameter, match=r"classes=3.*got 5"):
        make_classifier().fit(x, y + 3, progress=False)


def test_fit_records_what_it_trained_on():
    classifier = make_classifier()
    assert str(classifier.trained_on[0]) == "untrained"
    classifier.fit(*make_images(), epochs=1, progress=False)
    assert str(classifier.trained_on[0]) == "clean"
    options = {"adversarial": 0.1, "adversarial_steps": 2}
    classifier.fit(*make_images(), epochs=1, progress=False, **options)
    assert str(classifier.trained_on[0]) == "adversarial(pgd-2, Linf 0.1, itself)"


def make_features():
    """Return images with a weak feature in many pixels and a strong one in few.

    The strong feature agrees with the label in 90 % of the images.
    """
    y = torch.arange(200) % 2
    x = torch.full((200, 1, 6, 6), 0.5)
    x[:, :, :3] += (0.03 * (2 * y - 1)).view(-1, 1, 1, 1)
    agrees = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.9
    strong = torch.where(agrees, 2 * y - 1, 1 - 2 * y)
    x[:, :, 4:, 2:4] += 0.3 * strong.view(-1, 1, 1, 1)
    return x, y


def test_adversarial_training_is_harder_to_attack():
    """Only the strong feature survives an attack: Tsipras et al., arXiv:1805.12152."""
    x, y = make_features()
    robust_accuracy = {}
    for eps in (0.0, 0.1):
        classifier = ConvNet(weights="untrained", width=4, channels=1, size=6, classes=2)
        classifier.fit(
            x,
            y,
            epochs=6,
            batch=20,
            lr=0.05,
            precision="float32",
            adversarial=eps,
            adversarial_steps=3,
            progress=False,
        )
        x_adv = attack_by_pgd(classifier.net, x, y, 0.1, "Linf", 10, make_noise(200))
        correct = classifier.net(x_adv).argmax(1) == y
        robust_accuracy[eps] = float(correct.float().mean())
    assert robust_accuracy[0.1] > robust_accuracy[0.0] + 0.3


# The command.


def run(*args):
    return CliRunner().invoke(train_command, [str(a) for a in args], catch_exceptions=False)


def test_the_command_writes_a_file_that_loads(tmp_path):
    out = tmp_path / "c.safetensors"
    options = "--dataset digits -o epochs=2 -o lr=0.05 --seed 3 --device cpu"
    result = run("convnet:width=4", *options.split(), "--out", out)
    assert result.exit_code == 0
    assert f"wrote {out}" in result.stderr
    assert result.stdout == ""

    header = read_header(out)
    assert (header.kind, header.component, header.dataset) == ("classifier", "convnet", "digits")
    assert (str(header.trained_on), header.seed) == ("clean", 3)
    assert header.fields == {"channels": 1, "size": 8, "classes": 10, "width": 4}
    assert header.command == (
        "defend train classifier convnet:width=4 --dataset digits --out c.safetensors"
        " -o epochs=2 -o lr=0.05 -o seed=3"
    )

    classifier = load(f'convnet:weights="{out}"', "classifier")
    assert classifier.width == 4
    assert str(classifier.trained_on[0]) == "clean"
    x, y = load("digits", "dataset").rows("val", 0, 100)
    accuracy = float((classifier.network(x).argmax(1) == y).float().mean())
    assert f"{accuracy:.1f}" != "0.1"  # better than guessing one of ten classes
    assert not out.with_name("c.safetensors.resume").exists()


def test_the_command_goes_on_from_named_weights(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    args = ["--dataset", "digits", "--device", "cpu", "-o", "epochs=1"]
    run("convnet:width=4", *args, "--out", first)
    run("convnet", *args, "-o", f"start={first}", "--out", second)
    header = read_header(second)
    assert header.started_from == file_sha256(first)
    assert header.fields["width"] == 4  # taken from the file
    assert header.package == f"defend-purifiers {defend.__version__}"
    assert read_header(first).started_from == ""
    with pytest.raises(BadWeights, match="the file has width=4, the spec has width=8"):
        run("convnet:width=8", *args, "-o", f"start={first}", "--out", tmp_path / "third")


def test_weights_of_torchvision_can_be_begun_from(tmp_path):
    """A file without a header of ours: its hash is recorded all the same."""
    spec = "torchvision:model=squeezenet1_1,classes=2,size=32,weights={}"
    classifier = load(spec.format("untrained"), "classifier")
    path = tmp_path / "external.safetensors"
    save_file(classifier.net[1].state_dict(), path)
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8) % 2
    classifier.fit(x, y, start=str(path), epochs=1, precision="float32", progress=False)
    assert classifier.started_from == file_sha256(path)
    assert classifier.trained_on[0].kind == "unknown"  # and so are the images before


def test_an_interrupted_command_goes_on_to_the_same_file(tmp_path, monkeypatch):
    """A step raises Killed; what remains is what the process wrote to its resume file."""
    options = "--dataset digits -o epochs=2 -o batch=256 -o precision=float32 -o layout=contiguous"
    args = ["convnet:width=2", *options.split()]
    undisturbed, resumed = tmp_path / "a" / "w", tmp_path / "b" / "w"
    run(*args, "--out", undisturbed)
    complete, take_step = TrainingRun.complete, TrainingRun._take_step

    def save_every_step(self, *_):
        complete(self, 0.0)

    def die_at_step_3(self):
        if self.step == 3:
            raise Killed
        take_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "complete", save_every_step)
        patch.setattr(TrainingRun, "_take_step", die_at_step_3)
        with pytest.raises(Killed):
            run(*args, "--out", resumed)
    run(*args, "--out", resumed)
    assert undisturbed.read_bytes() == resumed.read_bytes()


ERRORS = {
    "nothing to learn": ("jpeg", "jpeg.*nothing to learn"),
    "unknown": ("convnot", "convnot.*convnet"),
    "weights given": ("convnet:weights=auto", "weights=auto.*-o start=auto"),
    "option without value": ("convnet -o epochs", "epochs.*KEY=VALUE"),
    "option twice": ("convnet -o lr=1 -o lr=2", "lr.*twice"),
    "option unknown": ("convnet -o epoch=1", "epoch.*epochs"),
    "an argument of fit": ("convnet -o val=3", "no field 'val'.*val_images=100000"),
    "unknown start": ("convnet -o start=nothing", "no weights named 'nothing'"),
    "start of another kind": (
        "convnet -o start=split-vqvae-mnist-quad",
        "weights of the defense 'split-vqvae'",
    ),
    "two seeds": ("convnet -o seed=1 --seed 2", "seed 2.*seed=1"),
    "wrong shape": ("torchvision:model=resnet18", "colour"),
}


@pytest.mark.parametrize(("args", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_of_the_user_names_the_value_and_writes_nothing(args, message, tmp_path):
    with pytest.raises(DefendError, match=message):
        run(*args.split(), "--dataset", "digits", "--out", tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_weights_are_not_overwritten_unless_asked(tmp_path):
    out = tmp_path / "w"
    args = ["convnet:width=2", "--dataset", "digits", "-o", "epochs=0.1", "--out", out]
    run(*args)
    before = out.read_bytes()
    with pytest.raises(BadParameter, match=r"w exists.*--overwrite"):
        run(*args, "-o", "seed=5")
    assert out.read_bytes() == before
    run(*args, "-o", "seed=5", "--overwrite")
    assert out.read_bytes() != before


def test_float32_is_stored_if_asked_for(tmp_path):
    out = tmp_path / "w"
    run("convnet:width=2", "--dataset", "digits", "-o", "epochs=1", "--out", out, "--float32")
    with safe_open(out, "pt") as f:
        assert f.get_tensor("1.weight").dtype == torch.float32
    with pytest.raises(BadWeights, match="contradict"):
        load(f'convnet:width=3,weights="{out}"', "classifier")
