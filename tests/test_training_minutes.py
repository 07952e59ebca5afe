"""Trainings by wall clock: the schedule follows the share of the time, also over an interruption.

No test asserts a time: the budgets are far below and far above what the steps take.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from train_toys import Killed, brightness_images

from defend.errors import BadParameter
from defend.training.data import Arrays
from defend.training.loop import train
from defend.training.options import LoopOptions
from defend.training.schedule import VIRTUAL_STEPS, Schedule, cosine, learning_rate, one_cycle

FIXED = {"batch": 16, "precision": "float32", "layout": "contiguous"}
HOUR = 60.0


def make_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 3))


def recorded(options, shares, fatal_call=None):
    """Return a loss that notes the share of each of its calls, and may raise Killed at one."""

    def loss(net, x, y, _):
        if len(shares) == fatal_call:
            raise Killed
        shares.append(options.share)
        return F.cross_entropy(net(x).float(), y)

    return loss


def run(options, loss, **arguments):
    net = make_net()
    train(net, Arrays(*brightness_images()), loss, options, progress=False, **arguments)
    return net


@pytest.mark.parametrize("minutes", [1e-9, 0.002])
def test_a_run_by_wall_clock_ends_when_the_time_is_used(minutes):
    """However short the time is, there is one step; and `epochs` has no effect."""
    options = LoopOptions(epochs=1e9, minutes=minutes, **FIXED)
    shares = []
    run(options, recorded(options, shares))
    assert shares
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert Schedule(options, 7).is_over(0) is False, "no step has been taken"


def test_the_quality_is_measured_once_more_at_the_end():
    scores = []
    options = LoopOptions(minutes=0.002, keep="best", **FIXED)

    def score(_):
        scores.append(len(scores))
        return float(len(scores))

    run(options, recorded(options, []), score=score)
    assert scores, "without a score there would be no best epoch"


def test_an_interrupted_run_goes_on_with_the_time_that_is_left(tmp_path):
    """The earlier seconds are in the file. With an hour's worth of them, one budget is over."""
    path, shares = tmp_path / "r", []
    options = LoopOptions(minutes=HOUR, **FIXED)
    with pytest.raises(Killed):
        run(options, recorded(options, shares, fatal_call=3), resume=path, save_every=0)
    with safe_open(path, "pt") as f:
        state = json.loads(f.metadata()["defend.resume"])
    assert state["step"] == 3
    assert state["seconds"] / (60 * HOUR) >= shares[-1] > 0
    schedule = Schedule(options, 1)
    schedule.earlier_seconds = state["seconds"]
    assert schedule.share(3) >= shares[-1]
    schedule.earlier_seconds = 60 * HOUR
    assert schedule.is_over(3)


def test_a_file_of_another_budget_is_refused(tmp_path):
    path = tmp_path / "r"
    options = LoopOptions(minutes=HOUR, **FIXED)
    with pytest.raises(Killed):
        run(options, recorded(options, [], fatal_call=1), resume=path, save_every=0)
    other = LoopOptions(minutes=2 * HOUR, **FIXED)
    with pytest.raises(BadParameter, match=r"minutes=60.0 in the file, minutes=120.0 now"):
        run(other, recorded(other, []), resume=path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_the_learning_rate_by_time_is_that_of_the_same_share_of_steps(share):
    by_time = LoopOptions(minutes=1, lr=0.3, schedule="one-cycle")
    expected = one_cycle(share * VIRTUAL_STEPS, VIRTUAL_STEPS, 0.3, by_time.warmup)
    assert Schedule(by_time, 5).learning_rate(123, share) == pytest.approx(expected)
    along_cosine = LoopOptions(minutes=1, lr=0.3, schedule="cosine")
    rate = Schedule(along_cosine, 5).learning_rate(0, share)
    assert rate == pytest.approx(cosine(share * 1000, 1000, 0.3))


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_by_steps_the_schedule_is_a_function_of_the_step_alone(steps):
    options = LoopOptions(epochs=3)
    schedule = Schedule(options, steps)
    schedule.earlier_seconds = 1e9
    for step in range(steps):
        assert schedule.share(step) == step / steps
        assert not schedule.is_over(step)
        rate = schedule.learning_rate(step, schedule.share(step))
        assert rate == learning_rate(step, steps, options)
    assert schedule.is_over(steps)
    assert schedule.total_steps(0) == steps


def test_a_run_by_wall_clock_foretells_its_steps_from_its_speed():
    options = LoopOptions(minutes=1)
    schedule = Schedule(options, 1)
    schedule.earlier_seconds = 30.0
    assert schedule.total_steps(0) == 0
    assert 100 < schedule.total_steps(100) <= 200


def test_negative_minutes_are_refused():
    with pytest.raises(BadParameter, match="minutes=-1"):
        LoopOptions(minutes=-1.0)
