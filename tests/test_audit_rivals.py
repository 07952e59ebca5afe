"""Other attacks against the declared gradient's best: what each of them is made of."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from audit_toys import digits, hidden, look, network, ran, scene_of
from masked import card

import defend
from defend import Chain, Purifier
from defend.audit import rivals, run, spsa
from defend.audit.declared import Declared, attack_declared
from defend.audit.prepare import prepare
from defend.audit.verdict import NotTried, apply_holm, checked
from defend.benchmarks import bpda_network
from defend.errors import BadParameter


class Mirroring(Purifier):
    """Turns pictures around; draws anything else towards the picture that it remembers."""

    card = card("surrogate")

    def purify(self, x, noise):
        levels, memory = x * 255, digits().rows("val", 0, 40)[0]
        picture = ((levels - levels.round()).abs().flatten(1).amax(1) < 1e-3).view(-1, 1, 1, 1)
        nearest = memory[torch.cdist(x.flatten(1), memory.flatten(1)).argmin(1)]
        return torch.where(picture, x, 0.2 * x + 0.8 * nearest).flip(-1)

    def surrogate(self, x, noise):
        return x.flip(-1)


class Mirrored(torch.nn.Module):
    """Reads in a mirror: whoever attacks it without the purifier learns little."""

    def forward(self, x):
        return network()(x.flip(-1))


def test_every_image_of_the_declared_attack_is_rounded():
    """None of its images breaks anything as it is; rounded half of them do, and hardly any oblivious one."""
    context = replace(scene_of(Mirroring()), network=Mirrored(), eps=0.14)
    context.budget = replace(context.budget, curve=(10, 40), target_steps=5)
    best = attack_declared(context).best
    assert best.accuracy == 1 and len(best.made) == 4
    seen = rivals._pictures(context, best)
    assert seen.gap > 0.3 and seen.p < 0.001


class Unmoved(torch.nn.Module):
    """Undoes what `masked.Moved` does: who attacks past that one learns little."""

    def forward(self, x):
        return network()(x.roll((-2, -1), (2, 3)))


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("share", "turns"), [(0.0, []), (0.3, ["all together"])])
def test_what_is_masked_on_a_part_of_the_images_is_seen_together(share, turns, noise):
    """Square breaks images that the smeared gradient spares, and spares as many that the other one breaks: no mean tells."""
    purifier = hidden("share of the images", share)()
    context = replace(
        scene_of(
            Chain(members=(defend.load("gaussian:sigma=0.02"), purifier)) if noise else purifier,
            eps=0.12,
            n=175,
        ),
        network=Unmoved(),
    )
    if noise:
        context.budget = replace(
            context.budget,
            queries=300,
            curve=(20,),
            target_steps=5,
            eot=2,
            eot_most=2,
            spsa_steps=1,
            noises=1,
        )
    fought = [r for r in run.all_checks(context, {})[0] if r.weight == "attack"]
    assert [
        c.name for c in apply_holm([checked(r, ran(r, context)) for r in fought]) if c.turns
    ] == turns


@pytest.mark.parametrize(("sigma", "steps", "copies"), [(0, 90, 1), (1e-6, 90, 1), (0.3, 30, 3)])
def test_noise_that_decides_nothing_buys_no_shorter_search(sigma, steps, copies):
    """The same queries go into steps: whoever adds a millionth would else be asked a tenth as long."""
    context = scene_of(defend.load(f"gaussian:sigma={sigma}"))
    context.budget = replace(context.budget, queries=30, eot=3)
    assert rivals._search(context) == (steps, copies)


def test_both_arms_of_a_difference_see_the_same_draw():
    """Where they are the same image, nothing differs, whatever the purifier draws."""
    context = scene_of(defend.load("gaussian:sigma=0.3"))
    many = context.target(context.all).copies(3)
    assert (spsa._slope(many, context.x, context.y, 0.0, context.root.fork("u"), 3) == 0).all()
    assert (spsa._slope(many, context.x, context.y, 0.1, context.root.fork("u"), 3) != 0).any()


def test_a_surrogate_without_a_gradient_is_attacked_past_its_purifier():
    seen = look(
        "transfer",
        hidden("detached", 1.0)(),
        [(hidden("detached", 1.0)(), defend.load("convnet", "classifier", dataset="digits"))],
    )
    assert seen.turns and "its own gradient is zero" in seen.measured


def test_a_surrogate_that_can_be_attacked_in_no_way_was_not_tried():
    class Deaf(torch.nn.Module):
        def forward(self, x):
            return network()(x.detach())

    context = replace(
        scene_of(hidden("detached", 1.0)()), surrogates=[(defend.load("none"), Deaf())]
    )
    with pytest.raises(NotTried, match="zero gradient"):
        rivals._transfer(context)


@pytest.mark.parametrize(
    ("last", "left", "text"),
    [
        (0.1, 0.0, "0.0 %"),
        (0.3, 0.2, "<= 20.0 % (unconverged)"),
        (0.25, 0.2, "<= 20.0 % (unconverged)"),
    ],
)
def test_a_bound_under_zero_is_left_out(last, left, text):
    assert Declared(SimpleNamespace(accuracy=left), 1.0, curve=[(10, 0.6), (40, last)]).text == text


def test_the_learned_gradient_is_the_benchs_whatever_the_callers_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(bpda_network.RECIPE, "steps", 2)
    monkeypatch.setattr(
        run, "_checks", lambda context, _: ([], {"error": rivals._imitation(context)[1]})
    )
    monkeypatch.setattr(run, "estimate", lambda _: 0.0)
    common = {"eps": 0.2, "n": 16, "split": "val", "device": "cpu"}
    torch.set_num_threads(2)
    try:
        defend.audit("bitdepth:bits=4", "digits", "convnet", **common)
        made = [f.name for f in tmp_path.rglob("*.safetensors")]
        wanted = {
            "dataset": "digits",
            "classifiers": ["convnet"],
            "defenses": ["bitdepth:bits=4"],
            "attacks": ["fgsm"],
        }
        defend.bench(
            **wanted,
            knowledge=["adaptive"],
            gradients=["learned"],
            **common,
            out=tmp_path / "run",
            workers=1,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(made) == 1 and [f.name for f in (tmp_path / "defend" / "learned").glob("*")] == made


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(monkeypatch, tmp_path):
    """At once, as an error, and not as a sign of masking after the fit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(BadParameter, match=r"cannot be kept there.*XDG_CACHE_HOME"):
        defend.audit(
            "bitdepth:bits=4", "digits", "convnet", "standard", n=16, split="val", device="cpu"
        )


def test_what_a_spec_names_runs_as_in_the_bench():
    """A batch norm behind a convolution is folded into it."""
    network = prepare(
        "none",
        "digits",
        "convnet",
        "quick",
        n=16,
        split="val",
        eps=None,
        surrogates=(),
        seed=0,
        device="cpu",
        data_root=None,
    )[0].network
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
