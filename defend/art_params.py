"""ART's `set_params` on a purifier: its fields are changed, or the call is refused."""

from __future__ import annotations

from typing import Any

from defend.errors import BadParameter
from defend.learned import Learned
from defend.spec import Configured, typed_params


class ArtParams:
    """The names of the fields of a purifier and the way to change them, as ART calls them."""

    @property
    def params(self) -> list[str]:
        """The names of the fields."""
        assert isinstance(self, Configured)
        return list(self.fields())

    def set_params(self, **fields: Any) -> None:
        """Give fields other values. Raise BadParameter, and then change nothing."""
        assert isinstance(self, Configured)
        set_fields(self, fields)


def set_fields(purifier: Configured, fields: dict[str, Any]) -> None:
    """Give fields of a purifier other values, all of them or none.

    Raise BadParameter for unknown fields, values that do not fit, and fields that shape a network.
    """
    name = type(purifier).__name__
    values = typed_params(type(purifier), fields, f"defense '{name}'")
    shaping = [key for key in values if isinstance(purifier, Learned) and key not in purifier.uses]
    if shaping:
        free = ", ".join(sorted(purifier.uses)) if isinstance(purifier, Learned) else ""
        raise BadParameter(
            f"{name}: expected fields that are free once its network is there ({free or 'none'}),"
            f" got {shaping[0]}; make another one by defend.load"
        )
    before = {key: getattr(purifier, key) for key in values}
    try:
        _assign(purifier, values)
    except BadParameter:
        _assign(purifier, before)
        raise


def _assign(purifier: Configured, values: dict[str, Any]) -> None:
    for key, value in values.items():
        setattr(purifier, key, value)
    purifier.validate()
