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
    PastBlur,
    Reticent,
    ReticentBlur,
    RightAtFirst,
    Rough,
    Shy,
    Startled,
    Tiring,
    Undefined,
    Wavering,
    context_of,
    find_check,
    hidden,
    honest,
    network,
    request,
    run_check,
    small_context,
)
from masked_stochastic import ALL_FAMILIES, ALL_HONEST, PastRestorer

import defend
from defend.auditing import active, attempts, spsa, state
from defend.auditing.context import Context
from defend.auditing.declared import attack_declared
from defend.auditing.prepare import prepare
from defend.auditing.run import all_checks
from defend.auditing.session import Session
from defend.auditing.verdict import make_row

DETACHED = hidden("detached", 1.0)  # no gradient at all
SOFT = partial(masked.Blur, weight=0.5)  # an honest gradient
ATTACKS = (
    "identity gradient",
    "autograd",
    "learned gradient",
    "relaxed gradient",
    "persistent search",
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
    "autograd": (PastRestorer, partial(PastBlur, weight=0.3)),
    "learned gradient": (DETACHED, SOFT),
    "relaxed gradient": (Reticent, honest("bitdepth:bits=4")),
    "persistent search": (ReticentBlur, honest("bitdepth:bits=4")),
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
    "unavailable gradients": (DETACHED, SOFT),
    "unstable predictions": (Rough, SOFT),
    "silent success": (Wavering, SOFT),
    "incomplete optimisation": (hidden("test-time optimisation", 0.2), SOFT),
    "transfer failure": (hidden("noise without EOT", 0.2), SOFT),
    "unbounded failure": (hidden("detached", 0.95), SOFT),
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


def test_every_check_has_a_case():
    context = context_of(defend.load("none"), n=16)
    assert [check.name for check in all_checks(context)] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_catches(name):
    row = run_check(name, CASES[name][0]())
    if name == "declared gradient":  # it fails by not running
        assert (row.verdict, row.turns, row.measured) == (
            "not run",
            True,
            "could not run: RuntimeError: not while you look",
        )
    else:
        assert row.verdict == "flag", row


@pytest.mark.parametrize("name", CASES)
def test_it_passes(name):
    """Attacks run at an eps at which the declared gradient leaves images to break."""
    row = run_check(name, CASES[name][1](), eps=0.1 if name in ATTACKS else None)
    assert row.verdict == "pass", row
    assert not row.turns
    assert (row.weight == "attack") == (name in ATTACKS)
    assert "too few for any attack" not in row.measured


@pytest.mark.parametrize("name", CASES)
def test_no_case_belongs_to_the_half_that_judges(name):
    """The thresholds were set on these cases, so none of them may judge the thresholds."""
    judging_kinds = tuple(family.kind for family in ALL_FAMILIES.values() if family.half == 1)
    judging = [entry.make() for entry in ALL_HONEST.values() if entry.half == 1]
    caught, passed = (make() for make in CASES[name])
    assert not isinstance(caught, judging_kinds)
    assert not isinstance(passed, judging_kinds)
    assert (type(passed), passed.settings) not in [(type(p), p.settings) for p in judging]


def test_a_card_that_calls_a_deterministic_purifier_stochastic_is_caught():
    """Stochastic purifiers get a smaller query budget and fewer images, so the claim is checked."""
    row = run_check("five forwards", defend.load("gaussian:sigma=0"))
    assert row.turns
    assert "no draw changes a pixel" in row.measured


def test_searches_are_cut_to_memory_and_give_the_same(monkeypatch):
    """Finite differences and the active test never exceed the purifier's max_batch."""
    context = small_context()
    rows, features = context.all_rows, active.Features(context.network)
    points = active.PointSet("inner", 5, 0.9, corners=False)

    def run():
        noise = context.noise.fork("spsa")
        x_adv = spsa.spsa(context.target(rows), context.x, context.y, 0.2, noise, 2, 3)
        return x_adv, active.features_around(context, features, rows, points)

    expected = run()
    kind = type(context.purifier)
    purified = kind.purified
    sizes = []

    def record_size(purifier, x, *args):
        sizes.append(len(x))
        return purified(purifier, x, *args)

    monkeypatch.setattr(kind, "purified", record_size)
    monkeypatch.setattr(context.purifier, "max_batch", 12)
    for cut, uncut in zip(run(), expected, strict=True):
        assert torch.allclose(cut, uncut, atol=1e-5)
    assert max(sizes) <= 12


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_leave_targeted_dlr_out(classes):
    net = network()

    class FewClasses(torch.nn.Module):
        def forward(self, x):
            return net(x)[:, :classes]

    context = small_context(network=FewClasses(), classes=classes)
    declared = attack_declared(replace(context, y=context.y % classes))
    assert 0 <= declared.best.accuracy <= declared.clean_accuracy


@pytest.mark.parametrize(
    ("accuracy", "random", "zero", "passed", "turns"),
    [
        (0, 60, 100, True, False),
        (0, 5, 100, False, False),
        (0, 0, 100, False, False),
        (0, 60, 0, False, True),
        (2, 60, 100, True, False),
        (3, 60, 100, False, True),
        (0, 5, 5, False, False),
        (5, 5, 5, False, True),
        (0, 0, 0, False, True),
    ],
)
def test_an_unbounded_attack_that_leaves_nothing_is_no_sign_of_masking(
    monkeypatch, accuracy, random, zero, passed, turns
):
    """Random steps that break nearly all of 100 images prove nothing against the gradient."""
    scores = iter((np.arange(100) < k).astype(float) for k in (accuracy, random))
    monkeypatch.setattr(Context, "score", lambda *_: next(scores))
    monkeypatch.setattr(Context, "clean_scores", (np.arange(100) < zero).astype(float))
    context = small_context()
    check = find_check("unbounded attack", context)
    result = check.run(Session(context))
    assert (result.passed, make_row(check, result).turns) == (passed, turns)


def test_the_learned_gradient_of_specs_is_the_benchs(monkeypatch):
    context = small_context()
    requested = []

    def get(*specs):
        requested.append(specs)
        return SimpleNamespace(backward="network", error=0.5)

    monkeypatch.setattr(context.bench_pipeline.components.bpda, "get", get)
    assert attempts.fit_network(context) == ("network", 0.5)
    assert requested == [("convnet", "bitdepth:bits=3")]


class Scales(torch.nn.Module):
    """Give nearly every different image a different label."""

    def forward(self, x):
        return torch.nn.functional.one_hot((997 * x.flatten(1).sum(1)).long() % 10, 10).float()


def test_an_attack_that_ends_on_a_quantisers_boundary_is_no_sign_of_masking():
    """0.1 x 255 = 25.5: jpeg rounds some pixels of x + eps up and others down.

    A millionth to either side then changes the label.
    """
    context, _ = prepare(request("jpeg", "digits-m", "lenet", eps=0.1))
    context = replace(context, network=Scales())
    x_adv = (context.x + 0.1 * (context.x.flip(-1) - 0.5).sign()).clamp(0, 1)
    for change in (state.TINY, -state.TINY):
        probes = x_adv[context.probe_rows]
        assert state.share_of_labels_changed(context, probes, change) > 0.5
    declared = SimpleNamespace(best=SimpleNamespace(x_adv=x_adv))
    session = SimpleNamespace(context=context, declared=declared)
    result = find_check("a millionth", context).run(session)
    assert result.passed and result.value == 0, result
