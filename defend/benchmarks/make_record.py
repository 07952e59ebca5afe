"""Make the record of a cell from its components and its units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components
from defend.benchmarks.controls import is_control
from defend.benchmarks.describe_images import DescribedImages
from defend.cell_numbers.flags import FlaggedCell, make_flags
from defend.cell_numbers.from_units import Clusters, make_curve, measure_units
from defend.chain import members_of
from defend.hashing import cache_key
from defend.learned import Learned
from defend.numerics import NumericSettings
from defend.pairing import find_other_data
from defend.purifier import Purifier
from defend.record_parts import AttackedSettings, PipelineHash, ScoredWeights, Settings
from defend.records import Flag, FlagCode, Record
from defend.spec import parse
from defend.unit_files import Unit
from defend.weights.third_party import merge_hashes


def make_record(
    cell: Cell,
    components: Components,
    numerics: NumericSettings,
    keys: Sequence[str],
    units: Sequence[Unit | None],
    provenance: dict[str, Any],
    error: str | None,
    images: DescribedImages,
) -> Record:
    """Return the record of a cell; a failed cell has an error and no measured values.

    images: what all cells of the run are measured on.
    """
    present = [unit for unit in units if unit is not None]
    if error is None and len(present) < len(units):
        error = "a unit is missing"
    source = present[0].header["provenance"] if present else provenance
    clusters = images.sample.clusters(cell.n)
    measured = {} if error else _measure(cell, components, present, clusters)
    return Record(
        **_describe(cell, components),
        distinct_images=images.clusters,
        sample=images.sample,
        largest_class=images.largest_class,
        precision=numerics.precision,
        layout=numerics.layout,
        threads=numerics.threads,
        versions=source["versions"],
        commit=source["commit"],
        device=source["device"],
        units=tuple(keys),
        error=error,
        **_with_finite_numbers(measured),
    )


def _describe(cell: Cell, components: Components) -> dict[str, Any]:
    """Return what was evaluated, and facts about its components."""
    classifier = components.classifier(cell.classifier)
    defense = components.defense(cell.defense)
    attack = components.attack(cell.bare_attack)
    attacked_classifier = components.classifier(cell.attacked.classifier)
    attacked_defense = components.defense(cell.attacked.defense)
    used = (classifier, defense, attacked_classifier, attacked_defense)
    data = components.data
    return {
        "task": cell.task_spec,
        "dataset": cell.dataset,
        "classifier": cell.classifier,
        "defense": cell.defense,
        "attack": cell.attack,
        "knowledge": cell.knowledge,
        "gradient": cell.gradient,
        "surrogate": cell.surrogate,
        "norm": cell.norm,
        "eps": cell.eps.value,
        "eps_text": cell.eps.text,
        "n": cell.n,
        "split": cell.split,
        "seed": cell.seed,
        "draws": cell.draws,
        "eot": cell.eot,
        "protocol": cell.protocol,
        "access": attack.card.access,
        "stochastic": defense.card.stochastic,
        "declared_gradient": defense.card.gradient,
        "relaxation": _declares_relaxation(defense),
        "trained_on": defense.trained_on,
        "classifier_trained_on": classifier.trained_on,
        "images": data.count(cell.split),
        "classes": data.classes,
        "claim_eps": data.card.claim.get(cell.norm),
        "settings": Settings(
            classifier=classifier.settings,
            defense=defense.settings,
            attack=attack.settings,
            dataset=data.settings,
            attacked=AttackedSettings(
                classifier=attacked_classifier.settings, defense=attacked_defense.settings
            ),
        ),
        "weights": merge_hashes(*(component.weights_sha256 for component in used)),
        "scored_weights": ScoredWeights(
            classifier=classifier.weights_sha256, defense=defense.weights_sha256
        ),
        "other_data": _other_data(classifier, defense, components.dataset_name),
        "uses": _uses(cell.defense, defense),
        "pipeline": PipelineHash(
            classifier=_short_hash(components.key("classifier", cell.classifier)),
            defense=_short_hash(components.key("defense", cell.defense)),
        ),
    }


def _uses(spec: str, purifier: Purifier) -> dict[str, tuple[str, ...]]:
    """Return the names of the settings of learned members that are free at load."""
    pairs = zip(parse(spec), members_of(purifier), strict=True)
    return {
        member.name: tuple(sorted(learned.uses))
        for member, learned in pairs
        if isinstance(learned, Learned) and learned.uses
    }


def _other_data(classifier: Any, purifier: Purifier, dataset: str) -> dict[str, str]:
    """Return the scored weights that are for other images: name -> their data set."""
    other: dict[str, str] = {}
    for component in (classifier, *members_of(purifier)):
        other |= find_other_data(component, dataset)
    return other


def _declares_relaxation(purifier: Purifier) -> bool | None:
    """Return False if a member with an approximate gradient declares no relaxation.

    Else True if some member declares one, and None if none does.
    """
    for member in members_of(purifier):
        if member.card.gradient == "approximate" and not member.has_relaxation:
            return False
    return True if purifier.has_relaxation else None


def _short_hash(key: Any) -> str:
    """Return twelve digits that stand for settings and weights, whatever they are called."""
    return cache_key({"component": key})[:12]


def _measure(
    cell: Cell, components: Components, units: Sequence[Unit], clusters: Clusters
) -> dict[str, Any]:
    """Return the measured fields of a cell whose units are all present."""
    is_stochastic = components.defense(cell.defense).card.stochastic
    attack = components.attack(cell.bare_attack)
    may_drop = cell.threat_model.may_drop and not is_stochastic
    is_search = may_drop and not attack.is_targeted
    curve = make_curve(cell.task, is_search, attack.settings.get("queries"), units, clusters)
    flagged = FlaggedCell(
        task=cell.task,
        n=cell.n,
        eps=cell.eps.value,
        eot=cell.eot,
        knowledge=cell.knowledge,
        access=attack.card.access,
        is_control=is_control(cell.bare_attack),
        is_stochastic=is_stochastic,
        objective=attack.card.objective,
    )
    measured = measure_units(cell.task, cell.seed, units, curve, clusters)
    lost_late = curve.accuracy_lost_late() if curve else 0.0
    return {
        **measured,
        "gradient_error": _gradient_error(cell, components),
        "fitting_split": components.bpda.fitting_split if _is_learned(cell) else None,
        "flags": make_flags(flagged, units, lost_late, measured["rounds"]),
    }


def _is_learned(cell: Cell) -> bool:
    """Return True if the attack went through a network that imitates the purifier."""
    return cell.attacked.gradient == "learned"


def _gradient_error(cell: Cell, components: Components) -> float | None:
    """Return the relative error of the BPDA network; None where none was used."""
    attacked = cell.attacked
    if not _is_learned(cell):
        return None
    return components.bpda.get(attacked.classifier, attacked.defense).error


def _with_finite_numbers(measured: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: such a field becomes None, and a flag says so."""
    flags = list(measured.get("flags", ()))
    fields = dict(measured)
    for name, value in measured.items():
        if isinstance(value, float) and not math.isfinite(value):
            fields[name] = None
            flags.append(Flag(code=FlagCode.NOT_FINITE, value=name))
    return fields | {"flags": tuple(flags)}
