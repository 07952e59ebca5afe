"""Recipes as a user writes them, `fit` of components, and the command `defend train`."""

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from train_toys import Killed, bright, noise_of

from defend.classifiers.convnet import ConvNet
from defend.cli.train import train as command
from defend.errors import BadParameter, BadWeights, DefendError
from defend.loading import load
from defend.training import perturb
from defend.training.loop import Run
from defend.training.recipe import Recipe, read_recipe
from defend.weights.header import read_header

TYPOS = {
    "name": ({"epoch": 3}, "no field 'epoch'.*epochs"),
    "type": ({"epochs": "three"}, "expected a number"),
    "choice": ({"optimiser": "adam"}, "'sgd' or 'adamw'"),
    "range": ({"lr": 0}, "lr=0.0.*> 0"),
    "own": ({"augment": "flip"}, "'none' or 'crop' or 'crop-flip'"),
    "own range": ({"label_smoothing": 1}, "label_smoothing"),
}


@pytest.mark.parametrize(("options", "message"), TYPOS.values(), ids=TYPOS)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(BadParameter, match=message):
        small().fit(*toy(), progress=False, **options)


def small(**fields):
    return ConvNet(weights="untrained", width=2, channels=2 - 1, size=6, classes=3, **fields)


def toy(n=64):
    x, y = bright(n)
    return x[:, :1], y


def test_a_base_recipe_reads_the_values_of_a_command_line():
    recipe = read_recipe(Recipe, {"epochs": 3, "lr": 1, "ema": 0.5}, "x")
    assert (recipe.epochs, recipe.lr, recipe.ema) == (3.0, 1.0, 0.5)


def test_fit_wants_labels():
    with pytest.raises(BadParameter, match="64 images and none"):
        small().fit(toy()[0])


def test_fit_says_what_it_trained_on():
    classifier = small()
    assert classifier.trained_on == "untrained"
    classifier.fit(*toy(), epochs=1, progress=False)
    assert classifier.trained_on == "clean"
    classifier.fit(*toy(), epochs=1, adversarial=0.1, adversarial_steps=2, progress=False)
    assert classifier.trained_on == "adversarial(pgd-2, Linf 0.1, itself)"


def test_adversarial_training_is_harder_to_attack():
    """Where a weak and a strong feature both tell the classes apart, only the strong one survives an attack: Tsipras et al., arXiv:1805.12152."""
    y = torch.arange(200) % 2
    x = torch.full((200, 1, 6, 6), 0.5)
    x[:, :, :3] += (0.03 * (2 * y - 1)).view(-1, 1, 1, 1)  # weak, in many pixels
    strong = torch.where(
        torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.9, 2 * y - 1, 1 - 2 * y
    )
    x[:, :, 4:, 2:4] += 0.3 * strong.view(-1, 1, 1, 1)
    held = {}
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
        x_adv = perturb.pgd(classifier.net, x, y, 0.1, "Linf", 10, noise_of(200))
        held[eps] = float((classifier.net(x_adv).argmax(1) == y).float().mean())
    assert held[0.1] > held[0.0] + 0.3


def run(*args):
    return CliRunner().invoke(command, [str(a) for a in args], catch_exceptions=False)


def test_the_command_writes_a_file_that_loads(tmp_path):
    out = tmp_path / "c.safetensors"
    result = run(
        "convnet:width=4",
        "--dataset",
        "digits",
        "--out",
        out,
        "-o",
        "epochs=2",
        "-o",
        "lr=0.05",
        "--seed",
        3,
        "--device",
        "cpu",
    )
    assert result.exit_code == 0 and "wrote" in result.output
    head = read_header(out)
    assert (head.kind, head.component, head.dataset, head.trained_on, head.seed) == (
        "classifier",
        "convnet",
        "digits",
        "clean",
        3,
    )
    assert head.fields == {"channels": 1, "size": 8, "classes": 10, "width": 4}
    assert (
        head.command
        == "defend train classifier convnet:width=4 --dataset digits --out c.safetensors -o epochs=2 -o lr=0.05 -o seed=3"
    )
    classifier = load(f'convnet:weights="{out}"', "classifier")
    assert classifier.width == 4 and classifier.trained_on == "clean"
    x, y = load("digits", "dataset").rows("val", 0, 100)
    assert f"{float((classifier.network(x).argmax(1) == y).float().mean()):.1f}" != "0.1"
    assert not out.with_name("c.safetensors.resume").exists()


def test_an_interrupted_command_goes_on(tmp_path, monkeypatch):
    """The same file to the bit; what is killed is the loss, what remains is what the process wrote."""
    args = [
        "convnet:width=2",
        "--dataset",
        "digits",
        "-o",
        "epochs=2",
        "-o",
        "batch=256",
        "-o",
        "precision=float32",
        "-o",
        "layout=contiguous",
    ]
    whole, pieces = tmp_path / "a" / "w", tmp_path / "b" / "w"
    run(*args, "--out", whole)
    with monkeypatch.context() as m:
        go, advance = Run.go, Run._advance
        m.setattr(Run, "go", lambda self, *_: go(self, 0.0, False))
        m.setattr(Run, "_advance", lambda self: advance(self) if self.step < 3 else stop())
        with pytest.raises(Killed):
            run(*args, "--out", pieces)
    run(*args, "--out", pieces)
    assert whole.read_bytes() == pieces.read_bytes()


def stop():
    raise Killed


ERRORS = {
    "nothing to learn": (["jpeg", "--dataset", "digits"], "nothing to learn"),
    "unknown": (["convnot", "--dataset", "digits"], "convnet"),
    "weights given": (["convnet:weights=auto", "--dataset", "digits"], "leave weights=auto out"),
    "option without value": (
        ["convnet", "--dataset", "digits", "-o", "epochs"],
        "expected KEY=VALUE",
    ),
    "option twice": (["convnet", "--dataset", "digits", "-o", "lr=1", "-o", "lr=2"], "given twice"),
    "option unknown": (["convnet", "--dataset", "digits", "-o", "epoch=1"], "Did you mean epochs"),
    "two seeds": (["convnet", "--dataset", "digits", "-o", "seed=1", "--seed", "2"], "contradicts"),
    "wrong shape": (["torchvision:model=resnet18", "--dataset", "digits"], "colour"),
}


@pytest.mark.parametrize(("args", "message"), ERRORS.values(), ids=ERRORS)
def test_what_the_user_can_get_wrong(args, message, tmp_path):
    with pytest.raises(DefendError, match=message):
        run(*args, "--out", tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_weights_are_not_overwritten_unasked(tmp_path):
    out = tmp_path / "w"
    args = ["convnet:width=2", "--dataset", "digits", "-o", "epochs=0.1", "--out", out]
    run(*args)
    before = out.read_bytes()
    with pytest.raises(BadParameter, match=r"w exists.*--overwrite"):
        run(*args, "-o", "seed=5")
    assert out.read_bytes() == before
    run(*args, "-o", "seed=5", "--overwrite")
    assert out.read_bytes() != before


def test_float16_is_kept_only_where_it_scores_no_worse(tmp_path):
    out = tmp_path / "w"
    run("convnet:width=2", "--dataset", "digits", "-o", "epochs=1", "--out", out, "--float32")
    with safe_open(out, "pt") as f:
        assert f.get_tensor("1.weight").dtype == torch.float32
    with pytest.raises(BadWeights, match="contradict"):
        load(f'convnet:width=3,weights="{out}"', "classifier")
