"""The training of codecs: its losses, the attacks in it, its phases, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from train_toys import Killed

from defend.defenses.robust_codec import RobustCodec
from defend.defenses.robust_codec_attacks import (
    attack_by_n_fgsm,
    attack_by_steps,
    attack_reconstruction,
    classify_loss,
)
from defend.defenses.robust_codec_recipe import LAMBDAS, RobustCodecRecipe, kl, reconstruct
from defend.errors import BadParameter
from defend.loading import load
from defend.noise import Noise

TINY = {
    "weights": "untrained",
    "width": 16,
    "deep_width": 16,
    "latents": 4,
    "halvings": 1,
    "blocks": 1,
    "channels": 1,
    "group_norm": False,
}
QUICK = {"precision": "float32", "layout": "contiguous", "progress": False, "batch": 16}
CONVNET = "convnet:weights=convnet-digits"


def streams(n):
    return Noise.of(5, torch.arange(n))


@pytest.fixture(scope="module")
def digits():
    return load("digits", "dataset").rows("train", 0, 256)


@pytest.fixture
def purifier():
    return RobustCodec(**TINY, dataset="digits")


# The attacks.


def test_the_attack_on_a_linear_codec_enlarges_noise_by_its_largest_gain():
    """R enlarges one pixel ten times: nearly all of the noise goes there."""
    gain = torch.ones(1, 1, 4, 4)
    gain[0, 0, 1, 2] = 10
    x, tau = torch.full((5, 1, 4, 4), 0.5), 1e-4
    x_adv = attack_reconstruction(lambda t: gain * t, x, tau, 20, streams(5))
    noise = (x_adv - x).square().mean((1, 2, 3))
    shift = (gain * (x_adv - x)).square().mean((1, 2, 3))
    assert (noise <= tau * 1.001).all()
    assert (shift / noise).min() > 95
    random = attack_reconstruction(lambda t: gain * t, x, tau, 0, streams(5)) - x
    of_random = (gain * random).square().mean((1, 2, 3)) / random.square().mean((1, 2, 3))
    assert of_random.mean() < 50, "the start alone is no attack"


def linear_loss(weights):
    return lambda x: (weights * x).sum()


@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_n_fgsm_adds_a_step_of_eps_to_noise_of_twice_the_eps(eps):
    weights = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.full((64, 1, 8, 8), 0.5)
    step = attack_by_n_fgsm(linear_loss(weights), x, eps, streams(64)) - x
    without_sign = step - eps * weights.sign()
    assert without_sign.abs().max() <= 2 * eps + 1e-6
    assert without_sign.abs().max() > 1.9 * eps
    assert abs(float(without_sign.mean())) < 0.1 * eps


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_pgd_ends_at_the_corner_of_a_linear_loss(steps):
    weights = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x, eps = torch.full((4, 1, 8, 8), 0.5), 0.1
    x_adv = attack_by_steps(linear_loss(weights), x, eps, steps, streams(4), factor=2.5)
    torch.testing.assert_close(x_adv, x + eps * weights.sign())
    near_black = attack_by_steps(linear_loss(weights), torch.zeros_like(x), eps, 3, streams(4))
    assert near_black.min() >= 0


def test_several_classifiers_are_attacked_by_their_mean(digits):
    x, y = digits[0][:6], digits[1][:6]
    specs = (CONVNET, f"{CONVNET}-again")
    networks = [load(spec, "classifier").network for spec in specs]
    losses = [float(F.cross_entropy(net(x), y)) for net in networks]
    loss = classify_loss(lambda t: t, networks, y)
    assert float(loss(x)) == pytest.approx(sum(losses) / 2, rel=1e-5)


# The losses.


@pytest.mark.parametrize("options", [{"quality_level": 5}, {"tradeoff": 0.07}])
def test_the_plain_loss_is_lambda_times_the_error_in_grey_levels_plus_the_rate(
    options, purifier, digits
):
    recipe, x = RobustCodecRecipe(**options), digits[0][:8]
    loss = recipe.loss(recipe.trainee(purifier), x, digits[1][:8], streams(8))
    tradeoff = options.get("tradeoff", LAMBDAS[4])
    error = (255 * (purifier.purified(x) - x)).square().mean()
    torch.testing.assert_close(loss, tradeoff * error + purifier.rate(x).mean())


def test_images_of_another_size_than_the_multiple_are_trained_on_too(purifier):
    recipe, x = RobustCodecRecipe(), torch.rand(4, 1, 7, 9)
    loss = recipe.loss(recipe.trainee(purifier), x, torch.zeros(4).long(), streams(4))
    error = (255 * (purifier.purified(x) - x)).square().mean()
    torch.testing.assert_close(loss, LAMBDAS[2] * error + purifier.rate(x).mean())


@pytest.mark.parametrize("mix", [0.25, 0.5, 1.0])
def test_a_share_of_the_images_is_attacked_and_is_its_own_target(mix, purifier, digits):
    recipe = RobustCodecRecipe(adversarial=True, mix=mix, ramp=0.0, attack_steps=2)
    x = digits[0][:16]
    mixed = recipe._attack_some(purifier.net, x, recipe.threshold, streams(16))
    is_changed = (mixed != x).flatten(1).any(1)
    assert int(is_changed.sum()) == round(16 * mix)
    error = (mixed - x).square().mean((1, 2, 3))
    assert error.max() <= recipe.threshold * 1.001
    loss = recipe.loss(recipe.trainee(purifier), x, digits[1][:16], streams(16))
    plain = RobustCodecRecipe()._rate_distortion(purifier.net, mixed)
    torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize(("share", "part"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.9, 1.0)])
def test_the_threshold_rises_linearly(share, part, purifier, digits):
    recipe, x = RobustCodecRecipe(adversarial=True, mix=1.0, ramp=0.1), digits[0][:4]
    net, thresholds = recipe.trainee(purifier), []
    recipe._attack = lambda *args: thresholds.append(args[2]) or args[1]
    recipe.share = share
    recipe.loss(net, x, digits[1][:4], streams(4))
    assert thresholds == [pytest.approx(part * recipe.threshold)]


PHASES = [
    (0.05, "none", 0.0),
    (0.1, "n-fgsm", 0.0),
    (0.2, "n-fgsm", 0.5),
    (0.5, "n-fgsm", 1.0),
    (0.7, "pgd", 1.0),
]


@pytest.mark.parametrize(("share", "attack", "part"), PHASES)
def test_the_phases_follow_the_share_of_the_training(share, attack, part, purifier, digits):
    """Of N-FGSM a perturbation may leave the box and the ball of eps, of PGD neither."""
    options = {"plain": 0.1, "growth": 0.2, "one_step": 0.5}
    recipe = RobustCodecRecipe(against=CONVNET, eps=0.2, **options)
    net, (x, y) = recipe.trainee(purifier), (t[:32] for t in digits)
    recipe.share = share
    if attack == "none":
        plain = RobustCodecRecipe()._rate_distortion(purifier.net, x)
        torch.testing.assert_close(recipe.loss(net, x, y, streams(32)), plain)
        return
    change = recipe._attack_classifiers(net, x, y, streams(32)) - x
    largest = float(change.abs().max())
    if attack == "pgd":
        assert largest == pytest.approx(0.2, abs=1e-5)
        assert (x + change).min() >= 0
    else:
        assert largest <= 3 * part * 0.2 + 1e-6
        assert largest >= 2.5 * part * 0.2


def test_the_loss_against_a_classifier_is_that_of_attacked_images(purifier, digits):
    recipe = RobustCodecRecipe(against=CONVNET, plain=0.0, growth=0.0, one_step=0.0, eps=0.1)
    net, (x, y) = recipe.trainee(purifier), (t[:8] for t in digits)
    x_adv = recipe._attack_classifiers(net, x, y, streams(8).fork("start"))
    restored, bits = reconstruct(purifier.net, x_adv)
    logits = net["classifiers"][0](restored)
    expected = (
        F.cross_entropy(logits, y, label_smoothing=0.1)
        + 2.0 * (restored - x).square().mean()
        + 0.005 * bits.mean() / 64
    )
    torch.testing.assert_close(recipe.loss(net, x, y, streams(8)), expected)


def test_trades_is_the_clean_loss_and_the_divergence_of_the_attacked_ones(purifier, digits):
    options = {"plain": 0.0, "growth": 0.0, "one_step": 0.0, "eps": 0.1, "label_smoothing": 0.0}
    recipe = RobustCodecRecipe(against=CONVNET, trades=3.0, **options)
    net, (x, y) = recipe.trainee(purifier), (t[:8] for t in digits)
    x_adv = recipe._attack_classifiers(net, x, y, streams(8).fork("start"))
    restored, bits = reconstruct(purifier.net, x)
    clean, attacked = (net["classifiers"][0](purifier.purified(t)) for t in (x, x_adv))
    expected = (
        F.cross_entropy(clean, y)
        + 3.0 * kl(clean, attacked)
        + 2.0 * (restored - x).square().mean()
        + 0.005 * bits.mean() / 64
    )
    torch.testing.assert_close(recipe.loss(net, x, y, streams(8)), expected)


def test_the_divergence_is_that_of_two_coins():
    wanted, logits = (torch.tensor([p, 1 - p]).log()[None] for p in (0.9, 0.5))
    expected = 0.9 * torch.tensor(0.9 / 0.5).log() + 0.1 * torch.tensor(0.1 / 0.5).log()
    torch.testing.assert_close(kl(wanted, logits), expected)
    assert float(kl(wanted, wanted)) == 0


# Whole trainings.

STAGES = {
    "plain": ({}, "clean"),
    "adversarial": (
        {"adversarial": True, "attack_steps": 3},
        "adversarial(codec-distortion, MSE 0.0001)",
    ),
    "against": (
        {"against": CONVNET, "eps": 0.1, "restoration": 20.0},
        "adversarial(n-fgsm, pgd-3, Linf 0.1, convnet-digits)",
    ),
    "against by steps alone": (
        {"against": CONVNET, "eps": 0.1, "one_step": 0.0, "steps": 2, "restoration": 20.0},
        "adversarial(pgd-2, Linf 0.1, convnet-digits)",
    ),
}


@pytest.mark.parametrize(("options", "trained_on"), STAGES.values(), ids=STAGES)
def test_each_stage_learns_to_reconstruct(options, trained_on, purifier, digits):
    """The error falls below that of the mean image, which a code of constants could reach."""
    x, y = digits
    recipe = purifier.fit(
        x, y, val=(x[:16], y[:16]), epochs=6, lr=1e-2, quality_level=8, **QUICK, **options
    )
    error_of_mean = (x.mean(0) - x).square().mean()
    assert (purifier.purified(x) - x).square().mean() < 0.8 * error_of_mean
    assert str(purifier.trained_on[0]) == trained_on
    assert recipe.quality(purifier, x[:16], y[:16]).images == 16


def test_training_through_a_classifier_makes_it_read_attacked_images(purifier, digits):
    """Against a codec of the same size that was trained on clean images."""
    x, y = digits
    options = {"epochs": 15, "lr": 1e-2, **QUICK}
    trained = purifier.fit(x, y, against=CONVNET, eps=0.15, restoration=10.0, **options)
    plain = RobustCodec(**TINY, dataset="digits")
    plain.fit(x, quality_level=8, **options)
    robust, other = (trained.quality(p, x[:64], y[:64]).value for p in (purifier, plain))
    assert robust > other + 0.2


def test_after_a_training_through_two_classifiers_both_are_named(purifier, digits):
    both = f"{CONVNET}+{CONVNET}-again"
    purifier.fit(*digits, against=both, epochs=0.1, eps=0.1, **QUICK)
    names = list(purifier.trained_on[0].classifiers)
    assert sorted(names) == ["convnet-digits", "convnet-digits-again"]


def test_a_resumed_training_gives_the_weights_of_an_undisturbed_one(tmp_path, digits, monkeypatch):
    """Its phases are functions of the step, and its attacks of the seed and the step."""
    options = {"epochs": 2, "against": CONVNET, "eps": 0.1, **QUICK}
    resumed = {"resume": tmp_path / "r", "save_every": 0.0}
    whole, cut, again = (RobustCodec(**TINY, dataset="digits") for _ in range(3))
    whole.fit(*digits, **options)
    loss, calls = RobustCodecRecipe.loss, iter(range(10**6))

    def killed_loss(self, *args):
        if next(calls) == 20:
            raise Killed
        return loss(self, *args)

    monkeypatch.setattr(RobustCodecRecipe, "loss", killed_loss)
    with pytest.raises(Killed):
        cut.fit(*digits, **resumed, **options)
    monkeypatch.undo()
    again.fit(*digits, **resumed, **options)
    assert torch.equal(whole.purified(digits[0][:4]), again.purified(digits[0][:4]))


def test_squares_of_photographs_are_trained_on(purifier):
    photos = torch.rand(6, 1, 40, 48)
    purifier.fit(photos, crop=16, epochs=1, **QUICK | {"batch": 7})
    with pytest.raises(BadParameter, match=r"at least 64 x 64 pixels .* got 40 x 48"):
        RobustCodec(**TINY).fit(photos, crop=64, epochs=1, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality_level": 9}, "quality_level=9.*1 to 8"),
        ({"tradeoff": -1.0}, "tradeoff=-1"),
        ({"mix": 0.0}, "mix=0"),
        ({"threshold": 0.0}, "threshold=0"),
        ({"ramp": 2.0}, "ramp=2"),
        ({"plain": 0.5, "one_step": 0.6}, "one_step=0.6.*at most 1 - plain"),
        ({"eps": 0.0}, "eps=0"),
        ({"steps": 0}, "steps=0"),
        ({"trades": 1.0}, "trades=1.*without against"),
        ({"adversarial": True, "against": CONVNET}, "adversarial=True.*beside against"),
        ({"label_smoothing": 1.0}, "label_smoothing=1"),
        ({"crop": -1}, "crop=-1"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(BadParameter, match=message):
        RobustCodecRecipe(**options)


def test_a_classifier_needs_labels(purifier, digits):
    with pytest.raises(BadParameter, match="labels"):
        purifier.fit(digits[0], against=CONVNET, **QUICK)
