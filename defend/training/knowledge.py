"""What a training knows that went on from an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from defend.trained_on import TrainedOn

# What a training can know, from least to most. "unknown" may hide anything but an attack.
KNOWLEDGE = ("untrained", "clean", "corrupted", "unknown", "adversarial")
SHOWN_HASH = 12  # characters of a sha256 in a name


def add_knowledge(latest: TrainedOn, earlier: TrainedOn) -> TrainedOn:
    """Return what a training knows that went on from an earlier one: both.

    The greater knowledge decides the kind, with its attack. Weights that were trained on attacks
    do not become clean by some more steps on clean images.
    """
    both = add_earlier_files(latest.classifiers, earlier.classifiers)
    kept_kind = max(latest, earlier, key=lambda known: KNOWLEDGE.index(known.kind))
    return replace(
        kept_kind, classifiers=both, behind=latest.behind, behind_weights=latest.behind_weights
    )


def add_earlier_files(latest: Mapping[str, str], earlier: Mapping[str, str]) -> dict[str, str]:
    """Return the files (name -> sha256) of both.

    An earlier file that has the name of a later one, but another content, is called
    NAME@first characters of its sha256.
    """
    both = dict(latest)
    for name, sha256 in earlier.items():
        if both.setdefault(name, sha256) != sha256:
            both[f"{name}@{sha256[:SHOWN_HASH] or 'no-file'}"] = sha256
    return both
