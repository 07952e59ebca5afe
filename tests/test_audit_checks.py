"""Each check of the audit has a purifier that it must catch and an honest one that it must pass."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import masked
import numpy as np
import pytest
import torch
from audit_toys import (
    Blinking,
    FewCopies,
    Lottery,
    Neighbourly,
    RightAtFirst,
    Rough,
    Shy,
    Startled,
    Tiring,
    Undefined,
    Wavering,
    digits,
    hidden,
    honest,
    look,
    network,
    small,
)

import defend
from defend.audit import active, rivals, spsa, state
from defend.audit.budget import budget_for
from defend.audit.comparison import Best, _worst, together
from defend.audit.context import Context
from defend.audit.declared import attack_declared
from defend.audit.prepare import prepare
from defend.audit.run import all_checks
from defend.audit.verdict import checked

DETACHED, SOFT = (
    hidden("detached", 1.0),
    partial(masked.Blur, weight=0.5),
)  # no gradient at all; an honest one
ATTACKS = (
    "identity gradient",
    "learned gradient",
    "finite differences",
    "Square",
    "oblivious",
    "transfer",
    "one step",
    "random noise",
    "8-bit images",
    "all together",
)
CASES = {  # check: (what it must catch, what it must pass)
    "declared gradient": (Shy, SOFT),
    "more steps": (hidden("test-time optimisation", 0.2), honest("none")),
    "more copies": (FewCopies, honest("gaussian:sigma=0.02")),
    "identity gradient": (DETACHED, SOFT),
    "learned gradient": (DETACHED, SOFT),
    "finite differences": (DETACHED, SOFT),
    "Square": (DETACHED, honest("bitdepth:bits=4")),
    "oblivious": (hidden("test-time optimisation", 0.2), SOFT),
    "transfer": (DETACHED, SOFT),
    "one step": (RightAtFirst, SOFT),
    "random noise": (DETACHED, honest("bitdepth:bits=2")),
    "8-bit images": (hidden("exact inputs only", 0.95), honest("bitdepth:bits=4")),
    "all together": (DETACHED, SOFT),
    "8-bit drift": (hidden("exact inputs only", 0.95), honest("bitdepth:bits=4")),
    "unbounded attack": (hidden("detached", 0.95), honest("bitdepth:bits=2")),
    "finite gradient": (Undefined, SOFT),
    "zero gradient": (DETACHED, honest("bitdepth:bits=2")),
    "dead pixels": (hidden("detached", 0.8), SOFT),
    "size of the gradient": (hidden("exploding", 20), SOFT),
    "noisy gradient": (hidden("noise without EOT", 0.2), SOFT),
    "slope": (RightAtFirst, honest("bitdepth:bits=4")),
    "frozen noise": (Lottery, honest("gaussian:sigma=0.05")),
    "indicator 1": (DETACHED, SOFT),
    "indicator 2": (Rough, SOFT),
    "indicator 3": (Wavering, SOFT),
    "indicator 4": (hidden("test-time optimisation", 0.2), SOFT),
    "indicator 5": (hidden("noise without EOT", 0.2), SOFT),
    "indicator 6": (hidden("detached", 0.95), SOFT),
    "AutoAttack's flags": (hidden("noise without EOT", 0.2), honest("bitdepth:bits=4")),
    "active test": (hidden("detached", 0.95), SOFT),
    "five forwards": (hidden("noise without EOT", 0.1), honest("gaussian:sigma=0.2")),
    "a millionth": (Rough, honest("bitdepth:bits=2")),
    "company": (Neighbourly, honest("gaussian:sigma=0.2")),
    "watched": (Startled, honest("bitdepth:bits=2")),
    "before and after": (Tiring, honest("median")),
    "fresh process": (Tiring, honest("gaussian:sigma=0.2")),
    "re-keyed noise": (Blinking, honest("gaussian:sigma=0.2")),
}


def test_a_card_that_calls_a_deterministic_purifier_stochastic_is_caught():
    """It would be attacked with a tenth of the queries, and scored on fewer images."""
    seen = look("five forwards", defend.load("gaussian:sigma=0"))
    assert seen.turns and "no draw changes a pixel" in seen.measured


def test_searches_are_cut_to_memory_and_give_the_same(monkeypatch):
    """Finite differences and the active test's points: no call sees more images than the purifier takes at once."""
    context, seen = small(), []
    rows, features = context.all, active.Features(context.network)

    def run():
        noise = context.root.fork("spsa")
        found = spsa.spsa(context.target(rows), context.x, context.y, 0.2, noise, 2, 3)
        return found, active._at(context, features, rows, "inner", 5, 0.9, corners=False)

    whole, purified = run(), type(context.purifier).purified
    monkeypatch.setattr(
        type(context.purifier),
        "purified",
        lambda p, x, *a: seen.append(len(x)) or purified(p, x, *a),
    )
    monkeypatch.setattr(context.purifier, "max_batch", 12)
    assert (
        all(torch.allclose(a, b, atol=1e-5) for a, b in zip(run(), whole, strict=True))
        and max(seen) <= 12
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_leave_targeted_dlr_out(classes):
    net = network()

    class Few(torch.nn.Module):
        def forward(self, x):
            return net(x)[:, :classes]

    whole = small()
    found = attack_declared(replace(whole, network=Few(), y=whole.y % classes, classes=classes))
    assert 0 <= found.best.accuracy <= found.clean


@pytest.mark.parametrize(
    ("left", "random", "zero", "ok", "turns"),
    [
        (0, 60, 100, True, False),
        (0, 5, 100, False, False),
        (0, 0, 100, False, False),
        (0, 60, 0, False, True),
        (5, 60, 100, False, True),
        (0, 5, 5, False, False),
        (5, 5, 5, False, True),
        (0, 0, 0, False, True),
    ],
)
def test_an_unbounded_attack_that_leaves_nothing_is_no_sign_of_masking(
    monkeypatch, left, random, zero, ok, turns
):
    """Of 100 images: random steps that break nearly all of them prove nothing against a gradient that breaks all."""
    scores = iter((np.arange(100) < k).astype(float) for k in (left, random))
    monkeypatch.setattr(Context, "score", lambda *_: next(scores))
    monkeypatch.setattr(Context, "clean", (np.arange(100) < zero).astype(float))
    context = small()
    rule = next(r for r in all_checks(context, {})[0] if r.name == "unbounded attack")
    seen = rule.run(context)
    assert (seen.ok, checked(rule, seen).turns) == (ok, turns)


def test_the_learned_gradient_of_specs_is_the_benchs(monkeypatch):
    asked = []
    monkeypatch.setattr(
        rivals,
        "imitation",
        lambda _, *specs: asked.append(specs) or SimpleNamespace(backward="kept", error=0.5),
    )
    assert rivals._imitation(small()) == ("kept", 0.5) and asked == [("convnet", "bitdepth:bits=3")]


class Draws:
    """A stochastic pipeline whose images are right with a probability, by number of the attempt (x) and of the image."""

    stochastic = True
    plan = budget_for("standard", True, 400)

    def __init__(self, right):
        self.right, self.x = right, torch.zeros(right.shape[1], 1, 1, 1)

    def outcomes(self, x, rows, fork, draws):
        attempt = int(x[0])
        chance = np.random.default_rng([attempt, fork == "score"]).random((len(rows), draws))
        return (chance < self.right[attempt][rows.numpy()][:, None]).astype(np.uint8)


@pytest.mark.parametrize("more", [0, 4, 10])
@pytest.mark.parametrize("null", [0.75, 0.95])
def test_more_attempts_that_do_nothing_move_no_worst_case(more, null):
    """The least of several noisy shares falls by itself, and would lead from the attack to whoever was lucky: 0.5 became 0.55 to 0.6."""
    clean, attacked = np.full(400, 0.95), np.where(np.arange(400) < 200, 0.3, 0.65)
    context = Draws(np.stack([clean, attacked, *[np.full(400, null)] * more]))
    best = Best(context, torch.arange(400))
    for k in range(1, 2 + more):
        best.run(lambda rows, k=k: torch.full((len(rows), 1, 1, 1), float(k)))
    assert abs(best.accuracy - attacked.mean()) < 0.02
    assert (best.x_adv == 1).double().mean() > 0.9


@pytest.mark.parametrize("null", [0, 6])
@pytest.mark.parametrize(
    ("rival", "where", "left"),
    [
        ((0.7, 0.3), "everywhere", 0.3),
        ((0.7, 0.3), "second half", 0.3),
        ((0.3, 0.7), "everywhere", 0.5),  # no stronger: the least of two estimates would leave .44
        ((0.95, 0.95), "everywhere", 0.5),
    ],
)
def test_a_rival_counts_where_it_breaks_more_and_nowhere_else(rival, where, left, null):
    """The declared attack leaves .3 of the draws of one half of the images, and .7 of the other."""
    first, clean = np.arange(400) < 200, np.full(400, 0.95)
    context = Draws(
        np.stack(
            [clean, *(np.where(first, *shares) for shares in ((0.3, 0.7), rival)), *[clean] * null]
        )
    )
    attempts = [
        lambda rows, k=k: torch.full((len(rows), 1, 1, 1), float(k)) for k in range(1, 3 + null)
    ]
    best = Best(context, torch.arange(400))
    best.run(attempts[0])
    for attempt in attempts[1:]:
        _worst(best, ~first | (where == "everywhere"), [attempt])
    assert abs(together(best).mean() - left) < 0.02


def test_every_check_has_a_case():
    context, _ = prepare(
        defend.load("none"),
        digits(),
        "convnet",
        "quick",
        n=16,
        split="val",
        eps=None,
        surrogates=(),
        seed=0,
        device="cpu",
        data_root=None,
    )
    assert [r.name for r in all_checks(context, {})[0]] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_catches(name):
    seen = look(name, CASES[name][0]())
    if name == "declared gradient":  # it fails by not running
        assert (seen.verdict, seen.turns, seen.measured) == (
            "not run",
            True,
            "could not run: RuntimeError: not while you look",
        )
    else:
        assert seen.verdict == "flag", seen


def judging():
    """(kinds of the families that judge, honest ones that judge as (kind, settings))."""
    honest_ones = [make() for make, half in masked.HONEST.values() if half == 1]
    return tuple(f.kind for f in masked.FAMILIES.values() if f.half == 1), [
        (type(p), p.settings) for p in honest_ones
    ]


@pytest.mark.parametrize("name", CASES)
def test_no_case_belongs_to_the_half_that_judges(name):
    kinds, honest_ones = judging()
    caught, passed = (make() for make in CASES[name])
    assert not isinstance(caught, kinds) and not isinstance(passed, kinds)
    assert (type(passed), passed.settings) not in honest_ones


@pytest.mark.parametrize("name", CASES)
def test_it_passes(name):
    """Attacks at an eps at which the declared gradient leaves something to be won."""
    seen = look(name, CASES[name][1](), eps=0.1 if name in ATTACKS else None)
    assert seen.verdict == "pass" and not seen.turns, seen
    assert (seen.weight == "attack") == (name in ATTACKS) and "can win enough" not in seen.measured


class Scales(torch.nn.Module):
    """Another label for nearly every other image."""

    def forward(self, x):
        return torch.nn.functional.one_hot((997 * x.flatten(1).sum(1)).long() % 10, 10).float()


def test_an_attack_that_ends_on_a_quantisers_edges_is_no_sign_of_masking():
    """0.1 x 255 = 25.5: jpeg rounds some pixels of x + eps up and others down, so that a millionth to either side moves it."""
    context, _ = prepare(
        "jpeg",
        "digits-m",
        "lenet",
        "quick",
        n=16,
        split="val",
        eps=0.1,
        surrogates=(),
        seed=0,
        device="cpu",
        data_root=None,
    )
    context = replace(context, network=Scales())
    ends = (context.x + 0.1 * (context.x.flip(-1) - 0.5).sign()).clamp(0, 1)
    assert (
        min(state._relabelled(context, ends[context.some], by) for by in (state.TINY, -state.TINY))
        > 0.5
    )
    seen = state._millionth(context, SimpleNamespace(best=SimpleNamespace(x_adv=ends)))
    assert seen.ok and seen.value == 0, seen
