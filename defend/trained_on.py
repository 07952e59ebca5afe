"""What the training of a component knew: images, attacks, classifiers and defenses.

Stored as data in the header of a weights file, in zoo.toml and in records. Imports nothing.
"""

from __future__ import annotations

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
        kinds = get_args(Kind)
        if self.kind not in kinds:
            raise BadParameter(f"TrainedOn(kind={self.kind!r}): expected one of {', '.join(kinds)}")

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
    r"adversarial\((?P<attack>[^,]+), (?:(?P<norm>\w+) )?(?P<eps>[\d.]+), (?P<who>.+)\)"
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
