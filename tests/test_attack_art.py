"""Attacks of ART on the same pipeline: what they see and restore, and which are refused."""

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

STOPS_EARLY = "ART leaves images alone once they are wrong"
LEAVES_PREDICTION = "ART moves away from the predicted class"


def select_checks(*names):
    """Return the checks of the attack kit with these names, without their prefix "check_"."""
    return [check for check in kit("attack") if check.__name__.removeprefix("check_") in names]


test_art_pgd = conformance_test(
    lambda: ArtAttack("ProjectedGradientDescent", max_iter=20, step=0.1), kit("attack")
)
test_art_fgm_l2 = conformance_test(
    lambda: ArtAttack("FastGradientMethod", norm="L2"), kit("attack")
)
test_art_square = conformance_test(
    lambda: ArtAttack("SquareAttack", access="scores", max_iter=20),
    select_checks(
        "stays_in_the_box",
        "needs_no_more_than_its_access",
        "counts_are_what_the_model_saw",
        "every_image_is_attacked_to_the_end",
    ),
    known={"check_every_image_is_attacked_to_the_end": STOPS_EARLY},
)
test_art_deepfool = conformance_test(
    lambda: ArtAttack("DeepFool", max_iter=20, batch_size=8),
    select_checks(
        "stays_in_the_box",
        "leaves_the_model_alone",
        "counts_are_what_the_model_saw",
        "moves_away_from_the_label",
    ),
    known={"check_moves_away_from_the_label": LEAVES_PREDICTION},
)

ROWS = torch.arange(24)
X = 0.25 + 0.5 * torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make_model(classes=4):
    torch.manual_seed(1)
    first, last = nn.Linear(192, 32), nn.Linear(32, classes)
    net = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last).requires_grad_(False)
    last.weight.mul_(4)
    return net


Y = make_model()(X).argmax(1)


class Recording(nn.Module):
    """The model, which keeps every batch that it is given."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(x.detach().clone())
        return make_model()(x)


class LabelsOnly(nn.Module):
    """The model, which gives no more than the predicted class."""

    def forward(self, x):
        return nn.functional.one_hot(make_model()(x).argmax(1), 4).float()


def make_target(purifier=None, model=None, **options):
    noise = Noise.of(0, ROWS).fork("attack")
    return Target(model or make_model(), purifier or NoDefense(), noise, **options)


def run(attack, target=None, eps=0.1, n=24, seed=0):
    """Attack the first n images; ART's searches by label take one image at a time."""
    target = (target or make_target()).take(ROWS[:n])
    return attack.run(target, X[:n], Y[:n], eps, Noise.of(seed, ROWS[:n]).fork("start"))


def accuracy(x_adv, purifier=None):
    logits = make_model()((purifier or NoDefense()).purified(x_adv))
    return (logits.argmax(1) == Y).float().mean().item()


def make_hopskipjump():
    return ArtAttack("HopSkipJump", access="labels", max_iter=2, max_eval=20, init_eval=5)


# What the attacks see


def test_hopskipjump_breaks_a_classifier_by_its_labels_alone():
    target = make_target()
    x_adv = run(make_hopskipjump(), target, eps=3.0, n=4)
    by_labels = run(make_hopskipjump(), make_target(model=LabelsOnly()), eps=3.0, n=4)
    assert torch.equal(x_adv, by_labels)
    assert (make_model()(x_adv).argmax(1) != Y[:4]).float().mean() >= 0.5
    assert not target.counts["backwards"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_step_of_art_is_our_fgsm_up_to_rounding(norm):
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
    ours = run(PGD(steps=10, random_start=False))
    arts = run(ArtAttack(name, max_iter=10, step=0.25))
    assert torch.allclose(ours, arts, atol=1e-5)


@pytest.mark.parametrize("backward", [None, identity], ids=["declared", "identity"])
def test_art_attacks_the_purifier_through_the_gradient_of_the_target(backward):
    purifier = BitDepth(bits=3)
    attack = ArtAttack("ProjectedGradientDescent", max_iter=10, step=0.25)
    x_adv = run(attack, make_target(purifier, backward=backward))
    assert accuracy(x_adv, purifier) < 0.3 * accuracy(X, purifier)


def test_art_cannot_attack_through_a_gradient_of_zero():
    purifier = BitDepth(bits=3)
    attack = ArtAttack("ProjectedGradientDescent", max_iter=10, step=0.25)
    x_adv = run(attack, make_target(purifier, backward=torch.zeros_like))
    at_random = (x_adv - X).abs().amax((1, 2, 3))  # in place of the clean image
    assert accuracy(x_adv, purifier) > 0.8 * accuracy(X, purifier) and (at_random > 0).all()


def test_gradients_are_means_over_copies():
    target = make_target(GaussianNoise(sigma=0.1), eot=5)
    run(ArtAttack("FastGradientMethod"), target)
    # One further forward pass tells the number of classes.
    assert target.counts == {"forwards": 1 + 24 * 5, "backwards": 24 * 5}


def test_queries_are_single_draws():
    target = make_target(GaussianNoise(sigma=0.1), eot=5)
    run(ArtAttack("SquareAttack", access="scores", max_iter=1), target)
    assert 0 < target.counts["forwards"] < 24 * 10 and not target.counts["backwards"]


# Random numbers


def test_each_call_draws_afresh_and_the_same_seed_repeats_the_draws():
    def record_noise():
        model = Recording()
        target = make_target(GaussianNoise(sigma=0.1), model=model)
        run(ArtAttack("ProjectedGradientDescent", max_iter=3), target, eps=1e-9)
        return torch.stack([batch for batch in model.batches if len(batch) == 24]) - X

    noise = record_noise()
    correlation = torch.corrcoef(noise.flatten(1))
    assert (correlation - torch.eye(len(correlation))).abs().max() < 0.1
    assert noise.std() > 0.05
    assert torch.equal(record_noise(), noise)


def global_random_state():
    return (
        torch.get_rng_state().tolist(),
        repr(np.random.get_state()),
        random.getstate(),
        np.random.RandomState,
    )


def test_global_generators_and_numpy_are_restored_even_after_an_error():
    before = global_random_state()
    run(make_hopskipjump(), n=1)
    with pytest.raises(BadParameter, match="access=gradient"):
        run(ArtAttack("UniversalPerturbation", access="scores", attacker="fgsm"))
    assert global_random_state() == before


def test_the_seed_decides_where_art_would_draw_fresh_entropy():
    first, repeated, other = (run(make_hopskipjump(), eps=2.0, n=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, repeated) and not torch.equal(first, other)


# Norms, fields and refusals


def test_a_minimal_norm_attack_gains_nothing_beyond_eps():
    attack = ArtAttack("DeepFool", max_iter=20, batch_size=24)
    small, large = run(attack, eps=0.05), run(attack, eps=5.0)
    assert norm_of(small - X, "L2").max() <= 0.05 + 1e-5
    assert accuracy(small) > accuracy(large)


@pytest.mark.parametrize(
    ("name", "access", "norm"),
    [
        ("ProjectedGradientDescent", None, "Linf"),
        ("HopSkipJump", "labels", "L2"),
        ("DeepFool", None, "L2"),
        ("CarliniLInfMethod", None, "Linf"),
    ],
)
def test_the_norm_is_arts_default_unless_it_is_set(name, access, norm):
    assert ArtAttack(name, access=access).norm == norm
    assert ArtAttack(name, access=access, norm="L2").norm == "L2"


def test_fields_are_arts_parameters_and_the_settings_hold_all_in_force():
    spec = "art:name=ProjectedGradientDescent,max_iter=40,eps_step=2/255"
    attack = defend.load(spec, kind="attack")
    expected = {"max_iter": 40, "eps_step": 2 / 255, "num_random_init": 0}
    assert attack.settings | expected == attack.settings
    assert not {"eps", "verbose", "targeted", "estimator"} & attack.settings.keys()
    assert attack.card.access == "gradient" and not attack.card.per_image


def test_step_replaces_eps_step_in_the_settings():
    attack = defend.load("art:name=ProjectedGradientDescent,step=1/16", kind="attack")
    assert attack.settings["step"] == 1 / 16 and "eps_step" not in attack.settings


REFUSED = {  # spec -> error class, and what the message names
    "art:name=PGD": (UnknownName, "evasion attack of ART, got 'PGD'"),
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
    "art:name=PoisoningAttackBackdoor": (UnknownName, "evasion attack of ART"),
    "art:max_iter=3": (BadParameter, "name"),
}


@pytest.mark.parametrize("spec", REFUSED)
def test_an_attack_that_cannot_run_is_refused_in_one_line_with_the_reason(spec):
    error, reason = REFUSED[spec]
    with pytest.raises(error, match=reason) as caught:
        defend.load(spec, kind="attack")
    assert "\n" not in str(caught.value)


def test_an_attack_that_fails_inside_art_names_itself():
    class Broken(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise ValueError("no such weather")
            return make_model()(x)

    pattern = "art:name=ProjectedGradientDescent: ValueError: no such weather"
    with pytest.raises(BrokenAttack, match=pattern):
        run(ArtAttack("ProjectedGradientDescent"), make_target(model=Broken()))


@pytest.mark.gpu
def test_art_runs_on_the_gpu_of_the_target():
    rows, x, y = ROWS.cuda(), X.cuda(), Y.cuda()
    noise = Noise.of(0, rows)
    target = Target(make_model().cuda(), GaussianNoise(sigma=0.01), noise.fork("attack"), eot=2)
    x_adv = ArtAttack("ProjectedGradientDescent", max_iter=5).run(target, x, y, 0.1, noise)
    assert x_adv.is_cuda and norm_of(x_adv - x, "Linf").max() <= 0.1 + 1e-6
    assert (target.logits(x_adv).argmax(1) != y).any()
