"""A cell: what one record is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from defend.benchmarks.suite import Eps
from defend.spec import parse

NO_DEFENSE = "none"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A classifier behind a defense, both as specs; `gradient` is how an attacker differentiates the defense."""

    classifier: str
    defense: str = NO_DEFENSE
    gradient: str | None = None

    @classmethod
    def of(cls, text: str, gradient: str | None = None) -> Pipeline:
        """From "C" or "DEFENSE+C", as a surrogate is written. Raises BadSpec."""
        *defenses, classifier = parse(text)
        return cls(
            classifier=str(classifier),
            defense="+".join(map(str, defenses)) or NO_DEFENSE,
            gradient=gradient,
        )


def attacked_by(
    knowledge: str, classifier: str, defense: str, gradient: str | None, surrogate: str | None
) -> Pipeline:
    """What an attacker of this knowledge attacks, where the two specs are what is scored."""
    if knowledge == "oblivious":
        return Pipeline(classifier=classifier, gradient=gradient)
    if surrogate is not None:
        return Pipeline.of(surrogate, gradient)
    return Pipeline(classifier=classifier, defense=defense, gradient=gradient)


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
    split: Literal["test", "val"]
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
        return attacked_by(
            self.knowledge, self.classifier, self.defense, self.gradient, self.surrogate
        )

    @property
    def drops(self) -> bool:
        """Is the attacked pipeline the scored one, and asked for this cell alone? Oblivious images serve every defense."""
        return self.knowledge in ("adaptive", "query")
