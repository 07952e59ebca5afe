"""Checkpoints of CompressAI's training by their paths. Skipped without the extra `codec`."""

import pytest
import torch
from test_compressai_codecs import MODELS, fields, images, lively, needs_compressai

from defend.defenses.compressai_weights import recognise_model
from defend.defenses.robust_codec import RobustCodec
from defend.errors import BadWeights, UnknownName

pytestmark = needs_compressai


def write_checkpoint(path, purifier, prefix="", **more):
    """Write what CompressAI's examples/train.py writes: tensors beside a state of the training."""
    net = purifier.net.net
    net.update()  # the tables of the entropy coder are in it
    optimiser = torch.optim.Adam(net.parameters())
    state = {f"{prefix}{name}": t for name, t in net.state_dict().items()}
    checkpoint = {
        "epoch": 3,
        "state_dict": state,
        "loss": torch.tensor(0.5),
        "optimizer": optimiser.state_dict(),
    }
    torch.save(checkpoint | more, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_is_loaded_by_its_path(model, prefix, tmp_path):
    source = lively(model)
    path = write_checkpoint(tmp_path / "checkpoint.pth.tar", source, prefix)
    purifier = RobustCodec(model=model, weights=path)
    assert (purifier.width, purifier.latents) == (8, 8)
    assert torch.equal(purifier.purified(images()), source.purified(images()))
    assert torch.equal(purifier.rate(images()), source.rate(images()))
    assert list(purifier.weights_sha256) == ["checkpoint.pth.tar"]
    assert [str(t) for t in purifier.trained_on] == ["unknown"]


def test_a_training_starts_from_a_checkpoint(tmp_path):
    source = lively("factorized")
    path = write_checkpoint(tmp_path / "a.pth", source)
    purifier = RobustCodec(**fields("factorized"))
    options = {"start": path, "epochs": 1, "lr": 1e-30, "batch": 1, "momentum": 0.0}
    purifier.fit(images(), precision="float32", layout="contiguous", progress=False, **options)
    torch.testing.assert_close(purifier.purified(images()), source.purified(images()))
    wide = RobustCodec(**fields("factorized") | {"width": 16})
    with pytest.raises(BadWeights, match=r"expected width=16, got width=8; write that"):
        wide.fit(images(), precision="float32", layout="contiguous", progress=False, **options)


@pytest.mark.parametrize("field", ["width", "latents"])
def test_a_size_that_the_checkpoint_has_not_is_refused(field, tmp_path):
    path = write_checkpoint(tmp_path / "a.pth", lively("hyperprior"))
    with pytest.raises(BadWeights, match=f"expected {field}=64, got {field}=8"):
        RobustCodec(model="hyperprior", weights=path, **{field: 64})
    RobustCodec(model="hyperprior", weights=path, **{field: 8})


@pytest.mark.parametrize("other", MODELS)
@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_another_model_is_refused_with_its_name(model, other, tmp_path):
    source = lively(other)
    assert recognise_model(source.net.net.state_dict()) == other
    path = write_checkpoint(tmp_path / "a.pth", source)
    if model == other:
        RobustCodec(model=model, weights=path)
        return
    with pytest.raises(BadWeights, match=f"model={model}, got .* write model={other}$") as e:
        RobustCodec(model=model, weights=path)
    assert "\n" not in str(e.value)


def test_what_is_no_codec_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.pth"
    wrong = {
        "another network": (torch.nn.Linear(2, 2).state_dict(), "got tensors such as weight, bias"),
        "no tensors": ({"epoch": 3}, "got tensors such as none"),
        "an object": ({"state_dict": {}, "args": Evil()}, "got a pickle of other objects"),
    }
    for content, message in wrong.values():
        torch.save(content, path)
        with pytest.raises(BadWeights, match=message) as e:
            RobustCodec(model="hyperprior", weights=str(path))
        assert "\n" not in str(e.value)
    path.write_text("no pickle")
    with pytest.raises(BadWeights, match="expected a file of tensors alone"):
        RobustCodec(model="hyperprior", weights=str(path))
    with pytest.raises(UnknownName, match="nor a file of that path"):
        RobustCodec(model="hyperprior", weights=str(tmp_path / "absent.pth.tar"))
    assert not Evil.has_run


class Evil:
    """An object whose unpickling would run code."""

    has_run = False

    def __reduce__(self):
        return exec, ("from test_compressai_weights import Evil; Evil.has_run = True",)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    source = lively("factorized")
    state = dict(source.net.net.state_dict())
    del state["g_s.0.weight"]
    path = write_checkpoint(tmp_path / "a.pth", source, state_dict=state)
    with pytest.raises(BadWeights, match=r"g_s\.0\.weight") as e:
        RobustCodec(model="factorized", weights=path)
    assert "\n" not in str(e.value)
