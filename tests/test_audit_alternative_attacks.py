"""Other attacks against the declared gradient's best: how each of them is made."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from audit_toys import (
    context_of,
    convnet,
    digits,
    hidden,
    is_picture,
    network,
    request,
    run_check,
    run_or_error,
)
from masked import make_card, nearest_in

import defend
from defend import Chain, Purifier
from defend.auditing import attempts, run, spsa
from defend.auditing.alternative_attacks import compare_8_bit
from defend.auditing.context import Surrogate
from defend.auditing.declared import DeclaredAttack, attack_declared
from defend.auditing.grounds import Grounds
from defend.auditing.prepare import prepare
from defend.auditing.session import Session
from defend.auditing.verdict import Accuracies, CurvePoint, NotTried, apply_holm, make_row
from defend.benchmarks import bpda_networks
from defend.errors import BadParameter


class Mirroring(Purifier):
    """Turn pictures around; draw anything else towards the stored picture that is nearest."""

    card = make_card("surrogate")

    def purify(self, x, noise):
        memory = digits().rows("val", 0, 40)[0]
        nearest = memory[nearest_in(memory, x)]
        return torch.where(is_picture(x), x, 0.2 * x + 0.8 * nearest).flip(-1)

    def surrogate(self, x, noise):
        return x.flip(-1)


class Mirrored(torch.nn.Module):
    """Classify mirrored images, so that an attack without the purifier achieves little."""

    def forward(self, x):
        return network()(x.flip(-1))


def test_every_image_of_the_declared_attack_is_rounded():
    """Its images break nothing as they are; rounded, half of them do, and few oblivious ones."""
    context = replace(context_of(Mirroring()), network=Mirrored(), eps=0.14)
    context.budget = replace(context.budget, curve_steps=(10, 40), target_steps=5)
    best = attack_declared(context).best
    assert best.accuracy == 1
    assert len(best.images) == 4
    result = compare_8_bit(context, best)
    assert result.gap > 0.3
    assert result.p < 0.001


class Unmoved(torch.nn.Module):
    """Undo what `masked.Moved` does, so that an attack without it achieves little."""

    def forward(self, x):
        return network()(x.roll((-2, -1), (2, 3)))


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("share", "decisive"), [(0.0, set()), (0.3, {"autograd", "all together"})])
def test_masking_of_some_images_is_seen_by_all_attacks_together(share, decisive, noise):
    """Square breaks images that resist the smeared gradient, and nearly as many resist Square."""
    purifier = hidden("share of the images", share)()
    if noise:
        purifier = Chain(members=(defend.load("gaussian:sigma=0.02"), purifier))
    context = replace(context_of(purifier, eps=0.12, n=175), network=Unmoved())
    if noise:
        context.budget = replace(
            context.budget,
            square_queries=300,
            curve_steps=(20,),
            target_steps=5,
            eot=2,
            max_eot=2,
            spsa_steps=1,
            random_draws=1,
        )
    session = Session(context)
    checks = [check for check in run.all_checks(context) if check.weight == "attack"]
    rows = apply_holm([make_row(check, run_or_error(check, session)) for check in checks])
    turning = {row.name for row in rows if row.turns}
    assert turning - {"Square"} == decisive
    assert decisive or not turning


@pytest.mark.parametrize(("sigma", "steps", "draws"), [(0, 90, 1), (1e-6, 90, 1), (0.3, 30, 3)])
def test_noise_that_changes_no_prediction_does_not_shorten_the_search(sigma, steps, draws):
    """Otherwise a purifier that adds a millionth would face a third of the steps."""
    context = context_of(defend.load(f"gaussian:sigma={sigma}"))
    context.budget = replace(context.budget, square_queries=30, eot=3)
    assert attempts.square_effort(context) == (steps, draws)


@pytest.mark.parametrize(("h", "is_zero"), [(0.0, True), (0.1, False)])
def test_both_sides_of_a_difference_see_the_same_draw(h, is_zero):
    """If both are the same image, nothing differs, whatever the purifier draws."""
    context = context_of(defend.load("gaussian:sigma=0.3"))
    copies = context.target(context.all_rows).copies(3)
    noise = context.noise.fork("u")
    gradient = spsa._estimate_gradient(copies, context.x, context.y, h, noise, 3)
    assert bool((gradient == 0).all()) == is_zero


def test_a_surrogate_without_a_gradient_is_attacked_past_its_purifier():
    surrogate = (hidden("detached", 1.0)(), convnet())
    row = run_check("transfer", hidden("detached", 1.0)(), [surrogate])
    assert row.turns
    assert "its own gradient is zero" in row.measured


def test_a_surrogate_that_can_be_attacked_in_no_way_was_not_tried():
    class Deaf(torch.nn.Module):
        def forward(self, x):
            return network()(x.detach())

    surrogates = [Surrogate(defend.load("none"), Deaf())]
    context = replace(context_of(hidden("detached", 1.0)()), surrogates=surrogates)
    with pytest.raises(NotTried, match="gradient is zero"):
        attempts.TransferAttack(context).make_attempts()


def test_a_surrogate_that_is_left_out_is_named_and_no_gradient_is_computed_twice(monkeypatch):
    measured = []

    def has_gradient(context, route):
        measured.append(route)
        return route.surrogate is context.surrogates[0]

    monkeypatch.setattr(attempts, "_has_gradient", has_gradient)
    surrogates = [Surrogate(defend.load("none"), network()) for _ in range(2)]
    context = replace(context_of(hidden("detached", 1.0)()), surrogates=surrogates)
    transfer = attempts.TransferAttack(context)
    assert len(list(transfer.make_attempts())) == len(attempts.TRANSFER_ATTACKS)
    assert "without 1 of 2 surrogates" in transfer.describe()
    assert len(measured) == 3  # the second surrogate's through its purifier and past it


@pytest.mark.parametrize(
    ("last", "accuracy", "text"),
    [
        (0.1, 0.0, "0.0 %"),
        (0.3, 0.2, "<= 20.0 % (unconverged)"),
        (0.25, 0.2, "<= 20.0 % (unconverged)"),
    ],
)
def test_an_accuracy_of_zero_is_not_printed_as_an_upper_bound(last, accuracy, text):
    curve = [CurvePoint(10, 0.6), CurvePoint(40, last)]
    assert DeclaredAttack(SimpleNamespace(accuracy=accuracy), 1.0, curve).text == text


def test_the_learned_gradient_is_the_benchs_whatever_the_callers_threads(monkeypatch, tmp_path):
    def fit_only(context, *_):
        attempts.fit_network(context)
        return [], Accuracies(), Grounds()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(bpda_networks.RECIPE, "steps", 2)
    monkeypatch.setattr(run, "run_checks", fit_only)
    monkeypatch.setattr(run, "estimate", lambda _: None)
    common = {"eps": 0.2, "n": 16, "split": "val", "device": "cpu"}
    torch.set_num_threads(2)
    try:
        defend.audit("bitdepth:bits=4", "digits", "convnet", **common)
        fitted = [file.name for file in tmp_path.rglob("*.safetensors")]
        defend.bench(
            dataset="digits",
            classifiers=["convnet"],
            defenses=["bitdepth:bits=4"],
            attacks=["fgsm"],
            knowledge=["adaptive"],
            gradients=["learned"],
            **common,
            out=tmp_path / "run",
            workers=1,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(fitted) == 1
    assert [file.name for file in (tmp_path / "defend" / "learned").glob("*")] == fitted


def test_a_cache_that_cannot_be_written_is_the_users_error(monkeypatch, tmp_path):
    """It is raised at once, and does not become a sign of masking after the fit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(BadParameter, match=r"cannot be kept there.*XDG_CACHE_HOME"):
        defend.audit(
            "bitdepth:bits=4", "digits", "convnet", "standard", n=16, split="val", device="cpu"
        )


def test_a_spec_runs_as_in_the_bench():
    """A batch norm behind a convolution is folded into it."""
    context, _ = prepare(request("none"))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in context.network.modules())
