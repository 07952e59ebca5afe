"""The null attack that stands beside the attacks on a stochastic purifier."""

import pytest
import torch

from defend.attacks.control import Control
from defend.noise import Noise


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_control_spends_its_budget_on_random_signs(norm):
    x = torch.full((6, 1, 8, 8), 0.5)
    noise = Noise.of(0, torch.arange(6))
    one, two = (
        Control(norm=norm, draw=k).run(None, x, None, 0.3, noise.again()) - x for k in (0, 1)
    )
    size = 0.3 if norm == "Linf" else 0.3 / 8
    assert torch.allclose(one.abs(), torch.full_like(x, size), atol=1e-6)
    agreement = (one.sign() == two.sign()).double().mean().item()
    assert abs(agreement - 0.5) < 0.1  # 384 signs
    assert torch.equal(Control(kind="clean").run(None, x, None, 0.3, noise), x)
