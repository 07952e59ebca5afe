"""Records: what is known of one cell, typed and versioned; and the list of them in a run folder.

A record holds measured values and codes. Sentences are made when a table or a report is printed
(defend/results/). `docs/record.schema.json` is the JSON schema of one record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, PrivateAttr, ValidationError

from defend.eps import take_eps
from defend.errors import BadParameter
from defend.files import write_file
from defend.record_fields import SpecText, WrittenTrainedOn
from defend.record_parts import (
    ImageSample,
    PipelineHash,
    RecordPart,
    ScoredWeights,
    SearchRounds,
    Settings,
)
from defend.spec import parse_single
from defend.tasks.registry import DEFAULT

SCHEMA_VERSION = 4
READABLE = (3, 4)  # 3 is of before there were tasks, and is read as classification
FILE_NAME = "records.json"
CONTROL = "control"  # the null attack, which measures how far a minimum of noise falls by itself


class FlagCode(StrEnum):
    """Diagnostics of one cell."""

    # Value: images whose gradient is zero in all pixels, or not finite in some, at one of two
    # points: on the grid of 256 levels and off it.
    ZERO_GRADIENT = "zero_gradient"
    UNDEFINED_GRADIENT = "undefined_gradient"
    UNCHANGED_IMAGES = "unchanged_images"  # the attack returned every image as it was
    LOSS_FELL = "loss_fell"  # the attack lowered the loss that it should raise
    UNCONVERGED = "unconverged"  # value: accuracy lost in the last fifth of the queries, or round
    NO_DRAW_CHANGES_A_PIXEL = "no_draw_changes_a_pixel"  # the card says stochastic=True
    GRADIENT_OF_ONE_DRAW = "gradient_of_one_draw"  # a stochastic defense attacked without EOT
    SCORES_OF_ONE_DRAW = "scores_of_one_draw"  # a stochastic defense searched by single draws
    # Value: the impostor attempts of val that the threshold accepts, where they are few.
    FEW_IMPOSTORS_AT_FAR_1 = "few_impostors_at_far_1"  # 1 %
    FEW_IMPOSTORS_AT_FAR_01 = "few_impostors_at_far_01"  # .1 %
    LABEL_IS_NOT_THE_GOAL = "label_is_not_the_goal"  # the attack climbs another goal
    NOT_FINITE = "not_finite"  # value: the measured field that is no number


class Flag(RecordPart):
    """A code with its value; FlagCode says what the value is."""

    code: FlagCode
    value: float | str | None = None


class Measured(RecordPart):
    """A number over all images with its 95 % interval, in the unit of its task."""

    value: float
    low: float
    high: float


class Record(RecordPart):
    """One cell: what was evaluated, what was measured, and how to find its units.

    Accuracies are shares in [0, 1] over all n images. A failed cell has `error` and None for
    everything measured. At a task whose score is no share, the accuracies are None, too, and
    `score` and `clean_score` hold the numbers.
    """

    schema_version: int = SCHEMA_VERSION

    # What was evaluated. Specs are as typed, with their fields sorted by name.
    task: str = DEFAULT
    dataset: SpecText
    classifier: SpecText
    defense: SpecText
    attack: SpecText
    knowledge: str
    gradient: str | None
    surrogate: SpecText | None
    norm: str
    eps: float
    eps_text: str
    n: int
    split: str
    seed: int
    draws: int  # purifications of each image that are scored; 1 for a deterministic defense
    eot: int  # copies over which the attacked pipeline's gradient is averaged
    protocol: str | None

    # Facts about the components.
    access: str  # what the attack needs: "gradient", "scores" or "labels"
    stochastic: bool
    declared_gradient: str
    # True: the purifier declares a relaxed gradient. False: an approximate step of it declares
    # none. None: it has no such step.
    relaxation: bool | None
    trained_on: tuple[WrittenTrainedOn, ...]  # of each learned member of the defense
    classifier_trained_on: tuple[WrittenTrainedOn, ...]
    images: int  # in the whole split
    classes: int
    claim_eps: float | None  # of the data set in this norm
    distinct_images: int  # so many things the n images show: some may show the same thing again
    sample: ImageSample | None = None  # None in records of older versions
    # The share of the n images that have the most frequent label; None of images without labels.
    largest_class: float | None = None
    settings: Settings
    weights: Mapping[str, str]  # name -> sha256, of what was scored and what was attacked
    scored_weights: ScoredWeights
    other_data: Mapping[str, str] = {}  # scored weights for another data set -> that data set
    # The settings of each learned member of the defense that its weights file does not decide.
    uses: Mapping[str, tuple[str, ...]] = {}
    pipeline: PipelineHash

    # How it was computed.
    precision: str
    layout: str
    threads: int
    versions: Mapping[str, str]
    commit: str | None
    device: str

    # What was measured.
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    all_draws_correct: float | None = None
    majority: float | None = None  # the share of images right in more than half of the draws
    accuracy_after: Mapping[str, float | None] | None = None  # queries -> accuracy
    rounds: SearchRounds | None = None  # of an attack that searches in rounds
    gradient_error: float | None = None  # of the BPDA network, relative to the identity's
    fitting_split: str | None = None  # on whose images the BPDA network was fitted
    # Under attack and clean, if the task's score is no share.
    score: Measured | None = None
    clean_score: Measured | None = None
    measures: Mapping[str, Measured] = {}  # what the task measures beside its score
    thresholds: Mapping[str, float] = {}  # that were fixed on clean images of `val`
    curve: tuple[tuple[float, float], ...] = ()  # at `verification` the ROC: (FAR, TAR)
    flags: tuple[Flag, ...] | None = None
    seconds: float | None = None  # of the attack, which defenses may share, and of scoring
    purify_images_per_second: float | None = None
    forwards: float | None = None  # network evaluations for each image
    backwards: float | None = None

    units: tuple[str, ...]  # keys of the unit files, in the order of their ranges
    error: str | None = None

    # Not written: runs that tell two versions of one component apart, by its kind.
    _runs: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def classifier_label(self) -> str:
        """Return the classifier as it is printed: with its run, "convnet [new]", if `of_run` set
        one.
        """
        return self._label("classifier")

    @property
    def defense_label(self) -> str:
        """Return the defense as it is printed: with its run, "jpeg [new]", if `of_run` set one."""
        return self._label("defense")

    @property
    def run(self) -> str:
        """Return the run that tells this version apart from those of other runs, "" if none."""
        return ", ".join(dict.fromkeys(self._runs.values()))

    def _label(self, kind: str) -> str:
        run = self._runs.get(kind)
        return getattr(self, kind) if run is None else f"{getattr(self, kind)} [{run}]"

    def of_run(self, **runs: str) -> Record:
        """Return the record with the run of its version: of_run(defense="new")."""
        labelled = self.model_copy()
        labelled._runs = {**self._runs, **runs}
        return labelled

    @property
    def failed(self) -> bool:
        """Return True if the cell has no numbers."""
        return self.error is not None

    @property
    def number(self) -> Measured | None:
        """Return the score under attack with its interval; None if the cell failed."""
        if self.robust_accuracy is None or self.ci_low is None or self.ci_high is None:
            return self.score
        return Measured(value=self.robust_accuracy, low=self.ci_low, high=self.ci_high)

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """Return for each image the first that shows the same thing (n,).

        None if none repeats, and for records of older versions, which do not say it.
        """
        return self.sample.clusters(self.n) if self.sample else None

    @property
    def clean_value(self) -> float | None:
        """Return the score of clean images; None if the cell failed."""
        return self.clean_accuracy if self.clean_score is None else self.clean_score.value

    @property
    def attack_name(self) -> str:
        """Return the registered name of the attack."""
        return parse_single(self.attack, "attack").name

    @property
    def bare_attack(self) -> str:
        """Return the attack's spec without eps, so that one attack at several eps is one series."""
        return str(take_eps(self.attack)[0])

    @property
    def is_control(self) -> bool:
        """Return True for the null attack."""
        return self.attack_name == CONTROL

    @property
    def cell_id(self) -> str:
        """Return what identifies the cell: of two records with the same id the later one counts."""
        return json.dumps([_plain(getattr(self, name)) for name in _CELL_FIELDS])

    def replace(self, **changes: Any) -> Record:
        """Return a record with some fields changed. Raises TypeError for an unknown field."""
        unknown = changes.keys() - type(self).model_fields.keys()
        if unknown:
            raise TypeError(f"a record has no field {', '.join(sorted(unknown))}")
        return self.model_copy(update=changes)

    def has_flag(self, code: FlagCode) -> bool:
        """Return True if the cell carries a flag of this code."""
        return any(flag.code == code for flag in self.flags or ())

    def to_json(self) -> str:
        """Return the record as one line of JSON; a number that is not finite raises ValueError."""
        return json.dumps(self.model_dump(mode="json"), allow_nan=False)


_CELL_FIELDS = (
    *("task", "dataset", "classifier", "defense", "attack", "knowledge", "gradient", "surrogate"),
    *("norm", "eps", "n", "split", "seed", "draws", "eot"),
    *("precision", "layout", "threads", "pipeline"),
)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


class Diagnosis(RecordPart):
    """A code with what it is about; the sentences are those of defend/results/diagnostics.py."""

    code: str
    subject: str | None = None  # the attack or the gradient that it is about
    value: float | str | None = None


class Claim(RecordPart):
    """What may be claimed of one pipeline in one norm under a protocol."""

    protocol: str
    dataset: str = ""
    missing: tuple[str, ...] = ()  # codes of the protocol's requirements that are not met
    signs: tuple[Diagnosis, ...] = ()  # of a weak attack or a masked gradient: no claim stands
    accuracy: float | None = None  # the worst case over everything at the claim eps
    low: float | None = None
    high: float | None = None
    bound: bool = False  # units were not at hand, so that the worst case is at most the accuracy
    unconverged: bool = False  # an attack was still winning when it stopped
    eps: float | None = None
    eps_text: str = ""
    norm: str = ""
    standard_eps: bool = True  # False: it is not the eps at which the field claims on these images
    n: int = 0
    distinct_images: int = 0  # things that the n images show
    images: int | None = None  # in the whole test split
    remarks: tuple[Diagnosis, ...] = ()  # that stand beside a claim and do not take it away
    told_apart_by: Mapping[str, str] = {}  # fields, from other claims of the same names

    @property
    def stands(self) -> bool:
        """Return True if nothing is missing and nothing speaks against it."""
        return not self.missing and not self.signs

    @property
    def ranks(self) -> bool:
        """Return True if it may be printed in bold and stand among others: it is at their eps."""
        return self.stands and self.standard_eps


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of one record."""
    return Record.model_json_schema()


def read_records(run_dir: Path) -> list[Record]:
    """Return the records of a run folder, none if there is no file. Nothing is written there.

    Raises BadParameter for a file that holds something else, as of an older version.
    """
    file = Path(run_dir) / FILE_NAME
    if not file.exists():
        return []
    try:
        rows = json.loads(file.read_text())
    except ValueError:
        raise BadParameter(
            f"{file}: could not be read, since it is no JSON; the same `defend bench` with the same"
            " --out sets it aside and makes it again from its units"
        ) from None
    except OSError as e:
        raise BadParameter(f"{file}: cannot be read: {e.strerror}") from None
    try:
        return [_read_row(row) for row in (rows if isinstance(rows, list) else [rows])]
    except (ValidationError, _OtherVersion) as e:
        raise BadParameter(
            f"{file}: expected records of `defend bench` of schema version {SCHEMA_VERSION},"
            f" got {_first_problem(e)}. Move that file away and run the bench again: units that"
            " still fit are used again."
        ) from None


def take_up_records(run_dir: Path) -> list[Record]:
    """Return the records of a folder that a run goes on with.

    A file that is no JSON is renamed to records.json.damaged, since the units make it again.
    """
    file = Path(run_dir) / FILE_NAME
    if file.exists():
        try:
            json.loads(file.read_text())
        except ValueError:
            file.replace(file.with_name(f"{FILE_NAME}.damaged"))
    return read_records(run_dir)


class _OtherVersion(Exception):
    pass


def _read_row(row: Any) -> Record:
    version = row.get("schema_version", 1) if isinstance(row, dict) else None
    if version not in READABLE:
        raise _OtherVersion("no records" if version is None else f"version {version}")
    return Record.model_validate({**row, "schema_version": SCHEMA_VERSION})


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    return f"a wrong field {'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}"


def merge_records(run_dir: Path, records: Sequence[Record]) -> None:
    """Write records into the folder's list: they replace earlier ones of the same cells.

    A cell that a protocol asked for keeps the protocol's name while its units are the same. The
    list is locked, so that two runs in one folder keep each other's records.
    """
    with FileLock(run_dir / ".lock"):
        earlier = {r.cell_id: r for r in take_up_records(run_dir)}
        merged = {r.cell_id: _keep_protocol(earlier.get(r.cell_id), r) for r in records}
        untouched = [r for r in earlier.values() if r.cell_id not in merged]
        lines = ",\n".join(r.to_json() for r in [*untouched, *merged.values()])
        write_file(run_dir / FILE_NAME, f"[\n{lines}\n]\n")


def _keep_protocol(earlier: Record | None, record: Record) -> Record:
    if earlier is None or record.protocol is not None or earlier.units != record.units:
        return record
    return record.replace(protocol=earlier.protocol)
