"""Codecs of CompressAI: what their entropy coder would return, without running it.

Skipped without the extra `codec`.
"""

import sys
import warnings

import pytest
import torch

from defend.defenses.compressai_codecs import import_compressai, independent_places
from defend.defenses.compressai_weights import METRICS, find_pretrained
from defend.defenses.robust_codec import RobustCodec
from defend.errors import BadWeights, MissingPackage
from defend.loading import load
from defend.testing import conformance_test

GREY_LEVEL = 1 / 255
MODELS = ["factorized", "hyperprior", "mean-scale", "cheng2020"]


def has_compressai():
    try:
        import_compressai("models")
    except MissingPackage:
        return False
    return True


needs_compressai = pytest.mark.skipif(
    not has_compressai(), reason="needs the extra codec: pip install 'defend-purifiers[codec]'"
)


@pytest.fixture
def no_compressai(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "compressai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "compressai", None)


def fields(model):
    return {"model": model, "weights": "untrained", "width": 8, "latents": 8}


def lively(model, **more):
    """Return an untrained codec whose latents are spread over several steps."""
    purifier = RobustCodec(**fields(model) | more)
    with torch.no_grad():
        for name, parameter in purifier.net.net.named_parameters():
            if name.startswith("g_a") and parameter.ndim > 1:
                parameter.mul_(2)
    return purifier


def images(height=64, width=128, n=1):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def compress_and_decompress(purifier, x):
    """Return what CompressAI's entropy coder gives back, and the bits per pixel that it needs."""
    net = purifier.net.net
    net.update()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        compressed = net.compress(x)
        restored = net.decompress(**compressed)["x_hat"]
    length = sum(len(strings[0]) for strings in compressed["strings"])
    return restored, 8 * length / (x.shape[2] * x.shape[3])


@needs_compressai
@pytest.mark.parametrize("model", MODELS)
def test_purify_is_what_the_entropy_coder_returns(model):
    """Within one grey level on 99.9 % of the pixels.

    The rate is that of an ideal coder, which theirs is not for random weights: its table of scales
    does not hold those of the prior.
    """
    purifier, x = lively(model), images()
    expected, rate = compress_and_decompress(purifier, x)
    is_close = (purifier.purified(x) - expected).abs() <= GREY_LEVEL
    assert is_close.float().mean() >= 0.999
    assert expected.std() > 0.01, "a constant image would prove nothing"
    assert float(purifier.rate(x)) == pytest.approx(rate, rel=0.3)


@needs_compressai
@pytest.mark.parametrize("model", MODELS[:3])
def test_the_rate_is_that_of_their_likelihoods(model):
    """Of cheng2020 their `forward` has others, because it rounds about 0."""
    purifier, x = lively(model), images()
    with torch.no_grad():
        likelihoods = purifier.net.net(x)["likelihoods"].values()
    bits = sum(float(-p.log2().sum()) for p in likelihoods)
    assert float(purifier.rate(x)) == pytest.approx(bits / (64 * 128), rel=1e-5)


@needs_compressai
def test_a_codec_that_rounds_about_zero_is_told_from_one_that_rounds_about_means():
    """The check above catches the wrong decoder: `forward` of cheng2020 in eval mode."""
    purifier, x = lively("cheng2020"), images()
    expected, _ = compress_and_decompress(purifier, x)
    with torch.no_grad():
        other = purifier.net.net(x)["x_hat"].clamp(0, 1)
    assert ((other - expected).abs() <= GREY_LEVEL).float().mean() < 0.999


@needs_compressai
@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_not_the_zero_of_their_eval_mode(model):
    purifier, x = lively(model), images().requires_grad_()
    theirs = torch.autograd.grad(purifier.net.net(x)["x_hat"].sum(), x)[0]
    ours = torch.autograd.grad(purifier.purified(x).sum(), x)[0]
    assert not theirs.any()
    assert ours.abs().mean() > 0


@needs_compressai
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [(33, 17), (1, 5)])
def test_any_size_is_taken(model, size):
    purifier, x = lively(model), images(*size, n=2)
    assert purifier.purified(x).shape == x.shape
    assert purifier.rate(x).shape == (2,)


@needs_compressai
@pytest.mark.parametrize("model", MODELS)
def test_a_training_learns_and_its_weights_are_loaded(model):
    x = images(64, 64, n=8)
    purifier = RobustCodec(**fields(model))
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    before = (purifier.purified(x) - x).square().mean()
    options = {"precision": "float32", "layout": "contiguous", "progress": False}
    recipe = purifier.fit(x, epochs=15, batch=4, lr=3e-3, quality_level=8, **options)
    assert [o.name for o in recipe.objectives()] == ["loss", "auxiliary"]
    assert (purifier.purified(x) - x).square().mean() < 0.8 * before
    again = RobustCodec(**fields(model))
    again.net.load_state_dict(purifier.net.state_dict())
    assert torch.equal(again.purified(x), purifier.purified(x))


@needs_compressai
@pytest.mark.parametrize("model", MODELS)
def test_pretrained_weights_come_from_the_cache_alone(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadWeights, match=r"expected .*tar, which is not there; nothing is down"):
        RobustCodec(model=model, weights="mse-1")
    source = lively(model)
    source.net.net.update()  # pretrained weights hold the tables of the entropy coder
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / name_of_weights(model)
    torch.save(source.net.net.state_dict(), path)
    purifier = RobustCodec(model=model, weights="mse-1")
    assert (purifier.width, purifier.latents) == (8, 8)
    assert torch.equal(purifier.purified(images()), source.purified(images()))
    assert list(purifier.weights_sha256) == [path.name]
    assert [str(t) for t in purifier.trained_on] == ["unknown"]
    fine_tuned = RobustCodec(**fields(model))
    options = {"start": "mse-1", "epochs": 1, "lr": 1e-30, "batch": 1, "momentum": 0.0}
    fine_tuned.fit(images(), precision="float32", layout="contiguous", progress=False, **options)
    torch.testing.assert_close(fine_tuned.purified(images()), source.purified(images()))


def name_of_weights(model):
    with pytest.raises(BadWeights) as e:
        find_pretrained(model, "mse-1")
    return str(e.value).split(", which is not there")[0].rpartition("/")[2]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 2), (4, 7), (8, 8)])
def test_latents_that_are_computed_together_know_their_whole_context(size):
    """The rows above, two columns to either side, and two latents to the left."""
    context = [(i, j) for i in (-2, -1) for j in range(-2, 3)] + [(0, -2), (0, -1)]
    done, everything = set(), {(i, j) for i in range(size[0]) for j in range(size[1])}
    for rows, columns in independent_places(*size, torch.device("cpu")):
        places = set(zip(rows.tolist(), columns.tolist(), strict=True))
        needed = {(i + di, j + dj) for i, j in places for di, dj in context}
        assert needed & everything <= done and not places & done
        done |= places
    assert done == everything


@needs_compressai
def test_a_quality_that_nobody_trained_is_refused():
    with pytest.raises(BadWeights, match="quality of 1 to 6, got weights=mse-8"):
        RobustCodec(model="cheng2020", weights="mse-8")


@pytest.mark.parametrize("weights", ["auto", "untrained", "mse", "my-weights-2", "x.safetensors"])
def test_other_names_of_weights_are_not_theirs(weights):
    assert find_pretrained("hyperprior", weights) is None


@pytest.mark.usefixtures("no_compressai")
@pytest.mark.parametrize("weights", ["untrained", *(f"{metric}-3" for metric in METRICS)])
def test_without_the_extra_one_line_says_what_to_type(weights):
    with pytest.raises(MissingPackage, match=r"pip install 'defend-purifiers\[codec\]'") as e:
        load(f"robust-codec:model=hyperprior,weights={weights}", "defense")
    assert "\n" not in str(e.value)


@pytest.mark.usefixtures("no_compressai")
def test_the_small_codec_needs_no_extra():
    load("robust-codec:weights=untrained", "defense")


test_factorized_conforms = needs_compressai(
    conformance_test(lambda: RobustCodec(**fields("factorized"), max_batch=4))
)
test_mean_scale_conforms = needs_compressai(
    conformance_test(lambda: RobustCodec(**fields("mean-scale"), max_batch=4))
)
