"""Classifiers trained behind a purifier: what they see, what they say, and how they are scored."""

import pytest
import torch
from click.testing import CliRunner
from train_toys import brightness_images

import defend
from defend.classifiers.convnet import ConvNet
from defend.cli.train import train as train_command
from defend.errors import DefendError
from defend.purifier import Purifier
from defend.results.diagnostics import format_training_mark
from defend.results.training_knowledge import find_training_marks
from defend.training.fitting import identify_run, limit_images
from defend.training.quality import accuracy
from defend.training.recipes import ClassifierRecipe
from defend.weights.header import read_header

OPTIONS = {"epochs": 2, "batch": 16, "lr": 0.05, "precision": "float32", "layout": "contiguous"}


def make_images(n=64):
    x, y = brightness_images(n)
    return x[:, :1], y


def trained(x, y, **options):
    """Return the weights after a short training, as one vector, and the classifier."""
    classifier = ConvNet(weights="untrained", width=2, channels=1, size=6, classes=3)
    classifier.fit(x, y, progress=False, **OPTIONS, **options)
    tensors = [t.flatten().float() for t in classifier.net.state_dict().values()]
    return torch.cat(tensors), classifier


def test_the_classifier_sees_purified_images_alone():
    """Behind a deterministic purifier, training is training on purified images, to the bit."""
    x, y = make_images()
    purified = defend.load("bitdepth:bits=1").purified(x)
    weights, classifier = trained(x, y, behind="bitdepth:bits=1")
    assert torch.equal(weights, trained(purified, y)[0])
    assert not torch.equal(weights, trained(x, y)[0])
    assert str(classifier.trained_on[0]) == "clean behind bitdepth:bits=1"


def test_the_noise_of_a_purifier_comes_from_the_seed_alone():
    x, y = make_images()
    weights = [trained(x, y, behind="gaussian:sigma=0.3")[0] for _ in range(2)]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], trained(x, y)[0])


def test_validation_images_are_purified_too():
    """The best epoch is the best on purified images, to the bit."""
    x, y = make_images()
    best = {"keep": "best", "val": (x, y)}
    weights = trained(x, y, **best, behind="bitdepth:bits=1")[0]
    purified = defend.load("bitdepth:bits=1").purified(x)
    assert torch.equal(weights, trained(purified, y, keep="best", val=(purified, y))[0])


class CountingPurifier(Purifier):
    """Return the images, at most 100 at a time, and remember how many came."""

    card = defend.Card(paper="none: a toy", gradient="exact", stochastic=False)
    max_batch = 100

    def validate(self):
        self.counts = []

    def purify(self, x, noise):
        self.counts.append(len(x))
        return x


CAPS = {"the default": ({}, 1000), "a choice": ({"val_images": 150}, 150)}


@pytest.mark.parametrize(("options", "images"), CAPS.values(), ids=CAPS)
def test_the_purified_validation_images_are_capped_and_counted(options, images):
    purifier, done = CountingPurifier(), []
    recipe = ClassifierRecipe(behind="none", **options)
    assert recipe.val_images == images
    recipe.purifier, recipe.advance = purifier, done.append
    classifier = ConvNet(weights="untrained", width=2, channels=1, size=6, classes=3)
    x, y = limit_images(make_images(1200), recipe.val_images)
    quality = recipe.quality(classifier, x, y)
    assert quality.measure == "accuracy"
    assert quality.value == accuracy(classifier.network, x, y)
    assert sum(purifier.counts) == sum(done) == images
    assert done == purifier.counts  # after each batch, not at the end


def test_the_weights_of_the_defense_identify_the_run():
    recipe = ClassifierRecipe(behind="bitdepth:bits=3+split-vqvae:weights=split-vqvae-mnist-quad")
    classifier = ConvNet(weights="untrained", width=2, channels=1, size=28, classes=10)
    recipe.trainee(classifier)
    loaded = identify_run(classifier, recipe)["loaded"]
    assert loaded == {f"defense {recipe.behind}": recipe.purifier.weights_sha256}
    assert len(recipe.purifier.weights_sha256) == 1


def test_a_classifier_behind_nothing_measures_all_of_val():
    assert ClassifierRecipe().val_images == 100_000


WRONG = {
    "an unknown defense": ({"behind": "jpg"}, "unknown defense 'jpg'"),
    "a wrong field": ({"behind": "jpeg:quality=900"}, "quality=900"),
    "an untrained one": ({"behind": "split-vqvae:weights=untrained"}, "weights=untrained"),
    "attacks": ({"behind": "jpeg", "adversarial": 0.1}, "no defense beside adversarial"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_defense_that_cannot_be_is_refused_in_one_line(name):
    options, message = WRONG[name]
    with pytest.raises(DefendError, match=message) as error:
        trained(*make_images(), **options)
    assert "\n" not in str(error.value)


def test_the_command_and_the_bench_agree_on_the_defense(tmp_path):
    out = tmp_path / "c.safetensors"
    command = "classifier convnet:width=2 --dataset digits --device cpu -o epochs=0.2"
    words = [*command.split(), "-o", "behind=bitdepth:bits=3", "--out", str(out)]
    result = CliRunner().invoke(train_command, words, catch_exceptions=False)
    assert result.exit_code == 0
    header = read_header(out)
    assert (header.trained_on.behind, header.trained_on.behind_weights) == ("bitdepth:bits=3", {})
    assert """-o 'behind="bitdepth:bits=3"'""" in header.command
    records = defend.bench(
        dataset="digits",
        classifiers=[f'convnet:weights="{out}"'],
        defenses=["none", "bitdepth:bits=3", "bitdepth:bits=4"],
        attacks=["fgsm"],
        knowledge=["oblivious"],
        n=8,
        out=tmp_path / "run",
    )
    marks = [[format_training_mark(mark) for mark in find_training_marks(r)] for r in records]
    sentence = "the classifier was trained behind bitdepth:bits=3; scored here behind"
    assert marks == [[f"{sentence} none"], [], [f"{sentence} bitdepth:bits=4"]]
