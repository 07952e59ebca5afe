"""The output of each defense on two fixed images: its fingerprint, and the values on record.

A fingerprint is five weighted sums over all pixels. Unlike a hash it tolerates rounding, and it
still changes when one pixel moves by one grey level. `python tests/known_answers.py` prints the
table anew.
"""

import torch

from defend.loading import load
from defend.noise import Noise

ROWS = torch.arange(2)
TOLERANCE = 2e-3  # half a grey level of one pixel; rounding stays below a tenth of it
GOLDEN_SECTION = 0.618034  # spreads the weights of neighbouring pixels

FINGERPRINTS = {
    "none": [1667.0172, 9.6977, 2.735, 1.6892, 3.396],
    "bitdepth:bits=3": [1670.4286, 8.2386, 3.9178, 2.7479, 4.4185],
    "gaussian:sigma=0.1": [1668.7216, 12.1151, 2.7461, 0.7113, 9.9552],
    "median:size=2": [1787.768, 7.4804, 0.8693, 4.8618, 3.4554],
    "median:size=3": [1667.3286, 11.3146, 0.9771, 0.4697, 0.9602],
    "jpeg:quality=75": [1664.8628, 9.0407, 2.1923, 1.0457, 0.6915],
    'jpeg:quality=20,subsampling="4:4:4"': [1658.8118, 2.5209, 0.2644, -2.3371, 2.4443],
    "tvm": [1669.1438, 15.9608, 2.8917, 0.7606, 1.2829],
    "tvm:keep=1,weight=0.1": [1667.0145, 9.5, 2.6146, 1.2509, 1.4759],
    "art:name=SpatialSmoothing,window_size=3": [1667.3286, 11.3146, 0.9771, 0.4697, 0.9602],
    "bitdepth:bits=3+gaussian": [1669.1833, 13.0846, 6.6227, -0.2058, 1.8069],
    "jpeg+median": [1666.6157, 8.9445, 2.0706, 0.2081, 1.7354],
}
WAVES = ((0.3, 0.2), (0.1, 0.5), (0.7, 0.1), (0.2, 0.9), (0.5, 0.5), (1.1, 0.3))


def make_images():
    """Return waves, an edge and noise, (2, 3, 24, 20). They are the same on every machine."""
    i, j = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    wave = torch.stack([(i * a + j * b).sin() for a, b in WAVES]).view(2, 3, 24, 20)
    grain = Noise.of(7, ROWS).uniform(wave)
    return (0.5 + 0.25 * wave + 0.15 * (i > 2 * j - 8) + 0.2 * (grain - 0.5)).clamp(0, 1)


def fingerprint(spec):
    """Return the five weighted sums of the purified images."""
    y = load(spec).purified(make_images(), Noise.of(0, ROWS)).double().flatten()
    position = torch.arange(len(y), dtype=torch.float64)
    sums = [(y * (k * position * GOLDEN_SECTION).cos()).sum().item() for k in range(5)]
    return [round(value, 4) for value in sums]


if __name__ == "__main__":
    for spec in FINGERPRINTS:
        print(f"    {spec!r}: {fingerprint(spec)},")
