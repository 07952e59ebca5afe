"""Recipes: `fit` of a component, named weights to begin from, frozen classifiers, quality."""

import pytest
import torch.nn.functional as F
from recipe_toys import (
    FIXED,
    Denoiser,
    DenoiseRecipe,
    GuidedDenoiser,
    PairDenoiser,
    changed_tensors,
    copy_state,
    grey_images,
    save_toy,
)
from safetensors.torch import save_file
from torch import nn

from defend.classifiers.convnet import ConvNet
from defend.errors import BadParameter, BadWeights, Mismatch, UnknownName
from defend.loading import load
from defend.purifier import Card, LearnedPurifier
from defend.trained_on import TrainedOn
from defend.training.knowledge import add_knowledge
from defend.training.quality import Quality, psnr
from defend.training.recipe import Recipe
from defend.weights.header import file_sha256
from defend.weights.third_party import fill_network


def untrained(component_type=Denoiser, **fields):
    return component_type(weights="untrained", dataset="digits", **fields)


# A recipe is fields and a loss.


def test_a_recipe_of_a_loss_trains_the_component():
    x, _ = grey_images()
    purifier = untrained()
    before = F.mse_loss(purifier.purified(x), x)
    recipe = purifier.fit(x, epochs=20, lr=0.02, **FIXED)
    assert isinstance(recipe, DenoiseRecipe)
    assert F.mse_loss(purifier.purified(x), x) < 0.5 * before
    assert str(purifier.trained_on[0]) == "corrupted"
    assert not purifier.net.training
    assert not any(p.requires_grad for p in purifier.net.parameters())


def test_a_recipe_says_nothing_about_its_images_unless_its_author_does():
    class Silent(Denoiser):
        class recipe(Recipe):
            def loss(self, net, x, y, noise):
                return F.mse_loss(net(x), x)

    purifier = untrained(Silent)
    purifier.fit(grey_images()[0], epochs=1, **FIXED)
    assert purifier.trained_on == (TrainedOn(kind="unknown"),)


def test_a_component_without_a_recipe_says_so():
    class NoRecipe(LearnedPurifier):
        card = Card(paper="none: a toy", gradient="exact", stochastic=False)

        def build(self):
            return nn.Conv2d(1, 1, 1)

        def purify(self, x, noise):
            return x

    with pytest.raises(BadWeights, match="NoRecipe has no recipe"):
        NoRecipe(weights="untrained").fit(grey_images()[0])


def test_a_field_that_fit_takes_itself_is_refused():
    with pytest.raises(BadParameter, match=r"Wrong.*other fields than progress, val"):

        class Wrong(Recipe):
            val: int = 3
            progress: bool = False


# Weights to begin from.


@pytest.fixture
def trained_file(tmp_path):
    purifier = untrained(hidden=6)
    purifier.fit(*grey_images(), **FIXED)
    path = save_toy(purifier, tmp_path / "first.safetensors", TrainedOn(kind="corrupted"))
    return path, purifier


def test_start_goes_on_from_named_weights_and_records_them(trained_file):
    path, first = trained_file
    fine_tuned = untrained(hidden=6)
    # A learning rate this small changes no weight: what is there afterwards was there before.
    fine_tuned.fit(*grey_images(), start=str(path), lr=1e-30, momentum=0.0, epochs=1, **FIXED)
    changed = changed_tensors(fine_tuned.net, copy_state(first.net))
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert fine_tuned.started_from == file_sha256(path)
    assert untrained().started_from == ""


def test_fit_of_loaded_weights_records_them_too(trained_file):
    path, _ = trained_file
    loaded = Denoiser(weights=str(path))
    loaded.fit(*grey_images(), epochs=1, **FIXED)
    assert loaded.started_from == file_sha256(path)
    loaded.fit(*grey_images(), epochs=1, **FIXED)  # a second training of the same network
    assert loaded.started_from == file_sha256(path)
    assert loaded.file is None
    assert loaded.weights == "untrained"


def test_initialise_is_left_out_where_weights_are(trained_file):
    calls = []

    class Initialised(Denoiser):
        component = "Denoiser"

        class recipe(DenoiseRecipe):
            def initialise(self, trainee, source):
                calls.append(source.batch(0, 4, self.seed)[0].shape)

    path, _ = trained_file
    untrained(Initialised).fit(*grey_images(), epochs=1, **FIXED)
    assert calls == [(4, 1, 8, 8)]
    untrained(Initialised, hidden=6).fit(*grey_images(), epochs=1, start=str(path), **FIXED)
    assert len(calls) == 1


def filled_type(folder, filled, calls):
    """Return a component whose `build` fills parts of the network from plain files."""

    class Filled(Denoiser):
        component = "Denoiser"

        class recipe(DenoiseRecipe):
            def initialise(self, trainee, source):
                calls.append(trainee)

        def build(self):
            net = super().build()
            for k, part in enumerate(filled(net)):
                fill_network(part, folder / f"{k}.safetensors", name=f"plain {k}")
            return net

    return Filled


FILLED = {
    "the network": (lambda net: [net], 0),
    "all its layers": (lambda net: [net[0], net[1], net[4]], 0),
    "its first layer": (lambda net: [net[0]], 1),
}


@pytest.mark.parametrize(("filled", "calls"), FILLED.values(), ids=FILLED)
def test_fit_of_a_filled_network_records_its_file(filled, calls, tmp_path):
    initialised, hashes = [], []
    for k, part in enumerate(filled(untrained().net)):
        save_file(part.state_dict(), tmp_path / f"{k}.safetensors")
        hashes.append(file_sha256(tmp_path / f"{k}.safetensors"))
    purifier = untrained(filled_type(tmp_path, filled, initialised))
    assert purifier.trained_on == (TrainedOn(kind="unknown"),)
    purifier.fit(*grey_images(), epochs=1, **FIXED)
    assert len(initialised) == calls
    assert purifier.started_from == ", ".join(hashes)
    assert purifier.weights_sha256 == {}
    assert purifier.trained_on == (TrainedOn(kind="unknown"),)


WRONG_STARTS = {
    "no such file": ({"hidden": 6}, "nowhere", UnknownName, "nowhere"),
    "another shape": ({"hidden": 5}, None, BadWeights, "hidden=6, the spec has hidden=5"),
    "another architecture": ({"hidden": 6}, "convnet-digits", BadWeights, "classifier 'convnet'"),
}


@pytest.mark.parametrize(
    ("fields", "start", "error", "message"), WRONG_STARTS.values(), ids=WRONG_STARTS
)
def test_a_start_that_does_not_fit_is_refused(fields, start, error, message, trained_file):
    with pytest.raises(error, match=message):
        untrained(**fields).fit(*grey_images(), start=start or str(trained_file[0]), **FIXED)


ADVERSARIAL = TrainedOn(
    kind="adversarial", attack="fgsm", norm="Linf", eps=0.3, classifiers={"a": "1"}
)
CLEAN = TrainedOn(kind="clean", classifiers={"b": "2"})
KNOWLEDGE = {
    "untrained": (CLEAN, TrainedOn(kind="untrained"), CLEAN),
    "more": (
        ADVERSARIAL,
        CLEAN,
        TrainedOn(**ADVERSARIAL.to_json() | {"classifiers": {"a": "1", "b": "2"}}),
    ),
    "less": (
        CLEAN,
        ADVERSARIAL,
        TrainedOn(**ADVERSARIAL.to_json() | {"classifiers": {"a": "1", "b": "2"}}),
    ),
    "unknown before": (TrainedOn(kind="clean"), TrainedOn(kind="unknown"), "unknown"),
    "behind": (
        TrainedOn(kind="clean", behind="jpeg"),
        TrainedOn(kind="corrupted", behind="tvm"),
        TrainedOn(kind="corrupted", behind="jpeg"),
    ),
}


@pytest.mark.parametrize(("latest", "earlier", "expected"), KNOWLEDGE.values(), ids=KNOWLEDGE)
def test_a_fine_tuned_network_knows_what_it_knew(latest, earlier, expected):
    if isinstance(expected, str):
        expected = TrainedOn(kind=expected)
    assert add_knowledge(latest, earlier) == expected


# Other components.


def test_a_frozen_classifier_is_loaded_for_the_data_set_and_recorded():
    purifier = untrained(GuidedDenoiser)
    recipe = purifier.fit(*grey_images(), epochs=1, **FIXED)
    file = load("convnet", "classifier", "digits").file
    known = purifier.trained_on[0]
    assert known.kind == "corrupted"
    assert known.classifiers == {"convnet-digits": file.sha256}
    assert known.knows_any_of({file.name: file.sha256})
    # It is neither trained nor a part of the purifier.
    fresh = load("convnet", "classifier", "digits").network
    assert not changed_tensors(recipe.guide, copy_state(fresh))
    assert len(purifier.networks()) == 1


def test_a_classifier_without_a_file_is_recorded_by_its_spec():
    purifier = untrained(GuidedDenoiser)
    spec = "convnet:weights=untrained,channels=1,size=8"
    purifier.fit(*grey_images(), epochs=1, classifier=spec, **FIXED)
    assert purifier.trained_on[0].classifiers == {spec: ""}


WRONG_CLASSIFIERS = {
    "unknown": ("convnot", UnknownName, "convnot.*convnet"),
    "another size": ("convnet:weights=convnet-mnist", Mismatch, "1x28x28.*digits has 1x8x8"),
}


@pytest.mark.parametrize(
    ("spec", "error", "message"), WRONG_CLASSIFIERS.values(), ids=WRONG_CLASSIFIERS
)
def test_a_classifier_that_does_not_fit_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        untrained(GuidedDenoiser).fit(*grey_images(), classifier=spec, **FIXED)


def test_a_component_whose_training_could_not_begin_is_as_before():
    purifier = untrained(GuidedDenoiser)
    before = copy_state(purifier.net)
    with pytest.raises(UnknownName):
        purifier.fit(*grey_images(), classifier="convnot", **FIXED)
    assert not changed_tensors(purifier.net, before)
    assert not any(p.requires_grad for p in purifier.net.parameters())
    assert str(purifier.trained_on[0]) == "untrained"


def test_a_recipe_that_needs_labels_says_so():
    with pytest.raises(BadParameter, match="48 images and none"):
        untrained(GuidedDenoiser).fit(grey_images()[0], **FIXED)


# Quality.


def test_the_quality_is_that_of_the_recipe(capfd):
    purifier = untrained(PairDenoiser)
    x, y = grey_images(40)
    purifier.fit(x, y, val=(x, y), epochs=1, **FIXED | {"progress": True})
    shown = capfd.readouterr().err
    recipe = PairDenoiser.recipe()
    quality = recipe.quality(purifier, x, y)
    assert quality.measure == "minus the squared error"
    assert f"val {quality.value:.4f}" in shown
    assert "denoiser " in shown
    assert "critic " in shown


def test_the_default_qualities_are_accuracy_and_psnr():
    x, y = grey_images(40)
    classifier = load("convnet", "classifier", "digits")
    accuracy = float((classifier.network(x).argmax(1) == y).float().mean())
    quality = ConvNet.recipe().quality(classifier, x, y)
    assert quality == Quality("accuracy", pytest.approx(accuracy))
    purifier = untrained()
    assert DenoiseRecipe().quality(purifier, x, y).value == pytest.approx(psnr(purifier, x))


def test_val_is_capped():
    sizes = []

    class Counting(DenoiseRecipe):
        def quality(self, component, x, y):
            sizes.append(len(x))
            return super().quality(component, x, y)

    class CountingDenoiser(Denoiser):
        recipe = Counting

    x, y = grey_images()
    for options in ({}, {"val_images": 7}):
        untrained(CountingDenoiser).fit(x, y, val=(x, y), epochs=1, **options, **FIXED)
    assert sizes == [48, 7]
    assert Recipe().val_images == 1000
    assert ConvNet.recipe().val_images >= 60_000  # a classifier measures all of val


def test_measuring_counts_every_image():
    done = []
    recipe, purifier = PairDenoiser.recipe(), untrained(PairDenoiser)
    x, y = grey_images(40)
    recipe.advance = done.append
    recipe.quality(purifier, x, y)
    assert done == [16, 16, 8]
    for component in (purifier, load("convnet", "classifier", "digits")):
        done.clear()
        Recipe.quality(recipe, component, x, y)
        assert sum(done) == 40


def test_a_quality_that_freezes_the_network_does_not_stop_the_training():
    """`purified` freezes what it holds; the next epoch must train again."""
    states = []

    class Watching(DenoiseRecipe):
        def quality(self, component, x, y):
            states.append(copy_state(component.net))
            return super().quality(component, x, y)

    class WatchingDenoiser(Denoiser):
        recipe = Watching

    x, y = grey_images()
    purifier = untrained(WatchingDenoiser)
    purifier.fit(x, y, val=(x, y), epochs=3, batch=24, **FIXED)
    assert len(states) == 3
    assert changed_tensors(purifier.net, states[0]) == set(states[0])
    assert not changed_tensors(purifier.net, states[2])


def test_the_quality_is_measured_with_the_averaged_weights():
    states = []

    class Watching(DenoiseRecipe):
        def quality(self, component, x, y):
            states.append(copy_state(component.net))
            return Quality("none", 0.0)

    class WatchingDenoiser(Denoiser):
        recipe = Watching

    x, y = grey_images()
    watched, unwatched = untrained(WatchingDenoiser), untrained()
    watched.fit(x, y, val=(x, y), epochs=3, ema=0.9, **FIXED)
    assert not changed_tensors(watched.net, states[-1])
    unwatched.fit(x, y, epochs=3, ema=0.9, **FIXED)  # the run itself is left as it was
    assert not changed_tensors(unwatched.net, copy_state(watched.net))
