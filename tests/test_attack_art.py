"""Attacks of ART against the same pipeline: what they may see, what they leave alone, and what is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import defend
from defend.attacks.art import ArtAttack
from defend.attacks.fgsm import FGSM
from defend.attacks.pgd import PGD
from defend.defenses.bitdepth import BitDepth
from defend.defenses.gaussian import GaussianNoise
from defend.defenses.none import NoDefense
from defend.errors import BadParameter, BrokenAttack, UnknownName
from defend.noise import Noise
from defend.norms import norm_of
from defend.purifier import identity
from defend.target import Target
from defend.testing import conformance_test
from defend.testing.runner import kit

DROPS = "ART leaves images alone once they are wrong"
FROM_THE_PREDICTION = "ART moves away from the predicted class"


def checks(*names):
    return [c for c in kit("attack") if not names or c.__name__.removeprefix("check_") in names]


test_art_pgd = conformance_test(
    lambda: ArtAttack("ProjectedGradientDescent", max_iter=20, step=0.1), checks()
)
test_art_fgm_l2 = conformance_test(lambda: ArtAttack("FastGradientMethod", norm="L2"), checks())
test_art_square = conformance_test(
    lambda: ArtAttack("SquareAttack", access="scores", max_iter=20),
    checks(
        "stays_in_the_box",
        "needs_no_more_than_its_access",
        "counts_are_what_the_model_saw",
        "every_image_is_attacked_to_the_end",
    ),
    known={"check_every_image_is_attacked_to_the_end": DROPS},
)
test_art_deepfool = conformance_test(
    lambda: ArtAttack("DeepFool", max_iter=20, batch_size=8),
    checks(
        "stays_in_the_box",
        "leaves_the_model_alone",
        "counts_are_what_the_model_saw",
        "moves_away_from_the_label",
    ),
    known={"check_moves_away_from_the_label": FROM_THE_PREDICTION},
)

ROWS = torch.arange(24)
X = 0.25 + 0.5 * torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def model(classes=4):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, classes)
    ).requires_grad_(False)
    net[3].weight.mul_(4)
    return net


Y = model()(X).argmax(1)


def target(purifier=None, **kw):
    return Target(
        kw.pop("model", None) or model(),
        purifier or NoDefense(),
        Noise.of(0, ROWS).fork("attack"),
        **kw,
    )


def run(attack, t=None, eps=0.1, n=24, seed=0):
    """On the first n images: ART's searches by label take an image at a time."""
    return attack.run(
        (t or target()).take(ROWS[:n]), X[:n], Y[:n], eps, Noise.of(seed, ROWS[:n]).fork("start")
    )


def right(x_adv, purifier=None):
    return (model()((purifier or NoDefense()).purified(x_adv)).argmax(1) == Y).float().mean().item()


def hopskipjump(**more):
    return ArtAttack("HopSkipJump", access="labels", max_iter=2, max_eval=20, init_eval=5, **more)


def test_hopskipjump_breaks_a_classifier_by_its_labels_alone():
    class Labels(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(model()(x).argmax(1), 4).float()

    t = target()
    adv = run(hopskipjump(), t, eps=3.0, n=4)
    assert torch.equal(adv, run(hopskipjump(), target(model=Labels()), eps=3.0, n=4))
    assert (model()(adv).argmax(1) != Y[:4]).float().mean() >= 0.5 and not t.counts["backwards"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_step_of_art_is_our_fgsm_bit_for_bit_up_to_rounding(norm):
    ours, arts = run(FGSM(norm=norm)), run(ArtAttack("FastGradientMethod", norm=norm))
    assert torch.allclose(ours, arts, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "ProjectedGradientDescent",
        "ProjectedGradientDescentPyTorch",
        "ProjectedGradientDescentNumpy",
    ],
)
def test_many_steps_of_art_are_our_pgd(name):
    ours, arts = (
        run(PGD(steps=10, random_start=False)),
        run(ArtAttack(name, max_iter=10, step=0.25)),
    )
    assert torch.allclose(ours, arts, atol=1e-5)


def test_art_attacks_the_purifier_through_the_gradient_it_is_given():
    deaf = BitDepth(bits=3)
    attack = ArtAttack("ProjectedGradientDescent", max_iter=10, step=0.25)
    through, past = run(attack, target(deaf)), run(attack, target(deaf, backward=identity))
    assert right(through, deaf) < 0.3 * right(X, deaf) and right(past, deaf) < 0.3 * right(X, deaf)
    assert not right(run(attack, target(deaf, backward=torch.zeros_like)), deaf) < right(
        X, deaf
    )  # no gradient, no attack


def test_gradients_are_means_over_copies_and_queries_are_single_draws():
    t = target(GaussianNoise(sigma=0.1), eot=5)
    run(ArtAttack("FastGradientMethod"), t)
    assert t.counts == {
        "forwards": 1 + 24 * 5,
        "backwards": 24 * 5,
    }  # one forward tells the number of classes
    run(ArtAttack("SquareAttack", access="scores", max_iter=1), t.again())
    assert 0 < t.counts["forwards"] < 24 * 10 and not t.counts["backwards"]


def test_each_call_draws_afresh_and_the_same_seed_repeats_them():
    seen = []

    class CheckResult(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return model()(x)

    def drawn():
        seen.clear()
        run(
            ArtAttack("ProjectedGradientDescent", max_iter=3),
            target(GaussianNoise(sigma=0.1), model=CheckResult()),
            eps=1e-9,
        )
        return torch.stack([x for x in seen if len(x) == 24])

    noise = drawn() - X
    flat = torch.corrcoef(noise.flatten(1))
    assert (flat - torch.eye(len(flat))).abs().max() < 0.1 and noise.std() > 0.05
    assert torch.equal(drawn() - X, noise)


def test_global_generators_and_numpy_are_put_back_even_after_an_error():
    def state():
        return (
            torch.get_rng_state().tolist(),
            repr(np.random.get_state()),
            random.getstate(),
            np.random.RandomState,
        )

    before = state()
    run(hopskipjump(), n=1)
    with pytest.raises(BadParameter, match="access=gradient"):
        run(ArtAttack("UniversalPerturbation", access="scores", attacker="fgsm"))
    assert state() == before


def test_another_seed_gives_another_result_where_art_would_draw_fresh_entropy():
    once, again, other = (run(hopskipjump(), eps=2.0, n=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_what_a_minimal_norm_attack_finds_beyond_eps_does_not_count():
    far = ArtAttack("DeepFool", max_iter=20, batch_size=24)
    near, beyond = run(far, eps=0.05), run(far, eps=5.0)
    assert norm_of(near - X, "L2").max() <= 0.05 + 1e-5 and right(near) > right(beyond)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("ProjectedGradientDescent", "Linf"),
        ("HopSkipJump", "L2"),
        ("DeepFool", "L2"),
        ("CarliniLInfMethod", "Linf"),
    ],
)
def test_the_norm_is_arts_own_unless_it_is_given(name, norm):
    assert ArtAttack(name, access="labels" if name == "HopSkipJump" else None).norm == norm
    assert (
        ArtAttack(name, access="labels" if name == "HopSkipJump" else None, norm="L2").norm == "L2"
    )


def test_fields_are_arts_parameters_and_the_record_holds_all_in_force():
    attack = defend.load(
        "art:name=ProjectedGradientDescent,max_iter=40,eps_step=2/255", kind="attack"
    )
    assert (
        attack.settings["max_iter"] == 40
        and attack.settings["eps_step"] == 2 / 255
        and attack.settings["num_random_init"] == 0
    )
    stepped = defend.load("art:name=ProjectedGradientDescent,step=1/16", kind="attack")
    assert stepped.settings["step"] == 1 / 16 and "eps_step" not in stepped.settings
    assert not {"eps", "verbose", "targeted", "estimator"} & attack.settings.keys()
    assert attack.card.access == "gradient" and not attack.card.per_image


REFUSED = {
    "art:name=PGD": (UnknownName, "no evasion attack of ART"),
    "art:name=SquareAtack,access=scores": (UnknownName, "Did you mean SquareAttack"),
    "art:name=SquareAttack": (BadParameter, "access=scores"),
    "art:name=SquareAttack,access=all": (BadParameter, "access=scores"),
    "art:name=ProjectedGradientDescent,access=scores": (BadParameter, "needs gradients"),
    "art:name=ProjectedGradientDescent,max_itr=3": (BadParameter, "max_iter"),
    "art:name=ProjectedGradientDescent,max_iter=many": (BadParameter, "whole number"),
    "art:name=ProjectedGradientDescent,max_iter=-1": (BadParameter, "nonnegative"),
    "art:name=ProjectedGradientDescent,norm=L1": (BadParameter, "Linf or L2"),
    "art:name=ProjectedGradientDescent,targeted=true": (BadParameter, "targeted"),
    "art:name=AdversarialPatchPyTorch": (BadParameter, "patch"),
    "art:name=ImperceptibleASRPyTorch": (BadParameter, "SpeechRecognizer"),
    "art:name=DecisionTreeAttack": (BadParameter, "DecisionTree"),
    "art:name=DPatch": (BadParameter, "ObjectDetector"),
    "art:name=ProjectedGradientDescentTensorFlowV2": (BadParameter, "TensorFlow"),
    "art:name=SpatialTransformation,access=scores": (BadParameter, "eps ball"),
    "art:name=PoisoningAttackBackdoor": (UnknownName, "no evasion attack"),
    "art:max_iter=3": (BadParameter, "name"),
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_line_with_the_reason(spec):
    kind, reason = REFUSED[spec]
    with pytest.raises(kind, match=reason) as caught:
        defend.load(spec, kind="attack")
    assert "\n" not in str(caught.value)


def test_an_attack_that_fails_inside_art_names_itself():
    class Broken(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise ValueError("no such weather")
            return model()(x)

    with pytest.raises(
        BrokenAttack, match="art:name=ProjectedGradientDescent: ValueError: no such weather"
    ):
        run(ArtAttack("ProjectedGradientDescent"), target(model=Broken()))


@pytest.mark.gpu
def test_art_runs_on_the_gpu_of_the_target():
    rows, x, y = ROWS.cuda(), X.cuda(), Y.cuda()
    t = Target(model().cuda(), GaussianNoise(sigma=0.01), Noise.of(0, rows).fork("attack"), eot=2)
    adv = ArtAttack("ProjectedGradientDescent", max_iter=5).run(t, x, y, 0.1, Noise.of(0, rows))
    assert (
        adv.is_cuda
        and norm_of(adv - x, "Linf").max() <= 0.1 + 1e-6
        and (t.logits(adv).argmax(1) != y).any()
    )
