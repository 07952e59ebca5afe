"""What the training of a component knew: images, attacks, classifiers and defenses.

Stored as data in the header of a weights file, in zoo.toml and in records. Imports nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from defend.errors import BadParameter

Kind = Literal["untrained", "unknown", "clean", "corrupted", "adversarial"]
ITSELF = "itself"  # in `classifiers`: the network in training, which has no file yet


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The images of a training, and the components that took part in it.

    `classifiers` are those whose gradient or output the training used, frozen or trained beside;
    "" is the sha256 of a network that has no file. `behind` is the spec of the defense through
    which a classifier was trained, with `behind_weights` as its files.
    """

    kind: Kind
    attack: str = ""  # of adversarial images, as in "pgd-10"
    norm: str = ""
    eps: float | None = None
    classifiers: Mapping[str, str] = field(default_factory=dict)  # name -> sha256
    behind: str = ""
    behind_weights: Mapping[str, str] = field(default_factory=dict)  # name -> sha256

    def __post_init__(self) -> None:
        kinds, hashes = get_args(Kind), "a mapping of names to texts (sha256)"
        expected = {
            "kind": (self.kind in kinds, f"one of {', '.join(kinds)}"),
            "attack": (isinstance(self.attack, str), "a text"),
            "norm": (isinstance(self.norm, str), "a text"),
            "eps": (_is_size(self.eps), "None or a finite number from 0 on"),
            "classifiers": (_maps_texts(self.classifiers), hashes),
            "behind": (isinstance(self.behind, str), "a text"),
            "behind_weights": (_maps_texts(self.behind_weights), hashes),
        }
        for name, (is_right, words) in expected.items():
            if not is_right:
                value = getattr(self, name)
                raise BadParameter(f"TrainedOn({name}={value!r}): expected {words}")

    def __str__(self) -> str:
        """Return it in a few words, as in adversarial(pgd-10, Linf 0.3, itself)."""
        budget = "" if self.eps is None else f"{self.norm} {self.eps:g}".strip()
        details = [word for word in (self.attack, budget, ", ".join(self.classifiers)) if word]
        words = f"{self.kind}({', '.join(details)})" if details else self.kind
        return f"{words} behind {self.behind}" if self.behind else words

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        values = asdict(self)
        empty = TrainedOn(kind=self.kind)
        return {k: v for k, v in values.items() if k == "kind" or v != getattr(empty, k)}

    def knows_any_of(self, weights: Mapping[str, str]) -> bool:
        """Return True if one of these files (name -> sha256) took part as a classifier."""
        return bool({sha for sha in self.classifiers.values() if sha} & set(weights.values()))


def _is_size(value: Any) -> bool:
    """Return True for None and for a finite number from 0 on."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and 0 <= value < math.inf)


def _maps_texts(value: Any) -> bool:
    """Return True for a mapping of texts to texts."""
    is_mapping = isinstance(value, Mapping)
    return is_mapping and all(isinstance(t, str) for pair in value.items() for t in pair)


def read_trained_on(value: Any) -> TrainedOn:
    """Return it from JSON or TOML: a table of its fields, or the text of versions before 0.2.

    Raises BadParameter for anything else.
    """
    if isinstance(value, TrainedOn):
        return value
    if isinstance(value, str):
        return _read_text(value)
    names = {f.name for f in fields(TrainedOn)}
    if isinstance(value, Mapping) and "kind" in value and set(value) <= names:
        return TrainedOn(**value)
    raise BadParameter(f"trained_on: expected a kind and fields of {sorted(names)}, got {value!r}")


_ADVERSARIAL = re.compile(
    r"adversarial\((?P<attack>[^,]+), (?:(?P<norm>\w+) )?(?P<eps>\d+\.?\d*), (?P<who>.+)\)"
)


def _read_text(text: str) -> TrainedOn:
    """Read "clean", or "adversarial(pgd-10, Linf 0.3, itself)"."""
    match = _ADVERSARIAL.fullmatch(text)
    if match is None:
        return TrainedOn(kind=text)  # type: ignore[arg-type]  # checked there
    return TrainedOn(
        kind="adversarial",
        attack=match["attack"],
        norm=match["norm"] or "",
        eps=float(match["eps"]),
        classifiers={match["who"]: ""},
    )
