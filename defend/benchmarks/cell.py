"""A cell: what one record is of."""

from __future__ import annotations

from dataclasses import dataclass

from defend.benchmarks.suite import Eps
from defend.spec import parse

NO_DEFENSE = "none"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A classifier behind a defense, both as specs; `gradient` is how an attacker differentiates the defense."""

    classifier: str
    defense: str = NO_DEFENSE
    gradient: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
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
    split: str
    seed: int
    draws: int  # 1 where the defense is deterministic
    eot: int  # 1 where the attacked pipeline is deterministic
    protocol: str | None = None  # which asked for it

    @property
    def scored(self) -> Pipeline:
        return Pipeline(classifier=self.classifier, defense=self.defense)

    @property
    def attacked(self) -> Pipeline:
        """What the attacker attacks, as far as its knowledge goes."""
        if self.knowledge == "oblivious":
            return Pipeline(classifier=self.classifier, gradient=self.gradient)
        if self.surrogate is not None:
            *defenses, classifier = parse(self.surrogate)
            return Pipeline(classifier=str(classifier), defense="+".join(map(str, defenses)) or NO_DEFENSE, gradient=self.gradient)
        return Pipeline(classifier=self.classifier, defense=self.defense, gradient=self.gradient)

    @property
    def drops(self) -> bool:
        """Is the attacked pipeline the scored one, and asked for this cell alone? Oblivious images serve every defense."""
        return self.knowledge in ("adaptive", "query")
