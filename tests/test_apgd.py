"""apgd against closed forms, a plain loop of Algorithm 1, and an objective whose halvings are known."""

import pytest
import torch
from attack_toys import EDGE, INSIDE, Y, curved, linear, predicted, start, target, unit, uphill
from torch import nn

from defend.attacks.active_set import likeliest_wrong
from defend.attacks.apgd import APGD
from defend.defenses.gaussian import GaussianNoise
from defend.errors import BadParameter
from defend.losses import cross_entropy, targeted_margin, dlr, dlr_targeted, margin
from defend.norms import project, steepest_direction

LOGITS = torch.randn(40, 10, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(40) % 10
PAIRS = torch.stack([LABELS, (LABELS + 3) % 10], 1)


@pytest.mark.parametrize("x", [INSIDE, EDGE], ids=["inside", "box"])
def test_the_optimum_of_a_linear_model_is_reached(x):
    adv = APGD().run(target(), x, Y, 0.1, start())
    assert torch.allclose(adv, (x + 0.1 * uphill(Y).sign()).clamp(0, 1), atol=1e-5)


def test_the_euclidean_optimum_of_a_linear_model_is_reached():
    adv = APGD(norm="L2").run(target(), INSIDE, Y, 0.5, start())
    assert torch.allclose(adv, INSIDE + 0.5 * unit(uphill(Y)), atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "y"), [(dlr, LABELS), (dlr_targeted, PAIRS)], ids=["dlr", "targeted"]
)
@pytest.mark.parametrize(("shift", "scale"), [(100.0, 1.0), (0.0, 1e-3), (-3.0, 1e4)])
def test_dlr_does_not_change_when_logits_are_shifted_or_scaled(loss, y, shift, scale):
    z = LOGITS.double()
    assert torch.allclose(loss(scale * z + shift, y), loss(z, y), atol=1e-6)
    assert (
        not torch.allclose(cross_entropy(scale * z, LABELS), cross_entropy(z, LABELS), atol=1e-2)
        or scale == 1
    )


def test_dlr_is_the_formula_of_the_paper():
    for z, y, t, first, second in zip(
        LOGITS, LABELS, PAIRS[:, 1], dlr(LOGITS, LABELS), dlr_targeted(LOGITS, PAIRS), strict=True
    ):
        others, top = torch.cat([z[:y], z[y + 1 :]]), z.sort(descending=True).values
        assert first == pytest.approx(float(-(z[y] - others.max()) / (top[0] - top[2])), rel=1e-5)
        assert second == pytest.approx(
            float(-(z[y] - z[t]) / (top[0] - (top[2] + top[3]) / 2)), rel=1e-5
        )


def test_margin_is_negative_exactly_where_the_label_is_wrong():
    assert torch.equal(margin(LOGITS, LABELS) < 0, LOGITS.argmax(1) != LABELS)
    others = torch.stack(
        [targeted_margin(LOGITS, torch.stack([LABELS, (LABELS + k) % 10], 1)) for k in range(1, 10)]
    )
    assert torch.equal(margin(LOGITS, LABELS), -others.amax(0))


@pytest.mark.parametrize(("loss", "classes", "needed"), [("dlr", 2, 3), ("dlr-targeted", 3, 4)])
def test_a_loss_that_compares_more_classes_than_there_are_is_refused_in_one_line(
    loss, classes, needed
):
    with pytest.raises(
        BadParameter,
        match=rf"loss={loss} compares the {needed} highest logits.*{classes} classes: use loss=ce$",
    ):
        APGD(loss=loss, steps=2).run(target(linear(classes)), INSIDE, Y, 0.1, start())
    APGD(loss=loss, steps=2).run(target(linear(classes + 1)), INSIDE, Y, 0.1, start())


def test_the_checkpoints_are_the_published_ones():
    assert list(APGD().checkpoints) == [
        22,
        41,
        57,
        70,
        80,
        87,
        93,
        99,
    ]  # section 3.1 with 100 iterations
    assert list(APGD().checkpoints.values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(APGD(steps=1000).checkpoints)[:3] == [220, 410, 570]
    for steps in (1, 2, 3, 10):
        assert (
            sum(APGD(steps=steps).checkpoints.values())
            == max(APGD(steps=steps).checkpoints)
            <= steps
        )


class Slide(nn.Module):
    """Image i's loss at the pixel's value v: two logits, z_1 - z_0 = height_i(v), label 0. The cross entropy rises with it."""

    def __init__(self, height):
        super().__init__()
        self.height = height

    def forward(self, x):
        h = self.height(x.flatten(1)[:, 0])
        return torch.stack([torch.zeros_like(h), h], 1)


def traced(attack, height, eps, v=0.5):
    """The step size in units of eps and the iterate, after each step, of an image of one pixel."""
    steps, values = [], []

    class Traced(APGD):
        def _step(self, s, k, eps):
            super()._step(s, k, eps)
            steps.append(float(s.step) / eps)
            values.append(float(s.adv))

    x = torch.full((1, 1, 1, 1), v, dtype=torch.float64)
    Traced(**attack.settings).run(target(Slide(height), n=1), x, torch.tensor([0]), eps, start(1))
    return steps, values


def test_the_step_is_halved_at_every_checkpoint_where_nothing_can_improve():
    """On a slope the first step reaches the border for good: no rise in any later interval, so condition 1 holds at each."""
    steps, _ = traced(APGD(), lambda v: v, 0.25)
    halvings = [k + 1 for k in range(1, 100) if steps[k] < steps[k - 1]]
    assert steps[0] == 2 and halvings == [22, 41, 57, 70, 80, 87, 93, 99]
    assert steps[-1] == 2 * 2.0**-8


def test_the_step_is_kept_while_enough_steps_rise():
    """At every step the loss rises, whatever the point: then neither condition holds."""
    count = iter(range(1000))
    steps, _ = traced(APGD(), lambda v: 0 * v + next(count) * 1e-2, 0.25)
    assert set(steps) == {2}


@pytest.mark.parametrize(("falls", "halved"), [(5, False), (6, True)])
def test_condition_one_counts_the_steps_that_rise(falls, halved):
    """22 steps to the first checkpoint: 17 rises are at least .75 * 22 = 16.5, 16 are not. The best loss rises in any case."""
    heights = iter(
        [0.0]
        + [k * 1e-2 for k in range(1, 23 - falls)]
        + [-1.0 - k for k in range(falls)]
        + [1.0] * 100
    )
    steps, _ = traced(APGD(steps=100), lambda v: 0 * v + next(heights), 0.25)
    assert (steps[21] == 1) is halved


def test_condition_two_halves_where_the_best_has_not_moved_since_the_last_checkpoint_and_the_step_neither():
    """From the second interval on: falls deep at once, then climbs at every step, but not to its old best."""
    first = [k * 1.0 for k in range(23)]  # rises: kept at 22
    second = [-5.0 + k * 0.1 for k in range(19)]  # rises 18 of 19 times, below 22
    third = [30.0 + k for k in range(16)] + [100.0] * 100
    heights = iter(first + second + third)
    steps, _ = traced(APGD(), lambda v: 0 * v + next(heights), 0.25)
    assert steps[21] == 2 and steps[39] == 2 and steps[40] == 1
    assert steps[56] == 1  # 16 of 16 rise from there


def test_after_a_halving_the_ascent_goes_on_from_the_best_point():
    _, values = traced(APGD(rho=1.0), lambda v: -((v - 0.4) ** 2), 0.25)
    best = min(values[:22], key=lambda v: abs(v - 0.4))
    assert values[21] == pytest.approx(best, abs=1e-12)
    assert abs(values[-1] - 0.4) < 1e-3  # and finds the top, which steps of 2 eps cannot


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_it_is_a_plain_loop_of_algorithm_1(norm):
    net, x, eps = curved(), INSIDE.double(), {"Linf": 0.05, "L2": 0.5}[norm]
    net = net.double()
    y = predicted(net, x)
    first = []

    class CheckResult(APGD):
        def _begin(self, *args):
            s = super()._begin(*args)
            first.append(s.adv)
            return s

    found = CheckResult(norm=norm, steps=40).run(target(net), x, y, eps, start())
    for i in range(len(x)):
        assert torch.allclose(
            found[i : i + 1],
            algorithm_1(net, x[i : i + 1], y[i : i + 1], eps, norm, 40, first[0][i : i + 1]),
            atol=1e-9,
        )


def algorithm_1(net, x, y, eps, norm, n, x0):
    """Of one image, in the paper's own order."""

    def f(z):
        return float(cross_entropy(net(z), y))

    def slope(z):
        z = z.clone().requires_grad_()
        return steepest_direction(torch.autograd.grad(cross_entropy(net(z), y).sum(), z)[0], norm)

    p = [0.0, 0.22]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [int(torch.tensor(v * n - 1e-9).ceil()) for v in p if v <= 1]
    eta, xs, fs = 2 * eps, [x0], [f(x0)]
    best, f_best, then, kept, last = x0, fs[0], fs[0], True, 0
    for k in range(n):
        z = project(xs[-1] + eta * slope(xs[-1]), x, eps, norm)
        new = (
            z
            if k == 0
            else project(xs[-1] + 0.75 * (z - xs[-1]) + 0.25 * (xs[-1] - xs[-2]), x, eps, norm)
        )
        xs, fs = [*xs, new], [*fs, f(new)]
        if fs[-1] > f_best:
            best, f_best = new, fs[-1]
        if k + 1 in w[1:]:
            rises = sum(fs[i + 1] > fs[i] for i in range(last, k + 1))
            if rises < 0.75 * (k + 1 - last) or (kept and f_best == then):
                eta, xs[-1], fs[-1], kept = eta / 2, best, f_best, False
            else:
                kept = True
            then, last = f_best, k + 1
    return best


def test_each_image_has_its_own_step_size():
    """One on a slope, which ends at the border, and one whose loss keeps rising: only the first is halved."""
    seen, count = [], iter(range(1000))

    class Traced(APGD):
        def _step(self, s, k, eps):
            super()._step(s, k, eps)
            seen.append(s.step / eps)

    def height(v):
        return torch.stack([v[0], 0 * v[1] + next(count) * 1e-2])

    Traced().run(
        target(Slide(height), n=2),
        torch.full((2, 1, 1, 1), 0.5),
        torch.tensor([0, 0]),
        0.25,
        start(2),
    )
    assert seen[-1].tolist() == [2 * 2.0**-8, 2]


def test_targets_side_by_side_are_the_targets_one_after_another():
    net, x = curved(), INSIDE
    y = predicted(net, x)
    together = APGD(loss="dlr-targeted", steps=20).run(target(net), x, y, 0.03, start())
    t, noise = target(net).copies(9), start().copies(9)
    classes = likeliest_wrong(target(net), x, y, 9)
    ends = []
    for j in range(9):
        rows = torch.arange(12) * 9 + j
        one, pairs = APGD(loss="dlr-targeted", steps=20), torch.stack([y, classes[:, j]], 1)
        s = one._begin(t.take(rows), x, pairs, y, 0.03, noise.take(rows))
        for k in range(20):
            one._step(s, k, 0.03)
        ends.append(s.best)
    best = torch.stack([margin(net(e), y) for e in ends]).argmin(0)
    assert torch.allclose(together, torch.stack(ends)[best, torch.arange(12)], atol=1e-5)
    assert len(set(best.tolist())) > 1  # and it is not always the first


@pytest.mark.parametrize(
    "fields",
    [{}, {"loss": "dlr"}, {"loss": "dlr-targeted", "targets": 3}, {"restarts": 3}],
    ids=str,
)
@pytest.mark.parametrize("scored", [False, True])
def test_neither_batch_nor_order_matter(fields, scored):
    net, attack = curved(), APGD(steps=20, **fields)
    y = predicted(net, INSIDE)
    whole = attack.run(target(net, scored=scored), INSIDE, y, 0.02, start())
    rows = torch.tensor([7, 2, 11])
    some = attack.run(
        target(net, rows=rows, scored=scored), INSIDE[rows], y[rows], 0.02, start(rows=rows)
    )
    assert torch.allclose(whole[rows], some, atol=1e-5)


def test_where_images_may_be_dropped_every_image_that_an_iterate_fools_is_returned_fooled_and_costs_no_more():
    net = curved()
    y = predicted(net, INSIDE)
    honest, dropping = target(net), target(net, scored=True)
    full, short = (APGD().run(t, INSIDE, y, 0.006, start()) for t in (honest, dropping))
    fooled = predicted(net, short) != y
    assert 0 < fooled.sum() < 12 and (fooled | (predicted(net, full) == y)).all()
    assert dropping.counts["backwards"] < honest.counts["backwards"] == 12 * 101
    assert (short != INSIDE).flatten(1).any(1).all()


def test_a_stochastic_target_is_asked_for_every_step_draw_and_target():
    t = target(linear(4), GaussianNoise(sigma=0.1), eot=4, scored=True)
    APGD(steps=6, loss="dlr-targeted").run(t, INSIDE, Y, 0.1, start())
    ranking, ends = 12 * 4, 12 * 3 * 4
    assert t.counts == {"forwards": ranking + 12 * 3 * 4 * 7 + ends, "backwards": 12 * 3 * 4 * 7}


def test_it_is_not_weaker_than_plain_descent_of_equal_steps():
    from defend.attacks.pgd import PGD

    net = curved()
    y = predicted(net, INSIDE)
    ours, plain = (
        margin(net(a.run(target(net), INSIDE, y, 0.02, start())), y).mean()
        for a in (APGD(), PGD(steps=100))
    )
    assert ours <= plain + 0.02


@pytest.mark.parametrize(
    "field", [{"steps": 0}, {"restarts": 0}, {"targets": 0}, {"rho": 1.5}, {"rho": -0.1}]
)
def test_settings_that_cannot_work_are_refused_by_name(field):
    with pytest.raises(BadParameter, match=next(iter(field))):
        APGD(**field)
