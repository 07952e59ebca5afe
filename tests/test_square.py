"""Square Attack: its search, its queries, and its answer to stochastic targets."""

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

from defend.attacks.square import Square
from defend.attacks.square_proposals import start_with_bumps, start_with_stripes
from defend.defenses.gaussian import GaussianNoise
from defend.errors import BadParameter
from defend.losses import margin
from defend.norms import norm_of

EPS = {"Linf": 0.02, "L2": 0.3}


def always_waits(_):
    """Replace is_readable_without_waiting by what it answers on a GPU."""
    return False


def run(attack, x=INSIDE, net=None, rows=None, **options):
    """Return the adversarial images and the target, whose labels are the network's predictions."""
    net = net or curved()
    target = make_target(net, rows=rows, n=len(x), **options)
    noise = start_noise(len(x), rows)
    return attack.run(target, x, predict(net, x), EPS[attack.norm], noise), target


def first_points(norm):
    start = start_with_stripes if norm == "Linf" else start_with_bumps
    return start(INSIDE, EPS[norm], start_noise())


def trace(attack, net):
    """Return the incumbents and their cached margins after every query."""
    incumbents = []

    class Traced(Square):
        def _step(self, s, k, eps):
            super()._step(s, k, eps)
            incumbents.append((s.best, s.best_margin))

    run(Traced(**attack.settings), net=net)
    return incumbents


# The search


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_worse_point_is_never_accepted(norm):
    net = curved()
    y = predict(net, INSIDE)
    incumbents = trace(Square(norm=norm, queries=200), net)
    margins = torch.stack([margin(net(best), y) for best, _ in incumbents])
    cached = torch.stack([best_margin for _, best_margin in incumbents])
    assert (margins.diff(dim=0) <= 1e-5).all() and (margins[-1] < margins[0]).all()
    assert torch.allclose(margins, cached, atol=1e-5)


@pytest.mark.parametrize(("norm", "share", "queries"), [("Linf", 0.9, 1000), ("L2", 0.5, 2000)])
def test_the_optimum_of_a_linear_model_is_approached(norm, share, queries):
    attack = Square(norm=norm, queries=queries)
    x_adv = attack.run(make_target(), INSIDE, Y, EPS[norm], start_noise())
    direction = uphill(Y).sign() if norm == "Linf" else scale_to_unit(uphill(Y))
    gain = (uphill(Y) * (x_adv - INSIDE)).flatten(1).sum(1)
    best_gain = (uphill(Y) * EPS[norm] * direction).flatten(1).sum(1)
    assert (gain / best_gain > share).all() and (gain / best_gain < 1 + 1e-4).all()


@pytest.mark.parametrize("x", [INSIDE, EDGE], ids=["inside", "box"])
def test_every_pixel_goes_as_far_as_ball_and_box_allow(x):
    x_adv, _ = run(Square(queries=100), x)
    to_top = (x_adv - (x + 0.02).clamp(max=1)).abs()
    to_bottom = (x_adv - (x - 0.02).clamp(min=0)).abs()
    assert torch.minimum(to_top, to_bottom).max() < 1e-6


def test_l2_images_spend_all_of_eps_away_from_the_box():
    x_adv, _ = run(Square(norm="L2", queries=100))
    assert torch.allclose(norm_of(x_adv - INSIDE, "L2"), torch.tensor(0.3), atol=1e-5)


def test_l2_images_stay_in_the_ball_at_the_box():
    x_adv, _ = run(Square(norm="L2", queries=100), EDGE)
    assert (norm_of(x_adv - EDGE, "L2") <= 0.3 + 1e-5).all()


def test_more_queries_never_find_less():
    """Under the same schedule, the first queries are the same."""
    net = curved()
    y = predict(net, INSIDE)
    few, many = (run(Square(queries=n, rescale=False), net=net)[0] for n in (30, 150))
    assert (margin(net(many), y) <= margin(net(few), y) + 1e-6).all()


SCHEDULE = {
    0: 25,
    10: 25,
    11: 18,
    51: 13,
    201: 9,
    501: 6,
    1001: 4,
    2001: 3,
    4001: 2,
    6001: 2,
    8001: 1,
}


@pytest.mark.parametrize(("step", "side"), SCHEDULE.items())
def test_the_schedule_is_the_published_one(step, side):
    x = torch.zeros(1, 1, 28, 28)
    assert Square(queries=10_000).side(step, x) == side == Square(rescale=False).side(step, x)
    assert Square(norm="L2", queries=10_000).side(step, x) == max(side // 2 * 2 + 1, 3)


@pytest.mark.parametrize(("step", "side"), SCHEDULE.items())
def test_the_schedule_is_compressed_for_fewer_queries(step, side):
    x = torch.zeros(1, 1, 28, 28)
    compressed = Square(queries=1000).side(step // 10 + (step % 10 > 0), x)
    assert compressed in (side, Square(queries=10_000).side(step + 9, x))


# The queries


def test_a_deterministic_target_is_queried_once_a_step_but_not_for_unchanged_images():
    queried = []

    class Recording(nn.Module):
        def forward(self, x):
            queried.extend(x.flatten(1).double().sum(1).tolist())
            return linear()(x)

    target = make_target(Recording())
    Square(queries=300, redraw=False).run(target, INSIDE, Y, 0.02, start_noise())
    assert IMAGES * 100 < target.counts["forwards"] == len(queried) < IMAGES * 300
    assert target.counts["backwards"] == 0


def test_skipping_queries_of_unchanged_images_changes_no_result(monkeypatch):
    skipping, _ = run(Square(queries=150, redraw=False))
    monkeypatch.setattr("defend.attacks.square.is_readable_without_waiting", always_waits)
    complete, target = run(Square(queries=150, redraw=False))
    assert torch.equal(skipping, complete) and target.counts["forwards"] == IMAGES * 150


def test_redrawing_wastes_no_query_and_gains_more():
    """The paper's own code redraws a square that would change nothing. AutoAttack's does not."""
    forwards, gains = {}, {}
    for redraw in (True, False):
        target = make_target(linear())
        attack = Square(queries=300, redraw=redraw)
        x_adv = attack.run(target, INSIDE, Y, 0.02, start_noise())
        forwards[redraw] = target.counts["forwards"]
        gains[redraw] = (uphill(Y) * (x_adv - INSIDE)).flatten(1).sum(1).mean()
    assert forwards[True] == IMAGES * 300 > forwards[False]
    assert gains[True] > gains[False]


def test_on_a_stochastic_target_both_points_are_measured_anew_at_every_step():
    target = make_target(linear(), GaussianNoise(sigma=0.1), eot=4, scored=True)
    Square(queries=10).run(target, INSIDE, Y, 0.02, start_noise())
    assert target.counts["forwards"] == IMAGES * 4 * (1 + 9 * 2)


def test_one_lucky_draw_does_not_block_the_search_on_a_stochastic_target():
    """The logits are pure noise.

    A cached margin would fall to the smallest draw so far, and then no candidate would be accepted.
    """
    acceptance = []

    class Traced(Square):
        def _measure_both(self, s, candidate):
            candidate_margin, best_margin = super()._measure_both(s, candidate)
            acceptance.append((candidate_margin < best_margin).float().mean())
            return candidate_margin, best_margin

    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * 100

    target = make_target(Flat(), GaussianNoise(sigma=0.1), eot=2)
    Traced(queries=200).run(target, torch.full((IMAGES, 3, 8, 8), 0.5), Y, 1e-6, start_noise())
    assert 0.4 < torch.stack(acceptance[100:]).mean() < 0.6


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("scored", [False, True])
def test_it_notes_after_how_many_queries_each_image_was_first_wrong(norm, scored):
    net = curved()
    y = predict(net, INSIDE)
    incumbents = trace(Square(norm=norm, queries=120), net)
    x_adv, target = run(Square(norm=norm, queries=120), net=net, scored=scored)
    is_wrong = torch.stack([margin(net(best), y) < 0 for best, _ in incumbents])
    expected = torch.where(is_wrong.any(0), is_wrong.int().argmax(0) + 2, -1)
    expected = torch.where(margin(net(first_points(norm)), y) < 0, 1, expected)
    noted = target.notes["wrong_after"]
    assert torch.equal(noted, expected) and noted.dtype == torch.int64
    assert len(set(noted.tolist())) > 4
    assert torch.equal(noted >= 0, predict(net, x_adv) != y)


# Dropping, batches and settings


def test_a_dropped_image_costs_no_further_query(monkeypatch):
    monkeypatch.setattr("defend.attacks.square.is_readable_without_waiting", always_waits)
    _, keeping = run(Square(norm="L2", queries=120))
    _, dropping = run(Square(norm="L2", queries=120), scored=True)
    wrong_after = dropping.notes["wrong_after"]
    assert dropping.counts["forwards"] == torch.where(wrong_after < 0, 120, wrong_after).sum()
    assert dropping.counts["forwards"] < keeping.counts["forwards"] == IMAGES * 120


def test_no_result_depends_on_when_the_batch_is_repacked(monkeypatch):
    usual, _ = run(Square(queries=100), scored=True)
    monkeypatch.setattr("defend.attacks.active_set.is_readable_without_waiting", always_waits)
    later, _ = run(Square(queries=100), scored=True)
    assert torch.allclose(usual, later, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("scored", [False, True])
def test_neither_batch_nor_order_matter(norm, scored):
    full, _ = run(Square(norm=norm, queries=100), scored=scored)
    rows = torch.tensor([7, 2, 11])
    part, _ = run(Square(norm=norm, queries=100), INSIDE[rows], rows=rows, scored=scored)
    assert torch.allclose(full[rows], part, atol=1e-6)


@pytest.mark.parametrize("fields", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}])
def test_settings_that_cannot_work_are_refused_by_name(fields):
    with pytest.raises(BadParameter, match=next(iter(fields))):
        Square(**fields)
