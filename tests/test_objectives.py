"""Several objectives: who trains what, one optimiser each, and a resume that is exact."""

import pytest
import torch
from recipe_toys import FIXED, PairDenoiser, changed_tensors, copy_state, grey_images
from torch import nn
from train_toys import Killed

from defend.errors import BadParameter
from defend.training.data import Arrays
from defend.training.loop import train
from defend.training.objectives import Objective, make_trained_parts
from defend.training.options import LoopOptions

PLAIN = {"precision": "float32", "layout": "contiguous", "schedule": "constant"}


class Pair(nn.Module):
    """Two numbers, a and b."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(1, 1, bias=False)
        self.b = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.a.weight)
        nn.init.ones_(self.b.weight)

    @property
    def values(self):
        return [round(float(p), 6) for p in self.parameters()]


def product(net, *_):
    return (net.a.weight * net.b.weight).sum()


def minus_product(net, *_):
    return -product(net)


def fit(net, *objectives, **options):
    recipe = LoopOptions(epochs=1, batch=48, momentum=0.0, weight_decay=0.0, **PLAIN | options)
    train(net, Arrays(*grey_images()), objectives, recipe, progress=False)
    return net.values


def test_a_pair_of_opponents_takes_turns():
    """a descends on ab, then b climbs on ab with the new a: one step from (1, 1) with rate 0.1."""
    values = fit(Pair(), Objective("a", product), Objective("b", minus_product, ("b.*",)), lr=0.1)
    assert values == [0.9, 1.09]


def test_each_objective_has_its_own_learning_rate():
    second = Objective("b", minus_product, ("b.*",), lr_factor=10)
    assert fit(Pair(), Objective("a", product), second, lr=0.1) == [0.9, 1.9]


def test_the_gradient_of_one_objective_is_clipped_alone():
    def steep(net, *_):
        return 1000 * product(net)

    second = Objective("b", minus_product, ("b.*",))
    values = fit(Pair(), Objective("a", steep), second, lr=0.1, clip=1.0)
    assert values == [0.9, 1.09]


def test_one_objective_is_the_plain_loss_to_the_bit():
    nets = Pair(), Pair()
    fit(nets[0], Objective("any", product), lr=0.1)
    recipe = LoopOptions(epochs=1, batch=48, momentum=0.0, weight_decay=0.0, lr=0.1, **PLAIN)
    train(nets[1], Arrays(*grey_images()), product, recipe, progress=False)
    assert not changed_tensors(nets[0], nets[1].state_dict())
    assert nets[0].values == [0.9, 0.9]


def test_every_objective_gets_the_same_batch_and_noise():
    received = []

    def loss(net, x, y, noise):
        received.append((x.clone(), y.clone(), noise.normal(x)))
        return product(net)

    fit(Pair(), Objective("a", loss), Objective("b", loss, ("b.*",)), lr=0.1)
    first, second = received
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_a_frozen_parameter_belongs_to_no_objective():
    net = Pair()
    net.b.requires_grad_(False)
    assert fit(net, Objective("a", product), lr=0.1) == [0.9, 1.0]


WRONG_OBJECTIVES = {
    "two owners": (
        [Objective("first", product, ("a.*", "b.*")), Objective("second", product, ("b.*",))],
        "b.weight, got first and second",
    ),
    "two of one name": (
        [Objective("loss", product, ("a.*",)), Objective("loss", product, ("b.*",))],
        "a different name for each, got loss, loss; rename",
    ),
    "no owner": ([Objective("first", product, ("a.*",))], "b.weight, got none"),
    "two that take the rest": (
        [Objective("first", product), Objective("second", product)],
        "a.weight, got first and second",
    ),
    "nothing to train": (
        [Objective("first", product), Objective("second", product, ("critic.*",))],
        r"second: expected a parameter critic\.\* to train, got none.*a\.weight, b\.weight",
    ),
}


@pytest.mark.parametrize(("objectives", "message"), WRONG_OBJECTIVES.values(), ids=WRONG_OBJECTIVES)
def test_objectives_that_do_not_divide_the_parameters_are_refused(objectives, message):
    with pytest.raises(BadParameter, match=message):
        make_trained_parts(Pair(), objectives, LoopOptions())


WRONG_VALUES = {
    "name": ({"name": "the critic"}, "the critic.*a name such as"),
    "text": ({"parameters": "b.*"}, r"parameters=\('b\.\*',\)"),
    "factor": ({"lr_factor": 0}, "lr_factor > 0, got 0"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_objective_is_refused(values, message):
    with pytest.raises(BadParameter, match=message):
        Objective(**{"name": "loss", "loss": product} | values)


class DyingPair(PairDenoiser):
    """Its recipe raises Killed in the second objective of a step: a step that was cut off."""

    component, __module__ = "PairDenoiser", PairDenoiser.__module__  # as a resume file sees it
    fatal_step = 3

    class recipe(PairDenoiser.recipe):
        __module__ = PairDenoiser.__module__

        steps = 0

        def critic_loss(self, net, x, y, noise):
            self.steps += 1
            if self.steps == DyingPair.fatal_step:
                raise Killed
            return super().critic_loss(net, x, y, noise)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_pair_resumes_to_the_bit(optimiser, tmp_path):
    options = {"optimiser": optimiser, "lr": 0.01, "ema": 0.5, "epochs": 3, **FIXED}
    resumable = {"resume": tmp_path / "r", "save_every": 0}
    undisturbed, resumed = (PairDenoiser(weights="untrained") for _ in range(2))
    undisturbed.fit(*grey_images(), **options)
    with pytest.raises(Killed):
        DyingPair(weights="untrained").fit(*grey_images(), **resumable, **options)
    resumed.fit(*grey_images(), **resumable, **options)
    assert not changed_tensors(resumed.net, copy_state(undisturbed.net))
    fresh = PairDenoiser(weights="untrained")
    assert {"0.weight", "4.weight"} <= changed_tensors(resumed.net, copy_state(fresh.net))


def test_the_critic_trains_and_stays_out_of_the_component():
    critics = []

    class Watching(PairDenoiser):
        class recipe(PairDenoiser.recipe):
            def critic_loss(self, net, x, y, noise):
                critics.append(copy_state(net.critic))
                return super().critic_loss(net, x, y, noise)

    purifier = Watching(weights="untrained")
    purifier.fit(*grey_images(), **FIXED)
    assert not torch.equal(critics[0]["1.weight"], critics[-1]["1.weight"])
    assert not [name for name in purifier.net.state_dict() if "critic" in name]


def test_an_objective_computes_no_gradient_for_the_others():
    trained = []

    def watched(net, *_):
        trained.append([net.a.weight.requires_grad, net.b.weight.requires_grad])
        return product(net)

    fit(Pair(), Objective("a", watched), Objective("b", watched, ("b.*",)), lr=0.1)
    assert trained == [[True, False], [False, True]]


def test_what_exists_in_training_only_begins_from_the_seed():
    first, second, third = (PairDenoiser(weights="untrained") for _ in range(3))
    for purifier, global_seed, seed in ((first, 1, 0), (second, 2, 0), (third, 1, 5)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        purifier.fit(*grey_images(), seed=seed, **FIXED)
        assert torch.equal(torch.get_rng_state(), state)
    assert not changed_tensors(first.net, copy_state(second.net))
    assert changed_tensors(first.net, copy_state(third.net))
