"""square against the paper's formulas, by its every query, and on targets whose answers are known."""

import pytest
import torch
from attack_toys import EDGE, INSIDE, Y, curved, linear, predicted, start, target, unit, uphill
from torch import nn

from defend.attacks.square import Square, bumps, eta, redrawn, some_of, square, stripes, window
from defend.defenses.gaussian import GaussianNoise
from defend.errors import BadParameter
from defend.losses import margin
from defend.norms import norm_of

EPS = {"Linf": 0.02, "L2": 0.3}


def on_gpu(_):
    """As on a GPU."""
    return False


def run(attack, x=INSIDE, net=None, eps=None, rows=None, **kw):
    net = net or curved()
    y = predicted(net, x)
    t = target(net, rows=rows, n=len(x), **kw)
    return attack.run(t, x, y, EPS[attack.norm] if eps is None else eps, start(len(x), rows)), t, y


def begun(norm):
    return (stripes if norm == "Linf" else bumps)(INSIDE, EPS[norm], start())


def incumbents(attack, net=None, **kw):
    """The margin of each image's incumbent after every query."""
    seen = []

    class Traced(Square):
        def _step(self, s, k, eps):
            super()._step(s, k, eps)
            seen.append((s.best, s.least))

    run(Traced(**attack.settings), net=net, **kw)
    return seen


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_worse_point_is_never_accepted(norm):
    net = curved()
    y = predicted(net, INSIDE)
    seen = incumbents(Square(norm=norm, queries=200), net)
    margins = torch.stack([margin(net(best), y) for best, _ in seen])
    assert (margins.diff(dim=0) <= 1e-5).all() and (margins[-1] < margins[0]).all()
    assert torch.allclose(
        margins, torch.stack([least for _, least in seen]), atol=1e-5
    )  # the cached margin is the incumbent's own


@pytest.mark.parametrize(("norm", "share"), [("Linf", 0.9), ("L2", 0.5)])
def test_the_optimum_of_a_linear_model_is_approached(norm, share):
    adv = Square(norm=norm, queries=1000 if norm == "Linf" else 2000).run(
        target(), INSIDE, Y, EPS[norm], start()
    )
    best = EPS[norm] * (uphill(Y).sign() if norm == "Linf" else unit(uphill(Y)))
    gained = (uphill(Y) * (adv - INSIDE)).flatten(1).sum(1) / (uphill(Y) * best).flatten(1).sum(1)
    assert (gained > share).all() and (gained < 1 + 1e-4).all()


@pytest.mark.parametrize("x", [INSIDE, EDGE], ids=["inside", "box"])
def test_every_pixel_goes_as_far_as_ball_and_box_allow(x):
    adv, _, _ = run(Square(queries=100), x)
    assert (
        torch.minimum(
            (adv - (x + 0.02).clamp(max=1)).abs(), (adv - (x - 0.02).clamp(min=0)).abs()
        ).max()
        < 1e-6
    )


def test_euclidean_images_spend_all_of_eps_away_from_the_box():
    adv, _, _ = run(Square(norm="L2", queries=100))
    assert torch.allclose(norm_of(adv - INSIDE, "L2"), torch.tensor(0.3), atol=1e-5)
    adv, _, _ = run(Square(norm="L2", queries=100), EDGE)
    assert (norm_of(adv - EDGE, "L2") <= 0.3 + 1e-5).all()


def test_it_begins_with_vertical_stripes():
    first = stripes(INSIDE, 0.02, start()) - INSIDE
    assert torch.allclose(first.abs(), torch.tensor(0.02)) and torch.allclose(
        first, first[:, :, :1].expand_as(first)
    )
    assert 0.4 < (first > 0).float().mean() < 0.6


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (4, 4), (1, 1), (9, 14)])
def test_the_euclidean_start_is_a_grid_that_spends_eps(size):
    x = torch.full((6, 3, *size), 0.5)
    d = bumps(x, 0.1, start(6)) - x
    assert torch.allclose(norm_of(d, "L2"), torch.tensor(0.1), atol=1e-5)
    assert not torch.allclose(d[0], d[1]) or size == (1, 1)


@pytest.mark.parametrize("s", [1, 2, 3, 7, 10])
def test_eta_is_two_bumps_of_opposite_signs_and_norm_one(s):
    bump = eta(s, torch.device("cpu"), torch.float64)
    assert (
        bump.norm() == pytest.approx(1)
        and (bump[: s // 2] > 0).all()
        and (bump[s // 2 :] < 0).all()
    )


def test_eta_is_the_formula_of_section_3():
    """h1 = 4 rows, h2 = 8 columns of the upper half: sum over rings of 1 / (k + 1)^2, from the ring to the farthest."""
    upper = eta(8, torch.device("cpu"), torch.float64)[:4]
    rings = {d: sum((k + 1) ** -2 for k in range(d, 5)) for d in range(5)}
    wanted = torch.tensor(
        [[rings[max(abs(r - 2), abs(c - 4))] for c in range(8)] for r in range(4)]
    )
    assert torch.allclose(upper / upper.max(), (wanted / wanted.max()).double())


@pytest.mark.parametrize(
    ("i", "side"),
    [
        (0, 25),
        (10, 25),
        (11, 18),
        (51, 13),
        (201, 9),
        (501, 6),
        (1001, 4),
        (2001, 3),
        (4001, 2),
        (6001, 2),
        (8001, 1),
    ],
)
def test_the_schedule_is_the_published_one(i, side):
    x = torch.zeros(1, 1, 28, 28)
    assert Square(queries=10_000).side(i, x) == side == Square(rescale=False).side(i, x)
    assert Square(queries=1000).side(i // 10 + (i % 10 > 0), x) in (
        side,
        Square(queries=10_000).side(i + 9, x),
    )
    assert Square(norm="L2", queries=10_000).side(i, x) == max(side // 2 * 2 + 1, 3)


def test_squares_fall_everywhere_and_alike():
    """Each image draws a place of its own; every pixel is met, those at the borders too; the size is s."""
    x, random = torch.full((4000, 2, 6, 5), 0.5), start(4000).uniform(torch.zeros(4000, 7))
    moved = square(x, x, 0.1, 3, random) != x
    assert (moved.flatten(1).sum(1) == 2 * 9).all()
    assert torch.equal(moved[:, 0], moved[:, 1]) and moved.any(0).all()
    corners = moved[:, 0].flatten(1).int().argmax(1).bincount(minlength=30).view(6, 5)[:4, :3]
    assert corners.min() > 4000 / 12 - 5 * (4000 / 12) ** 0.5 and corners.sum() == 4000


def test_a_window_takes_its_budget_from_another():
    """Algorithm 3: outside both windows nothing moves but by the scaling; window 2 is emptied; eps is spent."""
    x = torch.full((200, 1, 12, 12), 0.5, dtype=torch.float64)
    best = bumps(x, 0.1, start(200))
    new = window(x, best, 0.1, 3, start(200).fork("window").uniform(torch.zeros(200, 6)).double())
    assert torch.allclose(norm_of(new - x, "L2"), torch.tensor(0.1).double(), atol=1e-9)
    ratio = ((new - x) / (best - x)).flatten(1)
    assert ((ratio - ratio.median(1, keepdim=True).values).abs() > 1e-6).sum(1).max() <= 18
    emptied = ((new == x) & (best != x)).flatten(1).sum(1)
    assert (emptied > 0).sum() > 150 and emptied.max() <= 9


def test_a_deterministic_target_is_asked_once_a_step_and_not_where_nothing_changes():
    asked = []

    class Counting(nn.Module):
        def forward(self, x):
            asked.extend(x.flatten(1).double().sum(1).tolist())
            return linear()(x)

    t = target(Counting())
    Square(queries=300, redraw=False).run(t, INSIDE, Y, 0.02, start())
    assert 12 * 100 < t.counts["forwards"] == len(asked) < 12 * 300 and t.counts["backwards"] == 0


def test_what_is_not_asked_changes_nothing(monkeypatch):
    lazy, _, _ = run(Square(queries=150, redraw=False))
    monkeypatch.setattr("defend.attacks.square.looks_are_free", on_gpu)
    busy, t, _ = run(Square(queries=150, redraw=False))
    assert torch.equal(lazy, busy) and t.counts["forwards"] == 12 * 150


def test_every_square_changes_something_and_none_that_did_is_redrawn():
    """Of one channel, the opposite sign; of more, each of the other choices as often."""
    x = torch.full((7000, 2, 6, 5), 0.5)
    random, best = (
        start(7000).uniform(torch.zeros(7000, 7)),
        x + 0.1,
    )  # only with both signs up nothing changes
    plain, other = square(x, best, 0.1, 3, random), redrawn(x, best, 0.1, 3, random)
    same = (plain == best).flatten(1).all(1)
    assert 0.2 < same.double().mean() < 0.3 and torch.equal(plain[~same], other[~same])
    choices = (other[same] != best[same]).flatten(2).any(2).long() @ torch.tensor([1, 2])
    share = choices.bincount(minlength=4) / len(choices)
    assert share[0] == 0 and torch.allclose(share[1:], torch.tensor(1 / 3), atol=0.05)


@pytest.mark.parametrize("c", [1, 2, 3, 24, 30])
def test_some_channels_are_never_none(c):
    u = torch.tensor([0.0, 0.3, 0.5, 1 - 2**-24])
    some = some_of(c, u)
    assert some.shape == (4, c) and some.any(1).all() and some[-1].all()


def test_no_query_is_lost_on_what_changes_nothing():
    """As in the paper's own code; AutoAttack's asks anew what it knows."""
    asked = {}
    for redraw in (True, False):
        t = target(linear())
        asked[redraw] = (
            Square(queries=300, redraw=redraw).run(t, INSIDE, Y, 0.02, start()),
            t.counts["forwards"],
        )
    gained = {
        redraw: (uphill(Y) * (adv - INSIDE)).flatten(1).sum(1).mean()
        for redraw, (adv, _) in asked.items()
    }
    assert asked[True][1] == 12 * 300 > asked[False][1] and gained[True] > gained[False]


def test_of_a_stochastic_target_both_are_measured_anew_at_every_step():
    t = target(linear(), GaussianNoise(sigma=0.1), eot=4, scored=True)
    Square(queries=10).run(t, INSIDE, Y, 0.02, start())
    assert t.counts["forwards"] == 12 * 4 * (1 + 9 * 2)


def test_one_lucky_draw_does_not_hold_a_stochastic_target_for_ever():
    """Logits of pure noise: a cached margin would fall to the smallest draw ever seen, and then nothing would be accepted again."""
    accepted = []

    class Traced(Square):
        def _compared(self, s, candidate):
            asked, least = super()._compared(s, candidate)
            accepted.append((asked < least).float().mean())
            return asked, least

    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * 100

    x = torch.full((12, 3, 8, 8), 0.5)
    Traced(queries=200).run(target(Flat(), GaussianNoise(sigma=0.1), eot=2), x, Y, 1e-6, start())
    assert 0.4 < torch.stack(accepted[100:]).mean() < 0.6


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("scored", [False, True])
def test_it_notes_after_how_many_queries_each_image_was_first_wrong(norm, scored):
    net = curved()
    y = predicted(net, INSIDE)
    seen = incumbents(Square(norm=norm, queries=120), net)
    adv, t, _ = run(Square(norm=norm, queries=120), net=net, scored=scored)
    wrong = torch.stack([margin(net(best), y) < 0 for best, _ in seen])
    first = torch.where(wrong.any(0), wrong.int().argmax(0) + 2, -1)
    first = torch.where(margin(net(begun(norm)), y) < 0, 1, first)
    noted = t.notes["wrong_after"]
    assert torch.equal(noted, first) and noted.dtype == torch.int64 and len(set(noted.tolist())) > 4
    assert torch.equal(noted >= 0, predicted(net, adv) != y)


def test_an_image_that_may_be_dropped_costs_nothing_more(monkeypatch):
    monkeypatch.setattr("defend.attacks.square.looks_are_free", on_gpu)
    _, honest, _ = run(Square(norm="L2", queries=120))
    _, dropping, _ = run(Square(norm="L2", queries=120), scored=True)
    after = dropping.notes["wrong_after"]
    assert (
        dropping.counts["forwards"]
        == torch.where(after < 0, 120, after).sum()
        < honest.counts["forwards"]
        == 12 * 120
    )


def test_no_result_depends_on_when_the_batch_is_repacked(monkeypatch):
    usual, _, _ = run(Square(queries=100), scored=True)
    monkeypatch.setattr("defend.attacks.active_set.looks_are_free", on_gpu)
    later, _, _ = run(Square(queries=100), scored=True)
    assert torch.allclose(usual, later, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("scored", [False, True])
def test_neither_batch_nor_order_matter(norm, scored):
    whole, _, _ = run(Square(norm=norm, queries=100), scored=scored)
    rows = torch.tensor([7, 2, 11])
    some, _, _ = run(Square(norm=norm, queries=100), INSIDE[rows], rows=rows, scored=scored)
    assert torch.allclose(whole[rows], some, atol=1e-6)


def test_more_queries_never_find_less():
    net = curved()
    y = predicted(net, INSIDE)
    few, many = (run(Square(queries=q, rescale=False), net=net)[0] for q in (30, 150))
    assert (
        margin(net(many), y) <= margin(net(few), y) + 1e-6
    ).all()  # of one schedule, the first queries are the same


@pytest.mark.parametrize("field", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}])
def test_settings_that_cannot_work_are_refused_by_name(field):
    with pytest.raises(BadParameter, match=next(iter(field))):
        Square(**field)
