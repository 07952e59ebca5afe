"""`persist`: it goes where another gradient leads, counts honestly, and ends when it should."""

import pytest
import torch
from attack_toys import EDGE, IMAGES, INSIDE, Y, curved, make_target, start_noise, uphill
from masked import FalselyExact
from persist_toys import (
    EPS,
    Carried,
    Constant,
    DetachedOnTheGrid,
    FailsLater,
    NearestPatch,
    Sealed,
    attack,
    labels_of,
    wrong,
)

from defend.attack_state import StateFile
from defend.attacks.apgd import APGD
from defend.attacks.gradient_paths import usable_paths
from defend.attacks.persist import Persist
from defend.attacks.worst_points import judge
from defend.defenses.gaussian import GaussianNoise
from defend.errors import BadParameter
from defend.gradients import PlainAutograd, Relaxed, identity
from defend.search_moves import ENDS, GRADIENTS, LOSSES, NEVER, STARTS, Move

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
