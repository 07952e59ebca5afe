"""The training loop against closed forms, against plain PyTorch, and against itself interrupted."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from train_toys import Killed, brightness_images

from defend.errors import BadParameter
from defend.numerics import Candidate
from defend.progress import TrainingProgress
from defend.training.average import WeightAverage
from defend.training.data import Arrays, Stream, random_crop
from defend.training.loop import TrainingRun, train
from defend.training.objectives import Objective
from defend.training.options import LoopOptions
from defend.training.quality import accuracy
from defend.training.schedule import cosine, one_cycle


def make_net():
    """Return a network with everything that a resume file must restore.

    These are running statistics, dropout, and convolutions in a memory layout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


def make_linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 3))


def crop_loss(net, x, y, noise):
    cropped = random_crop(x, 1, noise.fork("augment"), flip=True)
    return F.cross_entropy(net(cropped).float(), y)


def states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


# A run that is killed and resumed gives the weights of an undisturbed run.

RECIPES = {
    "sgd": {},
    "adamw": {"optimiser": "adamw", "lr": 0.01},
    "averaged": {"ema": 0.9},
    "best": {"keep": "best", "ema": 0.9},
    "clipped": {"clip": 0.1},
    "bfloat16": {"precision": "bfloat16", "layout": "channels_last"},
    "cosine": {"schedule": "cosine"},
}


def killed_loss(fatal_calls):
    """Return a loss that raises Killed at some calls, which are counted over all runs."""
    calls = iter(range(10**6))

    def loss(*args):
        if next(calls) in fatal_calls:
            raise Killed
        return crop_loss(*args)

    return loss


def val_accuracy(net):
    x, y = brightness_images(20, seed=9)
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def draw_images(noise):
    y = (3 * noise.uniform(torch.empty(len(noise), 1)))[:, 0].long()
    return (noise.uniform(torch.empty(len(noise), 2, 6, 6)) + y[:, None, None, None]) / 3, y


SOURCES = {
    "arrays": lambda: Arrays(*brightness_images()),
    "stream": lambda: Stream(draw_images, 50),
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("make_source", SOURCES.values(), ids=SOURCES)
def test_a_killed_run_resumes_to_the_bit(options, make_source, tmp_path):
    source = make_source()
    defaults = {"epochs": 3, "batch": 16, "precision": "float32", "layout": "channels_last"}
    recipe = LoopOptions(**{**defaults, **options})
    undisturbed = make_net()
    train(undisturbed, source, crop_loss, recipe, val_accuracy, progress=False)

    path, loss = tmp_path / "run.resume", killed_loss({4, 7})
    arguments = {"resume": path, "save_every": 0, "progress": False}
    for _ in range(2):
        with pytest.raises(Killed):
            train(make_net(), source, loss, recipe, val_accuracy, **arguments)
    resumed = make_net()  # as in another process: only the file remains
    train(resumed, source, loss, recipe, val_accuracy, **arguments)

    assert not states_equal(undisturbed.state_dict(), make_net().state_dict())
    assert states_equal(undisturbed.state_dict(), resumed.state_dict())


def test_the_measured_precision_and_layout_are_read_from_the_file(tmp_path):
    """Otherwise a resumed run could go on in another precision."""
    path, recipe = tmp_path / "r", LoopOptions(epochs=2, batch=16)

    def make_run():
        source, objectives = Arrays(*brightness_images()), [Objective("loss", crop_loss)]
        display = TrainingProgress(False)
        return TrainingRun(make_net(), source, objectives, recipe, None, path, display, {})

    run = make_run()
    run.numerics = Candidate("bfloat16", "channels_last")
    run._save()
    assert make_run().numerics == Candidate("bfloat16", "channels_last")
    with safe_open(path, "pt") as f:
        state = json.loads(f.metadata()["defend.resume"])
    assert state["numerics"] == {"precision": "bfloat16", "layout": "channels_last"}


OTHER_RUNS = {
    "recipe": ({"lr": 0.2}, 0, "lr=0.1 in the file, lr=0.2 now"),
    "data": ({}, 1, "data="),
}


@pytest.mark.parametrize(("changes", "seed", "message"), OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_a_file_of_another_run_is_refused(changes, seed, message, tmp_path):
    path = tmp_path / "r"
    options = {"epochs": 3, "batch": 16, "precision": "float32", "layout": "contiguous"}
    arguments = {"resume": path, "save_every": 0, "progress": False}
    source, recipe = Arrays(*brightness_images()), LoopOptions(**options)
    with pytest.raises(Killed):
        train(make_net(), source, killed_loss({2}), recipe, **arguments)
    source, recipe = Arrays(*brightness_images(seed=seed)), LoopOptions(**{**options, **changes})
    with pytest.raises(BadParameter, match=message):
        train(make_net(), source, crop_loss, recipe, **arguments)


@pytest.mark.parametrize("content", [b"", b"no", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_resume_file_is_named(content, tmp_path):
    path = tmp_path / "damaged.resume"
    path.write_bytes(content)
    source, recipe = Arrays(*brightness_images()), LoopOptions(epochs=1)
    with pytest.raises(BadParameter, match=r"damaged\.resume: not a resume file"):
        train(make_net(), source, crop_loss, recipe, resume=path, progress=False)


# The loop.


def test_training_learns_and_leaves_the_network_frozen():
    x, y = brightness_images(300)
    net = make_net()
    loss_before = F.cross_entropy(net.eval()(x), y)
    recipe = LoopOptions(epochs=10, batch=30, lr=0.3, precision="float32")
    train(net, Arrays(x, y), crop_loss, recipe, progress=False)
    assert F.cross_entropy(net(x), y) < 0.5 * loss_before
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.grad is None for p in net.parameters())


def test_it_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train(
        make_net(), Arrays(*brightness_images()), crop_loss, LoopOptions(epochs=1), progress=False
    )
    assert torch.equal(state, torch.get_rng_state())


def test_one_step_is_that_of_plain_sgd():
    x, y = brightness_images(16)
    fitted, plain = make_linear(), make_linear()
    plain.load_state_dict(fitted.state_dict())
    recipe = LoopOptions(
        epochs=1,
        batch=16,
        lr=0.1,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.01,
        precision="float32",
        layout="contiguous",
    )

    def loss(net, x, y, _):
        return F.cross_entropy(net(x), y)

    train(fitted, Arrays(x, y), loss, recipe, progress=False)
    weight, bias = plain[1].weight, plain[1].bias
    weight_gradient, bias_gradient = torch.autograd.grad(
        F.cross_entropy(plain(x), y), [weight, bias]
    )
    expected_weight = weight - 0.1 * (weight_gradient + 0.01 * weight)
    expected_bias = bias - 0.1 * bias_gradient  # without weight decay
    torch.testing.assert_close(fitted[1].weight, expected_weight)
    torch.testing.assert_close(fitted[1].bias, expected_bias)


def test_a_step_is_no_longer_than_the_clip_allows():
    def parameters(net):
        return torch.cat([p.detach().flatten().clone() for p in net.parameters()])

    def steep_loss(net, x, y, _):
        return 100 * F.cross_entropy(net(x), y)

    net = make_linear()
    before = parameters(net)
    recipe = LoopOptions(
        epochs=1,
        batch=16,
        lr=1.0,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.0,
        clip=0.01,
        precision="float32",
    )
    train(net, Arrays(*brightness_images(16)), steep_loss, recipe, progress=False)
    assert float((parameters(net) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_divergence_is_an_error_and_writes_no_file(tmp_path):
    def infinite_loss(net, x, *_):
        return net(x).sum() * math.inf

    path, source = tmp_path / "r", Arrays(*brightness_images())
    arguments = {"resume": path, "save_every": 0, "progress": False}
    with pytest.raises(BadParameter, match="lower lr"):
        train(make_net(), source, infinite_loss, LoopOptions(epochs=1), **arguments)
    assert not path.exists()


def test_keep_best_keeps_the_epoch_with_the_best_score():
    states, scores = [], iter([0.1, 0.9, 0.5])

    def scripted_score(net):
        states.append({name: t.clone() for name, t in net.state_dict().items()})
        return next(scores)

    net, source = make_net(), Arrays(*brightness_images(48))
    recipe = LoopOptions(epochs=3, batch=16, keep="best")
    train(net, source, crop_loss, recipe, scripted_score, progress=False)
    assert states_equal(net.state_dict(), states[1])
    assert not states_equal(states[1], states[2])


def test_keep_best_needs_validation_images():
    source = Arrays(*brightness_images(48))
    with pytest.raises(BadParameter, match="keep=best"):
        train(make_net(), source, crop_loss, LoopOptions(keep="best"), progress=False)


def test_progress_has_a_line_for_each_epoch_on_stderr_unless_it_is_silent(capfd):
    def fit(progress):
        recipe = LoopOptions(epochs=2.5, batch=16, precision="float32")
        source = Arrays(*brightness_images(32))
        train(make_net(), source, crop_loss, recipe, val_accuracy, progress=progress)
        return capfd.readouterr()

    shown = fit(True)
    lines = shown.err.splitlines()
    assert lines.pop(0) == "measuring precision and layout..."
    assert [line.split()[:3] for line in lines] == [
        ["epoch", "1/2.5", "loss"],
        ["epoch", "2/2.5", "loss"],
        ["epoch", "2.5/2.5", "loss"],
    ]
    assert all("val " in line and "images/s" in line and " left" in line for line in lines)
    silent = fit(False)
    assert shown.out == silent.out == silent.err == ""


# Schedules and averages.


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (100, 0.25), (1000, 0.05)])
def test_one_cycle_is_that_of_torch(steps, warmup):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.4, total_steps=steps, pct_start=warmup
    )
    for step in range(steps):
        assert one_cycle(step, steps, 0.4, warmup) == pytest.approx(scheduler.get_last_lr()[0])
        optimiser.step()
        if step < steps - 1:
            scheduler.step()


def test_cosine_is_that_of_torch():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
    for step in range(20):
        assert cosine(step, 20, 0.1) == pytest.approx(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()


def test_the_average_of_a_ramp():
    """a_T is the sum of w_t (1 - d_t) times the product of all later d."""
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, decay=0.5)
    expected = module.weight.item()
    for t in range(30):
        d = min(0.5, (1 + t) / (10 + t))
        nn.init.constant_(module.weight, float(t))
        average.update(module, t)
        expected = d * expected + (1 - d) * t
    assert average.net.weight.item() == pytest.approx(expected, rel=1e-5)
    lag = 1  # d / (1 - d), behind a ramp of slope 1
    assert average.net.weight.item() == pytest.approx(29 - lag, abs=1e-3)


def test_the_average_of_a_mask_and_of_a_running_maximum():
    module = nn.Module()
    module.register_buffer("mask", torch.tensor([0.0, -math.inf, math.inf, math.nan]))
    module.register_buffer("maximum", torch.full((2,), -math.inf))
    module.register_buffer("finite", torch.tensor([1.0, 2.0]))
    average = WeightAverage(module, decay=0.5)
    mask = module.mask.clone()
    for step, maximum in enumerate(([-math.inf, 1.0], [2.0, 3.0], [2.0, 3.0])):
        module.maximum.copy_(torch.tensor(maximum))
        module.finite.fill_(step)
        average.update(module, step + 100)  # by then d = 0.5
    assert torch.equal(average.net.mask.nan_to_num(7), mask.nan_to_num(7))
    # As on paper: a value that was infinite is replaced, and averaged from then on.
    assert average.net.maximum.tolist() == [2.0, 2.5]
    assert average.net.finite.tolist() == [1.375, 1.5]


def test_the_average_follows_running_statistics_and_counters():
    module = nn.BatchNorm2d(2)
    average = WeightAverage(module, decay=0.9)
    module.train()(torch.randn(8, 2, 3, 3))
    average.update(module, 1000)
    expected = 0.9 * torch.ones(2) + 0.1 * module.running_var
    torch.testing.assert_close(average.net.running_var, expected)
    assert average.net.num_batches_tracked == module.num_batches_tracked == 1


@pytest.mark.gpu
def test_a_gpu_trains_and_resumes(tmp_path):
    path, net = tmp_path / "r", make_net().cuda()
    x, y = brightness_images(300)
    recipe = LoopOptions(epochs=10, batch=30, lr=0.3, ema=0.9)
    arguments = {"resume": path, "save_every": 0, "progress": False}
    with pytest.raises(Killed):
        train(net, Arrays(x, y), killed_loss({60}), recipe, **arguments)
    net = make_net().cuda()
    train(net, Arrays(x, y), crop_loss, recipe, resume=path, progress=False)
    assert accuracy(net, x, y) > 0.9
