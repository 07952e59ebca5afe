"""On a GPU, attacks do not synchronise inside their loops."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import defend
from defend.attacks import pgd as pgd_module
from defend.attacks.cycle_detection import CycleDetector
from defend.attacks.pgd import PGD
from defend.defenses.gaussian import GaussianNoise
from defend.defenses.none import NoDefense
from defend.noise import Noise
from defend.target import Target

SPECS = [
    "fgsm",
    "fgsm:norm=L2",
    "pgd",
    "pgd:norm=L2,restarts=2",
    "apgd:steps=30",
    "apgd:loss=dlr-targeted,norm=L2,steps=30",
    "fab:steps=5",
    "square:queries=60",
    "square:queries=60,norm=L2",
]


def make_inputs(n, is_noisy=False, **options):
    """Return a target, images, labels and the noise of an attack, all on the GPU."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    model = layers.requires_grad_(False).cuda()
    rows = torch.arange(n, device="cuda")
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)).cuda()
    purifier = GaussianNoise(sigma=0.1) if is_noisy else NoDefense()
    target = Target(model, purifier, Noise.of(0, rows).fork("attack"), **options)
    return target, x, rows % 10, Noise.of(0, rows).fork("start")


@contextmanager
def forbidden_synchronisation():
    """Raise an error at every operation that waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("is_noisy", [False, True])
def test_no_attack_waits_for_the_gpu(monkeypatch, spec, is_noisy):
    # PGD looks for cycles as often as it repacks, and these checks do wait.
    monkeypatch.setattr(pgd_module, "REPACK_INTERVAL", 1000)
    attack = defend.load(spec, "attack")
    target, x, y, noise = make_inputs(64, eot=3, is_noisy=is_noisy)
    attack.run(target, x, y, 0.1, noise.again())  # libraries wait once, when they are first used
    with forbidden_synchronisation():
        x_adv = attack.run(target, x, y, 0.1, noise.again())
    assert x_adv.is_cuda


@pytest.mark.gpu
def test_pgd_does_not_wait_for_the_gpu_between_repackings():
    target, x, y, _ = make_inputs(64, scored=True)
    attack = PGD()
    attack._run_block(target, x, y, 0.1, x, range(5), CycleDetector(x, 20))
    with forbidden_synchronisation():
        x_adv, _ = attack._run_block(target, x, y, 0.1, x, range(5), CycleDetector(x, 20))
    assert x_adv.is_cuda
