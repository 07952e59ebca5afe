"""fab against closed forms and a solver; autoattack: what it is made of, who meets which image, and that the worst is returned."""

import pytest
import torch
from attack_toys import EDGE, INSIDE, Y, curved, linear, predicted, start, target, unit, uphill
from scipy.optimize import linprog, minimize

import defend
from defend.attack import Attack, AttackCard
from defend.attacks.autoattack import AutoAttack
from defend.attacks.fab import FAB, to_plane
from defend.defenses.gaussian import GaussianNoise
from defend.errors import BadParameter
from defend.losses import margin
from defend.norms import norm_of

DUAL = {"Linf": lambda w: w.abs().flatten(1).sum(1), "L2": lambda w: w.flatten(1).norm(dim=1)}
RIGHT = predicted(linear(), INSIDE)


# FAB


def found(attack, x, y, net, eps):
    """The nearest wrong point of each image and target class, and its distance."""
    kept = []

    class Traced(FAB):
        def _ends(self, s, eps, noise):
            kept.append((s.found, s.distance))
            return super()._ends(s, eps, noise)

    Traced(**attack.settings).run(target(net, n=len(x)), x, y, eps, start(len(x)))
    return kept[0]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fab_finds_the_nearest_wrong_point_of_a_linear_model(norm):
    """At distance |margin| / dual norm of the difference of the weights, in the direction that closed form says."""
    point, distance = found(FAB(norm=norm, steps=20), INSIDE, RIGHT, linear(), 0.1)
    slope = uphill(RIGHT)
    least = margin(linear()(INSIDE), RIGHT) / DUAL[norm](slope)
    assert torch.allclose(distance, least, rtol=0.01) and (distance > least).all()
    direction = slope.sign() if norm == "Linf" else unit(slope)
    assert torch.allclose(
        point, INSIDE + least.view(-1, 1, 1, 1) * direction, atol=0.02 * float(least.max())
    )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_the_projection_onto_a_plane_inside_the_box_is_the_solvers(norm, share):
    x, w = (
        EDGE.flatten()[:48].view(8, 1, 2, 3).double(),
        torch.randn(8, 1, 2, 3, generator=torch.Generator().manual_seed(4)).double(),
    )
    w[0, 0, 0, 0] = 0
    room = torch.where(w > 0, 1 - x, x)
    rise = share * (w.abs() * room).flatten(1).sum(1)
    d = to_plane(x, w, rise, norm)
    assert (
        torch.allclose((w * d).flatten(1).sum(1), rise)
        and (x + d >= -1e-12).all()
        and (x + d <= 1 + 1e-12).all()
    )
    for image, slope, gain, own in zip(
        x.flatten(1).numpy(), w.flatten(1).numpy(), rise, norm_of(d, norm), strict=True
    ):
        assert float(own) == pytest.approx(
            nearest(image, slope, float(gain), norm), rel=1e-4, abs=1e-7
        )


def nearest(x, w, rise, norm):
    """The least norm of d with w . d = rise and x + d in [0, 1]."""
    sides = [(-v, 1 - v) for v in x]
    if norm == "L2":
        plane = {"type": "eq", "fun": lambda d: w @ d - rise}
        return (
            float(
                minimize(
                    lambda d: d @ d,
                    0 * x,
                    jac=lambda d: 2 * d,
                    bounds=sides,
                    constraints=[plane],
                    tol=1e-14,
                ).fun
            )
            ** 0.5
        )
    n = len(x)  # d and t: minimise t, |d_i| <= t
    rows = [[(s if i == j else 0) for j in range(n)] + [-1] for i in range(n) for s in (1, -1)]
    return float(
        linprog(
            [0] * n + [1],
            A_ub=rows,
            b_ub=[0] * 2 * n,
            A_eq=[[*w, 0]],
            b_eq=[rise],
            bounds=[*sides, (0, None)],
        ).fun
    )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_towards_a_plane_that_the_box_does_not_meet_it_goes_as_far_as_the_box_allows(norm):
    x, w = EDGE[:4].double(), uphill(Y[:4]).double()
    d = to_plane(x, w, torch.full((4,), 1e6).double(), norm)
    assert torch.equal((x + d).clamp(0, 1), (w > 0).double())
    assert torch.equal(
        to_plane(x, 0 * w, torch.ones(4).double(), norm), 0 * x
    )  # no direction at all


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_where_images_may_not_be_dropped_fab_follows_its_direction_to_the_border(norm):
    eps = 0.05 if norm == "Linf" else 0.4
    adv = FAB(norm=norm, steps=10).run(
        target(), INSIDE, Y, eps, start()
    )  # half of the labels are wrong
    best = eps * (uphill(Y).sign() if norm == "Linf" else unit(uphill(Y)))
    assert torch.allclose(adv, INSIDE + best, atol=0.02 * eps)


def test_fab_stops_where_a_point_within_eps_may_end_it():
    net = curved()
    y = predicted(net, INSIDE)
    honest, dropping = target(net), target(net, scored=True)
    FAB(steps=30).run(honest, INSIDE, y, 0.02, start())
    adv = FAB(steps=30).run(dropping, INSIDE, y, 0.02, start())
    assert dropping.counts["backwards"] < honest.counts["backwards"] == 12 * 9 * 30
    assert (predicted(net, adv) != y).any() and (norm_of(adv - INSIDE, "Linf") <= 0.02 + 1e-6).all()


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_of_fab_neither_batch_nor_order_matter(norm, scored):
    net, eps = curved(), {"Linf": 0.01, "L2": 0.1}[norm]
    y, rows = predicted(net, INSIDE), torch.tensor([7, 2, 11])
    whole = FAB(norm=norm, steps=15).run(target(net, scored=scored), INSIDE, y, eps, start())
    some = FAB(norm=norm, steps=15).run(
        target(net, rows=rows, scored=scored), INSIDE[rows], y[rows], eps, start(rows=rows)
    )
    assert torch.allclose(whole[rows], some, atol=1e-4 * eps + 1e-6)


# AutoAttack


def settings(attack, classes=10):
    return {name: (type(a).__name__, a.settings) for name, a in attack.members(classes).items()}


def test_the_standard_version_is_the_published_composition():
    made = settings(AutoAttack())
    assert list(made) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    apgd = {"steps": 100, "restarts": 1, "rho": 0.75}
    assert made["apgd-ce"][1] | apgd | {"loss": "ce"} == made["apgd-ce"][1]
    assert made["apgd-t"][1] | apgd | {"loss": "dlr-targeted", "targets": 9} == made["apgd-t"][1]
    assert made["fab-t"][1] | {"steps": 100, "targets": 9} == made["fab-t"][1]
    assert (
        made["square"][1] | {"queries": 5000, "p_init": 0.8, "rescale": False, "redraw": False}
        == made["square"][1]
    )
    assert {a.norm for a in AutoAttack(norm="L2").members(10).values()} == {"L2"}


@pytest.mark.parametrize(
    ("version", "classes", "names"),
    [
        ("standard", 4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        ("standard", 3, ["apgd-ce", "fab-t", "square"]),
        ("rand", 10, ["apgd-ce", "apgd-dlr"]),
        ("rand", 3, ["apgd-ce", "apgd-dlr"]),
        ("rand", 2, ["apgd-ce"]),
    ],
)
def test_a_loss_that_needs_more_classes_than_there_are_is_left_out(version, classes, names):
    assert list(AutoAttack(version=version).members(classes)) == names


def test_the_standard_version_refuses_a_stochastic_pipeline_and_names_the_other():
    t = target(linear(), GaussianNoise(sigma=0.1), scored=True)
    with pytest.raises(
        BadParameter,
        match=r"^autoattack: version=standard .* stochastic: write autoattack:version=rand$",
    ):
        AutoAttack().run(t, INSIDE, Y, 0.1, start())
    AutoAttack(version="rand", steps=3).run(t, INSIDE, Y, 0.1, start())


class Partial(Attack):
    """Moves every third image to the optimum, the others not at all; remembers whom it met."""

    card = AttackCard(paper="none: for tests", access="scores")
    which: int = 0
    met: object = None

    def run(self, target, x, y, eps, noise):
        self.met.append((self.which, sorted(x[:, 0, 0, 0].mul(100).round().int().tolist())))
        mine = (x[:, 0, 0, 0] * 100).round().int() % 3 == self.which
        return x + eps * uphill(y).sign() * torch.where(mine, 1.0, 0.0).view(-1, 1, 1, 1)


def of_parts():
    met = []

    class Components(AutoAttack):
        def members(self, classes):
            return {str(i): Partial(which=i, met=met) for i in range(3)}

    return Components(), met


@pytest.fixture
def numbered():
    """Images that can be told apart by their first pixel."""
    x = INSIDE.clone()
    x[:, 0, 0, 0] = (torch.arange(12) + 30) / 100
    return x, predicted(linear(), x)


def test_each_attack_meets_only_the_images_that_still_stand(numbered):
    x, y = numbered
    attack, met = of_parts()
    y[4] = 1 - y[4]  # wrong as it is: nobody needs to meet it
    adv = attack.run(target(scored=True), x, y, 0.1, start())
    everyone = set(range(30, 42)) - {34}
    assert met == [
        (0, sorted(everyone)),
        (1, [n for n in sorted(everyone) if n % 3]),
        (2, [n for n in sorted(everyone) if n % 3 == 2]),
    ]
    assert (predicted(linear(), adv) != y).all()


class Tied(torch.nn.Module):
    """Class 1 wins on grey images, and no class on bright ones."""

    def forward(self, x):
        return torch.stack([x.new_zeros(len(x)), (0.8 - x.mean((1, 2, 3))).relu()], 1)


def test_an_image_falls_as_the_score_counts_it_where_two_logits_are_equal():
    """Of equal logits the first is the answer: a margin of 0 is wrong for class 1."""
    met = []

    class Brighten(Attack):
        card = AttackCard(paper="none: for tests", access="scores")

        def run(self, target, x, y, eps, noise):
            met.append(len(x))
            return (x + eps).clamp(max=1)

    class Two(AutoAttack):
        def members(self, classes):
            return {"first": Brighten(), "second": Brighten()}

    y = torch.ones(12, dtype=torch.int64)
    adv = Two().run(target(Tied(), scored=True), INSIDE, y, 0.5, start())
    assert met == [12] and (predicted(Tied(), adv) != y).all()


class Confused(torch.nn.Module):
    """In bfloat16 it takes every image for another class."""

    def forward(self, x):
        logits = linear()(x.float())
        return logits.flip(1) if torch.is_autocast_enabled("cpu") else logits


@pytest.mark.parametrize("eps", [0.0, 0.002, 0.1])
def test_an_image_that_falls_in_the_search_alone_is_searched_for_again(eps, numbered):
    x, y = numbered
    full, fast = (
        AutoAttack(steps=5, queries=10, search=search).run(
            target(Confused(), scored=True), x, y, eps, start()
        )
        for search in ("scored", "bfloat16")
    )
    assert torch.equal(predicted(linear(), fast), predicted(linear(), full))
    assert (predicted(linear(), fast) == y).all() == (eps == 0)


@pytest.mark.parametrize("scored", [False, True])
def test_a_search_in_bfloat16_is_no_weaker_on_a_network_that_knows_nothing_of_it(scored):
    y = predicted(curved(), INSIDE)
    full, fast = (
        AutoAttack(steps=20, queries=60, search=search).run(
            target(curved(), scored=scored), INSIDE, y, 0.004, start()
        )
        for search in ("scored", "bfloat16")
    )
    assert (predicted(curved(), fast) == y).sum() <= (predicted(curved(), full) == y).sum() < 12


def test_where_images_may_not_be_dropped_all_meet_all_and_the_smallest_margin_is_returned(numbered):
    x, y = numbered
    attack, met = of_parts()
    adv = attack.run(target(), x, y, 0.1, start())
    assert [len(who) for _, who in met] == [12, 12, 12]
    assert torch.allclose(adv, x + 0.1 * uphill(y).sign())


@pytest.mark.parametrize("scored", [False, True])
def test_no_image_is_left_standing_that_a_member_fells(scored):
    """Each member alone, with the same noise."""
    net, attack = curved(), AutoAttack(steps=12, queries=60)
    y = predicted(net, INSIDE)
    adv = attack.run(target(net, scored=scored), INSIDE, y, 0.004, start())
    left = margin(net(adv), y)
    for name, member in attack.members(10).items():
        alone = margin(
            net(member.run(target(net, scored=scored), INSIDE, y, 0.004, start().fork(name))), y
        )
        assert ((left < 0) | (alone > 0)).all()
        assert scored or (left <= alone + 1e-4).all()
    assert 0 < (left < 0).sum() < 12


def test_what_square_notes_of_some_images_is_not_left_for_all():
    t = target(curved(), scored=True)
    AutoAttack(steps=3, queries=10).run(t, INSIDE, predicted(curved(), INSIDE), 0.002, start())
    assert t.notes == {}


@pytest.mark.parametrize("scored", [False, True])
def test_of_autoattack_neither_batch_nor_order_matter(scored):
    net, attack = curved(), AutoAttack(steps=10, queries=40)
    y, rows = predicted(net, INSIDE), torch.tensor([7, 2, 11])
    whole = attack.run(target(net, scored=scored), INSIDE, y, 0.004, start())
    some = attack.run(
        target(net, rows=rows, scored=scored), INSIDE[rows], y[rows], 0.004, start(rows=rows)
    )
    assert torch.allclose(whole[rows], some, atol=1e-5)


def test_it_is_registered_with_the_agreed_fields():
    assert defend.load("autoattack:version=rand", "attack").version == "rand"
    with pytest.raises(BadParameter, match="version"):
        defend.load("autoattack:version=plus", "attack")
    for field in ("steps", "queries", "targets"):
        with pytest.raises(BadParameter, match=field):
            AutoAttack(**{field: 0})
    for field in ("steps", "targets"):
        with pytest.raises(BadParameter, match=field):
            FAB(**{field: 0})


# Expectation over draws


def test_the_gradient_over_draws_converges_to_the_expectation_as_one_over_the_root_of_their_number():
    """A sine of the noisy image: E sin(x + s u) = exp(-s^2 / 2) sin(x), so the gradient's expectation is exp(-s^2 / 2) cos(x)."""

    class Sine(torch.nn.Module):
        def forward(self, x):
            z = torch.sin(6 * x).flatten(1).sum(1)
            return torch.stack([z, 0 * z], 1)

    def first_logit(logits, _):
        return logits[:, 0]

    x, sigma = INSIDE.repeat(4, 1, 1, 1), 0.05
    wanted = 6 * torch.exp(torch.tensor(-((6 * sigma) ** 2) / 2)) * torch.cos(6 * x)
    counts = [1, 4, 16, 64]
    errors = []
    for k in counts:
        t = target(Sine(), GaussianNoise(sigma=sigma), n=48, eot=k)
        errors.append(
            float(
                (t.gradient(x, torch.zeros(48, dtype=torch.int64), first_logit)[0] - wanted)
                .square()
                .mean()
                .sqrt()
            )
        )
    logs = torch.tensor(counts).log(), torch.tensor(errors).log()
    slope = float(
        ((logs[0] - logs[0].mean()) * (logs[1] - logs[1].mean())).sum()
        / (logs[0] - logs[0].mean()).square().sum()
    )
    assert slope == pytest.approx(-0.5, abs=0.03)
