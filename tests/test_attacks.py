"""fgsm and pgd against closed forms, a convex solver and plain loops."""

import re
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

import defend
from defend.attacks import pgd as pgd_module
from defend.attacks.cycle_detection import Repeats
from defend.attacks.fgsm import FGSM
from defend.attacks.pgd import PGD
from defend.defenses.gaussian import GaussianNoise
from defend.defenses.none import NoDefense
from defend.errors import BadParameter
from defend.losses import cross_entropy
from defend.noise import Noise
from defend.norms import norm_of
from defend.target import Target
from defend.testing import conformance_test
from defend.testing.runner import kit

test_fgsm_l2 = conformance_test(lambda: FGSM(norm="L2"), kit("attack"))
test_pgd_l2_with_restarts = conformance_test(lambda: PGD(norm="L2", restarts=2), kit("attack"))
test_pgd_from_the_image = conformance_test(lambda: PGD(random_start=False, step=0.2), kit("attack"))


def documented():
    """The attack that docs/attacks.md writes."""
    page = (Path(__file__).parent.parent / "docs" / "attacks.md").read_text()
    names = {"__name__": "documented"}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    return names["RandomSearch"]()


test_documented_attack = conformance_test(documented, kit("attack"))

ROWS = torch.arange(32)
X = 0.25 + 0.5 * torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EDGE = (
    torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    .mul(1.4)
    .sub(0.2)
    .clamp(0, 1)
)  # two pixels in seven are black or white
Y = torch.arange(32) % 2


def linear(n=192):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(n, 2)).requires_grad_(False)


def uphill(y, shape=(3, 8, 8)):
    """The direction in which the loss of a linear classifier rises: W_other - W_y, (b, c, h, w)."""
    w = linear(int(np.prod(shape)))[1].weight
    return ((1 - 2 * y).float()[:, None] * (w[1] - w[0])).view(-1, *shape)


def target(purifier=None, rows=ROWS, model=None, **kw):
    return Target(
        model or linear(), purifier or NoDefense(), Noise.of(0, rows).fork("attack"), **kw
    )


def start(n=32):
    return Noise.of(0, torch.arange(n)).fork("start")


@pytest.mark.parametrize("x", [X, EDGE], ids=["inside", "box"])
@pytest.mark.parametrize("eps", [0.01, 0.1, 1.0])
def test_fgsm_is_the_sign_of_the_weights(x, eps):
    adv = FGSM().run(target(), x, Y, eps, start())
    assert torch.allclose(adv, (x + eps * uphill(Y).sign()).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("x", [X, EDGE], ids=["inside", "box"])
@pytest.mark.parametrize("eps", [0.01, 0.5, 3.0])
def test_euclidean_fgsm_is_the_direction_of_the_weights(x, eps):
    adv = FGSM(norm="L2").run(target(), x, Y, eps, start())
    assert torch.allclose(
        adv,
        (x + eps * uphill(Y) / norm_of(uphill(Y), "L2").view(-1, 1, 1, 1)).clamp(0, 1),
        atol=1e-5,
    )


def test_one_gradient_serves_every_eps_of_fgsm():
    seen = []

    class CheckResult(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return linear()(x)

    t = target(GaussianNoise(sigma=0.1), model=CheckResult(), eot=3)
    swept = [(adv, dict(t.counts)) for adv in FGSM().sweep(t, X, Y, [0.0, 0.1, 0.2, 0.3], start())]
    assert sum(seen) == 3 * 32
    assert all(counts == {"forwards": 96, "backwards": 96} for _, counts in swept)
    assert torch.equal(swept[0][0], X) and not torch.equal(swept[1][0], swept[2][0])


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("x", [X, EDGE], ids=["inside", "box"])
def test_pgd_reaches_the_optimum_of_a_linear_model_for_every_image_wrong_ones_too(restarts, x):
    adv = PGD(restarts=restarts).run(target(), x, Y, 0.1, start())
    assert torch.allclose(adv, (x + 0.1 * uphill(Y).sign()).clamp(0, 1), atol=1e-6)


def test_euclidean_pgd_reaches_the_optimum_of_a_linear_model():
    adv = PGD(norm="L2", steps=100, step=0.2).run(target(), X, Y, 0.5, start())
    assert torch.allclose(
        adv, X + 0.5 * uphill(Y) / norm_of(uphill(Y), "L2").view(-1, 1, 1, 1), atol=1e-5
    )


def test_euclidean_pgd_reaches_the_convex_optimum_where_the_box_is_active():
    x, y, eps = EDGE.flatten()[:24].view(4, 1, 2, 3).double(), Y[:4], 0.6
    t = target(rows=ROWS[:4], model=linear(6).double())
    adv = PGD(norm="L2", steps=400, step=0.2).run(t, x, y, eps, start(4))
    for image, slope, found in zip(
        x.flatten(1).numpy(),
        uphill(y, (1, 2, 3)).flatten(1).double().numpy(),
        adv.flatten(1).numpy(),
        strict=True,
    ):
        ball = {"type": "ineq", "fun": lambda z, image=image: eps**2 - ((z - image) ** 2).sum()}
        best = minimize(
            lambda z, slope=slope: -(slope @ z),
            image,
            bounds=[(0, 1)] * 6,
            constraints=[ball],
            tol=1e-12,
        )
        assert slope @ found == pytest.approx(-best.fun, abs=1e-6)
    assert ((adv == 0) | (adv == 1)).any() and torch.allclose(
        norm_of(adv - x, "L2"), torch.tensor(eps).double(), atol=1e-6
    )


def test_one_whole_step_from_the_image_is_fgsm():
    for norm in ("Linf", "L2"):
        one = PGD(norm=norm, steps=1, step=1.0, random_start=False).run(
            target(), X, Y, 0.1, start()
        )
        assert torch.allclose(one, FGSM(norm=norm).run(target(), X, Y, 0.1, start()), atol=1e-7)


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 0},
        {"step": 0.0},
        {"step": -1.0},
        {"restarts": 0},
        {"restarts": 2, "random_start": False},
        {"norm": "L1"},
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(field):
    with pytest.raises(BadParameter, match=next(iter(field))):
        PGD(**field)


# Digits, and a network that was trained on them in a second.


@cache
def digits():
    data = defend.load("digits", kind="dataset")
    (x, y), (train_x, train_y) = data.rows("test", 0, 200), data.rows("train", 0, 1000)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(60):
        some = torch.randint(len(train_x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(net(train_x[some]), train_y[some]).backward()
        optimizer.step()
    return net.requires_grad_(False).eval(), x, y


def wrong(z, y):
    return z.argmax(1) != y


def plain_pgd(net, x, y, eps, steps, first):
    """Every iterate of projected gradient descent, and of every image: nothing is dropped."""
    iterates, low, high = [first], (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    for _ in range(steps):
        z = iterates[-1].clone().requires_grad_()
        F.cross_entropy(net(z), y, reduction="sum").backward()
        iterates.append(
            torch.minimum(
                torch.maximum(iterates[-1] + 2.5 * eps / steps * z.grad.sign(), low), high
            )
        )
    return iterates


def first_points(x, eps, noise):
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    return low + (high - low) * noise.copies(1).uniform(x)


def on_digits(attack, eps=0.2, **kw):
    net, x, y = digits()
    t = target(model=net, rows=torch.arange(200), **kw)
    return attack.run(t, x, y, eps, start(200)), t


def test_oblivious_pgd_behind_a_median_filter_is_a_plain_loop_that_drops_nothing():
    net, x, y = digits()
    median = defend.load("median")
    honest, _ = on_digits(PGD(steps=40))
    plain = plain_pgd(net, x, y, 0.2, 40, first_points(x, 0.2, start(200)))[-1]
    fooled = wrong(net(median.purified(honest)), y)
    assert torch.equal(fooled, wrong(net(median.purified(plain)), y))  # to the image
    dropping, _ = on_digits(
        PGD(steps=40), scored=True
    )  # what the rule is for: the filter would look far better
    assert fooled.float().mean() > wrong(net(median.purified(dropping)), y).float().mean() + 0.2


@pytest.mark.parametrize("eps", [0.03, 0.1])
def test_dropping_finds_exactly_the_images_that_are_wrong_at_any_iterate(eps):
    net, x, y = digits()
    adv, t = on_digits(PGD(steps=20), eps, scored=True)
    iterates = plain_pgd(net, x, y, eps, 20, first_points(x, eps, start(200)))
    ever = torch.stack([wrong(net(z), y) for z in iterates])
    assert torch.equal(wrong(net(adv), y), ever.any(0)) and 0.05 < ever.any(0).float().mean() < 0.95
    first = torch.where(
        ever.any(0), ever.int().argmax(0), 20
    )  # an image keeps the iterate that was wrong first
    assert torch.allclose(adv, torch.stack(iterates)[first, torch.arange(200)], atol=1e-6)
    assert t.counts["backwards"] < 200 * 20  # and it was worth it


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("every", [1, 3, 100])
def test_no_result_depends_on_when_the_batch_is_repacked(monkeypatch, every, restarts):
    attack = PGD(steps=12, restarts=restarts)
    usual, _ = on_digits(attack, 0.1, scored=True)
    monkeypatch.setattr(pgd_module, "REPACK", every)
    assert torch.allclose(on_digits(attack, 0.1, scored=True)[0], usual, atol=1e-6)


@pytest.mark.parametrize("scored", [False, True])
def test_more_restarts_never_find_less(scored):
    net, _, y = digits()
    one, many = (on_digits(PGD(steps=3, restarts=r), 0.06, scored=scored)[0] for r in (1, 5))
    if scored:  # what was wrong stays wrong, and more is
        assert (wrong(net(many), y) | ~wrong(net(one), y)).all() and wrong(
            net(many), y
        ).sum() > wrong(net(one), y).sum()
    else:
        gain = cross_entropy(net(many), y) - cross_entropy(net(one), y)
        assert gain.min() > -1e-5 and gain.max() > 0.01


def test_a_stochastic_target_is_asked_for_every_step_draw_and_restart():
    t = target(GaussianNoise(sigma=0.1), eot=4, scored=True)
    PGD(steps=6, restarts=2).run(t, X, Y, 0.1, start())
    assert t.counts == {
        "forwards": 32 * 2 * 4 * (6 + 1),
        "backwards": 32 * 2 * 4 * 6,
    }  # and of the restarts' ends a fresh mean


def on_gpu(n, noisy=False, **kw):
    model = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        .requires_grad_(False)
        .cuda()
    )
    rows = torch.arange(n, device="cuda")
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)).cuda()
    purifier = GaussianNoise(sigma=0.1) if noisy else NoDefense()
    return (
        Target(model, purifier, Noise.of(0, rows).fork("attack"), **kw),
        x,
        rows % 10,
        Noise.of(0, rows).fork("start"),
    )


@contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


ON_GPU = [
    "fgsm",
    "fgsm:norm=L2",
    "pgd",
    "pgd:norm=L2,restarts=2",
    "apgd:steps=30",
    "apgd:loss=dlr-targeted,norm=L2,steps=30",
    "fab:steps=5",
]
ON_GPU += ["square:queries=60", "square:queries=60,norm=L2"]


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ON_GPU)
@pytest.mark.parametrize("noisy", [False, True])
def test_nothing_waits_for_the_gpu_inside_an_attack(monkeypatch, spec, noisy):
    monkeypatch.setattr(pgd_module, "REPACK", 1000)  # it looks for circles as often as it repacks
    attack, (t, x, y, noise) = defend.load(spec, "attack"), on_gpu(64, eot=3, noisy=noisy)
    attack.run(t, x, y, 0.1, noise.again())  # libraries wait once, when they are first used
    with no_waiting():
        adv = attack.run(t, x, y, 0.1, noise.again())
    assert adv.is_cuda


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_between_repackings():
    t, x, y, _ = on_gpu(64, scored=True)
    attack = PGD()
    attack._until_wrong(t, x, y, 0.1, x, range(5), Repeats(x, 20))
    with no_waiting():
        adv, _ = attack._until_wrong(t, x, y, 0.1, x, range(5), Repeats(x, 20))
    assert adv.is_cuda


class Waves(nn.Module):
    """A sum of waves between the logits: steps by signs soon go in circles, of its own for each image. Class 0, whatever the image."""

    def forward(self, x):
        d = 3 + (torch.sin(40 * x) + torch.cos(23 * x.flip(3))).flatten(1).sum(1) / 20
        return torch.stack([d, -d], 1)


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize(
    ("steps", "step"), [(200, 0.3), (201, 0.3), (202, 0.3), (203, 0.3), (60, 2.0), (61, 2.0)]
)
def test_circles_are_left_early_with_the_same_result_to_the_bit(monkeypatch, steps, step, scored):
    """Whatever the phase, what is returned is the last iterate of all steps."""
    x, attack = X[:, :, :2, :2], PGD(steps=steps, step=step, random_start=False)

    def run():
        t = target(model=Waves(), scored=scored)
        return attack.run(t, x, torch.zeros_like(Y), 0.05, start()), t.counts["backwards"]

    early, few = run()
    monkeypatch.setattr(Repeats, "saw", never)
    whole, every = run()
    assert torch.equal(early, whole)
    assert few < every == 32 * steps


def never(self, x, k):
    """No circle is ever seen."""


@pytest.mark.parametrize("period", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("steps", [40, 41, 43, 50])
def test_the_steps_that_are_left_lead_to_the_last_point(period, steps):
    """x(k): 11 points that are met once, then a circle. Each image enters it at its own time."""

    def point(k):
        return torch.stack(
            [torch.tensor(float(k if k < m else m + (k - m) % period)) for m in (3, 11)]
        )[:, None]

    repeats, at = Repeats(point(0), steps), torch.zeros(2)
    for k in range(1, steps + 1):
        moving = repeats.left > 0
        at = torch.where(moving, at + 1, at)
        repeats.saw(torch.stack([point(int(n))[i] for i, n in enumerate(at)]), k)
    assert torch.equal(torch.stack([point(int(n))[i] for i, n in enumerate(at)]), point(steps))
    assert (at < steps).all()


def test_a_stochastic_target_is_never_taken_for_a_circle():
    t = target(GaussianNoise(sigma=0.1), eot=1)
    PGD(steps=50, step=2.0).run(t, X, Y, 0.01, start())
    assert t.counts["backwards"] == 32 * 50
