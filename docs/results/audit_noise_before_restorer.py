"""Audit Gaussian noise before a restorer, past both of which the identity is declared (BPDA).

    python docs/results/audit_noise_before_restorer.py quick
    python docs/results/audit_noise_before_restorer.py standard

Published purifiers of this kind are evaluated so, though autograd goes through them. The restorer
is split-vqvae-mnist-denoise, on the first 32 test images of MNIST before lenet at eps 0.3.
"""

from __future__ import annotations

import sys

import defend
from defend import Card, Noise, Purifier


class NoiseBeforeRestorer(Purifier):
    """Add Gaussian noise, and restore the image."""

    card = Card(paper="none: an evaluation past the purifier", gradient="identity", stochastic=True)
    sigma: float = 0.1

    def validate(self) -> None:
        weights = "split-vqvae-mnist-denoise"
        self.restorer = defend.load(f"split-vqvae:weights={weights}", dataset="mnist")

    def purify(self, x, noise: Noise):
        noisy = (x + self.sigma * noise.normal(x)).clamp(0, 1)
        return self.restorer.purified(noisy, noise.fork("restore"))


if __name__ == "__main__":
    report = defend.audit(
        NoiseBeforeRestorer(), "mnist", "lenet", sys.argv[1], n=32, eps=0.3, progress=True
    )
    print(report.headline)
    for check in report.checks:
        print(f"{check.verdict:10} {check.name}: {check.measured}")
    print(report.broke_most, report.reasons)
