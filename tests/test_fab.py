"""FAB against closed forms and a solver."""

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
from scipy.optimize import linprog, minimize

from defend.attacks.fab import FAB, project_onto_plane
from defend.errors import BadParameter
from defend.losses import margin
from defend.norms import norm_of

DUAL_NORM = {"Linf": lambda w: w.abs().flatten(1).sum(1), "L2": lambda w: w.flatten(1).norm(dim=1)}
NORMS = pytest.mark.parametrize("norm", ["Linf", "L2"])


def find_nearest(attack, x, y, net, eps):
    """Return the nearest wrong point of each image and target class, and its distance."""
    traced = []

    class Traced(FAB):
        def _end_points(self, s, eps, noise):
            traced.append((s.nearest, s.distance))
            return super()._end_points(s, eps, noise)

    Traced(**attack.settings).run(make_target(net, n=len(x)), x, y, eps, start_noise(len(x)))
    return traced[0]


@NORMS
def test_the_nearest_wrong_point_of_a_linear_model_is_found(norm):
    """Its distance is |margin| / (dual norm of the difference of the weights)."""
    y = predict(linear(), INSIDE)
    nearest, distance = find_nearest(FAB(norm=norm, steps=20), INSIDE, y, linear(), 0.1)
    slope = uphill(y)
    expected_distance = margin(linear()(INSIDE), y) / DUAL_NORM[norm](slope)
    assert torch.allclose(distance, expected_distance, rtol=0.01)
    assert (distance > expected_distance).all()
    direction = slope.sign() if norm == "Linf" else scale_to_unit(slope)
    expected = INSIDE + expected_distance.view(-1, 1, 1, 1) * direction
    assert torch.allclose(nearest, expected, atol=0.02 * float(expected_distance.max()))


@NORMS
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_the_projection_onto_a_plane_inside_the_box_is_that_of_a_solver(norm, share):
    x = EDGE.flatten()[:48].view(8, 1, 2, 3).double()
    w = torch.randn(8, 1, 2, 3, generator=torch.Generator().manual_seed(4)).double()
    w[0, 0, 0, 0] = 0
    room = torch.where(w > 0, 1 - x, x)
    rise = share * (w.abs() * room).flatten(1).sum(1)
    d = project_onto_plane(x, w, rise, norm)
    assert torch.allclose((w * d).flatten(1).sum(1), rise)
    assert (x + d >= -1e-12).all() and (x + d <= 1 + 1e-12).all()
    images, slopes = x.flatten(1).numpy(), w.flatten(1).numpy()
    for image, slope, gain, length in zip(images, slopes, rise, norm_of(d, norm), strict=True):
        expected = SOLVERS[norm](image, slope, float(gain))
        assert float(length) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def box_around(x):
    """Return the limits of d with x + d in [0, 1]."""
    return [(-value, 1 - value) for value in x]


def solve_l2(x, w, rise):
    """Return the least L2 norm of d with w . d = rise and x + d in [0, 1]."""
    plane = {"type": "eq", "fun": lambda d: w @ d - rise}
    result = minimize(
        lambda d: d @ d,
        0 * x,
        jac=lambda d: 2 * d,
        bounds=box_around(x),
        constraints=[plane],
        tol=1e-14,
    )
    return float(result.fun) ** 0.5


def solve_linf(x, w, rise):
    """Return the least L-inf norm of such a d: minimise t over (d, t) with |d_i| <= t."""
    n = len(x)
    limits = []
    for i in range(n):
        for sign in (1, -1):
            row = [0] * n + [-1]
            row[i] = sign
            limits.append(row)
    result = linprog(
        [0] * n + [1],
        A_ub=limits,
        b_ub=[0] * 2 * n,
        A_eq=[[*w, 0]],
        b_eq=[rise],
        bounds=[*box_around(x), (0, None)],
    )
    return float(result.fun)


SOLVERS = {"Linf": solve_linf, "L2": solve_l2}


@NORMS
def test_towards_a_plane_outside_the_box_the_projection_goes_as_far_as_the_box_allows(norm):
    x, w = EDGE[:4].double(), uphill(Y[:4]).double()
    d = project_onto_plane(x, w, torch.full((4,), 1e6).double(), norm)
    assert torch.equal((x + d).clamp(0, 1), (w > 0).double())


@NORMS
def test_without_a_gradient_the_projection_does_not_move(norm):
    x = EDGE[:4].double()
    assert torch.equal(project_onto_plane(x, 0 * x, torch.ones(4).double(), norm), 0 * x)


@NORMS
def test_without_dropping_the_direction_is_followed_to_the_border(norm):
    """Half of the labels are wrong from the start."""
    eps = 0.05 if norm == "Linf" else 0.4
    x_adv = FAB(norm=norm, steps=10).run(make_target(), INSIDE, Y, eps, start_noise())
    direction = uphill(Y).sign() if norm == "Linf" else scale_to_unit(uphill(Y))
    assert torch.allclose(x_adv, INSIDE + eps * direction, atol=0.02 * eps)


def test_with_dropping_a_point_within_eps_ends_the_search():
    net = curved()
    y = predict(net, INSIDE)
    keeping, dropping = make_target(net), make_target(net, scored=True)
    FAB(steps=30).run(keeping, INSIDE, y, 0.02, start_noise())
    x_adv = FAB(steps=30).run(dropping, INSIDE, y, 0.02, start_noise())
    assert dropping.counts["backwards"] < keeping.counts["backwards"] == IMAGES * 9 * 30
    assert (predict(net, x_adv) != y).any()
    assert (norm_of(x_adv - INSIDE, "Linf") <= 0.02 + 1e-6).all()


@pytest.mark.parametrize("scored", [False, True])
@NORMS
def test_neither_batch_nor_order_matter(norm, scored):
    net, eps = curved(), {"Linf": 0.01, "L2": 0.1}[norm]
    y, rows = predict(net, INSIDE), torch.tensor([7, 2, 11])
    attack = FAB(norm=norm, steps=15)
    full = attack.run(make_target(net, scored=scored), INSIDE, y, eps, start_noise())
    target = make_target(net, rows=rows, scored=scored)
    part = attack.run(target, INSIDE[rows], y[rows], eps, start_noise(rows=rows))
    assert torch.allclose(full[rows], part, atol=1e-4 * eps + 1e-6)


@pytest.mark.parametrize("field", ["steps", "targets"])
def test_settings_that_cannot_work_are_refused_by_name(field):
    with pytest.raises(BadParameter, match=field):
        FAB(**{field: 0})
