"""Types of record fields that are written in another form than they are given."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from defend.errors import BadSpec
from defend.spec import canonical_spec
from defend.trained_on import TrainedOn


def unify_spec(text: object) -> object:
    """Return a spec with its fields sorted by name; anything that is no spec as it is."""
    if not isinstance(text, str):
        return text
    try:
        return canonical_spec(text)
    except BadSpec:
        return text


SpecText = Annotated[str, BeforeValidator(unify_spec)]
# Written as the fields that differ from their defaults.
WrittenTrainedOn = Annotated[TrainedOn, PlainSerializer(TrainedOn.to_json)]
