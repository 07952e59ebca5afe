"""Weights of diffusion priors: shipped files, folders of diffusers, and whatever is wrong."""

import runpy
import sys

import pytest
import torch
from source_files import REPOSITORY
from tiny_priors import BOTH, TINY, tiny, write_prior

from defend.defenses.diffpure import DiffPure
from defend.defenses.diffusion_prior import parse_blocks
from defend.defenses.two_stage import TwoStage
from defend.errors import BadWeights, DefendError, Mismatch, MissingPackage, UnknownName
from defend.loading import load
from defend.noise import Noise
from defend.weights.zoo import read_zoos

SIZE = 8


def purified(purifier, n=2):
    x = torch.rand(n, purifier.channels, 9, 9, generator=torch.Generator().manual_seed(0))
    return purifier.purified(x, Noise.of(0, torch.arange(n)))


def write_folder(folder, **config):
    """Write a UNet2DModel of diffusers with random weights."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = UNet2DModel(
            **{
                "sample_size": SIZE,
                "in_channels": 3,
                "out_channels": 3,
                "block_out_channels": (8, 16),
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                **config,
            }
        )
    unet.save_pretrained(folder)
    write_scheduler(folder)
    return unet


def write_scheduler(folder, text='{"prediction_type": "epsilon", "beta_schedule": "linear"}'):
    folder.mkdir(exist_ok=True)
    (folder / "scheduler_config.json").write_text(text)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("8", [(8, False)]),
        ("64-96-128a-160a", [(64, False), (96, False), (128, True), (160, True)]),
        ("8a-16", [(8, True), (16, False)]),
    ],
)
def test_blocks_are_read(text, blocks):
    assert parse_blocks(text) == blocks


@pytest.mark.parametrize("text", ["", "8-", "-8", "8b", "a", "8 - 16", "12", "0", "8-08"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        parse_blocks(text)


@pytest.mark.parametrize("component", BOTH)
def test_a_folder_is_the_network_that_diffusers_reads(component, tmp_path):
    unet = write_folder(tmp_path / "unet")
    purifier = component(weights=str(tmp_path / "unet"), steps=2)
    assert (purifier.size, purifier.channels) == (SIZE, 3)
    assert (purifier.blocks, purifier.layers) == ("8-16a", 1)
    x = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(purifier.net(x, 7), unet.eval()(x, 7).sample)
    assert set(purifier.weights_sha256) == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert [str(training) for training in purifier.trained_on] == ["unknown"]


def test_the_folder_of_a_pipeline_holds_it_below_unet(tmp_path):
    write_folder(tmp_path / "unet")
    whole, part = (TwoStage(weights=str(f), steps=2) for f in (tmp_path, tmp_path / "unet"))
    assert torch.equal(purified(whole), purified(part))


def test_a_network_that_also_predicts_a_variance_gives_its_noise(tmp_path):
    unet = write_folder(tmp_path / "unet", out_channels=6)
    x = torch.rand(2, 3, SIZE, SIZE)
    noise = TwoStage(weights=str(tmp_path / "unet"), steps=1).net(x, 7)
    assert torch.equal(noise, unet.eval()(x, 7).sample[:, :3])


@pytest.fixture(scope="module")
def importer():
    """The program docs/import_diffusers.py."""
    return runpy.run_path(str(REPOSITORY / "docs" / "import_diffusers.py"))


def test_a_converted_folder_is_the_same_purifier(importer, tmp_path):
    folder = tmp_path / "a, b+c"  # which a spec has to quote
    write_folder(folder)
    out = tmp_path / "out.safetensors"
    importer["convert"](str(folder), "digits-m", out, command="diffusers, for 1 s")
    own, foreign = TwoStage(weights=str(out), steps=2), TwoStage(weights=str(folder), steps=2)
    torch.testing.assert_close(purified(own), purified(foreign), atol=0.02, rtol=0)
    assert (own.file.header.dataset, own.file.header.command) == ("digits-m", "diffusers, for 1 s")
    x, _ = load("digits-m", "dataset").rows("train", 0, 512)
    torch.testing.assert_close(own.net.mean, x.mean((0, 2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize("declared", [[], ["--trained-on", "clean"]])
def test_what_an_imported_network_was_trained_on_is_unknown_unless_declared(
    importer, declared, tmp_path, monkeypatch
):
    """The data set that is typed says nothing about the training."""
    write_folder(tmp_path / "unet")
    out = tmp_path / "out.safetensors"
    words = ["import_diffusers.py", str(tmp_path / "unet"), "digits-m", str(out), *declared]
    monkeypatch.setattr(sys, "argv", words)
    importer["main"]()
    (training,) = TwoStage(weights=str(out), steps=2).trained_on
    assert str(training) == (declared[1] if declared else "unknown")


REFUSED = {
    "layers": ({"norm_eps": 1e-3}, "digits-m", r"expected norm_eps=1e-05.*got 0\.001"),
    "channels": ({}, "digits", "takes 3 channels, images of digits have 1; give the data set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_of_other_layers_or_channels_is_not_converted(
    importer, case, tmp_path, monkeypatch
):
    config, dataset, message = REFUSED[case]
    write_folder(tmp_path / "unet", **config)
    out = tmp_path / "out.safetensors"
    with pytest.raises((BadWeights, Mismatch), match=message):
        importer["convert"](str(tmp_path / "unet"), dataset, out)
    assert not out.exists()
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "unet"), dataset, str(out)])
    with pytest.raises(SystemExit, match=f"^Error: .*{message}") as e:
        importer["main"]()
    assert "\n" not in str(e.value)


def test_both_purifiers_load_a_file_of_either(tmp_path):
    file = write_prior(tmp_path / "prior.safetensors", tiny(TwoStage, steps=2))
    other = DiffPure(weights=str(file), steps=2)
    assert (other.blocks, other.size, other.steps) == ("8-8", SIZE, 2)
    assert torch.equal(
        other.net.unet.conv_in.weight, TwoStage(weights=str(file)).net.unet.conv_in.weight
    )


def test_shipped_priors_serve_both_purifiers():
    shipped = {name: e for name, e in read_zoos().items() if e.architecture == "ddpm"}
    assert {"two-stage-faces64", "two-stage-cifar10"} <= set(shipped)
    for name, entry in shipped.items():
        for component in ("two-stage", "diffpure"):
            purifier = load(f"{component}:steps=1", dataset=entry.dataset)
            assert purifier.weights == name
            assert purifier.net.mean.std() > 0  # the mean colour is there


# What is wrong, each in one line.


def spoiled(tmp_path, case):
    """Return the fields of a purifier with weights that are wrong in one way."""
    folder, file = tmp_path / "unet", tmp_path / "prior.safetensors"
    config = {
        "of classes": {"num_class_embeds": 10},
        "not square": {"sample_size": (8, 16)},
        "fourier": {"time_embedding_type": "fourier"},
    }.get(case, {})
    write_folder(folder, **config)
    write_prior(file, broken_by_nan(case))
    weights = {"nan in a file": file, "file of another size": file}.get(case, folder)
    fields = {"another size": {"size": 16}, "another channel": {"channels": 1}}
    if case == "nan in a folder":
        put_nan_into_folder(folder)
    if case in SCHEDULERS:
        place, text = SCHEDULERS[case]
        write_scheduler(tmp_path / place, text)
    if case == "no weights":
        (folder / "diffusion_pytorch_model.safetensors").unlink()
    if case == "file of another size":
        return {"weights": str(weights), "size": 16}
    return {"weights": str(weights), **fields.get(case, {})}


def broken_by_nan(case):
    purifier = tiny(TwoStage, steps=1)
    if case == "nan in a file":
        purifier.net.unet.conv_in.weight[0, 0, 0, 0] = torch.nan
    return purifier


def put_nan_into_folder(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.bias"][0] = torch.inf
    save_file(tensors, path, {"format": "pt"})


SCHEDULERS = {  # case -> folder below that of the pipeline, text of the configuration
    "v-prediction": ("unet", '{"prediction_type": "v_prediction"}'),
    "cosine": ("unet/scheduler", '{"beta_schedule": "squaredcos_cap_v2"}'),
    "of the pipeline": ("scheduler", '{"prediction_type": "sample"}'),
    "trained betas": ("unet", '{"trained_betas": [0.1, 0.2]}'),
    "zero snr": ("unet", '{"rescale_betas_zero_snr": true}'),
    "damaged": ("unet", '{"prediction_type":'),
    "a list": ("unet", "[1, 2]"),
}
SPOILED = {  # case -> words of the error
    "fourier": "expected a model of time_embedding_type=positional, got fourier",
    "of the pipeline": "expected a model of prediction_type=epsilon, got prediction_type=sample",
    "trained betas": r"expected a model of trained_betas=None, got trained_betas=\[0.1, 0.2\]",
    "zero snr": "expected a model of rescale_betas_zero_snr=False, got .*=True",
    "damaged": "scheduler_config.json: expected a JSON object, got",
    "a list": "scheduler_config.json: expected a JSON object, got",
    "nan in a file": "expected finite weights, got NaN or infinity in unet.conv_in.weight",
    "nan in a folder": "expected finite weights, got NaN or infinity in unet.conv_out.bias",
    "another size": "expected a network of size=16, got size=8",
    "another channel": "expected a network of channels=1, got channels=3",
    "file of another size": "the file has size=8, the spec has size=16",
    "of classes": "expected an unconditional UNet2DModel.*got one of classes",
    "not square": "expected an unconditional UNet2DModel with a sample_size, got sample_size",
    "v-prediction": "expected a model of prediction_type=epsilon, got prediction_type=v_pred",
    "cosine": "expected a model of beta_schedule=linear, got beta_schedule=squaredcos_cap_v2",
    "no weights": "cannot be loaded from there",
}


@pytest.mark.parametrize(("case", "message"), SPOILED.items(), ids=SPOILED)
@pytest.mark.parametrize("component", BOTH)
def test_wrong_weights_are_one_line(component, case, message, tmp_path):
    with pytest.raises(BadWeights, match=message) as e:
        component(**spoiled(tmp_path, case))
    assert "\n" not in str(e.value)


def make_hub(monkeypatch, tmp_path, scheduler):
    """Write a hub's cache that holds the model acme/prior."""
    model = tmp_path / "hub" / "models--acme--prior"
    write_folder(model / "snapshots" / ("a" * 40))
    write_scheduler(model / "snapshots" / ("a" * 40), scheduler)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_name_on_the_hub_is_checked_as_a_folder_is(monkeypatch, tmp_path):
    make_hub(monkeypatch, tmp_path, '{"prediction_type": "v_prediction"}')
    with pytest.raises(BadWeights, match="expected a model of prediction_type=epsilon"):
        TwoStage(weights="acme/prior", steps=2)


def test_a_good_name_on_the_hub_is_accepted(monkeypatch, tmp_path):
    make_hub(monkeypatch, tmp_path, '{"prediction_type": "epsilon"}')
    assert TwoStage(weights="acme/prior", steps=2).size == SIZE


def test_without_a_scheduler_a_warning_says_what_is_assumed(tmp_path):
    write_folder(tmp_path / "unet")
    (tmp_path / "unet" / "scheduler_config.json").unlink()
    with pytest.warns(UserWarning, match="no scheduler_config.json says how.*trained"):
        TwoStage(weights=str(tmp_path / "unet"), steps=2)


@pytest.mark.parametrize("option", ["start", "weights"])
def test_what_a_foreign_network_knew_stays_unknown_after_a_training(option, tmp_path):
    write_folder(tmp_path / "unet")
    folder = str(tmp_path / "unet")
    tiny_fields = {"weights": "untrained", "size": SIZE, "blocks": "8-16a", "layers": 1}
    purifier = TwoStage(**(tiny_fields if option == "start" else {"weights": folder}), steps=2)
    hashes = set(TwoStage(weights=folder, steps=2).weights_sha256.values())
    x = torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / 2
    options = {"start": folder} if option == "start" else {}
    numerics = {"precision": "float32", "layout": "contiguous"}
    purifier.fit(x, epochs=1, batch=8, progress=False, **numerics, **options)
    assert [training.kind for training in purifier.trained_on] == ["unknown"]
    assert set(purifier.started_from.split(", ")) == hashes
    torch.testing.assert_close(purifier.net.mean, x.mean((0, 2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weights", ["two-stage-faces46", "nowhere/prior.safetensors"])
def test_a_name_that_nothing_has_is_one_line(weights):
    with pytest.raises(UnknownName, match="no weights named") as e:
        TwoStage(weights=weights)
    assert "\n" not in str(e.value)


def test_a_name_that_the_hub_cannot_give_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DefendError) as e:
        TwoStage(weights="nobody/no-such-prior")
    assert "nobody/no-such-prior" in str(e.value) and "\n" not in str(e.value)


def test_without_diffusers_one_line_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'defend-purifiers\[diffusion\]'") as e:
        TwoStage(**TINY)
    assert "\n" not in str(e.value)
