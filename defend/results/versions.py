"""Two versions of one component in several runs: their records are labelled by run.

A component is another version if its settings or weights differ (`record.pipeline`), or if the keys
of their units differ in the code, the libraries or the data. Then no number may mix the two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

from defend.hashing import canonical_json
from defend.records import Record
from defend.results.unit_headers import read_header

HOME = "defend"  # the package whose code an attack shares with other attacks only in part
Name = tuple[str, ...]
Facts = Mapping[Hashable, Hashable]  # what is told -> its value in one run
_SHARED = ("task", "dataset", "classifier", "defense", "attack_name", "knowledge", "gradient")


def label_versions(folders: Sequence[Path], runs: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Return the records of each folder, labelled by run where another run has another version."""
    if len(folders) < 2:
        return [list(records) for records in runs]
    labels = name_runs(folders)
    classifiers = [_facts_by_name(records, _classifier_name, _weights_of) for records in runs]
    defenses = []
    for folder, records in zip(folders, runs, strict=True):
        defenses.append(_defense_facts(folder, records))
    labelled: list[list[Record]] = []
    for i, records in enumerate(runs):
        labelled.append([])
        for record in records:
            names = {}
            if _differs(i, _classifier_name(record), classifiers):
                names["classifier"] = labels[i]
            if _differs(i, _defense_name(record), defenses):
                names["defense"] = labels[i]
            labelled[-1].append(record.of_run(**names) if names else record)
    return labelled


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its own, with those above as far as they tell it apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return ["/".join(own) for own in parts]


def _classifier_name(record: Record) -> Name:
    return record.dataset, record.classifier


def _defense_name(record: Record) -> Name:
    return record.task, record.dataset, record.classifier, record.defense


def _weights_of(record: Record) -> dict[Hashable, Hashable]:
    """Return what says which classifier this is."""
    return {"classifier": record.pipeline.classifier}


def _facts_by_name(
    records: Sequence[Record],
    name_of: Callable[[Record], Name],
    facts_of: Callable[[Record], Facts],
) -> dict[Name, dict[Hashable, Hashable]]:
    """Return name -> facts of all its records; of two values for one fact the last."""
    facts: dict[Name, dict[Hashable, Hashable]] = {}
    for record in records:
        facts.setdefault(name_of(record), {}).update(facts_of(record))
    return facts


def _defense_facts(folder: Path, records: Sequence[Record]) -> dict[Name, dict[Hashable, Hashable]]:
    """Return for each pipeline the hash of its defense, and what the keys of its units hold."""
    return _facts_by_name(records, _defense_name, lambda record: _read_facts(folder, record))


def _read_facts(folder: Path, record: Record) -> Facts:
    """Return the facts of a cell; without its units they are their names."""
    facts: dict[Hashable, Hashable] = {"defense": record.pipeline.defense}
    header = read_header(folder, record.units[0]) if record.units else None
    if header is None:
        if record.units:
            facts[record.cell_id] = record.units
        return facts
    inputs = dict(header["key_inputs"])
    images = (record.split, *inputs.pop("range", ()))
    facts[images] = inputs.pop("data", None)
    facts[record.cell_id] = canonical_json(inputs)
    # The code of this package depends on the attack, and that of a plugin does not.
    attack = tuple(getattr(record, name) for name in _SHARED)
    for package, sha256 in inputs.get("code", {}).items():
        facts["code", package, attack if package == HOME else ""] = sha256
    return facts


def _differs(i: int, name: Name, runs: Sequence[Mapping[Name, Facts]]) -> bool:
    """Return True if another run says something else of the same fact of this name."""
    own = runs[i][name]
    for other_run in (*runs[:i], *runs[i + 1 :]):
        other = other_run.get(name, {})
        if any(other[fact] != own[fact] for fact in own.keys() & other.keys()):
            return True
    return False
