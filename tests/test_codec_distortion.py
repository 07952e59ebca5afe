"""The attack on codecs against a linear codec, whose worst perturbation is known."""

import pytest
import torch
from photographs import crops
from torch import nn

from defend.attacks.codec_distortion import CodecDistortion, scale_to_unit
from defend.attacks.pgd import PGD
from defend.defenses.none import NoDefense
from defend.distortion import ms_ssim, mse
from defend.errors import BadParameter, Mismatch
from defend.noise import Noise
from defend.norms import norm_of
from defend.purifier import Card, Purifier, straight_through
from defend.target import Target
from defend.tasks.registry import load_task

N, SHAPE, PIXELS = 3, (3, 6, 6), 108
TASK = load_task("reconstruction")
# Far from the box, so that it bounds nothing.
X = 0.4 + 0.2 * torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(N)


def linear_autoencoder(gains, seed=1):
    """Return the network A x = U diag(gains) V x of random orthogonal U, V, and the rows of V."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=generator))
    layer = nn.Linear(PIXELS, PIXELS, bias=False).requires_grad_(False)
    layer.weight.copy_(u @ torch.diag(gains) @ v)
    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, SHAPE)), v


GAINS = torch.linspace(4, 0.1, PIXELS) ** 2 / 16 * 5  # 5, 4.9, ... : a spectrum without a gap
GAINS[0] = 8.0
CODEC, V = linear_autoencoder(GAINS)


def target(network=CODEC, purifier=None, rows=ROWS, **options):
    noise = Noise.of(0, rows).fork("attack")
    return Target(network, purifier or NoDefense(), noise, task=TASK, **options)


def run(attack, eps=16 / 255, x=X, to=None, rows=ROWS):
    return attack.run(to or target(rows=rows), x, x, eps, Noise.of(0, rows).fork("start"))


def index(x_adv, network=CODEC, x=X):
    """Return the vulnerability index in dB: (n,)."""
    return 10 * (mse(network(x_adv), network(x)) / mse(x_adv, x)).log10()


def alignment(x_adv, direction, x=X):
    """Return |cos| of the perturbations and a direction: (n,)."""
    d = (x_adv - x).flatten(1)
    return (d @ direction).abs() / d.norm(dim=1) / direction.norm()


def test_the_worst_perturbation_is_the_first_singular_vector():
    """Of all perturbations of one MSE, V_1 is enlarged most: by 20 log10 s_1."""
    x_adv = run(CodecDistortion(steps=300), eps=0.3)
    assert alignment(x_adv, V[0]).min() > 0.97
    assert index(x_adv).min() > 20 * torch.tensor(8.0).log10() - 0.5
    assert index(x_adv).max() <= 20 * torch.tensor(8.0).log10() + 1e-3
    assert alignment(x_adv, V[1]).max() < 0.3


def test_pgd_in_l2_finds_it_too():
    """It climbs the error against the source, to which a large ball makes the codec's own small."""
    x_adv = run(PGD(norm="L2", steps=100, random_start=True), eps=1.0, x=torch.full_like(X, 0.5))
    gains = index(x_adv, x=torch.full_like(X, 0.5))
    assert gains.min() > 15


@pytest.mark.parametrize("threshold", [1e-5, 1e-4, 1e-3])
def test_the_noise_fills_the_threshold_and_stays_below_it(threshold):
    x_adv = run(CodecDistortion(steps=200, threshold=threshold, start=0.001), eps=0.5)
    noise = mse(x_adv, X)
    assert (noise <= threshold * (1 + 1e-5)).all()
    assert noise.min() > 0.5 * threshold


def test_ten_times_the_threshold_is_ten_times_the_error():
    """Before a linear codec the index does not depend on the size of the noise."""
    small, large = (
        run(CodecDistortion(steps=300, threshold=tau, start=1e-3), eps=0.9) for tau in (1e-5, 1e-4)
    )
    ratio = mse(CODEC(large), CODEC(X)) / mse(CODEC(small), CODEC(X))
    assert ratio.log10().tolist() == pytest.approx([1.0] * N, abs=0.1)
    assert index(small).tolist() == pytest.approx(index(large).tolist(), abs=1.0)


def test_where_eps_is_too_small_for_the_threshold_eps_bounds_it():
    x_adv = run(CodecDistortion(steps=100), eps=1 / 255)
    assert norm_of(x_adv - X, "Linf").max() <= 1 / 255 + 1e-6
    assert (mse(x_adv, X) < 1e-4).all()
    assert index(x_adv).min() > 10


@pytest.mark.parametrize("threshold", [1e-4, 1e-6])
def test_where_no_iterate_is_below_the_threshold_the_last_one_is_scaled_down_to_it(threshold):
    x_adv = run(CodecDistortion(steps=1, start=0.5, threshold=threshold), eps=1.0)
    assert mse(x_adv, X).tolist() == pytest.approx([threshold] * N, rel=1e-3)
    freely = run(CodecDistortion(steps=1, start=0.5, threshold=1.0), eps=1.0)
    assert mse(freely, X).min() > 1e-2, "the start alone is far above both thresholds"


@pytest.mark.parametrize("steps", [9, 10, 100])
def test_the_learning_rate_falls_after_each_third(steps):
    """With a gradient of one sign, Adam moves by the learning rate in every step."""
    attack, places = CodecDistortion(steps=steps, lr=1e-6, start=1e-9, threshold=1.0), []
    ramp = nn.Sequential(Scale(1.0))

    class Watched(Target):
        def gradient(self, x, y, loss):
            places.append(x[0, 0, 0, 0].double().item())
            _, losses, output = super().gradient(x, y, loss)
            return torch.ones_like(x), losses, output

    noise = Noise.of(0, ROWS).fork("attack")
    attack.run(
        Watched(ramp, NoDefense(), noise, task=TASK), X.double(), X.double(), 1.0, Noise.of(0, ROWS)
    )
    moves = torch.tensor(places, dtype=torch.float64).diff()
    thirds = [k * 3 // steps for k in range(steps - 1)]
    expected = torch.tensor([1e-6 * 0.33**third for third in thirds])
    assert torch.allclose(moves, expected.to(moves.dtype), rtol=0.05)


class Scale(nn.Module):
    """R(x) = a x."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return self.gain * x


@pytest.mark.parametrize("gain", [7.0, 1e-4])
def test_the_size_of_the_gradient_does_not_matter(gain):
    """Adam and signs are invariant: a codec that scales its output finds the same noise.

    1e-4 scales the gradient by 1e-8, as a photograph of 10^7 pixels does.
    """
    scaled = nn.Sequential(CODEC, Scale(gain))
    for attack in (
        CodecDistortion(steps=40, threshold=1.0),
        CodecDistortion(steps=20, optimiser="sign"),
    ):
        plain, other = run(attack), run(attack, to=target(scaled))
        assert torch.allclose(plain, other, atol=1e-4)


def test_one_step_is_a_step_and_not_its_start_alone():
    """The last iterate is measured too: from noise of 0.1 grey levels Adam moves by lr."""
    x_adv = run(CodecDistortion(steps=1, start=4e-4, threshold=1.0))
    moves = (x_adv - X).abs()
    assert moves.min() > 0.01 - 5e-4 and moves.max() < 0.01 + 5e-4
    assert (index(x_adv) > 10).all()


def test_the_last_iterate_is_returned_only_where_it_is_worst():
    """With a learning rate that leaves the ball of eps, the step ruins the direction."""
    attack = CodecDistortion(steps=30, lr=1e-3, threshold=1.0)
    good, spoilt = run(attack, eps=0.05), Spoilt(steps=30, lr=1e-3, threshold=1.0)
    kept = run(spoilt, eps=0.05)
    assert (mse(CODEC(kept), CODEC(X)) > 0.9 * mse(CODEC(good), CODEC(X))).all()


class Spoilt(CodecDistortion):
    """The same search, whose last iterate is the source itself."""

    def _within_tau(self, x, x_adv):
        return x


def test_the_sign_form_fills_the_ball_and_knows_no_threshold():
    x_adv = run(CodecDistortion(optimiser="sign", steps=40, threshold=1e-9), eps=0.05)
    d = (x_adv - X).abs()
    assert d.max() <= 0.05 + 1e-6 and (d > 0.049).float().mean() > 0.9
    w = (CODEC[1].weight @ torch.sign(V[0])).norm() ** 2 / PIXELS
    assert index(x_adv).min() > 10 * w.log10() - 3


def test_alone_and_in_a_batch_are_the_same():
    attack = CodecDistortion(steps=60)
    together = run(attack)
    for i in range(N):
        alone = run(attack, x=X[i : i + 1], rows=ROWS[i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_images_above_the_threshold_are_not_sent_through_the_codec():
    attack = CodecDistortion(steps=50, start=0.05)
    pipeline = target()
    run(attack, eps=1.0, to=pipeline)
    assert pipeline.counts["backwards"] < 50 * N
    once_at_either_end = 2 * N
    assert pipeline.counts["forwards"] == pipeline.counts["backwards"] + once_at_either_end


class Rounded(Purifier):
    """A codec that rounds to 32 levels, with a straight-through gradient."""

    card = Card(paper="none: for this test", gradient="approximate", stochastic=False)

    def purify(self, x, noise):
        return straight_through(x, (x * 31).round() / 31)


def test_the_papers_own_start_finds_nothing_before_a_codec_that_is_attacked_as_deployed():
    """The distortion has its minimum there, so that its gradient is zero for ever."""
    still = run(CodecDistortion(steps=30, start=0.0), to=target(nn.Identity(), Rounded()))
    assert torch.equal(still, X)
    moved = run(CodecDistortion(steps=30), to=target(nn.Identity(), Rounded()))
    assert (mse(moved, X) > 1e-5).all()


def test_ms_ssim_is_lowered_where_it_is_the_metric():
    x, box = crops(161, 161)[:1], nn.AvgPool2d(3, 1, 1)
    attack = CodecDistortion(steps=25, metric="ms-ssim")
    x_adv = run(attack, x=x, to=target(box, rows=ROWS[:1]), rows=ROWS[:1])
    noise = Noise.of(0, ROWS[:1]).fork("start").uniform(x) * 2 - 1
    at_random = x + noise * (mse(x_adv, x) / mse(x + noise, x)).sqrt()
    error, error_at_random = (1 - ms_ssim(box(v), box(x)) for v in (x_adv, at_random))
    assert error > 5 * error_at_random


def test_with_either_metric_the_search_comes_back_below_the_threshold():
    """1 - MS-SSIM has far larger gradients than the MSE of the noise, which must count alike.

    When Adam got them as they are, two of these steps were within the threshold.
    """
    x, box = crops(161, 161)[:1], nn.AvgPool2d(3, 1, 1)
    for metric in ("mse", "ms-ssim"):
        pipeline = target(box, rows=ROWS[:1])
        run(CodecDistortion(steps=40, metric=metric), x=x, to=pipeline, rows=ROWS[:1])
        assert pipeline.counts["backwards"] >= 12, metric


def test_a_gradient_is_scaled_by_its_root_mean_square():
    gradient = torch.tensor([[3.0, -4.0, 0.0, 0.0], [0, 0, 0, 0], [1e-12, 0, 0, 0]])
    scaled = scale_to_unit(gradient.view(3, 1, 2, 2)).flatten(1)
    expected = torch.tensor([[1.2, -1.6, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    torch.testing.assert_close(scaled, expected)


def test_small_images_have_one_metric():
    with pytest.raises(BadParameter, match="at least 161 pixels"):
        run(CodecDistortion(steps=2, metric="ms-ssim"))


def test_a_classifier_is_refused_with_the_task_to_type():
    classifier = Target(nn.Flatten(), NoDefense(), Noise.of(0, ROWS))
    with pytest.raises(Mismatch, match="run it with --task reconstruction"):
        run(CodecDistortion(steps=2), to=classifier)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("lr", 0.0), ("threshold", 0.0), ("start", -0.1)],
)
def test_fields_that_cannot_work_are_refused(field, value):
    with pytest.raises(BadParameter, match=field):
        CodecDistortion(**{field: value})
