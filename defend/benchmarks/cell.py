"""A cell: one combination of everything that is evaluated. Its result is a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from defend.eps import Eps
from defend.tasks.registry import DEFAULT, load_task
from defend.tasks.task import Task
from defend.threat_models import THREAT_MODELS, Pipeline, ThreatModel, attacked_pipeline


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One data set, classifier, defense, attack, level, gradient, surrogate, eps and seed."""

    dataset: str
    classifier: str
    defense: str
    attack: str  # as typed
    bare_attack: str  # without its eps
    knowledge: str
    gradient: str | None
    surrogate: str | None
    norm: str
    eps: Eps
    n: int
    split: Literal["test", "val"]
    seed: int
    draws: int  # 1 for a deterministic defense
    eot: int  # 1 for a deterministic attacked pipeline
    protocol: str | None = None  # the protocol that asked for it
    task_spec: str = DEFAULT

    @property
    def task(self) -> Task:
        """Return what the attacker wants and what is measured; thresholds are not calibrated."""
        return load_task(self.task_spec)

    @property
    def threat_model(self) -> ThreatModel:
        """Return the row of the ladder."""
        return THREAT_MODELS[self.knowledge]

    @property
    def scored(self) -> Pipeline:
        """Return the pipeline whose accuracy is measured."""
        return Pipeline(classifier=self.classifier, defense=self.defense)

    @property
    def attacked(self) -> Pipeline:
        """Return the pipeline that the attacker attacks, as far as his knowledge goes."""
        scored = Pipeline(classifier=self.classifier, defense=self.defense, gradient=self.gradient)
        return attacked_pipeline(self.knowledge, scored, self.surrogate)
