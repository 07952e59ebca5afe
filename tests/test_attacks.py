"""FGSM and PGD against closed forms, a convex solver and plain loops."""

import re
import warnings
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


def make_documented_attack():
    """Return the attack that docs/attacks.md writes as an example."""
    page = (Path(__file__).parent.parent / "docs" / "attacks.md").read_text()
    names = {"__name__": "documented"}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    return names["RandomSearch"]()


test_documented_attack = conformance_test(make_documented_attack, kit("attack"))


def random_images(seed):
    return torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


ROWS = torch.arange(32)
X = 0.25 + 0.5 * random_images(seed=0)  # far from the box
EDGE = random_images(seed=1).mul(1.4).sub(0.2).clamp(0, 1)  # two pixels in seven are black or white
Y = torch.arange(32) % 2
PLACES = pytest.mark.parametrize("x", [X, EDGE], ids=["inside", "box"])


def linear(n=192):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(n, 2)).requires_grad_(False)


def uphill(y, shape=(3, 8, 8)):
    """Return the direction in which the loss of the linear classifier rises: W_other - W_y."""
    w = linear(int(np.prod(shape)))[1].weight
    return ((1 - 2 * y).float()[:, None] * (w[1] - w[0])).view(-1, *shape)


def uphill_unit(y):
    """Return `uphill` scaled to L2 norm 1."""
    return uphill(y) / norm_of(uphill(y), "L2").view(-1, 1, 1, 1)


def make_target(purifier=None, rows=ROWS, model=None, **options):
    noise = Noise.of(0, rows).fork("attack")
    return Target(model or linear(), purifier or NoDefense(), noise, **options)


def start_noise(n=32):
    return Noise.of(0, torch.arange(n)).fork("start")


@PLACES
@pytest.mark.parametrize("eps", [0.01, 0.1, 1.0])
def test_fgsm_moves_along_the_sign_of_the_weights(x, eps):
    x_adv = FGSM().run(make_target(), x, Y, eps, start_noise())
    assert torch.allclose(x_adv, (x + eps * uphill(Y).sign()).clamp(0, 1), atol=1e-6)


@PLACES
@pytest.mark.parametrize("eps", [0.01, 0.5, 3.0])
def test_l2_fgsm_moves_along_the_weights(x, eps):
    x_adv = FGSM(norm="L2").run(make_target(), x, Y, eps, start_noise())
    assert torch.allclose(x_adv, (x + eps * uphill_unit(Y)).clamp(0, 1), atol=1e-5)


def test_one_gradient_serves_every_eps_of_fgsm():
    batches = []

    class Recording(nn.Module):
        def forward(self, x):
            batches.append(len(x))
            return linear()(x)

    target = make_target(GaussianNoise(sigma=0.1), model=Recording(), eot=3)
    images, counts = [], []
    for x_adv in FGSM().sweep(target, X, Y, [0.0, 0.1, 0.2, 0.3], start_noise()):
        images.append(x_adv)
        counts.append(dict(target.counts))
    assert sum(batches) == 3 * 32
    assert counts == [{"forwards": 96, "backwards": 96}] * 4
    assert torch.equal(images[0], X) and not torch.equal(images[1], images[2])


@pytest.mark.parametrize("restarts", [1, 3])
@PLACES
def test_pgd_reaches_the_optimum_of_a_linear_model_even_for_misclassified_images(restarts, x):
    x_adv = PGD(restarts=restarts).run(make_target(), x, Y, 0.1, start_noise())
    assert torch.allclose(x_adv, (x + 0.1 * uphill(Y).sign()).clamp(0, 1), atol=1e-6)


def test_l2_pgd_reaches_the_optimum_of_a_linear_model():
    x_adv = PGD(norm="L2", steps=100, step=0.2).run(make_target(), X, Y, 0.5, start_noise())
    assert torch.allclose(x_adv, X + 0.5 * uphill_unit(Y), atol=1e-5)


def test_l2_pgd_reaches_the_convex_optimum_where_the_box_is_active():
    x, y, eps = EDGE.flatten()[:24].view(4, 1, 2, 3).double(), Y[:4], 0.6
    target = make_target(rows=ROWS[:4], model=linear(6).double())
    x_adv = PGD(norm="L2", steps=400, step=0.2).run(target, x, y, eps, start_noise(4))
    slopes = uphill(y, (1, 2, 3)).flatten(1).double().numpy()
    for image, slope, point in zip(
        x.flatten(1).numpy(), slopes, x_adv.flatten(1).numpy(), strict=True
    ):
        assert slope @ point == pytest.approx(convex_optimum(image, slope, eps), abs=1e-6)
    assert ((x_adv == 0) | (x_adv == 1)).any()
    assert torch.allclose(norm_of(x_adv - x, "L2"), torch.tensor(eps).double(), atol=1e-6)


def convex_optimum(image, slope, eps):
    """Return the largest slope . z for z in the L2 ball around the image and in the box."""
    ball = {"type": "ineq", "fun": lambda z: eps**2 - ((z - image) ** 2).sum()}
    box = [(0, 1)] * len(image)
    result = minimize(lambda z: -(slope @ z), image, bounds=box, constraints=[ball], tol=1e-12)
    return -result.fun


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_whole_step_from_the_image_is_fgsm(norm):
    pgd = PGD(norm=norm, steps=1, step=1.0, random_start=False)
    by_pgd = pgd.run(make_target(), X, Y, 0.1, start_noise())
    by_fgsm = FGSM(norm=norm).run(make_target(), X, Y, 0.1, start_noise())
    assert torch.allclose(by_pgd, by_fgsm, atol=1e-7)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"step": 0.0},
        {"step": -1.0},
        {"restarts": 0},
        {"restarts": 2, "random_start": False},
        {"norm": "L1"},
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(fields):
    with pytest.raises(BadParameter, match=next(iter(fields))):
        PGD(**fields)


# The tests below attack a network that is trained on the digits in a second.


@cache
def load_digits():
    """Return the trained network, and 200 test images with their labels."""
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
        batch = torch.randint(len(train_x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(net(train_x[batch]), train_y[batch]).backward()
        optimizer.step()
    return net.requires_grad_(False).eval(), x, y


def is_wrong(logits, y):
    return logits.argmax(1) != y


def plain_pgd(net, x, y, eps, steps, first):
    """Return every iterate of projected gradient descent, of all images: nothing is dropped."""
    iterates, low, high = [first], (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    for _ in range(steps):
        z = iterates[-1].clone().requires_grad_()
        F.cross_entropy(net(z), y, reduction="sum").backward()
        moved = iterates[-1] + 2.5 * eps / steps * z.grad.sign()
        iterates.append(torch.minimum(torch.maximum(moved, low), high))
    return iterates


def first_points(x, eps, noise):
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    return low + (high - low) * noise.copies(1).uniform(x)


def attack_digits(attack, eps=0.2, **options):
    """Return the adversarial digits and the target that was attacked."""
    net, x, y = load_digits()
    target = make_target(model=net, rows=torch.arange(200), **options)
    return attack.run(target, x, y, eps, start_noise(200)), target


def test_oblivious_pgd_drops_no_image_and_so_a_median_filter_cures_fewer():
    """Where the attacked pipeline is not the scored one, PGD is a plain loop over all images."""
    net, x, y = load_digits()
    median = defend.load("median")
    x_adv, _ = attack_digits(PGD(steps=40))
    plain = plain_pgd(net, x, y, 0.2, 40, first_points(x, 0.2, start_noise(200)))[-1]
    is_fooled = is_wrong(net(median.purified(x_adv)), y)
    assert torch.equal(is_fooled, is_wrong(net(median.purified(plain)), y))
    # If images were dropped at their first success, the filter would look far better.
    dropped, _ = attack_digits(PGD(steps=40), scored=True)
    is_fooled_when_dropped = is_wrong(net(median.purified(dropped)), y)
    assert is_fooled.float().mean() > is_fooled_when_dropped.float().mean() + 0.2


@pytest.mark.parametrize("eps", [0.03, 0.1])
def test_with_dropping_exactly_the_images_that_are_wrong_at_any_iterate_are_broken(eps):
    net, x, y = load_digits()
    x_adv, target = attack_digits(PGD(steps=20), eps, scored=True)
    iterates = plain_pgd(net, x, y, eps, 20, first_points(x, eps, start_noise(200)))
    is_wrong_at = torch.stack([is_wrong(net(z), y) for z in iterates])
    is_ever_wrong = is_wrong_at.any(0)
    assert torch.equal(is_wrong(net(x_adv), y), is_ever_wrong)
    assert 0.05 < is_ever_wrong.float().mean() < 0.95
    # An image keeps the iterate that was wrong first.
    first = torch.where(is_ever_wrong, is_wrong_at.int().argmax(0), 20)
    assert torch.allclose(x_adv, torch.stack(iterates)[first, torch.arange(200)], atol=1e-6)
    assert target.counts["backwards"] < 200 * 20  # dropping saves work


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("interval", [1, 3, 100])
def test_no_result_depends_on_when_the_batch_is_repacked(monkeypatch, interval, restarts):
    attack = PGD(steps=12, restarts=restarts)
    usual, _ = attack_digits(attack, 0.1, scored=True)
    monkeypatch.setattr(pgd_module, "REPACK_INTERVAL", interval)
    assert torch.allclose(attack_digits(attack, 0.1, scored=True)[0], usual, atol=1e-6)


def attack_with_one_and_five_restarts(scored):
    """Return the logits of both results."""
    net, _, _ = load_digits()
    results = [
        attack_digits(PGD(steps=3, restarts=restarts), 0.06, scored=scored)[0]
        for restarts in (1, 5)
    ]
    return [net(x_adv) for x_adv in results]


def test_with_dropping_more_restarts_break_more_images():
    _, _, y = load_digits()
    one, five = (is_wrong(logits, y) for logits in attack_with_one_and_five_restarts(scored=True))
    assert (five | ~one).all() and five.sum() > one.sum()


def test_without_dropping_more_restarts_raise_the_loss():
    _, _, y = load_digits()
    one, five = attack_with_one_and_five_restarts(scored=False)
    gain = cross_entropy(five, y) - cross_entropy(one, y)
    assert gain.min() > -1e-5 and gain.max() > 0.01


def test_a_stochastic_target_is_queried_for_every_step_draw_and_restart():
    target = make_target(GaussianNoise(sigma=0.1), eot=4, scored=True)
    PGD(steps=6, restarts=2).run(target, X, Y, 0.1, start_noise())
    # The restarts are compared by a mean over fresh draws at their ends.
    assert target.counts == {"forwards": 32 * 2 * 4 * (6 + 1), "backwards": 32 * 2 * 4 * 6}


def test_steps_that_cannot_cross_the_ball_are_warned_of():
    """A step is a fraction of eps: who writes 2/255 for it has an attack of almost nothing."""
    with pytest.warns(UserWarning, match="40 steps of 0.00784314 eps do not reach the border"):
        PGD(steps=40, step=2 / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(steps=4, step=0.25)
