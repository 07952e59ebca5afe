"""What the trainings behind a row knew: in words, and as marks where it concerns the row itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from defend.protocols.evidence import pair_settings
from defend.records import Diagnosis, Record
from defend.results.diagnostics import TrainingCode, format_training_mark
from defend.spec import Spec, parse
from defend.threat_models import NO_DEFENSE
from defend.trained_on import TrainedOn

CLEAN = TrainedOn(kind="clean")


def format_trained_on(trainings: Sequence[TrainedOn]) -> str:
    """Return what each training knew, in the order of the members; nothing without a training."""
    return " + ".join(map(str, trainings))


def format_classifier(classifier: str, trainings: Sequence[TrainedOn]) -> str:
    """Return the classifier's spec, and what it was trained on unless that is clean images alone.

    "convnet", "convnet:weights=convnet-madry (trained on adversarial(pgd-10, Linf 0.3, itself))".
    """
    if all(training == CLEAN for training in trainings):
        return classifier
    return f"{classifier} (trained on {format_trained_on(trainings)})"


def find_training_marks(record: Record) -> tuple[Diagnosis, ...]:
    """Return a mark if the defense was trained against the classifier that it stands before, and
    one if the classifier was trained behind another defense.
    """
    return (*_mark_known_classifiers(record), *_mark_other_defense(record))


def list_training_marks(records: Iterable[Record]) -> tuple[str, ...]:
    """Return a line for each marked pipeline and mark."""
    lines: dict[str, None] = {}
    for record in records:
        for mark in find_training_marks(record):
            pipeline = f"{record.defense_label} before {record.classifier_label}"
            lines[f"{pipeline}: {format_training_mark(mark)}."] = None
    return tuple(lines)


def _mark_known_classifiers(record: Record) -> Iterator[Diagnosis]:
    names = []
    for name, sha256 in record.scored_weights.classifier.items():
        if any(training.knows_any_of({name: sha256}) for training in record.trained_on):
            names.append(name)
    if names:
        yield Diagnosis(code=TrainingCode.KNOWS_CLASSIFIER, subject=", ".join(names))


def _mark_other_defense(record: Record) -> Iterator[Diagnosis]:
    for training in record.classifier_trained_on:
        if training.behind and not _has_same_members(training.behind, record):
            yield _mark_behind(training, record.defense)
        elif training.behind and not _has_same_weights(training, record):
            yield _mark_behind(training, f"{record.defense} with other weights")


def _mark_behind(training: TrainedOn, scored: str) -> Diagnosis:
    return Diagnosis(code=TrainingCode.SCORED_BEHIND_ANOTHER, subject=training.behind, value=scored)


def _has_same_members(behind: str, record: Record) -> bool:
    """Return True if the scored defense has the members of `behind`, with the fields typed there.

    A field that only the scored spec sets counts as a difference. Weights are compared by hash.
    """
    members = [member for member in parse(behind) if member.name != NO_DEFENSE]
    scored = pair_settings(parse(record.defense), record.settings.defense)
    return len(members) == len(scored) and all(
        _has_same_fields(member, *pair) for member, pair in zip(members, scored, strict=True)
    )


def _has_same_fields(member: Spec, scored: Spec, settings: Mapping[str, Any]) -> bool:
    typed, scored_fields = dict(member.params), dict(scored.params)
    in_force = {**settings, **scored_fields}
    differing = {key for key, value in typed.items() if in_force.get(key) != value}
    differing |= scored_fields.keys() - typed.keys()
    return member.name == scored.name and differing <= {"weights"}


def _has_same_weights(training: TrainedOn, record: Record) -> bool:
    return set(training.behind_weights.values()) == set(record.scored_weights.defense.values())
