"""`persist`: it goes where another gradient leads, counts honestly, and ends when it should."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attack_toys import EDGE, IMAGES, INSIDE, Y, curved, make_target, predict, start_noise, uphill
from masked import FalselyExact, make_card
from torch import nn

from defend import Purifier
from defend.attack_state import StateFile
from defend.attacks.apgd import APGD
from defend.attacks.apgd_ascent import Ascent
from defend.attacks.gradient_paths import PROBED, AveragedAscent, usable_paths
from defend.attacks.persist import Persist
from defend.attacks.persistent_rounds import LABEL_LOSSES, PersistentRounds, RoundSettings
from defend.attacks.worst_points import judge
from defend.defenses.gaussian import GaussianNoise
from defend.defenses.vq import Codebook
from defend.errors import BadParameter
from defend.gradients import PlainAutograd, Relaxed, identity, straight_through
from defend.losses import cross_entropy, negative_margin
from defend.norms import norm_of
from defend.search_moves import ENDS, GRADIENTS, LOSSES, NEVER, STARTS, Move

SHORT = {"steps": 20, "queries": 20, "targets": 3}
CODES = 6  # few, so that a nearest code stays the nearest over a long way
EPS = 0.02


class NearestPatch(Purifier):
    """Replace each patch of 2x2 pixels by the nearest of a few codes, straight through."""

    card = make_card("approximate")

    def purify(self, x, noise):
        return F.pixel_shuffle(self.codebook(F.pixel_unshuffle(x, 2)), 2)

    def relaxed(self, x, noise, temperature):
        patches = F.pixel_unshuffle(x, 2)
        return F.pixel_shuffle(self.codebook.relaxed(patches, len(x), temperature), 2)

    @property
    def codebook(self):
        book = Codebook(CODES, 12)
        book.codes = torch.rand(CODES, 12, generator=torch.Generator().manual_seed(5))
        return book


class Constant(nn.Module):
    """Say class 0 with the same logits, whatever the image."""

    def forward(self, x):
        return torch.tensor([3.0, 1.0, 0.0, -1.0]).expand(len(x), 4) + 0 * x.mean()


class Sealed(Purifier):
    """Turn and blur, and declare a gradient that points nowhere. Plain autograd knows better."""

    card = make_card("surrogate")

    def purify(self, x, noise):
        return F.avg_pool2d(x.flip(-1, -2), 3, 1, 1)

    def surrogate(self, x, noise):
        return 0 * x


class Carried(Purifier):
    """Declare that the gradient of a blur is that of the turned image, by a replacement."""

    card = make_card("approximate")

    def purify(self, x, noise):
        return straight_through(x.flip(-1, -2), F.avg_pool2d(x, 3, 1, 1))


class DetachedOnTheGrid(Purifier):
    """Detach images on the grid of 256 levels, as clean images are, and declare the identity."""

    card = make_card("identity")

    def purify(self, x, noise):
        on_grid = ((x * 255).round() / 255 == x).flatten(1).all(1).view(-1, 1, 1, 1)
        turned = x.flip(-1, -2)
        return torch.where(on_grid, turned.detach(), turned)


class FailsLater(Sealed):
    """Raise where more than the probed images are differentiated."""

    def purify(self, x, noise):
        if torch.is_grad_enabled() and x.requires_grad and len(x) > PROBED:
            raise RuntimeError("out of something")
        return super().purify(x, noise)


class Rippled(Purifier):
    """Add ripples whose slope hides that of the image at every point, but not on average."""

    card = make_card("exact")

    def purify(self, x, noise):
        return (x + 0.02 * torch.sin(500 * x)).clamp(0, 1)


def wrong(target, y, x_adv):
    """Return which images the pipeline gets wrong."""
    return target.logits(x_adv).argmax(1) != y


def attack(target, y, eps=EPS, x=INSIDE, **fields):
    """Return the adversarial images of a short search, with its notes."""
    x_adv = Persist(**{**SHORT, **fields}).run(target, x, y, eps, start_noise(len(x)))
    return x_adv, dict(target.notes)


def labels_of(target, x=INSIDE):
    """Return the classes that the pipeline gives to clean images."""
    return target.again().logits(x).argmax(1)


# Where it leads


def test_it_breaks_what_a_bad_straight_through_gradient_leaves():
    target = make_target(curved(), NearestPatch(), scored=True)
    y = labels_of(target)
    declared = APGD(restarts=3).run(target, INSIDE, y, EPS, start_noise())
    x_adv, notes = attack(target, y)
    assert (~wrong(target, y, declared)).sum() >= 4
    assert (~wrong(target, y, x_adv)).sum() <= 1
    gradients = {
        Move.of_numbers(*numbers).gradient
        for numbers in notes["broken_by"].tolist()
        if NEVER not in numbers
    }
    assert any(gradient.startswith("relaxed") for gradient in gradients)


@pytest.mark.parametrize(
    ("purifier", "gradient", "eps"),
    [
        (Sealed(), "autograd", 0.04),
        (Carried(), "autograd past replacements", 0.04),
        (DetachedOnTheGrid(), "autograd", 0.01),
    ],
    ids=str,
)
def test_it_breaks_by_autograd_what_declared_gradients_leave(purifier, gradient, eps):
    target = make_target(curved(), purifier, scored=True)
    x = (INSIDE * 255).round() / 255
    y = labels_of(target, x)
    declared, _ = attack(target, y, eps, x, queries=0, gradients="declared")
    x_adv, notes = attack(target.again(), y, eps, x, queries=0)
    assert wrong(target, y, x_adv).sum() >= wrong(target, y, declared).sum() + 3
    assert gradient in {
        Move.of_numbers(*numbers).gradient
        for numbers in notes["broken_by"].tolist()
        if NEVER not in numbers
    }


def test_the_optimum_of_a_linear_model_is_reached():
    x_adv, _ = attack(make_target(), Y, 0.1)
    assert torch.allclose(x_adv, (INSIDE + 0.1 * uphill(Y).sign()).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "purifier", [NearestPatch(), Sealed(), FalselyExact(), GaussianNoise()], ids=str
)
@pytest.mark.parametrize("scored", [False, True])
def test_it_stays_in_ball_and_box(purifier, scored):
    target = make_target(curved(), purifier, scored=scored, eot=2)
    x_adv, _ = attack(target, labels_of(target, EDGE), 0.03, EDGE, rounds=2, steps=3, queries=3)
    assert (x_adv - EDGE).abs().max() <= 0.03 + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1


# Which gradients


@pytest.mark.parametrize(
    ("purifier", "names"),
    [
        (None, ["declared"]),
        (NearestPatch(), ["declared", *GRADIENTS[1:4], "identity"]),
        (Sealed(), ["declared", "identity", "autograd"]),
        (FalselyExact(), ["declared", "identity"]),
        (Carried(), ["declared", "identity", "autograd past replacements"]),
        (DetachedOnTheGrid(), ["declared", "autograd"]),
    ],
)
def test_each_gradient_that_a_purifier_has_is_followed(purifier, names):
    target = make_target(curved(), purifier)
    assert list(usable_paths(target, INSIDE, Y, EPS, "Linf")) == names


@pytest.mark.parametrize(
    "backward",
    [identity, Relaxed(0.3), PlainAutograd()],
    ids=["identity", "relaxed", "autograd"],
)
def test_a_gradient_that_the_caller_chose_is_the_only_one(backward):
    target = make_target(curved(), NearestPatch(), backward=backward)
    assert list(usable_paths(target, INSIDE, Y, EPS, "Linf")) == ["declared"]


class Refuses(Sealed):
    """Leave autograd, which then has nothing to differentiate, or raises."""

    raises: bool = False

    def purify(self, x, noise):
        array = x if self.raises else x.detach()
        return torch.from_numpy(array.numpy().copy())


@pytest.mark.parametrize("raises", [False, True])
def test_plain_autograd_that_leads_nowhere_is_not_followed(raises):
    target = make_target(curved(), Refuses(raises=raises))
    assert "autograd" not in usable_paths(target, INSIDE, Y, EPS, "Linf")


def test_autograd_that_fails_later_is_given_up():
    target = make_target(curved(), FailsLater(), scored=True)
    y = labels_of(target)
    assert "autograd" in usable_paths(target, INSIDE, y, EPS, "Linf")
    x_adv, notes = attack(target, y, rounds=1)
    expected, _ = attack(target.again(), y, rounds=1, gradients="declared")
    assert (wrong(target, y, x_adv) >= wrong(target, y, expected)).all()
    assert notes["rounds"].tolist() == [1] * IMAGES


# Rounds


class Recorded(PersistentRounds):
    """Rounds that say what they did."""

    def _climb(self, move, rows, loss, *ascent_type):
        self.__dict__.setdefault("climbed", []).append((move.loss, move.start))
        super()._climb(move, rows, loss, *ascent_type)

    def _update(self, move, rows, x_adv):
        seen = self.__dict__.setdefault("ends", {}).setdefault(str(move), [])
        seen.append((self.rounds, rows, x_adv))
        super()._update(move, rows, x_adv)


def rounds_of(target, y, eps, made, **fields):
    """Return the rounds of a search after so many of them."""
    settings = RoundSettings(
        norm="Linf", eps=eps, steps=6, targets=3, queries=20, rounds=20, idle_rounds=20, gain=0
    )
    settings = replace(settings, **fields)
    rounds = Recorded.begin(settings, target, INSIDE, y, start_noise(), True)
    for _ in range(made):
        rounds.run_round()
    return rounds


@pytest.mark.parametrize(("classes", "losses"), [(10, 3), (2, 2)])
def test_three_rounds_climb_each_loss_from_each_start(classes, losses):
    target = make_target(curved(classes), scored=True)
    rounds = rounds_of(target, labels_of(target), 1e-4, 3)
    label_moves = {move for move in rounds.climbed if move[0] in LABEL_LOSSES}
    assert len(label_moves) == 3 * losses


def test_no_round_repeats_what_another_has_done():
    target = make_target(curved(), Rippled(), scored=True)
    rounds = rounds_of(target, labels_of(target), 2e-3, 6, norm="L2")
    standing = set(rounds.standing().tolist())
    assert len(standing) >= 6
    for move, ends in rounds.ends.items():
        if move.startswith("square"):
            continue  # it returns its start where no square is better
        for (_, rows, x_adv), (_, later_rows, later) in itertools.combinations(ends, 2):
            for row in standing & set(rows.tolist()) & set(later_rows.tolist()):
                first = x_adv[rows.tolist().index(row)]
                assert not torch.equal(first, later[later_rows.tolist().index(row)]), move


def test_a_gradient_of_zero_gets_no_credit_for_the_best_points_of_others():
    target = make_target(curved(), Sealed(), scored=True)
    rounds = rounds_of(target, labels_of(target), 1e-3, 4)
    standing = rounds.standing()
    assert len(standing) >= 6
    best = rounds.lowest[standing].argmin(1)
    assert (best != rounds.path_names.index("declared")).all()


# Averages


def ascend(ascent_type, target, y, **fields):
    ascent = ascent_type(loss=cross_entropy, norm="Linf", eps=0.05, steps=15, **fields)
    return ascent.run(target, INSIDE, y, y, INSIDE)


def test_averages_change_nothing_for_a_linear_loss():
    def f(logits, y):
        return negative_margin(logits, y)

    for ascent_type in (Ascent, AveragedAscent):
        ascent = ascent_type(loss=f, norm="Linf", eps=0.05, steps=5)
        best = ascent.run(make_target(), INSIDE, Y, Y, INSIDE).best
        assert torch.allclose(best, INSIDE + 0.05 * uphill(Y).sign(), atol=1e-6)


def test_averages_without_a_radius_are_the_plain_ascent():
    y = predict(curved(), INSIDE)
    plain, averaged = (
        ascend(Ascent, make_target(curved()), y),
        ascend(AveragedAscent, make_target(curved()), y, radius=0.0),
    )
    assert torch.allclose(plain.best, averaged.best, atol=1e-6)
    assert torch.allclose(plain.best_loss, averaged.best_loss, atol=1e-5)


def test_averages_see_through_ripples():
    target = make_target(curved(), Rippled())
    y = labels_of(target)
    plain, averaged = ascend(Ascent, target, y), ascend(AveragedAscent, target, y)
    assert averaged.best_loss.mean() > 1.3 * plain.best_loss.mean()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_averages_ask_nearby(norm):
    class Asked(Purifier):
        card = make_card("exact")

        def purify(self, x, noise):
            points.append(x.detach())
            return x

    points = []
    target = make_target(curved(), Asked())
    y = predict(curved(), INSIDE)
    ascent = AveragedAscent(loss=cross_entropy, norm=norm, eps=0.05, steps=1)
    ascent.run(target, INSIDE, y, y, INSIDE)
    asked = torch.cat([batch for batch in points if len(batch) > IMAGES])
    asked = asked.unflatten(0, (IMAGES, -1))
    centres = asked[:, :1].expand_as(asked)
    distance = norm_of((asked - centres).flatten(0, 1), norm).unflatten(0, (IMAGES, -1))
    assert not distance[:, 0].any()
    assert (distance[:, 1:] > 0.1 * 0.25 * 0.05).all()
    assert (distance <= 0.25 * 0.05 + 1e-6).all()


# When it ends


@pytest.mark.parametrize(("idle_rounds", "rounds", "made"), [(2, 20, 2), (3, 20, 3), (3, 1, 1)])
def test_it_ends_after_rounds_in_which_nothing_breaks(idle_rounds, rounds, made):
    target, y = make_target(Constant(), scored=True), torch.zeros(IMAGES, dtype=torch.int64)
    _, notes = attack(target, y, idle_rounds=idle_rounds, rounds=rounds, steps=2)
    assert notes["rounds"].tolist() == [made] * IMAGES
    assert notes["broken_in_round"].tolist() == [NEVER] * IMAGES


def test_it_ends_at_once_where_nothing_stands():
    target, y = make_target(Constant(), scored=True), torch.ones(IMAGES, dtype=torch.int64)
    _, notes = attack(target, y)
    assert notes["rounds"].tolist() == [0] * IMAGES == notes["broken_in_round"].tolist()


def test_the_notes_agree_with_the_images():
    target = make_target(curved(), NearestPatch(), scored=True)
    y = labels_of(target)
    x_adv, notes = attack(target, y, 0.01)
    is_broken = notes["broken_in_round"] > 0
    assert 0 < is_broken.sum() < IMAGES
    assert torch.equal(wrong(target, y, x_adv), is_broken)
    assert torch.equal((notes["broken_by"] != NEVER).all(1), is_broken)
    for numbers in notes["broken_by"][is_broken].tolist():
        move = Move.of_numbers(*numbers)
        assert move.numbers() == tuple(numbers)
        assert move.loss in LOSSES and move.start in STARTS


def test_noise_breaks_an_image_only_if_every_draw_is_wrong():
    """Behind strong noise half of the draws of a clean image are wrong: nothing is broken."""
    target = make_target(purifier=GaussianNoise(sigma=5.0), scored=True, eot=2)
    _, notes = attack(target, Y, 1e-3, steps=2, queries=2)
    assert notes["broken_in_round"].tolist() == [NEVER] * IMAGES


def wrong_draws(target, x_adv, y, draws=400):
    """Return the share of fresh draws in which each image is wrong."""
    fresh = target.fork("fresh")
    return torch.stack([wrong(fresh, y, x_adv) for _ in range(draws)]).double().mean(0)


@pytest.fixture(scope="module")
def noisy():
    """Return a target with noise, and points after one round and after four."""
    target = make_target(curved(), GaussianNoise(sigma=0.3), scored=True, eot=10)
    y = predict(curved(), INSIDE)
    runs = [attack(target.again(), y, EPS, rounds=n, idle_rounds=9, gain=0) for n in (1, 4)]
    return target, y, runs


def test_points_that_broke_an_image_behind_noise_are_those_that_are_returned(noisy):
    target, y, runs = noisy
    for x_adv, notes in runs:
        is_broken = notes["broken_in_round"] > 0
        assert is_broken.any()
        assert (wrong_draws(target, x_adv, y)[is_broken] >= 0.9).all()


def test_more_rounds_behind_noise_are_not_worse(noisy):
    target, y, ((one, _), (four, _)) = noisy
    assert wrong_draws(target, four, y).mean() >= wrong_draws(target, one, y).mean() - 0.005


def test_the_accuracy_after_each_round_is_that_of_fresh_draws(noisy):
    target, y, (_, (four, notes)) = noisy
    curve = notes["right_after_round"].double().mean(0)
    right = 1 - wrong_draws(target, four, y).mean().item()
    assert curve.shape == (5,)
    assert curve[-1].item() == pytest.approx(right, abs=0.06)
    assert curve[-1] < curve[0]


def test_behind_noise_every_image_gets_every_round():
    target = make_target(Constant(), GaussianNoise(sigma=0.1), scored=True, eot=2)
    y = torch.ones(IMAGES, dtype=torch.int64)
    _, notes = attack(target, y, steps=2, queries=2, gradients="declared")
    assert notes["broken_in_round"].tolist() == [1] * IMAGES
    assert notes["rounds"].tolist() == [2] * IMAGES


@pytest.mark.parametrize(
    ("y", "rounds", "end"), [(1, 20, "nothing stands"), (0, 20, "idle"), (0, 1, "rounds")]
)
def test_the_notes_say_why_it_ended(y, rounds, end):
    target = make_target(Constant(), scored=True)
    _, notes = attack(target, torch.full((IMAGES,), y), rounds=rounds, steps=2)
    assert {ENDS[number] for number in notes["ended"].tolist()} == {end}


def test_best_points_are_judged_by_the_pipeline_and_not_by_a_gradient():
    target = make_target(curved(), NearestPatch())
    y = labels_of(target)
    x_adv, _ = attack(target, y, 0.01)
    first, _ = attack(target.again(), y, 0.01, rounds=1, steps=2, queries=0)
    later_margin, _ = judge(target, x_adv, y)
    first_margin, _ = judge(target, first, y)
    assert (later_margin <= first_margin).all()
    assert (later_margin < first_margin).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("targets", 0),
        ("queries", -1),
        ("rounds", 0),
        ("idle_rounds", 0),
        ("gain", 2.0),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(BadParameter, match=field):
        Persist(**{field: value})


# Going on after an interruption


class Interrupted(Exception):
    """The process is stopped."""


class StopsAfter(StateFile):
    """Interrupt the attack when the state of this round has been written."""

    last: int = 1

    def write(self, tensors):
        super().write(tensors)
        if int(tensors["counts"][0]) == self.last:
            raise Interrupted


@pytest.mark.parametrize("purifier", [NearestPatch(), GaussianNoise(sigma=0.05)], ids=str)
def test_an_interrupted_search_goes_on_from_its_last_round(purifier, tmp_path):
    def target_of(state_file):
        return make_target(curved(), purifier, scored=True, eot=2, state_file=lambda _: state_file)

    y = labels_of(target_of(None))
    whole = target_of(StateFile(tmp_path / "whole"))
    expected, expected_notes = attack(whole, y, 0.01, rounds=3)
    stopped = StopsAfter(tmp_path / "stopped")
    with pytest.raises(Interrupted):
        attack(target_of(stopped), y, 0.01, rounds=3)
    rest = target_of(StateFile(stopped.path))
    x_adv, notes = attack(rest, y, 0.01, rounds=3)
    assert torch.equal(x_adv, expected)
    assert all(torch.equal(notes[name], expected_notes[name]) for name in expected_notes)
    assert rest.counts["backwards"] == whole.counts["backwards"]


def test_seconds_before_an_interruption_count(tmp_path):
    file = StateFile(tmp_path / "state")
    file.write({})
    first = StateFile(file.path).earlier_seconds
    assert first > 0
    StateFile(file.path).write({})
    assert StateFile(file.path).earlier_seconds > first


def test_a_damaged_state_is_begun_anew(tmp_path):
    state_file = StateFile(tmp_path / "rounds" / "state")
    assert state_file.read() == {}
    state_file.write({"counts": torch.tensor([1])})
    assert state_file.read()["counts"].tolist() == [1]
    state_file.path.write_bytes(state_file.path.read_bytes()[:-3])
    assert state_file.read() == {}
    state_file.remove()
    state_file.remove()
    assert not state_file.path.parent.exists()
