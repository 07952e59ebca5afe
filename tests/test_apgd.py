"""APGD against closed forms, a plain loop of Algorithm 1, and known halvings of the step size."""

import pytest
import torch
from attack_toys import (
    EDGE,
    IMAGES,
    INSIDE,
    Y,
    curved,
    linear,
    make_target,
    predict,
    scale_to_unit,
    start_noise,
    uphill,
)
from torch import nn

from defend.attacks.active_set import likeliest_wrong_classes
from defend.attacks.apgd import APGD
from defend.attacks.apgd_ascent import Ascent, checkpoints, start_at_eps
from defend.attacks.pgd import PGD
from defend.defenses.gaussian import GaussianNoise
from defend.errors import BadParameter
from defend.losses import cross_entropy, dlr, dlr_targeted, margin, targeted_margin
from defend.norms import project, steepest_direction

LOGITS = torch.randn(40, 10, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(40) % 10
PAIRS = torch.stack([LABELS, (LABELS + 3) % 10], 1)  # true class, target class
CHECKPOINTS = [22, 41, 57, 70, 80, 87, 93, 99]  # section 3.1 with 100 iterations


@pytest.mark.parametrize("x", [INSIDE, EDGE], ids=["inside", "box"])
def test_the_optimum_of_a_linear_model_is_reached(x):
    x_adv = APGD().run(make_target(), x, Y, 0.1, start_noise())
    assert torch.allclose(x_adv, (x + 0.1 * uphill(Y).sign()).clamp(0, 1), atol=1e-5)


def test_the_l2_optimum_of_a_linear_model_is_reached():
    x_adv = APGD(norm="L2").run(make_target(), INSIDE, Y, 0.5, start_noise())
    assert torch.allclose(x_adv, INSIDE + 0.5 * scale_to_unit(uphill(Y)), atol=1e-4)


# The losses


@pytest.mark.parametrize(
    ("loss", "y"), [(dlr, LABELS), (dlr_targeted, PAIRS)], ids=["dlr", "targeted"]
)
@pytest.mark.parametrize(("shift", "scale"), [(100.0, 1.0), (0.0, 1e-3), (-3.0, 1e4)])
def test_dlr_does_not_change_when_logits_are_shifted_or_scaled(loss, y, shift, scale):
    z = LOGITS.double()
    assert torch.allclose(loss(scale * z + shift, y), loss(z, y), atol=1e-6)
    if scale != 1:
        scaled, unscaled = cross_entropy(scale * z, LABELS), cross_entropy(z, LABELS)
        assert not torch.allclose(scaled, unscaled, atol=1e-2)


def test_dlr_is_the_formula_of_the_paper():
    for z, y, value in zip(LOGITS, LABELS, dlr(LOGITS, LABELS), strict=True):
        others, top = torch.cat([z[:y], z[y + 1 :]]), z.sort(descending=True).values
        expected = -(z[y] - others.max()) / (top[0] - top[2])
        assert value == pytest.approx(float(expected), rel=1e-5)


def test_targeted_dlr_is_the_formula_of_the_paper():
    for z, (y, t), value in zip(LOGITS, PAIRS, dlr_targeted(LOGITS, PAIRS), strict=True):
        top = z.sort(descending=True).values
        expected = -(z[y] - z[t]) / (top[0] - (top[2] + top[3]) / 2)
        assert value == pytest.approx(float(expected), rel=1e-5)


def test_margin_is_negative_exactly_where_the_label_is_wrong():
    assert torch.equal(margin(LOGITS, LABELS) < 0, LOGITS.argmax(1) != LABELS)


def test_margin_is_the_smallest_over_all_target_classes():
    pairs = [torch.stack([LABELS, (LABELS + k) % 10], 1) for k in range(1, 10)]
    targeted = torch.stack([targeted_margin(LOGITS, pair) for pair in pairs])
    assert torch.equal(margin(LOGITS, LABELS), -targeted.amax(0))


@pytest.mark.parametrize(("loss", "classes", "needed"), [("dlr", 2, 3), ("dlr-targeted", 3, 4)])
def test_a_loss_that_needs_more_classes_than_there_are_is_refused_in_one_line(
    loss, classes, needed
):
    attack = APGD(loss=loss, steps=2)
    pattern = rf"^loss={loss}: .*\b{needed} classes\b.*\b{classes}\b.*loss=ce$"
    with pytest.raises(BadParameter, match=pattern):
        attack.run(make_target(linear(classes)), INSIDE, Y, 0.1, start_noise())
    attack.run(make_target(linear(classes + 1)), INSIDE, Y, 0.1, start_noise())


# The step size


def test_the_checkpoints_are_the_published_ones():
    assert list(checkpoints(100)) == CHECKPOINTS
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(1000))[:3] == [220, 410, 570]


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_the_intervals_between_checkpoints_add_up(steps):
    intervals = checkpoints(steps)
    assert sum(intervals.values()) == max(intervals) <= steps


class Slide(nn.Module):
    """Two logits with z_1 - z_0 = height(v) for images of one pixel v, and label 0.

    The cross entropy rises with the height.
    """

    def __init__(self, height):
        super().__init__()
        self.height = height

    def forward(self, x):
        h = self.height(x.flatten(1)[:, 0])
        return torch.stack([torch.zeros_like(h), h], 1)


def traced(attack, observe):
    """Return the attack, which calls `observe(states, eps)` at first and after each step."""

    class TracedAscent(Ascent):
        def _start(self, *args):
            states = super()._start(*args)
            observe(states, self.eps)
            return states

        def _step(self, s, k):
            super()._step(s, k)
            observe(s, self.eps)

    class Traced(APGD):
        def _ascent(self, eps):
            return TracedAscent(**vars(super()._ascent(eps)))

    return Traced(**attack.settings)


def trace(attack, height, eps, v=0.5):
    """Return the step size in units of eps and the iterate, after each step, of a pixel v."""
    step_sizes, iterates = [], []

    def observe(s, eps):
        step_sizes.append(float(s.step_size) / eps)
        iterates.append(float(s.x_adv))

    x = torch.full((1, 1, 1, 1), v, dtype=torch.float64)
    target = make_target(Slide(height), n=1)
    traced(attack, observe).run(target, x, torch.tensor([0]), eps, start_noise(1))
    return step_sizes[1:], iterates[1:]


def take_heights_from(heights):
    """Return a height function that yields these values in turn, whatever the pixel."""
    values = iter(heights)
    return lambda v: 0 * v + next(values)


def test_the_step_is_halved_at_every_checkpoint_if_nothing_can_improve():
    """On a slope, the first step reaches the border of the ball, and no later step raises the loss.

    So condition 1 holds at each checkpoint.
    """
    step_sizes, _ = trace(APGD(), lambda v: v, 0.25)
    halvings = [k + 1 for k in range(1, 100) if step_sizes[k] < step_sizes[k - 1]]
    assert step_sizes[0] == 2 and halvings == CHECKPOINTS
    assert step_sizes[-1] == 2 * 2.0**-8


def test_the_step_size_is_unchanged_while_every_step_raises_the_loss():
    step_sizes, _ = trace(APGD(), take_heights_from(k * 1e-2 for k in range(1000)), 0.25)
    assert set(step_sizes) == {2}


@pytest.mark.parametrize(("falls", "is_halved"), [(5, False), (6, True)])
def test_condition_one_counts_the_steps_that_raise_the_loss(falls, is_halved):
    """The first checkpoint comes after 22 steps: 17 rises are at least .75 * 22 = 16.5, 16 are not.

    The best loss rises in any case.
    """
    rising = [k * 1e-2 for k in range(1, 23 - falls)]
    falling = [-1.0 - k for k in range(falls)]
    heights = [0.0, *rising, *falling, *[1.0] * 100]
    step_sizes, _ = trace(APGD(steps=100), take_heights_from(heights), 0.25)
    assert (step_sizes[21] == 1) is is_halved


def test_condition_two_halves_if_neither_best_loss_nor_step_size_changed_in_an_interval():
    """In the second interval, the loss falls deep at once, then rises at every step, too little."""
    first = [k * 1.0 for k in range(23)]  # every step is a rise: not halved at 22
    second = [-5.0 + k * 0.1 for k in range(19)]  # 18 of 19 steps are rises, but all stay below 22
    third = [30.0 + k for k in range(16)]  # 16 of 16 steps are rises
    heights = [*first, *second, *third, *[100.0] * 100]
    step_sizes, _ = trace(APGD(), take_heights_from(heights), 0.25)
    assert step_sizes[21] == 2 and step_sizes[39] == 2 and step_sizes[40] == 1
    assert step_sizes[56] == 1


def test_after_a_halving_the_ascent_goes_on_from_the_best_point():
    _, iterates = trace(APGD(rho=1.0), lambda v: -((v - 0.4) ** 2), 0.25)
    best = min(iterates[:22], key=lambda v: abs(v - 0.4))
    assert iterates[21] == pytest.approx(best, abs=1e-12)
    assert abs(iterates[-1] - 0.4) < 1e-3  # steps of 2 eps alone cannot find the top


def test_each_image_has_its_own_step_size():
    """Image 0 is on a slope that ends at the border. The loss of image 1 rises at every step."""
    heights = iter(range(1000))
    step_sizes = []

    def observe(s, eps):
        step_sizes.append(s.step_size / eps)

    def height(v):
        return torch.stack([v[0], 0 * v[1] + next(heights) * 1e-2])

    x = torch.full((2, 1, 1, 1), 0.5)
    attack = traced(APGD(), observe)
    attack.run(make_target(Slide(height), n=2), x, torch.tensor([0, 0]), 0.25, start_noise(2))
    assert step_sizes[-1].tolist() == [2 * 2.0**-8, 2]


# The whole attack


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_it_is_a_plain_loop_of_algorithm_1(norm):
    net, x, eps = curved().double(), INSIDE.double(), {"Linf": 0.05, "L2": 0.5}[norm]
    y = predict(net, x)
    points = []
    attack = traced(APGD(norm=norm, steps=40), lambda s, _: points.append(s.x_adv))
    x_adv = attack.run(make_target(net), x, y, eps, start_noise())
    for i in range(len(x)):
        image = slice(i, i + 1)
        expected = algorithm_1(net, x[image], y[image], eps, norm, 40, points[0][image])
        assert torch.allclose(x_adv[image], expected, atol=1e-9)


def algorithm_1(net, x, y, eps, norm, n, x0):
    """Return x_max of one image, in the order and with the names of the paper."""

    def f(z):
        return float(cross_entropy(net(z), y))

    def direction(z):
        z = z.clone().requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(net(z), y).sum(), z)[0]
        return steepest_direction(gradient, norm)

    w = algorithm_1_checkpoints(n)
    eta, xs, fs = 2 * eps, [x0], [f(x0)]
    x_max, f_max = x0, fs[0]
    f_max_at_checkpoint, is_eta_unchanged, last = f_max, True, 0
    for k in range(n):
        new = project(xs[-1] + eta * direction(xs[-1]), x, eps, norm)
        if k > 0:
            mixed = xs[-1] + 0.75 * (new - xs[-1]) + 0.25 * (xs[-1] - xs[-2])
            new = project(mixed, x, eps, norm)
        xs, fs = [*xs, new], [*fs, f(new)]
        if fs[-1] > f_max:
            x_max, f_max = new, fs[-1]
        if k + 1 in w:
            rises = sum(fs[i + 1] > fs[i] for i in range(last, k + 1))
            has_few_rises = rises < 0.75 * (k + 1 - last)
            is_halved = has_few_rises or (is_eta_unchanged and f_max == f_max_at_checkpoint)
            if is_halved:
                eta, xs[-1], fs[-1] = eta / 2, x_max, f_max
            f_max_at_checkpoint, is_eta_unchanged, last = f_max, not is_halved, k + 1
    return x_max


def algorithm_1_checkpoints(n):
    p = [0.0, 0.22]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return [int(torch.tensor(value * n - 1e-9).ceil()) for value in p[1:] if value <= 1]


def test_targets_side_by_side_give_the_same_as_one_after_another():
    net, x = curved(), INSIDE
    y = predict(net, x)
    attack = APGD(loss="dlr-targeted", steps=20)
    together = attack.run(make_target(net), x, y, 0.03, start_noise())
    target, noise = make_target(net).copies(9), start_noise().copies(9)
    classes = likeliest_wrong_classes(make_target(net), x, y, 9)
    ends = []
    for j in range(9):
        rows, pairs = torch.arange(IMAGES) * 9 + j, torch.stack([y, classes[:, j]], 1)
        x_adv = start_at_eps(x, 0.03, attack.norm, noise.take(rows))
        ascent = Ascent(loss=dlr_targeted, norm=attack.norm, eps=0.03, steps=20)
        ends.append(ascent.run(target.take(rows), x, pairs, y, x_adv).best)
    best = torch.stack([margin(net(end), y) for end in ends]).argmin(0)
    assert torch.allclose(together, torch.stack(ends)[best, torch.arange(IMAGES)], atol=1e-5)
    assert len(set(best.tolist())) > 1  # the best target is not always the first


@pytest.mark.parametrize(
    "fields",
    [{}, {"loss": "dlr"}, {"loss": "dlr-targeted", "targets": 3}, {"restarts": 3}],
    ids=str,
)
@pytest.mark.parametrize("scored", [False, True])
def test_neither_batch_nor_order_matter(fields, scored):
    net, attack = curved(), APGD(steps=20, **fields)
    y = predict(net, INSIDE)
    full = attack.run(make_target(net, scored=scored), INSIDE, y, 0.02, start_noise())
    rows = torch.tensor([7, 2, 11])
    target = make_target(net, rows=rows, scored=scored)
    part = attack.run(target, INSIDE[rows], y[rows], 0.02, start_noise(rows=rows))
    assert torch.allclose(full[rows], part, atol=1e-5)


def test_with_dropping_every_image_that_an_iterate_broke_is_returned_broken_at_less_cost():
    net = curved()
    y = predict(net, INSIDE)
    keeping, dropping = make_target(net), make_target(net, scored=True)
    full, short = (APGD().run(t, INSIDE, y, 0.006, start_noise()) for t in (keeping, dropping))
    is_broken = predict(net, short) != y
    assert 0 < is_broken.sum() < IMAGES and (is_broken | (predict(net, full) == y)).all()
    assert dropping.counts["backwards"] < keeping.counts["backwards"] == IMAGES * 101
    assert (short != INSIDE).flatten(1).any(1).all()


def test_a_stochastic_target_is_queried_for_every_step_draw_and_target():
    target = make_target(linear(4), GaussianNoise(sigma=0.1), eot=4, scored=True)
    APGD(steps=6, loss="dlr-targeted").run(target, INSIDE, Y, 0.1, start_noise())
    ranking, steps, ends = IMAGES * 4, IMAGES * 3 * 4 * 7, IMAGES * 3 * 4
    assert target.counts == {"forwards": ranking + steps + ends, "backwards": steps}


def test_it_is_not_weaker_than_pgd_of_equal_steps():
    net = curved()
    y = predict(net, INSIDE)
    margins = []
    for attack in (APGD(), PGD(steps=100)):
        x_adv = attack.run(make_target(net), INSIDE, y, 0.02, start_noise())
        margins.append(margin(net(x_adv), y).mean())
    assert margins[0] <= margins[1] + 0.02


@pytest.mark.parametrize(
    "fields", [{"steps": 0}, {"restarts": 0}, {"targets": 0}, {"rho": 1.5}, {"rho": -0.1}]
)
def test_settings_that_cannot_work_are_refused_by_name(fields):
    with pytest.raises(BadParameter, match=next(iter(fields))):
        APGD(**fields)
