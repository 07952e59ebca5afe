"""Other attacks against the declared gradient's best: what each of them is made of."""

from dataclasses import replace

import torch
from audit_toys import digits, network, scene_of
from masked import card

from defend import Purifier
from defend.benchmarks.audit import rivals
from defend.benchmarks.audit.declared import attack_declared


class Mirroring(Purifier):
    """Turns pictures around; draws anything else towards the picture that it remembers."""

    card = card("surrogate")

    def purify(self, x, noise):
        levels, memory = x * 255, digits().rows("val", 0, 40)[0]
        picture = ((levels - levels.round()).abs().flatten(1).amax(1) < 1e-3).view(-1, 1, 1, 1)
        nearest = memory[torch.cdist(x.flatten(1), memory.flatten(1)).argmin(1)]
        return torch.where(picture, x, 0.2 * x + 0.8 * nearest).flip(-1)

    def surrogate(self, x, noise):
        return x.flip(-1)


class Mirrored(torch.nn.Module):
    """Reads in a mirror: whoever attacks it without the purifier learns little."""

    def forward(self, x):
        return network()(x.flip(-1))


def test_every_image_of_the_declared_attack_is_rounded():
    """None of its images breaks anything as it is; rounded half of them do, and hardly any oblivious one."""
    scene = replace(scene_of(Mirroring()), network=Mirrored(), eps=0.14)
    scene.plan = replace(scene.plan, curve=(10, 40), target_steps=5)
    best = attack_declared(scene).best
    assert best.accuracy == 1 and len(best.made) == 4
    seen = rivals._pictures(scene, best)
    assert seen.gap > 0.3 and seen.p < 0.001
