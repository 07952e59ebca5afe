"""`defend tune`: accuracies at each scale, a sheet for the eye, and errors of one line."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from defend.benchmarks.tune import TuningRequest, tune
from defend.cli import main
from defend.cli.tune import parse_scales
from defend.errors import BadParameter
from defend.loading import load
from defend.noise import Noise
from defend.training.quality import psnr

SPEC = "two-stage:weights=untrained,size=32,blocks=8-8,layers=1,steps=1,stages=sr"
ARGUMENTS = ["tune", SPEC, "--dataset", "digits-m", "--classifier", "convnet"]


def request(**changes):
    fields = {
        "spec": SPEC,
        "dataset": "digits-m",
        "classifier": "convnet",
        "scales": (1, 4),
        "n": 70,
        "device": "cpu",
        "attack": "fgsm",
    }
    return TuningRequest(**{**fields, **changes})


@pytest.fixture(scope="module")
def results():
    return tune(request())


def test_the_first_row_is_the_bare_classifier(results):
    bare = results[0]
    data = load("digits-m", "dataset")
    x, y = data.rows("val", 0, 70)
    network = load("convnet", "classifier", data).network
    assert bare.scale is None and bare.psnr is None
    assert bare.clean == (network(x).argmax(1) == y).double().mean().item()
    assert bare.attacked < bare.clean


def test_at_scale_1_everything_is_kept(results):
    """Means of one pixel are the image: the defense does nothing, and the attack goes through."""
    bare, same, _ = results
    assert same.scale == 1
    assert (same.clean, same.attacked) == (bare.clean, bare.attacked)
    assert same.psnr > 80


def test_a_scale_is_measured_by_the_purifier_of_that_scale(results):
    coarse = results[2]
    data = load("digits-m", "dataset")
    x, _ = data.rows("val", 0, 70)
    purifier = load(f"{SPEC},scale=4", dataset=data)
    assert (coarse.scale, coarse.n) == (4, 70)
    assert coarse.psnr == pytest.approx(psnr(purifier, x), abs=0.5)  # other noise
    low, high = coarse.clean_interval
    assert low <= coarse.clean <= high


def test_batches_do_not_change_the_result(results, monkeypatch):
    monkeypatch.setattr("defend.benchmarks.tune.CHUNK", 17)
    again = tune(request())
    assert [r.clean for r in again] == [r.clean for r in results]
    assert [r.attacked for r in again] == [r.attacked for r in results]


def test_the_command_prints_a_table_and_writes_a_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    options = ["--scales", "2,4", "-n", "8", "--out", str(sheet), "--device", "cpu"]
    result = CliRunner().invoke(main, [*ARGUMENTS, *options])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["scale", "no", "2", "4"]
    with Image.open(sheet) as image:
        assert image.size == (8 * 32, 6 * 32)  # clean and attacked, bare and at two scales
        top = torch.tensor(image.getpixel((0, 0))) / 255
    x, _ = load("digits-m", "dataset").rows("val", 0, 1)
    torch.testing.assert_close(top, x[0, :, 0, 0], atol=0.003, rtol=0)


def test_json_has_one_object_for_each_scale(tmp_path):
    options = ["--scales", "2", "-n", "4", "--out", str(tmp_path / "s.png"), "--json"]
    result = CliRunner().invoke(main, [*ARGUMENTS, *options])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["scale"] for row in rows] == [None, 2]
    assert all(0 <= row["clean"] <= 1 and row["n"] == 4 for row in rows)


WRONG = {  # words of the error -> arguments behind `defend`
    "expected different whole numbers": [*ARGUMENTS, "--scales", "2,x"],
    "expected different whole numbers joined": [*ARGUMENTS, "--scales", "2,2"],
    "ends in .png": [*ARGUMENTS, "--out", "sheet.jpg"],
    "the field scale, got one without": ["tune", "jpeg", *ARGUMENTS[2:]],
    "expected no scale in the spec": ["tune", f"{SPEC},scale=2", *ARGUMENTS[2:]],
    "expected 1 to": [*ARGUMENTS, "-n", "0"],
    "scale=0": [*ARGUMENTS, "--scales", "0", "-n", "2"],
}


@pytest.mark.parametrize(("message", "arguments"), WRONG.items(), ids=WRONG)
def test_a_wrong_argument_is_one_line(message, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output and len(result.output.splitlines()) == 1


def test_scales_are_read():
    assert parse_scales("2, 4,8") == [2, 4, 8]
    with pytest.raises(BadParameter):
        parse_scales("")


def test_clean_and_attacked_images_get_noise_of_their_own():
    """Equal noise would tie the two columns of the table to each other."""
    noise = Noise.of(0, torch.arange(2))
    like = torch.zeros(2, 3)
    assert not torch.equal(noise.fork("clean").normal(like), noise.fork("attacked").normal(like))
