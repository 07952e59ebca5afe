"""Records as a list that becomes a table of pandas: `defend.bench(...).to_pandas()`."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, SupportsIndex, Union, get_args, get_origin, overload

from defend.errors import BadParameter
from defend.files import user_path
from defend.records import Measured, Record, read_records
from defend.weights.third_party import import_extra

_TYPES: dict[Any, str] = {str: "string", int: "Int64", float: "Float64", bool: "boolean"}


class Records(list[Record]):
    """The records of a run, one for each cell."""

    @classmethod
    def read(cls, run_dir: Path | str) -> Records:
        """Return the records of a run folder. Raises BadParameter if there are none."""
        folder = user_path(run_dir)
        records = cls(read_records(folder))
        if not records:
            raise BadParameter(f"{folder}: expected the folder of a run, got one without records")
        return records

    @overload
    def __getitem__(self, index: SupportsIndex) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Record | Records:
        """Return one record, or those of a slice as Records again."""
        if isinstance(index, slice):
            return Records(super().__getitem__(index))
        return super().__getitem__(index)

    def to_pandas(self) -> Any:
        """Return a DataFrame: a row for each cell, a typed column for each field of one value.

        Strings, whole numbers, numbers and booleans have pandas' types with missing values. A
        score, and what a task measures beside it, is a column with `_low` and `_high`. Flags are
        codes joined by "; ". Raises MissingPackage without pandas.
        """
        pandas: Any = import_extra("pandas", "defend-purifiers[pandas]")
        columns = {name: _type_of(name) for name in Record.model_fields}
        series = {}
        for name, dtype in columns.items():
            if dtype is not None:
                series[name] = pandas.array([getattr(r, name) for r in self], dtype=dtype)
        for name in dict.fromkeys(name for r in self for name in _measured_of(r)):
            numbers = [_measured_of(r).get(name) for r in self]
            for column, field in (
                (name, "value"),
                (f"{name}_low", "low"),
                (f"{name}_high", "high"),
            ):
                values = [None if n is None else getattr(n, field) for n in numbers]
                series[column] = pandas.array(values, dtype="Float64")
        flags = ["; ".join(flag.code for flag in r.flags or ()) for r in self]
        series["flags"] = pandas.array(flags, dtype="string")
        return pandas.DataFrame(series)


def _type_of(name: str) -> str | None:
    """Return pandas' type of a field of one value, None for other fields."""
    annotation: Any = Record.model_fields[name].annotation
    is_union = get_origin(annotation) in (UnionType, Union)  # Annotated | None is a typing.Union
    kinds = get_args(annotation) if is_union else (annotation,)
    of_values = [kind for kind in kinds if kind is not type(None)]
    if len(of_values) != 1:
        return None
    kind = of_values[0]
    return _TYPES.get(get_args(kind)[0] if get_origin(kind) is Annotated else kind)


def _measured_of(record: Record) -> dict[str, Measured]:
    scores = {"score": record.score, "clean_score": record.clean_score}
    return {k: v for k, v in scores.items() if v is not None} | dict(record.measures)
