"""The program that trained the priors that ship: its parts, and a run of an instant."""

import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from image_files import write_images
from source_files import REPOSITORY

from defend.defenses.two_stage import TwoStage
from defend.weights.zoo import read_zoos

SCRIPT = REPOSITORY / "docs" / "trainings" / "prior_by_time.py"


@pytest.fixture
def program():
    return runpy.run_path(str(SCRIPT))


def test_the_zoo_names_programs_that_are_there():
    """A command of a row is typed in the repository: each script that it names exists."""
    rows = tomllib.loads((REPOSITORY / "defend" / "zoo" / "zoo.toml").read_text())
    for name, row in rows.items():
        if isinstance(row, dict) and "command" in row:
            for word in row["command"].replace(";", " ").split():
                assert not word.endswith(".py") or (REPOSITORY / word).is_file(), (name, word)


@pytest.mark.parametrize("name", ["faces64", "cifar10"])
def test_the_plans_are_the_networks_that_ship(program, name):
    plan, entry = program["PLANS"][name], read_zoos()[f"two-stage-{name}"]
    expected = {key: entry.fields[key] for key in ("size", "blocks", "layers")}
    assert {"size": plan.size, "blocks": plan.blocks, "layers": plan.layers} == expected
    assert plan.dataset.partition(":")[0] == entry.dataset


def test_the_learning_rate_rises_and_falls_to_zero(program):
    rates = [program["rate"](share / 100) for share in range(101)]
    assert rates[0] == 0 and rates[100] == pytest.approx(0, abs=1e-12)
    assert max(rates) == rates[3] == pytest.approx(6e-4)


def test_the_average_follows_soon_and_then_slowly(program):
    mean, weights = torch.zeros(1), torch.ones(1)
    assert program["move_average"](mean, weights, 1).item() == pytest.approx(9 / 11)
    assert program["move_average"](mean, weights, 10**6).item() == pytest.approx(5e-4, rel=1e-3)


def test_a_run_of_an_instant_is_a_folder_that_two_stage_reads(program, tmp_path, monkeypatch):
    """It learns: the loss of the average is below that of an untrained network."""
    write_images(tmp_path / "more", [f"{i}.png" for i in range(12)], size=(8, 8))
    plan = program["Plan"]("digits-m", ("val",), 32, "8-8", 1, 32)
    main = program["main"]
    monkeypatch.setitem(main.__globals__["PLANS"], "tiny", plan)
    monkeypatch.setattr(main.__globals__["time"], "time", iter(range(100)).__next__)
    out = tmp_path / "prior"
    words = [str(SCRIPT), "tiny", "30", str(out), str(tmp_path / "more")]
    monkeypatch.setattr(sys, "argv", words)
    main()
    images = program["load_images"](plan, [str(tmp_path / "more")])
    assert len(images) - len(program["load_images"](plan, [])) == 12
    assert sorted(path.name for path in Path(out).iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "samples.png",
        "scheduler_config.json",
    ]
    purifier = TwoStage(weights=str(out), steps=2)
    untrained = TwoStage(weights="untrained", size=32, blocks="8-8", layers=1, steps=2)
    x = program["draw_batch"](images, 64)
    losses = []
    for prior in (purifier.net, untrained.net):
        torch.manual_seed(0)
        losses.append(program["loss_of"](prior, x).item())
    assert losses[0] < losses[1]
