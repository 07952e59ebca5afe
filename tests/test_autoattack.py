"""AutoAttack: its composition, which attack meets which image, and that the worst is returned."""

import pytest
import torch
from attack_toys import (
    IMAGES,
    INSIDE,
    Y,
    curved,
    linear,
    make_target,
    predict,
    start_noise,
    uphill,
)

import defend
from defend.attack import Attack, AttackCard
from defend.attacks.autoattack import AutoAttack
from defend.defenses.gaussian import GaussianNoise
from defend.errors import BadParameter
from defend.losses import margin

TEST_CARD = AttackCard(paper="none: for tests", access="scores")

# The composition

PUBLISHED = {
    "apgd-ce": {"steps": 100, "restarts": 1, "rho": 0.75, "loss": "ce"},
    "apgd-t": {"steps": 100, "restarts": 1, "rho": 0.75, "loss": "dlr-targeted", "targets": 9},
    "fab-t": {"steps": 100, "targets": 9},
    "square": {"queries": 5000, "p_init": 0.8, "rescale": False, "redraw": False},
}


def test_the_standard_version_is_the_published_composition():
    attacks = AutoAttack().create_attacks(10)
    assert list(attacks) == list(PUBLISHED)
    for name, published in PUBLISHED.items():
        assert attacks[name].settings | published == attacks[name].settings


def test_every_attack_has_the_norm_of_autoattack():
    attacks = AutoAttack(norm="L2").create_attacks(10)
    assert {attack.norm for attack in attacks.values()} == {"L2"}


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
    assert list(AutoAttack(version=version).create_attacks(classes)) == names


def test_the_standard_version_refuses_a_stochastic_pipeline_and_names_the_other():
    target = make_target(linear(), GaussianNoise(sigma=0.1), scored=True)
    pattern = r"^autoattack: version=standard .* stochastic: write autoattack:version=rand$"
    with pytest.raises(BadParameter, match=pattern):
        AutoAttack().run(target, INSIDE, Y, 0.1, start_noise())
    AutoAttack(version="rand", steps=3).run(target, INSIDE, Y, 0.1, start_noise())


def test_it_is_registered_with_its_fields():
    assert defend.load("autoattack:version=rand", "attack").version == "rand"
    with pytest.raises(BadParameter, match="version"):
        defend.load("autoattack:version=plus", "attack")


@pytest.mark.parametrize("field", ["steps", "queries", "targets"])
def test_settings_that_cannot_work_are_refused_by_name(field):
    with pytest.raises(BadParameter, match=field):
        AutoAttack(**{field: 0})


# Which attack meets which image. Images are numbered by their first pixel, in hundredths.


@pytest.fixture
def numbered():
    """Return the images 30 to 41 with the labels that the linear classifier predicts."""
    x = INSIDE.clone()
    x[:, 0, 0, 0] = (torch.arange(IMAGES) + 30) / 100
    return x, predict(linear(), x)


def image_numbers(x):
    return x[:, 0, 0, 0].mul(100).round().int()


class BreakEveryThird(Attack):
    """Move every third image to the optimum and no other; record which images were attacked."""

    card = TEST_CARD
    remainder: int = 0
    attacked: object = None

    def run(self, target, x, y, eps, noise):
        numbers = image_numbers(x)
        self.attacked.append(sorted(numbers.tolist()))
        is_moved = (numbers % 3 == self.remainder).float().view(-1, 1, 1, 1)
        return x + eps * uphill(y).sign() * is_moved


def make_three_attacks():
    """Return an AutoAttack of three attacks that break a third each, and the images they meet."""
    attacked = []

    class ThreeAttacks(AutoAttack):
        def create_attacks(self, classes):
            return {str(i): BreakEveryThird(remainder=i, attacked=attacked) for i in range(3)}

    return ThreeAttacks(), attacked


def test_with_dropping_each_attack_meets_only_the_images_that_are_not_broken(numbered):
    x, y = numbered
    attack, attacked = make_three_attacks()
    y[4] = 1 - y[4]  # image 34 is wrong from the start: no attack meets it
    x_adv = attack.run(make_target(scored=True), x, y, 0.1, start_noise())
    first = [n for n in range(30, 42) if n != 34]
    second = [n for n in first if n % 3 != 0]
    third = [n for n in second if n % 3 != 1]
    assert attacked == [first, second, third]
    assert (predict(linear(), x_adv) != y).all()


def test_without_dropping_all_attacks_meet_all_images_and_the_smallest_margin_wins(numbered):
    x, y = numbered
    attack, attacked = make_three_attacks()
    x_adv = attack.run(make_target(), x, y, 0.1, start_noise())
    assert attacked == [list(range(30, 42))] * 3
    assert torch.allclose(x_adv, x + 0.1 * uphill(y).sign())


class Tied(torch.nn.Module):
    """Class 1 wins on grey images; on bright ones the two logits are equal."""

    def forward(self, x):
        return torch.stack([x.new_zeros(len(x)), (0.8 - x.mean((1, 2, 3))).relu()], 1)


def test_between_equal_logits_an_image_is_broken_as_the_score_counts_it():
    """The first of equal logits is the prediction, so a margin of 0 is wrong for class 1."""
    attacked = []

    class Brighten(Attack):
        card = TEST_CARD

        def run(self, target, x, y, eps, noise):
            attacked.append(len(x))
            return (x + eps).clamp(max=1)

    class TwoAttacks(AutoAttack):
        def create_attacks(self, classes):
            return {"first": Brighten(), "second": Brighten()}

    y = torch.ones(IMAGES, dtype=torch.int64)
    x_adv = TwoAttacks().run(make_target(Tied(), scored=True), INSIDE, y, 0.5, start_noise())
    assert attacked == [IMAGES] and (predict(Tied(), x_adv) != y).all()


# The search in bfloat16


class WrongInBfloat16(torch.nn.Module):
    """The linear classifier, which in bfloat16 mistakes every image for another class."""

    def forward(self, x):
        logits = linear()(x.float())
        return logits.flip(1) if torch.is_autocast_enabled("cpu") else logits


def attack_in_both_precisions(make_net, x, y, eps, scored, **fields):
    """Return the predictions for the results of search=scored and of search=bfloat16."""
    predictions = []
    for search in ("scored", "bfloat16"):
        target = make_target(make_net(), scored=scored)
        x_adv = AutoAttack(search=search, **fields).run(target, x, y, eps, start_noise())
        predictions.append(predict(make_net(), x_adv))
    return predictions


@pytest.mark.parametrize("eps", [0.0, 0.002, 0.1])
def test_an_image_that_is_broken_in_bfloat16_alone_is_searched_again(eps, numbered):
    x, y = numbered
    full, fast = attack_in_both_precisions(
        WrongInBfloat16, x, y, eps, scored=True, steps=5, queries=10
    )
    assert torch.equal(fast, full)
    assert (fast == y).all() == (eps == 0)


@pytest.mark.parametrize("scored", [False, True])
def test_a_search_in_bfloat16_is_no_weaker_on_an_ordinary_network(scored):
    y = predict(curved(), INSIDE)
    full, fast = attack_in_both_precisions(
        curved, INSIDE, y, 0.004, scored=scored, steps=20, queries=60
    )
    assert (fast == y).sum() <= (full == y).sum() < IMAGES


# The result


@pytest.mark.parametrize("scored", [False, True])
def test_every_image_that_one_of_the_attacks_breaks_is_broken(scored):
    """Each attack is run alone, with the same noise."""
    net, attack = curved(), AutoAttack(steps=12, queries=60)
    y = predict(net, INSIDE)
    x_adv = attack.run(make_target(net, scored=scored), INSIDE, y, 0.004, start_noise())
    worst = margin(net(x_adv), y)
    for name, member in attack.create_attacks(10).items():
        target, noise = make_target(net, scored=scored), start_noise().fork(name)
        alone = margin(net(member.run(target, INSIDE, y, 0.004, noise)), y)
        assert ((worst < 0) | (alone > 0)).all()
        assert scored or (worst <= alone + 1e-4).all()
    assert 0 < (worst < 0).sum() < IMAGES


def test_the_query_counts_of_square_are_not_noted_since_it_meets_only_some_images():
    target = make_target(curved(), scored=True)
    y = predict(curved(), INSIDE)
    AutoAttack(steps=3, queries=10).run(target, INSIDE, y, 0.002, start_noise())
    assert target.notes == {}


@pytest.mark.parametrize("scored", [False, True])
def test_neither_batch_nor_order_matter(scored):
    net, attack = curved(), AutoAttack(steps=10, queries=40)
    y, rows = predict(net, INSIDE), torch.tensor([7, 2, 11])
    full = attack.run(make_target(net, scored=scored), INSIDE, y, 0.004, start_noise())
    target = make_target(net, rows=rows, scored=scored)
    part = attack.run(target, INSIDE[rows], y[rows], 0.004, start_noise(rows=rows))
    assert torch.allclose(full[rows], part, atol=1e-5)
