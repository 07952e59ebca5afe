"""The training loop against closed forms, oracles, and itself interrupted."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from train_toys import Killed, bright, noise_of

from defend.errors import BadParameter
from defend.load import load
from defend.norms import norm_of
from defend.training import perturb
from defend.training.average import Average
from defend.training.data import Arrays, Stream, crop, places, training_source
from defend.training.loop import Run, train
from defend.training.quality import accuracy, psnr
from defend.training.recipe import Recipe
from defend.training.schedule import cosine, one_cycle

CPU = torch.device("cpu")


def net():
    """A little of everything that a resume file must keep: running statistics, dropout, layouts."""
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
        ).requires_grad_(False)


def smoothed(net, x, y, noise):
    return F.cross_entropy(net(crop(x, 1, noise.fork("augment"), flip=True)).float(), y)


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items()) and a.keys() == b.keys()


# A run that is killed and resumed gives what an undisturbed one gives.

VARIANTS = {
    "sgd": {},
    "adamw": {"optimiser": "adamw", "lr": 0.01},
    "averaged": {"ema": 0.9},
    "best": {"keep": "best", "ema": 0.9},
    "clipped": {"clip": 0.1},
    "bfloat16": {"precision": "bfloat16", "layout": "channels_last"},
    "cosine": {"schedule": "cosine"},
}


def killed_at(calls):
    """The loss of these tests; its calls are counted over all runs, and some of them raise."""
    count = iter(range(10**6))

    def loss(*args):
        if next(count) in calls:
            raise Killed
        return smoothed(*args)

    return loss


def score(net):
    x, y = bright(20, seed=9)
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("data", ["arrays", "stream"])
def test_a_killed_run_resumes_to_the_bit(options, data, tmp_path):
    source = Arrays(*bright()) if data == "arrays" else Stream(lambda noise: drawn(noise), 50)
    recipe = Recipe(
        **{"epochs": 3, "batch": 16, "precision": "float32", "layout": "channels_last", **options}
    )
    whole, pieces = net(), net()
    train(whole, source, smoothed, recipe, score, progress=False)
    path, loss = tmp_path / "run.resume", killed_at({4, 7})
    for _ in range(2):
        with pytest.raises(Killed):
            train(pieces, source, loss, recipe, score, resume=path, save_every=0, progress=False)
        pieces = net()  # another process: nothing is left but the file
    train(pieces, source, loss, recipe, score, resume=path, save_every=0, progress=False)
    assert not same(whole.state_dict(), net().state_dict())
    assert same(whole.state_dict(), pieces.state_dict())


def drawn(noise):
    y = (3 * noise.uniform(torch.empty(len(noise), 1)))[:, 0].long()
    return (noise.uniform(torch.empty(len(noise), 2, 6, 6)) + y[:, None, None, None]) / 3, y


def test_the_measured_plan_survives_in_the_file(tmp_path):
    """Else a resumed run could go on in another precision."""
    path, recipe = tmp_path / "r", Recipe(epochs=2, batch=16)
    run = Run(net().requires_grad_(True), Arrays(*bright()), smoothed, recipe, CPU, None, path)
    run.plan = type(run.plan)("bfloat16", "channels_last")
    run._save()
    assert (
        Run(net().requires_grad_(True), Arrays(*bright()), smoothed, recipe, CPU, None, path).plan
        == run.plan
    )
    with safe_open(path, "pt") as f:
        assert json.loads(f.metadata()["defend.resume"])["plan"] == {
            "precision": "bfloat16",
            "layout": "channels_last",
        }


CHANGES = {
    "recipe": ({"lr": 0.2}, 0, "lr=0.1 there, 0.2 now"),
    "data": ({}, 1, "data="),
}


@pytest.mark.parametrize(("changed", "seed", "message"), CHANGES.values(), ids=CHANGES)
def test_a_file_of_another_run_is_refused(changed, seed, message, tmp_path):
    path, recipe = (
        tmp_path / "r",
        {"epochs": 3, "batch": 16, "precision": "float32", "layout": "contiguous"},
    )
    with pytest.raises(Killed):
        train(
            net(),
            Arrays(*bright()),
            killed_at({2}),
            Recipe(**recipe),
            resume=path,
            save_every=0,
            progress=False,
        )
    with pytest.raises(BadParameter, match=message):
        train(
            net(),
            Arrays(*bright(seed=seed)),
            smoothed,
            Recipe(**recipe | changed),
            resume=path,
            progress=False,
        )


@pytest.mark.parametrize("content", [b"", b"no", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_resume_file_is_named(content, tmp_path):
    path = tmp_path / "r"
    path.write_bytes(content)
    with pytest.raises(BadParameter, match="not a resume file"):
        train(net(), Arrays(*bright()), smoothed, Recipe(epochs=1), resume=path, progress=False)


# What the loop does.


def test_training_learns_and_leaves_the_network_frozen():
    x, y = bright(300)
    fitted = net()
    before = F.cross_entropy(fitted.eval()(x), y)
    train(
        fitted,
        Arrays(x, y),
        smoothed,
        Recipe(epochs=10, batch=30, lr=0.3, precision="float32"),
        progress=False,
    )
    assert F.cross_entropy(fitted(x), y) < 0.5 * before
    assert not fitted.training and not any(
        p.requires_grad or p.grad is not None for p in fitted.parameters()
    )


def test_it_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train(net(), Arrays(*bright()), smoothed, Recipe(epochs=1), progress=False)
    assert torch.equal(state, torch.get_rng_state())


def test_one_step_is_that_of_plain_sgd():
    x, y = bright(16)
    fitted, plain = (
        nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    )
    plain.load_state_dict(fitted.state_dict())
    recipe = Recipe(
        epochs=1,
        batch=16,
        lr=0.1,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.01,
        precision="float32",
        layout="contiguous",
    )
    train(fitted, Arrays(x, y), lambda n, x, y, _: F.cross_entropy(n(x), y), recipe, progress=False)
    g_w, g_b = torch.autograd.grad(F.cross_entropy(plain(x), y), [plain[1].weight, plain[1].bias])
    torch.testing.assert_close(
        fitted[1].weight, plain[1].weight - 0.1 * (g_w + 0.01 * plain[1].weight)
    )
    torch.testing.assert_close(fitted[1].bias, plain[1].bias - 0.1 * g_b)  # biases do not decay


def test_a_step_is_no_longer_than_the_clip_allows():
    fitted = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    before = torch.cat([p.detach().flatten().clone() for p in fitted.parameters()])
    recipe = Recipe(
        epochs=1,
        batch=16,
        lr=1.0,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.0,
        clip=0.01,
        precision="float32",
    )
    train(
        fitted,
        Arrays(*bright(16)),
        lambda n, x, y, _: 100 * F.cross_entropy(n(x), y),
        recipe,
        progress=False,
    )
    after = torch.cat([p.flatten() for p in fitted.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_divergence_is_an_error_and_no_file(tmp_path):
    path = tmp_path / "r"
    with pytest.raises(BadParameter, match="lower lr"):
        train(
            net(),
            Arrays(*bright()),
            lambda n, x, *_: n(x).sum() * math.inf,
            Recipe(epochs=1),
            resume=path,
            save_every=0,
            progress=False,
        )
    assert not path.exists()


def test_keep_best_keeps_the_epoch_that_scored_best():
    seen, scores = [], iter([0.1, 0.9, 0.5])

    def scripted(net):
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return next(scores)

    fitted = net()
    train(
        fitted,
        Arrays(*bright(48)),
        smoothed,
        Recipe(epochs=3, batch=16, keep="best"),
        scripted,
        progress=False,
    )
    assert same(fitted.state_dict(), seen[1]) and not same(seen[1], seen[2])
    with pytest.raises(BadParameter, match="keep=best needs validation"):
        train(net(), Arrays(*bright(48)), smoothed, Recipe(keep="best"), progress=False)


# Schedules and averages.


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (100, 0.25), (1000, 0.05)])
def test_one_cycle_is_that_of_torch(steps, warmup):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.4, total_steps=steps, pct_start=warmup
    )
    for step in range(steps):
        assert one_cycle(step, steps, 0.4, warmup) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        if step < steps - 1:
            theirs.step()


def test_cosine_is_that_of_torch():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
    for step in range(20):
        assert cosine(step, 20, 0.1) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


def test_the_average_of_a_constant_and_of_a_ramp():
    """a_T = sum of w_t (1 - d_t) times the product of later d; after the first terms d is the decay."""
    module = nn.Linear(1, 1, bias=False)
    average = Average(module, decay=0.5)
    start = module.weight.item()
    expected, d = start, lambda t: min(0.5, (1 + t) / (10 + t))
    for t in range(30):
        nn.init.constant_(module.weight, float(t))
        average.update(module, t)
        expected = d(t) * expected + (1 - d(t)) * t
    assert average.net.weight.item() == pytest.approx(expected, rel=1e-5)
    assert average.net.weight.item() == pytest.approx(
        29 - 1, abs=1e-3
    )  # a ramp of slope 1 is followed d / (1 - d) behind


def test_the_average_follows_running_statistics_and_counters():
    module = nn.BatchNorm2d(2)
    average = Average(module, decay=0.9)
    module.train()(torch.randn(8, 2, 3, 3))
    average.update(module, 1000)
    torch.testing.assert_close(
        average.net.running_var, 0.9 * torch.ones(2) + 0.1 * module.running_var
    )
    assert average.net.num_batches_tracked == module.num_batches_tracked == 1


# Data.


def test_every_epoch_is_another_permutation():
    n = 10
    rows = torch.cat(
        [places(at, 4, n, seed=0) for at in range(0, 40, 4)]
    )  # batches straddle epochs
    epochs = rows.view(-1, n)
    assert all(torch.equal(e.sort().values, torch.arange(n)) for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) == len(epochs)
    assert not torch.equal(places(0, n, n, seed=1), epochs[0])


def test_uint8_and_float_arrays_give_the_same_batches():
    x = torch.randint(0, 256, (9, 1, 3, 3), dtype=torch.uint8)
    for a, b in zip(
        Arrays(x, torch.arange(9)).batch(3, 5, 0),
        Arrays(x.float().div(255), torch.arange(9)).batch(3, 5, 0),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_crop_is_a_shift_over_black_and_perhaps_a_mirror():
    x = 0.1 + 0.9 * torch.rand(400, 3, 6, 6)  # no black inside
    cropped = crop(x, 2, noise_of(400), flip=True)
    padded = F.pad(x, (2,) * 4)
    windows = [padded[:, :, i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
    candidates = torch.stack([w for v in windows for w in (v, v.flip(3))])  # (50, b, c, h, w)
    hits = (candidates == cropped).flatten(2).all(2)
    assert hits.any(0).all()
    assert hits.any(1).all()  # each of the 50 turns up: (49 / 50)^400 is 3e-4 for one
    assert torch.equal(
        cropped[:7], crop(x[:7], 2, noise_of(7), flip=True)
    )  # an image's crop knows nothing of its company
    assert not torch.equal(cropped, crop(x, 2, noise_of(400, seed=1), flip=True))
    assert torch.equal(crop(x, 0, noise_of(400)), x)


def test_a_data_set_without_an_end_becomes_a_stream():
    stream, arrays = (
        training_source(load("digits-m", "dataset")),
        training_source(load("digits", "dataset")),
    )
    assert isinstance(stream, Stream) and isinstance(arrays, Arrays)
    x, y = stream.batch(0, 8, seed=0)
    assert torch.equal(
        stream.batch(4, 4, seed=0)[0], x[4:]
    )  # image k of the run, however it is asked for
    assert x.shape == (8, 3, 32, 32) and y.shape == (8,)
    assert not torch.equal(stream.batch(stream.epoch, 8, seed=0)[0], x)  # fresh at every epoch


# Perturbations.


def test_perturbations_have_the_size_they_say():
    x = torch.full((20, 3, 8, 8), 0.5)
    signs = perturb.random_signs(x, 0.2, noise_of(20)) - x
    assert torch.allclose(signs.abs(), torch.tensor(0.2)) and abs(signs.mean()) < 0.02
    assert perturb.gaussian(x, 0.05, noise_of(20)).sub(x).std() == pytest.approx(0.05, rel=0.05)
    each = torch.linspace(0, 0.3, 20).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        norm_of(perturb.random_signs(x, each, noise_of(20)) - x, "Linf"), each.flatten()
    )
    white = perturb.random_signs(torch.ones(2, 1, 4, 4), 0.3, noise_of(2))
    assert white.max() <= 1 and white.min() >= 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_reaches_the_corner_of_the_ball_on_a_linear_model(norm):
    """For two classes the loss rises along w_1 - w_0 alone: the optimum is eps sign(w), or eps w / |w|."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    x, y, eps = torch.full((5, 3, 2, 2), 0.5).double(), torch.zeros(5, dtype=torch.long), 0.1
    w = (linear[1].weight[1] - linear[1].weight[0]).detach().view(3, 2, 2)
    best = eps * (w.sign() if norm == "Linf" else w / w.norm())
    found = perturb.pgd(linear, x, y, eps, norm, 40, noise_of(5)) - x
    gain = (found * w).sum((1, 2, 3)) / (best * w).sum()
    assert float(norm_of(found, norm).max()) <= eps + 1e-9
    assert float(gain.min()) > (
        1 - 1e-9 if norm == "Linf" else 0.95
    )  # L2: the random start's share fades as exp(-2.5), a cosine is above .95 then


def test_pgd_leaves_mode_gradients_and_running_statistics_alone():
    module = net().train().requires_grad_(True)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    perturb.pgd(module, *bright(8), 0.1, "Linf", 3, noise_of(8))
    assert (
        module.training
        and same(before, module.state_dict())
        and all(p.grad is None for p in module.parameters())
    )


# How good it is.


def test_psnr_is_that_of_the_noise_a_purifier_adds():
    x = torch.full((600, 1, 8, 8), 0.5)  # two cuts
    assert psnr(load("gaussian:sigma=0.05"), x) == pytest.approx(-20 * math.log10(0.05), abs=0.1)
    assert psnr(load("none"), x) == pytest.approx(120)


def test_accuracy_counts_the_last_cut_too():
    """A network that always answers 1, on 600 images of which the last 100 are ones."""
    always = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(always[1].weight)
    always[1].bias.data = torch.tensor([0.0, 1.0])
    y = (torch.arange(600) >= 500).long()
    assert accuracy(always, torch.rand(600, 1, 2, 2), y) == pytest.approx(1 / 6)


@pytest.mark.gpu
def test_a_gpu_trains_and_resumes(tmp_path):
    path, fitted, x, y = tmp_path / "r", net().cuda(), *bright(300)
    recipe = Recipe(epochs=10, batch=30, lr=0.3, ema=0.9)
    with pytest.raises(Killed):
        train(
            fitted, Arrays(x, y), killed_at({60}), recipe, resume=path, save_every=0, progress=False
        )
    fitted = net().cuda()
    train(fitted, Arrays(x, y), smoothed, recipe, resume=path, progress=False)
    assert accuracy(fitted, x, y) > 0.9
