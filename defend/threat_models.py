"""The ladder of knowledge: one row for each level, with the pipeline that its attacker attacks.

The levels are those of docs/protocol.md. An accuracy is always of the scored pipeline; what the
attacker attacks depends on what the attacker knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from defend.errors import BadParameter, suggest_names
from defend.spec import parse, parse_single

Level = Literal["oblivious", "transfer", "query", "adaptive"]
NO_DEFENSE = "none"
NO_CLASSIFIER = "none"  # in the place of a classifier, at a task that needs none
OBJECT_PREFIX = "object/"  # of the names of what a caller gave in the place of a spec


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A classifier behind a defense, both as specs; the gradient differentiates the defense."""

    classifier: str
    defense: str = NO_DEFENSE
    gradient: str | None = None

    @classmethod
    def parse(cls, text: str, gradient: str | None = None) -> Pipeline:
        """Return the pipeline of "C" or "DEFENSE+C", as a surrogate is written. Raises BadSpec."""
        *defenses, classifier = parse(text)
        return cls(
            classifier=str(classifier),
            defense="+".join(map(str, defenses)) or NO_DEFENSE,
            gradient=gradient,
        )


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """What an attacker of one level attacks, sees, and may do."""

    level: Level
    attacks: Literal["bare classifier", "surrogate", "scored pipeline"]
    default_for: tuple[str, ...]  # attacks of this access run here if a suite names no level
    may_drop: bool  # the attacked pipeline is the scored one, so a broken image may be dropped
    heading: str  # of the level's column in a table


THREAT_MODELS: dict[str, ThreatModel] = {
    model.level: model
    for model in (
        ThreatModel(
            level="oblivious",
            attacks="bare classifier",
            default_for=("gradient",),
            may_drop=False,  # the same images serve every defense
            heading="oblivious",
        ),
        ThreatModel(
            level="transfer",
            attacks="surrogate",
            default_for=(),
            may_drop=False,
            heading="transfer",
        ),
        ThreatModel(
            level="query",
            attacks="scored pipeline",
            default_for=("scores", "labels"),
            may_drop=True,
            heading="query",
        ),
        ThreatModel(
            level="adaptive",
            attacks="scored pipeline",
            default_for=("gradient",),
            may_drop=True,
            heading="adaptive",
        ),
    )
}
LEVELS: tuple[str, ...] = tuple(THREAT_MODELS)

# How an adaptive attacker differentiates a purifier -> how tables call it. "bpda" on the command
# line is short for adaptive through the identity.
GRADIENT_NAMES: dict[str, str] = {
    "declared": "declared",
    "identity": "BPDA",
    "learned": "learned",
    "relaxed": "relaxed",
    "autograd": "autograd",
}
GRADIENTS: tuple[str, ...] = tuple(GRADIENT_NAMES)
# The temperatures of "relaxed" where none is named, a factor of three apart: nearly the step
# itself, a smooth step, and nearly a straight line. Which of them breaks most depends on the
# purifier; behind split-vqvae it is the middle one.
TEMPERATURES = (0.1, 0.3, 1.0)


def relaxed_gradient(temperature: float) -> str:
    """Return the text of the relaxed gradient at a temperature."""
    return f"relaxed:temperature={temperature:g}"


RELAXED_GRADIENTS = tuple(relaxed_gradient(t) for t in TEMPERATURES)


def gradient_kind(gradient: str) -> str:
    """Return the name of a gradient without its temperature."""
    return gradient.partition(":")[0]


def parse_gradients(text: str) -> tuple[str, ...]:
    """Return the gradients that a text names, in one spelling: several for "relaxed" alone.

    Raises BadParameter, BadSpec.
    """
    spec = parse_single(text, "gradient")
    if spec.name not in GRADIENTS:
        hint = suggest_names(spec.name, GRADIENTS)
        raise BadParameter(f"gradient {text!r}: expected {' or '.join(GRADIENTS)}.{hint}")
    fields = dict(spec.params)
    if not fields:
        return RELAXED_GRADIENTS if spec.name == "relaxed" else (spec.name,)
    if spec.name != "relaxed" or fields.keys() != {"temperature"}:
        raise BadParameter(f"gradient {text!r}: expected a name alone, or relaxed:temperature=0.3")
    value = fields["temperature"]
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction) or value <= 0:
        raise BadParameter(
            f"gradient {text!r}: expected a temperature > 0; write relaxed:temperature=0.3"
        )
    return (relaxed_gradient(float(value)),)


def temperature_of(gradient: str) -> float:
    """Return the temperature of a text that `relaxed_gradient` wrote."""
    return float(gradient.partition("=")[2])


def attacked_pipeline(level: str, scored: Pipeline, surrogate: str | None) -> Pipeline:
    """Return what an attacker of this level attacks; `scored` carries the attacker's gradient."""
    attacks = THREAT_MODELS[level].attacks
    if attacks == "bare classifier":
        return Pipeline(classifier=scored.classifier, gradient=scored.gradient)
    if attacks == "surrogate":
        assert surrogate is not None, "a transfer attack has a surrogate"
        return Pipeline.parse(surrogate, scored.gradient)
    return scored


def default_levels(access: str, has_surrogates: bool) -> Sequence[str]:
    """Return the levels at which an attack of this access runs where the suite names none."""
    levels = [m.level for m in THREAT_MODELS.values() if access in m.default_for]
    return [*levels, "transfer"] if has_surrogates else levels
