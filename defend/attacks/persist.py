"""A search that goes on, by other gradients, losses and starts, until nothing more breaks."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.persistent_rounds import PersistentRounds, RoundSettings
from defend.losses import whole_labels
from defend.noise import Noise
from defend.target import Target


class Persist(Attack):
    """Attack in rounds, each with many means, the images that still stand, until nothing falls.

    A round climbs the margin, the cross entropy and the DLR loss (`apgd_ascent`) through each
    gradient of `usable_paths` (declared, relaxed at several temperatures, identity, plain
    autograd). One loss starts at a random point, one at the best point so far, one at a point that
    breaks the bare classifier; each round, they change places. Then, for each image, through the
    two gradients that brought its margin lowest from starts which are not its best point: ascents
    on z_t - z_y towards its likeliest wrong classes t. Then through the first of them, averaged
    over random points nearby. Then Square from its best point. A best point that an earlier round
    has found is moved by up to eps / 4 before it is climbed from again.

    The best point of an image is that of the smallest margin on the target itself, whatever
    gradient led there. Behind noise it is the one that is wrong in more draws, in two comparisons
    on equal draws, which no score uses.

    The search ends after `idle_rounds` successive rounds that each lower the accuracy by less than
    `gain`, or after `rounds`. An image is left alone once it is broken only if the target may drop
    it, as no target with noise may. Behind noise, the accuracy is measured over 20 draws that
    choose nothing, the same after each round, and an image counts as broken when all are wrong.

    The notes say for each image in which round it was broken, by which `Move`, the accuracy after
    each round, how many rounds were made, and why they ended. The rounds depend on the whole batch,
    so that an image's result does, too.
    """

    card = AttackCard(
        paper="none: this project's own",
        access="gradient",
        norms=("Linf", "L2"),
        per_image=False,
        chooses_gradients=True,
    )
    gradients: Literal["every", "declared"] = "every"  # through which it differentiates
    steps: int = 100  # of each ascent
    targets: int = 9  # wrong classes of each image, at most
    queries: int = 500  # of Square in each round
    rounds: int = 20  # at most
    idle_rounds: int = 2
    gain: float = 0.005  # by how much a round must lower the accuracy in order not to be idle

    def validate(self) -> None:
        for field in ("steps", "targets", "rounds", "idle_rounds"):
            self.require(getattr(self, field) >= 1, field, ">= 1")
        self.require(self.queries >= 0, "queries", ">= 0; 0 leaves Square out")
        self.require(0 <= self.gain <= 1, "gain", "0 to 1, a share of the images")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        rounds = PersistentRounds.begin(
            self._settings(eps), target, x, whole_labels(y), noise, self.gradients == "every"
        )
        state_file = target.state_file(eps) if target.state_file else None
        if state_file:
            rounds.go_on_from(state_file.read())
        while not rounds.is_over():
            rounds.run_round()
            if state_file:
                state_file.write(rounds.state())
        rounds.write_notes()
        return rounds.worst.x_adv

    def _settings(self, eps: float) -> RoundSettings:
        return RoundSettings(
            norm=self.norm,
            eps=eps,
            steps=self.steps,
            targets=self.targets,
            queries=self.queries,
            rounds=self.rounds,
            idle_rounds=self.idle_rounds,
            gain=self.gain,
        )
