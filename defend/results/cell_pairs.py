"""Which cells of two runs are compared: those of one name, or of names that are taken for one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

from defend.errors import BadParameter, suggest_names
from defend.record_fields import unify_spec
from defend.records import Record
from defend.results.grouping import unify_spellings

Pair = tuple[Record, Record]
PIPELINE = ("task", "dataset", "split", "classifier", "defense")
_CELL = (*PIPELINE, "attack", "knowledge", "gradient", "surrogate", "norm", "eps")
# Of several cells of one name in both runs, those that agree in these are paired first.
_REST = ("seed", "n", "draws", "eot", "precision", "layout", "threads")
_SPECS = ("dataset", "classifier", "defense", "attack", "surrogate")


def values_of(record: Record, names: Sequence[str]) -> Hashable:
    """Return the values of these fields."""
    return tuple(getattr(record, name) for name in names)


def pair_cells(
    old: Sequence[Record], new: Sequence[Record], same: Sequence[tuple[str, str]] = ()
) -> list[Pair]:
    """Return each cell of the old run with that of the same name in the new one, each once.

    same: specs (of the old run, of the new run) that are taken for one. Raise BadParameter for a
    spec that its run does not have.
    """
    specs = [(str(unify_spec(a)), str(unify_spec(b))) for a, b in same]
    for run, records, typed in zip(("first", "second"), (old, new), zip(*specs), strict=False):
        _check_specs(run, records, typed)
    spelled = unify_spellings([*(_rename(record, dict(specs)) for record in old), *new])
    pairs = _pair_names(spelled[: len(old)], spelled[len(old) :])
    return [(old[i], new[j]) for i, j in pairs]


def _check_specs(run: str, records: Iterable[Record], specs: Iterable[str]) -> None:
    known = {str(getattr(r, name)) for r in records for name in _SPECS if getattr(r, name)}
    for spec in specs:
        if spec not in known:
            raise BadParameter(
                f"--pair {spec}: the {run} run has no such classifier, defense, attack or data"
                f" set.{suggest_names(spec, known)} It has {', '.join(sorted(known))}."
            )


def _rename(record: Record, names: dict[str, str]) -> Record:
    """Return the record with the names of the new run in place of those of the old one."""
    changes = {}
    for field in _SPECS:
        spec = getattr(record, field)
        if spec in names:
            changes[field] = names[spec]
    return record.replace(**changes)


def _pair_names(old: Sequence[Record], new: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Yield the places of two cells of one name, those that agree in most first."""
    left, waiting = list(range(len(new))), list(range(len(old)))
    for names in ((*_CELL, *_REST, "units"), (*_CELL, *_REST, "pipeline"), (*_CELL, *_REST), _CELL):
        unpaired = []
        for i in waiting:
            wanted = values_of(old[i], names)
            partner = next((j for j in left if values_of(new[j], names) == wanted), None)
            if partner is None:
                unpaired.append(i)
                continue
            left.remove(partner)
            yield i, partner
        waiting = unpaired


def explain_nothing_common(folders: Sequence[object], runs: Sequence[Sequence[Record]]) -> str:
    """Return the line that says which names no cell of the two runs shares, and what to type."""
    differing, hint = [], ""
    for name in (*PIPELINE, "attack", "norm", "eps_text"):
        old, new = (list(dict.fromkeys(str(getattr(r, name)) for r in run)) for run in runs)
        if not set(old) & set(new):
            differing.append(f"{name.removesuffix('_text')} {', '.join(old)} / {', '.join(new)}")
            if name in _SPECS:
                hint = "; --pair OF_RUN1 OF_RUN2 takes two names for one"
    details = "; ".join(differing) or "no two agree in attack, level, gradient and eps at once"
    return f"{folders[0]} and {folders[1]} have no cell in common: {details}{hint}"
