"""The task reconstruction: closed forms, and runs on photographs without labels."""

import csv
import json

import numpy as np
import pytest
import torch
from image_files import write_images
from made_runs import printed
from photographs import crops

import defend
from defend.benchmarks.purifier_checks import check_gradient_mode
from defend.benchmarks.units import split_ranges
from defend.defenses.bitdepth import BitDepth
from defend.distortion import ms_ssim
from defend.errors import BadParameter, BrokenPurifier, DefendError, Mismatch
from defend.loading import load
from defend.records import FlagCode
from defend.results.report import write_report
from defend.stats import mean_interval
from defend.tasks.registry import load_task
from defend.tasks.task import Deployed
from defend.unit_files import find_unit

TASK = load_task("reconstruction")
X = crops(20, 24)


def measured(codec, x_adv, x=X, rate=None):
    """Return the measures of a codec that has met x_adv in the place of x."""
    output, clean = codec(x_adv), codec(x)
    deployed = Deployed(
        x=x_adv,
        source=x,
        output=output,
        clean_output=clean,
        reference=x,
        rate=rate,
        is_clean=False,
    )
    details = {name: v[:, None].numpy() for name, v in TASK.details(deployed).items()}
    return {name: s.value for name, s in TASK.measure(details, details, 0).items()}


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0, 10.0])
def test_the_index_of_a_linear_codec_is_its_gain(gain):
    """R(x) = a x enlarges every perturbation a times: 20 log10 a, whatever its size."""
    for size in (1e-3, 1e-2, 0.1):
        values = measured(lambda x: gain * x, X + size * torch.randn_like(X))
        assert values["vi"] == pytest.approx(20 * np.log10(gain), abs=1e-3)


def test_an_offset_or_a_loss_of_the_codec_is_no_vulnerability():
    x_adv = X + 0.01
    assert measured(lambda x: x - 0.3, x_adv)["vi"] == pytest.approx(0, abs=1e-3)
    values = measured(torch.zeros_like, x_adv)
    assert values["vi"] == pytest.approx(-60, abs=0.01)  # the MSE counts as 1e-10
    assert values["unmoved"] == 1, "and that is said"


def test_one_reconstruction_that_does_not_move_hardly_moves_the_pooled_index():
    """Of 24 images that are enlarged by 10 dB, one stands still: 10 log10(10 * 23 / 24)."""
    errors = {"mse_in": np.full((24, 1), 1e-4), "mse_shift": np.full((24, 1), 1e-3)}
    before = TASK.measure(errors, {}, 0)
    assert before["vi_pooled"].value == pytest.approx(before["vi"].value) == pytest.approx(10)
    assert not {"unmoved", "unchanged"} & set(before)
    errors["mse_shift"][0] = 0
    after = TASK.measure(errors, {}, 0)
    assert after["vi_pooled"].value == pytest.approx(10 + 10 * np.log10(23 / 24))
    assert after["vi_pooled"].low < after["vi_pooled"].value < after["vi_pooled"].high
    assert after["unmoved"].value == pytest.approx(1 / 24)


def test_the_interval_of_the_pooled_index_is_that_of_a_ratio_of_means():
    """Its half width is 1.96 standard errors of log(mean) in dB where one error is constant."""
    shift = np.random.default_rng(3).uniform(1e-3, 3e-3, (400, 1))
    pooled = TASK.measure({"mse_in": np.full((400, 1), 1e-4), "mse_shift": shift}, {}, 0)
    relative = shift.std() / shift.mean() / np.sqrt(400)
    width = pooled["vi_pooled"].high - pooled["vi_pooled"].low
    assert width == pytest.approx(2 * 1.96 * 10 / np.log(10) * relative, rel=0.1)


def test_psnr_in_is_that_of_the_perturbation_alone():
    values = measured(lambda x: 9 * x, X + 0.01)
    assert values["psnr_in"] == pytest.approx(40, abs=1e-3)


def test_images_that_no_attack_changed_have_no_index():
    assert "vi" not in measured(lambda x: x, X)
    half = X.clone()
    half[0] += 0.01
    values = measured(lambda x: 10 * x, half)
    assert values["unchanged"] == 0.5
    assert values["vi"] == values["vi_pooled"] == pytest.approx(20, abs=1e-3), "over the other"


def test_large_images_have_an_index_of_ms_ssim_too():
    x = crops(168, 176)
    noisy = (x + 0.02 * torch.randn_like(x)).clamp(0, 1)
    assert measured(lambda x: x, noisy, x)["vi_ms_ssim"] == pytest.approx(0, abs=1e-6)
    assert measured(lambda x: x**3, noisy, x)["vi_ms_ssim"] != 0
    assert "vi_ms_ssim" not in measured(lambda x: x, X + 0.01)


def test_the_index_of_ms_ssim_of_a_small_shift_is_that_of_double_precision():
    """1 - MS-SSIM is near the rounding of float32 here, which alone is worth decibels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0.6, 0.9, 192).expand(1, 3, 192, 192).clone()
    noise = torch.randn(x.shape, generator=generator)
    x_adv, after = x + 1e-3 * noise, x + 1e-4 * noise

    def codec(images):
        return after if images is x_adv else x

    ratio = (1 - ms_ssim(after.double(), x.double())) / (1 - ms_ssim(x_adv.double(), x.double()))
    expected = 10 * ratio.log10().item()
    assert measured(codec, x_adv, x)["vi_ms_ssim"] == pytest.approx(expected, abs=0.01)
    rough = (1 - ms_ssim(after, x)) / (1 - ms_ssim(x_adv, x))
    assert abs(10 * rough.abs().clamp(min=1e-10).log10().item() - expected) > 1


def test_the_score_is_the_psnr_against_the_source():
    assert TASK.score(X + 0.1, X).numpy() == pytest.approx([20, 20], abs=1e-4)
    assert TASK.reference(X, torch.zeros(2), 0) is X


def test_reconstructions_agree_if_all_but_a_few_pixels_do():
    """A code that rounds to its neighbour changes one pixel, another pipeline changes many."""
    x = torch.full((1, 1, 100, 100), 0.5)
    for pixels, is_same in ((0, True), (10, True), (11, False), (10_000, False)):
        other = x.clone()
        other.view(-1)[:pixels] += 0.1
        assert TASK.agree(x, other).tolist() == [is_same]
    purifier = BitDepth()
    with pytest.raises(BrokenPurifier, match="24 of 24 reconstructions change when gradients"):
        check_gradient_mode(
            purifier, x.expand(24, -1, -1, -1), 1 - x.expand(24, -1, -1, -1) + 0.1, TASK
        )


def test_intervals_cover_the_mean_and_shrink_with_the_images():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = mean_interval(rng.normal(30, 5, 60), seed, resamples=300)
        hits += low <= 30 <= high
    assert 0.88 <= hits / 200 <= 0.99
    wide, narrow = (TASK.summarise(rng.normal(30, 5, (n, 1))) for n in (30, 480))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.3)


def test_a_paired_comparison_sees_a_difference_below_the_spread_of_images():
    rng = np.random.default_rng(1)
    a = rng.normal(30, 5, (100, 1))
    comparison = TASK.compare(a, a - rng.normal(0.5, 0.2, (100, 1)))
    assert comparison.low < 0.5 < comparison.high and comparison.p < 0.001
    assert TASK.compare(a, a).p == 1.0


# Rates.


def test_rates_are_measured_before_and_after():
    values = measured(lambda x: x, X + 0.01, rate=torch.tensor([1.0, 2.0]))
    assert values["bpp"] == values["bpp_clean"] == 1.5
    assert "bpp" not in measured(lambda x: x, X + 0.01)


# Runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 30 photographs without labels."""
    top = tmp_path_factory.mktemp("plain")
    write_images(top, [f"{i:02}.png" for i in range(30)], size=(24, 24))
    return top


@pytest.fixture(scope="module")
def suite(folder):
    return {
        "task": "reconstruction",
        "dataset": f"image-folder:size=24,path={folder}",
        "defenses": ["none", "jpeg", "median"],
        "attacks": ["codec-distortion:steps=12", "pgd:steps=4", "fgsm"],
        "eps": "8/255",
        "n": 6,
        "shard": 4,
    }


@pytest.fixture(scope="module")
def run(suite, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, defend.bench(suite, out=out, workers=1, device="cpu")


def test_a_folder_without_classes_has_images_without_labels(folder):
    data = load(f"image-folder:path={folder}", "dataset")
    assert not data.labelled and data.classes == 0
    counts = [data.count(split) for split in ("train", "val", "test")]
    assert sum(counts) == 30 and min(counts) > 0
    assert data.rows("test", 0, 4)[1].tolist() == [0, 0, 0, 0]


def test_every_cell_has_its_numbers_in_decibels(run):
    for record in run[1]:
        assert record.error is None and record.classifier == "none"
        assert record.robust_accuracy is None and record.clean_accuracy is None
        assert record.score.low <= record.score.value <= record.score.high
        # Without a codec the gradient of the one step is zero, and random signs take its place.
        assert set(record.measures) == {"psnr_in", "vi", "vi_pooled"}
        assert not record.has_flag(FlagCode.UNCHANGED_IMAGES)
        if record.attack.startswith("codec"):
            assert record.measures["psnr_in"].value > 39.99


def test_without_a_purifier_what_goes_in_comes_out(run):
    for record in run[1]:
        if record.defense == "none" and record.attack != "fgsm":
            assert record.measures["vi"].value == pytest.approx(0, abs=1e-5)
            assert record.score.value == pytest.approx(record.measures["psnr_in"].value, abs=1e-4)
            assert record.clean_score.value == 100


def test_the_defense_is_attacked_itself_and_never_without_it(run):
    assert {r.knowledge for r in run[1]} == {"adaptive"}


def test_knowing_the_codec_makes_it_worse_than_chance(run):
    """The declared gradient of the median reaches a larger index than a straight line past it."""
    index = {
        r.gradient: r.measures["vi"].value
        for r in run[1]
        if (r.defense, r.bare_attack) == ("median", "codec-distortion:steps=12")
    }
    assert index["declared"] > index["identity"] + 1


def test_a_run_is_resumed_without_a_new_unit(suite, run):
    out, records = run
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    again = defend.bench(suite, out=out, workers=1, device="cpu")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before
    assert [r.units for r in again] == [r.units for r in records]


def test_an_attack_on_the_distortion_is_not_accused_of_a_fallen_loss(suite, tmp_path):
    """Away from the clean reconstruction may be nearer to the source."""
    noise_alone = "codec-distortion:steps=1,lr=1e-06"
    changes = {"defenses": ["jpeg:quality=10"], "attacks": [noise_alone], "n": 2}
    for record in defend.bench(suite | changes, out=tmp_path, workers=1, device="cpu"):
        (unit,) = record.units
        costs = find_unit(unit, [tmp_path]).header["costs"]
        assert costs["loss_after"] < 0.9999 * costs["loss_before"]
        assert record.flags == ()


def test_tables_and_reports_are_made_of_decibels(run, tmp_path):
    out, records = run
    text = printed(records, [out])
    for part in (
        "PSNR of the reconstruction against the source in dB",
        "no claim (missing: a protocol of this task)",
        "vulnerability index",
        "dB (",
        "Pairs by what is measured beside it",
    ):
        assert part in text, part
    page, table = write_report([out], out=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    number = summary["worst"][0]["number"]
    assert number["unit"] == "dB" and number["low"] <= number["value"] <= number["high"]
    html = page.read_text()
    assert "vulnerability index" in html and "Percent right" not in html
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert float(rows[0]["score"]) == pytest.approx(records[0].score.value)
    assert float(rows[0]["vi_low"]) == pytest.approx(records[0].measures["vi"].low)


def test_the_score_is_that_of_the_stored_adversarial_images(run):
    """The first unit keeps images in half precision, of which the PSNR can be computed again."""
    out, records = run
    record = next(r for r in records if r.defense == "jpeg" and r.gradient == "declared")
    unit = find_unit(record.units[0], [out])
    source, purified = (unit.tensors[f"sample_{name}"].float() for name in ("x", "purified"))
    expected = TASK.score(purified, source)
    assert unit.tensors["score"][: len(expected), 0].numpy() == pytest.approx(
        expected.numpy(), abs=0.05
    )


ERRORS = {
    "labels": (
        {"task": "classification", "classifiers": ["convnet"], "attacks": ["fgsm"]},
        Mismatch,
        "task classification needs labels, the data set image-folder.* has none",
    ),
    "a classifier": (
        {"classifiers": ["convnet"]},
        BadParameter,
        "task reconstruction takes no classifier, got convnet: leave classifiers out",
    ),
    "a protocol": (
        {"protocol": "ladder-1"},
        BadParameter,
        "protocol ladder-1 is one of classification",
    ),
    "attacks on labels": (
        {"attacks": ["apgd"]},
        BadParameter,
        "nothing is left to run: skipped apgd: its card says objective='label'",
    ),
    "another task": ({"task": "restoration"}, BadParameter, "expected classification or"),
    "no codec for a transfer": (
        {"attacks": ["fgsm"], "knowledge": ["transfer"]},
        BadParameter,
        "give another codec: --surrogate DEFENSE",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_measured_is_refused_in_one_line(suite, name, tmp_path):
    changes, error, message = ERRORS[name]
    with pytest.raises(error, match=message) as raised:
        defend.bench(suite | changes, out=tmp_path, workers=1, device="cpu")
    assert isinstance(raised.value, DefendError) and "\n" not in str(raised.value)


def test_a_transfer_is_made_on_another_codec(suite, tmp_path):
    changes = {"attacks": ["fgsm"], "knowledge": ["transfer"], "surrogates": ["jpeg:quality=30"]}
    records = defend.bench(
        suite | changes | {"defenses": ["median"]}, out=tmp_path, workers=1, device="cpu"
    )
    assert [r.surrogate for r in records] == ["jpeg:quality=30+none"]
    assert records[0].error is None


# Images of several sizes.


@pytest.mark.parametrize(
    ("n", "shard", "changes", "expected"),
    [
        (5, 2, (), [(0, 2), (2, 4), (4, 5)]),
        (5, 2, (3,), [(0, 2), (2, 3), (3, 5)]),
        (3, 9, (3, 4), [(0, 3)]),
        (6, 9, (2, 4), [(0, 2), (2, 4), (4, 6)]),
    ],
)
def test_no_unit_reaches_over_a_change_of_size(n, shard, changes, expected):
    assert split_ranges(n, shard, changes) == expected


@pytest.mark.data("kodak")
def test_kodak_is_attacked_at_its_own_sizes(tmp_path):
    suite = {
        "task": "reconstruction",
        "dataset": "kodak",
        "defenses": ["bitdepth"],
        "attacks": ["control:draw=0"],  # what is attacked is no matter here: it takes no gradient
        "n": 20,
    }
    records = defend.bench(suite, out=tmp_path, workers=1, device="cpu")
    assert records[0].error is None and "vi_ms_ssim" in records[0].measures
    shapes = set()
    for key in records[0].units:
        header = find_unit(key, [tmp_path]).header
        shapes.add((header["start"], header["stop"]))
    assert (16, 18) in shapes and (18, 20) in shapes
    assert write_report([tmp_path])[0].exists()


@pytest.mark.data("kodak")
def test_images_of_several_sizes_are_no_batch_and_suit_no_fixed_size():
    data = load("kodak", "dataset")
    with pytest.raises(BadParameter, match="several sizes, from 18 on"):
        data.rows("test", 0, 20)
    with pytest.raises(DefendError, match="there is no val"):
        data.rows("val", 0, 1)
    with pytest.raises(Mismatch, match="images of several sizes, up to 768 pixels"):
        defend.bench(
            task="reconstruction",
            dataset="kodak",
            defenses=["split-vqvae:weights=split-vqvae-mnist-whole"],
            attacks=["fgsm"],
            n=2,
        )
