"""What a record says twice, compared: specs with settings, settings with the keys of its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import isclose
from typing import Any

from defend.eps import parse_one_eps, take_eps
from defend.errors import DefendError, count_of
from defend.records import Record
from defend.results.held_values import as_json, format_held, get_path, is_close
from defend.spec import Spec, parse
from defend.tasks.registry import DEFAULT
from defend.threat_models import Pipeline
from defend.unit_files import Unit

_DIGITS = 1e-5  # a text of six digits is as near as this, relatively
_PIPELINES = ("classifier", "defense")


def compare_specs(record: Record, units: Sequence[Unit]) -> Iterator[str]:
    """Yield a line for each text and each fact that contradicts settings, eps or units."""
    inputs = units[0].header["key_inputs"]
    try:
        yield from _other_eps(record)
        for kind, spec, settings, key in _list_components(record, inputs):
            yield from _other_fields(kind, spec, settings, key)
            yield from _other_settings(kind, settings, key)
    except DefendError as e:  # a text that is no spec, or no eps
        yield str(e)
    yield from _other_weights(record, inputs)
    yield from _other_facts(record, inputs, units)


def _other_eps(record: Record) -> Iterator[str]:
    """Yield a line for each text that names another eps than the record's number."""
    typed = take_eps(record.attack)[1]
    named = {"eps_text": parse_one_eps(record.eps_text)}
    if typed is not None:
        named["eps of the attack"] = typed
    for name, eps in named.items():
        if not isclose(eps.value, record.eps, rel_tol=_DIGITS):
            yield f"{name} {eps.text} in the record, and its eps is {record.eps:.6g}"


def _list_components(
    record: Record, inputs: Mapping[str, Any]
) -> Iterator[tuple[str, str | None, Mapping[str, Any], Any]]:
    """Yield the name, spec, settings and key of each component; no spec where none is typed."""
    settings, attacked = record.settings, record.settings.attacked
    specs: dict[str, str | None] = {"classifier": None, "defense": None}
    if record.surrogate is not None:
        pipeline = Pipeline.parse(record.surrogate)
        specs = {"classifier": pipeline.classifier, "defense": pipeline.defense}
    for kind in _PIPELINES:
        key = get_path(inputs, "scored", kind)
        yield kind, getattr(record, kind), getattr(settings, kind), key
        key = get_path(inputs, "attacked", kind)
        yield f"attacked {kind}", specs[kind], getattr(attacked, kind), key
    yield "attack", record.bare_attack, settings.attack, inputs.get("attack")


def _other_fields(
    kind: str, spec: str | None, settings: Mapping[str, Any], key: Any
) -> Iterator[str]:
    """Yield a line for each field of a spec that the settings in force contradict.

    The name of weights is none of them: what they are is known by their hash.
    """
    members = parse(spec) if spec is not None else ()
    every = settings.get("members", [settings])
    if settings and members and len(every) != len(members):
        held = count_of(len(every), "member")
        yield f"{kind} {spec} in the record, and its settings are of {held}"
        return
    keys = key if isinstance(key, list) else [key] * len(members)
    for member, in_force, of_member in zip(members, every, keys, strict=False):
        for name, value in member.params:
            if name == "weights" or not _is_known(member, name, in_force, of_member):
                continue
            typed = float(value) if isinstance(value, Fraction) else value
            if name not in in_force or not is_close(typed, as_json(in_force[name])):
                held = format_held(in_force.get(name, "no such field"))
                yield f"{kind} {member} in the record, and its settings say {name}: {held}"


def _is_known(member: Spec, name: str, settings: Mapping[str, Any], key: Any) -> bool:
    """Return True if the settings must have this field.

    A function in the place of a class may take fields that what it returns does not have.
    """
    component = get_path(key, "component")
    is_class = str(component).rpartition("/")[2] == member.name.rpartition("/")[2]
    return name in settings or (member.file is None and is_class)


def _other_settings(kind: str, settings: Mapping[str, Any], key: Any) -> Iterator[str]:
    """Yield a line if the settings are not those of the key of the units.

    A key has no name of weights, and a record adds the name of the class to members of a chain.
    """
    keys = key if isinstance(key, list) else [key]
    every = settings.get("members", [settings]) if isinstance(key, list) else [settings]
    held = [get_path(member, "settings") for member in keys]
    if not all(isinstance(member, Mapping) for member in held):
        return
    added = {"weights", "name"} if isinstance(key, list) else {"weights"}
    written = []
    for member, of_key in zip(every, held, strict=False):
        written.append({k: v for k, v in member.items() if k in of_key or k not in added})
    if len(every) != len(held) or not is_close(as_json(written), held):
        in_record, in_units = format_held(settings), format_held(held)
        yield f"{kind} settings {in_record} in the record, {in_units} in its units"


def _other_weights(record: Record, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if the hashes of weights files are not those in the key of the units."""
    every: set[str] = set()
    is_complete = True
    for role in ("scored", "attacked"):
        for kind in _PIPELINES:
            held = _weights_in(get_path(inputs, role, kind))
            is_complete = is_complete and held is not None
            every |= held or set()
            written = set(getattr(record.scored_weights, kind).values())
            if role == "scored" and held is not None and written != held:
                yield f"weights of the {kind} are not those in its units"
    if is_complete and set(record.weights.values()) != every:
        yield "weights are not those in its units"


def _weights_in(key: Any) -> set[str] | None:
    """Return the hashes of the weights of all members; None for keys that do not hold them."""
    hashes: set[str] = set()
    for member in key if isinstance(key, list) else [key]:
        weights = get_path(member, "weights")
        if weights is None:
            return None
        hashes |= set(weights)
    return hashes


def _other_facts(record: Record, inputs: Mapping[str, Any], units: Sequence[Unit]) -> Iterator[str]:
    """Yield a line for each fact about components and images that the units contradict."""
    # The draws on which the worst attack is selected: of stochastic defenses alone.
    is_stochastic = all("select" in unit.tensors for unit in units)
    if record.stochastic != is_stochastic:
        yield f"stochastic {record.stochastic} in the record, {is_stochastic} in its units"
    access = record.settings.attack.get("access")
    if access is None and any(unit.header["costs"]["backwards"] for unit in units):
        access = "gradient"  # a backward pass needs one
    if access not in (None, record.access):
        yield f"access {record.access} in the record, {access} in its units"
    classes = get_path(inputs, "scored", "classifier", "settings", "classes")
    if record.task == DEFAULT and classes not in (None, record.classes):
        yield f"classes {record.classes} in the record, {classes} in its units"
    yield from _other_copies(record)
    if (record.knowledge == "transfer") != (record.surrogate is not None):
        yield f"surrogate {record.surrogate} in the record, whose level is {record.knowledge}"


def _other_copies(record: Record) -> Iterator[str]:
    """Yield a line if the copies among the images leave another number of things."""
    if record.sample is None:
        return
    clusters = record.clusters
    things = record.n if clusters is None else len(set(clusters.tolist()))
    if things != record.distinct_images:
        written = record.distinct_images
        yield f"distinct_images {written} in the record, and its copies leave {things}"
