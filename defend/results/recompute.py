"""What a record says, compared with its units: their keys, and the numbers that they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from defend.cell_numbers.flags import FlaggedCell, make_flags
from defend.cell_numbers.from_units import make_curve, measure_units
from defend.cell_numbers.query_curve import QueryCurve
from defend.hashing import cache_key
from defend.records import Record
from defend.results.compare_specs import compare_specs
from defend.results.held_values import as_json, format_held, get_path, is_close
from defend.spec import parse
from defend.tasks.registry import DEFAULT, load_task
from defend.threat_models import (
    NO_CLASSIFIER,
    NO_DEFENSE,
    OBJECT_PREFIX,
    THREAT_MODELS,
    Pipeline,
)
from defend.unit_files import Unit

_IN_KEY = ("eps", "norm", "seed", "draws", "eot", "precision", "layout", "threads")
_PIPELINES = ("classifier", "defense")


def compare_with_units(record: Record, units: Sequence[Unit]) -> Iterator[str]:
    """Yield a line for each number of the record that its units do not give again.

    units: of all ranges, in their order. The error of a learned gradient is in no unit.
    """
    curve = _curve_of(record, units)
    try:
        task, clusters = load_task(record.task), record.clusters
        measured = measure_units(task, record.seed, units, curve, clusters)
        lost_late = curve.accuracy_lost_late() if curve else 0.0
        flags = make_flags(_flagged(record), units, lost_late, measured["rounds"])
    except (KeyError, ValueError, RuntimeError) as e:  # tensors or costs of another kind of cell
        yield f"its units are not those of such a cell: {type(e).__name__}: {e}"
        return
    for name, value in measured.items():
        written = getattr(record, name)
        if not is_close(as_json(written), as_json(value)):
            in_record, from_units = format_held(written), format_held(value)
            yield f"{name} {in_record} in the record, {from_units} from its units"
    present = {flag.code: flag.value for flag in record.flags or ()}
    for flag in flags:
        if flag.code not in present or not is_close(present[flag.code], flag.value):
            yield f"the flag {flag.code} is not in the record, and its units raise it"


def compare_with_keys(record: Record, units: Sequence[Unit]) -> Iterator[str]:
    """Yield a line for each fact of the record that the keys of its units contradict.

    What a key does not hold is not compared: docs/reports.md lists it.
    """
    stops = [0, *(int(unit.header["stop"]) for unit in units)]
    starts = [*(int(unit.header["start"]) for unit in units), record.n]
    if starts != stops:
        yield f"n {record.n} in the record, and its units hold images {_ranges(units)}"
    yield from dict.fromkeys(t for u in units for t in _contradictions(record, u.header))
    yield from compare_specs(record, units)


def _contradictions(record: Record, header: Mapping[str, Any]) -> Iterator[str]:
    inputs = header["key_inputs"]
    facts = {name: (getattr(record, name), inputs.get(name)) for name in _IN_KEY}
    facts["task"] = (load_task(record.task).name, inputs.get("task", {}).get("name", DEFAULT))
    facts["attack settings"] = (
        record.model_dump(mode="json")["settings"]["attack"],
        get_path(inputs, "attack", "settings"),
    )
    for name in ("versions", "commit", "device"):
        facts[name] = (getattr(record, name), header.get("provenance", {}).get(name))
    for name, (written, held) in facts.items():
        if held is not None and not is_close(as_json(written), held):
            yield f"{name} {format_held(written)} in the record, {format_held(held)} in its units"
    yield from _other_components(record, inputs)
    yield from _other_level(record, inputs)


def _other_components(record: Record, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield which component is another one than the units were computed with."""
    for kind in _PIPELINES:
        key = get_path(inputs, "scored", kind)
        written = getattr(record.pipeline, kind)
        if isinstance(key, dict | list) and written and "component" in str(key):
            held = cache_key({"component": key})[: len(written)]
            if held != written:
                yield f"settings or weights of the {kind} are {written}, {held} in its units"
        yield from _other_names(kind, getattr(record, kind), key)
    yield from _other_names("attack", record.bare_attack, inputs.get("attack"))
    if record.surrogate is not None:
        surrogate = Pipeline.parse(record.surrogate)
        for kind in _PIPELINES:
            key = get_path(inputs, "attacked", kind)
            yield from _other_names(f"surrogate {kind}", getattr(surrogate, kind), key)


def _other_names(kind: str, spec: str, key: Any) -> Iterator[str]:
    """Yield a line if components that are installed have other names than the spec's.

    Files and objects of the user have no registered name that a key could hold.
    """
    members = key if isinstance(key, list) else [key]
    names = [get_path(member, "component") for member in members]
    specs = parse(spec)
    if any(s.file is not None or s.name.startswith(OBJECT_PREFIX) for s in specs):
        return
    typed = [member.name for member in specs]
    is_plain = all(isinstance(name, str) and name and not set(".:") & set(name) for name in names)
    is_absent = kind.endswith("classifier") and spec == NO_CLASSIFIER
    if not is_plain or is_absent or "art" in typed:
        return
    if [n.rpartition("/")[2] for n in names] != [n.rpartition("/")[2] for n in typed]:
        yield f"{kind} {spec} in the record, {'+'.join(names)} in its units"


def _other_level(record: Record, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if the attacked pipeline is not that of the level of knowledge."""
    attacked, scored = inputs.get("attacked"), inputs.get("scored")
    if not isinstance(attacked, Mapping) or not isinstance(scored, Mapping):
        return
    is_same = all(attacked.get(kind) == scored.get(kind) for kind in _PIPELINES)
    model = THREAT_MODELS[record.knowledge]
    fits = {
        "scored pipeline": is_same,
        "bare classifier": get_path(attacked, "defense", "component") == NO_DEFENSE,
        "surrogate": not attacked.get("drops", False),
    }[model.attacks]
    if not fits or attacked.get("drops", model.may_drop) != model.may_drop:
        yield f"knowledge {record.knowledge} in the record, and its units attacked something else"
        return
    gradient = attacked.get("gradient")
    # Both names are one attack on a purifier that declares the identity, but for a search in
    # rounds, which goes on from the declared gradient to others.
    is_identity = record.declared_gradient == gradient == "identity" and record.rounds is None
    is_alias = is_identity and record.gradient == "declared"
    if record.knowledge == "adaptive" and gradient != record.gradient and not is_alias:
        yield f"gradient {record.gradient} in the record, {gradient} in its units"


def _curve_of(record: Record, units: Sequence[Unit]) -> QueryCurve | None:
    may_drop = THREAT_MODELS[record.knowledge].may_drop and not record.stochastic
    is_search = may_drop and not record.settings.attack.get("targeted", False)
    queries = record.settings.attack.get("queries")
    return make_curve(load_task(record.task), is_search, queries, units, record.clusters)


def _flagged(record: Record) -> FlaggedCell:
    return FlaggedCell(
        task=load_task(record.task),
        n=record.n,
        eps=record.eps,
        eot=record.eot,
        knowledge=record.knowledge,
        access=record.access,
        is_control=record.is_control,
        is_stochastic=record.stochastic,
        objective=None,
    )


def _ranges(units: Sequence[Unit]) -> str:
    return ", ".join(f"{unit.header['start']} to {unit.header['stop']}" for unit in units)
