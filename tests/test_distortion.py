"""MSE, PSNR and MS-SSIM against closed forms and a plain implementation."""

import numpy as np
import pytest
import torch
from photographs import crops, random_like
from scipy.ndimage import convolve1d

from defend.distortion import MIN_SIDE, WEIGHTS, ms_ssim, mse, psnr
from defend.errors import BadParameter

X = crops(MIN_SIDE + 15, MIN_SIDE + 31).double()
NOISY = (X + 0.05 * random_like(X)).clamp(0, 1)


@pytest.mark.parametrize("shift", [0.1, 0.01, 1e-3])
def test_a_constant_shift_has_the_error_of_its_square(shift):
    grey = torch.full((2, 3, 9, 7), 0.5)
    assert mse(grey + shift, grey) == pytest.approx(torch.full((2,), shift**2), rel=1e-3)
    expected = -20 * np.log10(shift)
    assert psnr(grey + shift, grey).numpy() == pytest.approx([expected] * 2, abs=1e-3)


def test_psnr_falls_by_twenty_decibels_when_the_error_is_ten_times_as_large():
    error = random_like(X)
    difference = psnr(X + 1e-3 * error, X) - psnr(X + 1e-2 * error, X)
    assert difference.numpy() == pytest.approx([20, 20], abs=1e-9)


def test_no_error_is_a_hundred_decibels_and_not_infinite():
    assert psnr(X, X).tolist() == [100, 100]


def window_means(x):
    """Return Gaussian means of one channel (h, w), where the window of 11 pixels fits."""
    places = np.arange(11) - 5
    weights = np.exp(-(places**2) / (2 * 1.5**2))
    for axis in (0, 1):
        x = convolve1d(x, weights / weights.sum(), axis, mode="constant")
    return x[5:-5, 5:-5]


def plain_ms_ssim(a, b):
    """Return eq. (7) of Wang, Simoncelli, Bovik (2003) of one channel of even sides."""
    value = 1.0
    for scale, weight in enumerate(WEIGHTS):
        mu_a, mu_b = window_means(a), window_means(b)
        var_a, var_b = window_means(a**2) - mu_a**2, window_means(b**2) - mu_b**2
        cov = window_means(a * b) - mu_a * mu_b
        term = (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)
        if scale == len(WEIGHTS) - 1:
            term = term * (2 * mu_a * mu_b + 0.01**2) / (mu_a**2 + mu_b**2 + 0.01**2)
        value *= term.mean() ** weight
        if scale < len(WEIGHTS) - 1:
            a, b = (v.reshape(v.shape[0] // 2, 2, -1, 2).mean((1, 3)) for v in (a, b))
    return value


def test_ms_ssim_is_that_of_a_plain_implementation():
    a, b = X[..., :176, :192], NOISY[..., :176, :192]
    pairs = zip(a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy(), strict=True)
    expected = np.array([plain_ms_ssim(*pair) for pair in pairs]).reshape(2, 3).mean(1)
    assert ms_ssim(a, b).numpy() == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_is_one_for_equal_images_symmetric_and_falls_with_noise():
    assert ms_ssim(X, X).numpy() == pytest.approx([1, 1], abs=1e-9)
    assert ms_ssim(X, NOISY).numpy() == pytest.approx(ms_ssim(NOISY, X).numpy(), abs=1e-9)
    noisier = (X + 0.2 * random_like(X)).clamp(0, 1)
    assert (ms_ssim(X, noisier) < ms_ssim(X, NOISY)).all()
    assert (ms_ssim(X, NOISY) < 0.999).all()


def test_ms_ssim_has_a_gradient_and_takes_odd_sides():
    x = NOISY[..., :161, :163].clone().requires_grad_()
    gradient = torch.autograd.grad(ms_ssim(x, X[..., :161, :163]).sum(), x)[0]
    assert gradient.isfinite().all() and gradient.abs().amax() > 0


def test_small_images_have_no_ms_ssim():
    with pytest.raises(BadParameter, match=r"at least 161 pixels .* got 160; use metric=mse"):
        ms_ssim(X[..., :160, :], X[..., :160, :])
