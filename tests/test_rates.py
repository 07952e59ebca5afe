"""The rate of a codec, which a purifier says by a method beside `purify`."""

import pytest
import torch

from defend.benchmarks.purifier_checks import rate_of
from defend.defenses.bitdepth import BitDepth
from defend.errors import BrokenPurifier


class Coded(BitDepth):
    """A codec of as many bits as the sum of an image's first row, for this test."""

    max_batch: int = 3

    def rate(self, x):
        """Return bits per pixel (b,)."""
        return x[:, 0, 0].sum(1)


def test_a_rate_is_taken_in_batches_and_is_none_for_other_purifiers():
    x = torch.rand(7, 3, 8, 8)
    assert torch.allclose(rate_of(Coded(), x), x[:, 0, 0].sum(1))
    assert rate_of(BitDepth(), x) is None


RATES = {
    "values of shape \\(\\)": lambda _, x: x.mean(),
    "values of shape \\(3, 1\\)": lambda _, x: x[:, 0, 0, :1],
    "values that are not finite": lambda _, x: x.flatten(1).sum(1) / 0,
    "a float": lambda _, x: float(x.mean()),
}


@pytest.mark.parametrize("got", RATES)
def test_a_rate_of_another_shape_or_without_a_value_is_an_error(got):
    broken = type("Broken", (Coded,), {"__doc__": "broken", "rate": RATES[got]})()
    with pytest.raises(BrokenPurifier, match=rf"rate\(x\) expected .* \(3,\), got {got}"):
        rate_of(broken, torch.rand(7, 3, 8, 8))


def test_a_field_called_rate_is_no_codec():
    class Sampled(BitDepth):
        """A purifier with a setting of that name."""

        rate: float = 0.5

    assert rate_of(Sampled(), torch.rand(2, 3, 8, 8)) is None
