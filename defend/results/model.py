"""A table as data: sections of rows of numbers, and the notes below. The terminal and the report
print the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, groupby

from defend.records import Claim, Diagnosis, Flag, FlagCode, Record
from defend.results.claim_text import summarise_claim
from defend.results.diagnostics import Finding
from defend.results.grouping import SectionKey
from defend.results.training_knowledge import format_classifier
from defend.tasks.registry import DEFAULT, load_task
from defend.tasks.task import Task, Unit
from defend.threat_models import GRADIENT_NAMES, NO_CLASSIFIER, THREAT_MODELS
from defend.trained_on import TrainedOn

# The columns of numbers, in this order, and their headings.
COLUMNS = {
    "clean": "clean",
    "oblivious": THREAT_MODELS["oblivious"].heading,
    "identity": GRADIENT_NAMES["identity"],
    "declared": GRADIENT_NAMES["declared"],
    "learned": GRADIENT_NAMES["learned"],
    "relaxed": GRADIENT_NAMES["relaxed"],
    "autograd": GRADIENT_NAMES["autograd"],
    "worst": "worst",
    "query": THREAT_MODELS["query"].heading,
    "transfer": THREAT_MODELS["transfer"].heading,
}
# The columns below the heading `adaptive`.
ADAPTIVE = ("identity", "declared", "learned", "relaxed", "autograd", "worst")
# The columns of a table by level, and their headings.
LEVEL_COLUMNS = {
    "clean": "clean",
    "worst": "all attacks",
    **{level: model.heading for level, model in THREAT_MODELS.items()},
}


@dataclass(frozen=True, kw_only=True)
class Number:
    """An accuracy with its interval, all in [0, 1]; None and `failed` if there is none.

    At a task in another unit it is the score in that unit.
    """

    value: float | None
    unit: Unit = "share"
    low: float | None = None
    high: float | None = None
    n: int = 0  # images
    note: str = ""  # "declared only", "declared = BPDA"
    bound: bool = False  # units were not at hand, so that the worst case is at most this
    flags: tuple[Flag, ...] = ()
    findings: tuple[Finding, ...] = ()  # that accuse a cell of this number
    failed: str | None = None  # the error

    @property
    def scale(self) -> float:
        """Return the factor by which the number is printed: 100, as percent, or 1."""
        return 100.0 if self.unit == "share" else 1.0

    @property
    def unconverged(self) -> bool:
        """Return True if an attack was still winning; below zero nothing more can fall."""
        still_fell = any(flag.code == FlagCode.UNCONVERGED for flag in self.flags)
        return still_fell and self.value != 0

    @property
    def at_most(self) -> bool:
        """Return True if the number is an upper bound of what these attacks leave."""
        return self.bound or self.unconverged

    @property
    def is_marked(self) -> bool:
        """Return True if something speaks against the number; it is printed with "!"."""
        return bool(self.flags or self.findings)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack at one eps against one defense, with a number for each column."""

    defense: str
    attack: str  # without its eps
    eps: float
    eps_text: str
    numbers: Mapping[str, Number]
    trained_on: tuple[TrainedOn, ...]  # of each learned member
    training_marks: tuple[Diagnosis, ...]  # the row is printed with "!" if there are any
    stochastic: bool
    draws: int
    forwards: float | None  # per image, of the most expensive cell of the row
    backwards: float | None
    claim: Claim


@dataclass(frozen=True, kw_only=True)
class LevelRow:
    """One defense at one eps, with the worst case over all attacks of each level of knowledge."""

    defense: str
    eps: float
    eps_text: str
    numbers: Mapping[str, Number]  # of LEVEL_COLUMNS, those that were measured
    trained_on: tuple[TrainedOn, ...]
    training_marks: tuple[Diagnosis, ...]
    draws: int
    claim: Claim


@dataclass(frozen=True, kw_only=True)
class Worst:
    """One defense at one eps: the worst case of each image over all cells and the clean image."""

    defense: str
    purifier: str  # hash of its settings and weights, which tells apart several of one name
    eps: float
    eps_text: str
    training_marks: tuple[Diagnosis, ...]
    number: Number
    clean: Number
    candidates: int  # cells whose adversarial images differ
    draws: int
    all_draws: float | None  # share of images right in every draw; None if deterministic
    majority: float | None  # share of images right in more than half of the draws
    control: Number | None  # the worst case over as many null attacks, chosen in the same way
    controls: int
    passes: tuple[float, float]  # forward and backward, per image, over all cells
    purify_ms: float | None  # per image, on top of the classifier
    claim: Claim
    cells: tuple[Record, ...]  # that the worst case was taken over; controls are none of them


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two defenses, worst case against worst case, on the same images."""

    title: str  # of the section
    a: str
    b: str
    eps_text: str
    difference: float  # a - b, as shares, or in the unit of the task
    low: float
    high: float
    p: float
    p_holm: float  # over all pairs of the table
    test: str
    same_attacks: bool
    unit: Unit = "share"

    @property
    def significant(self) -> bool:
        """Return True if the difference is significant among all pairs of the table."""
        return self.p_holm < 0.05


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows over the same images and classifier, in one norm."""

    key: SectionKey
    classifier_trained_on: tuple[TrainedOn, ...]
    rows: tuple[Row, ...]
    levels: tuple[LevelRow, ...]
    worst: tuple[Worst, ...]

    @property
    def task(self) -> Task:
        """Return what was measured."""
        return load_task(self.key.task)

    @property
    def legend(self) -> str:
        """Return what its numbers are: "Percent right"."""
        task = self.task
        return f"Percent {task.score_means}" if task.unit == "share" else self._in_unit

    @property
    def _in_unit(self) -> str:
        return f"{self.task.score_means} in {self.task.unit}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that were measured."""
        return _measured_columns(self.rows, COLUMNS)

    @property
    def level_columns(self) -> tuple[str, ...]:
        """Return the columns of the table by level that were measured."""
        return _measured_columns(self.levels, LEVEL_COLUMNS)

    @property
    def by_defense(self) -> list[tuple[str, list[Row]]]:
        """Return the rows of each defense."""
        groups = groupby(self.rows, lambda row: row.defense)
        return [(defense, list(rows)) for defense, rows in groups]

    @property
    def classifier(self) -> str:
        """Return the classifier, with what it was trained on unless that is clean images alone."""
        return format_classifier(self.key.classifier, self.classifier_trained_on)

    @property
    def title(self) -> str:
        """Return what the section is about, with a precision and a layout that are unusual."""
        key = self.key
        parts = [] if key.task == DEFAULT else [key.task]
        parts += [
            key.dataset,
            *([] if key.classifier == NO_CLASSIFIER else [self.classifier]),
            key.norm,
            f"n = {key.n} of {key.split}",
            f"seed {key.seed}",
        ]
        if key.precision != "float32":
            parts.append(key.precision)
        if key.layout != "contiguous":
            parts.append(key.layout)
        return " | ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Sections, and everything that is printed below them."""

    sections: tuple[Section, ...]
    claims: tuple[Claim, ...]  # one for each distinct line
    surrogates: tuple[str, ...]  # the pipelines that transfer attacks attacked
    signs: tuple[str, ...]  # of masking, or of an attack that was too weak: no claim survives them
    comparisons: tuple[Compared, ...]
    measures: tuple[str, ...]  # what tasks measure beside their score
    measure_pairs: tuple[str, ...]  # defenses compared by it
    queries: tuple[str, ...]  # accuracy along the queries of a search
    rounds: tuple[str, ...]  # images that stand along the rounds of a search
    findings: tuple[Finding, ...]
    accusations: tuple[tuple[Finding, ...], ...]  # against each record, in their order
    unconfirmed: tuple[str, ...]  # cells whose units do not give their record again
    training: tuple[str, ...]  # a line for each training mark of a pipeline
    flags: tuple[str, ...]
    failures: tuple[str, ...]
    footnotes: tuple[str, ...]  # how to read the numbers
    level_footnotes: tuple[str, ...]  # the same for the table by level

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return the rows of all sections."""
        return tuple(chain.from_iterable(section.rows for section in self.sections))

    @property
    def claim_lines(self) -> list[str]:
        """Return each line about claims once, in the order of their letters."""
        return list(dict.fromkeys(map(summarise_claim, self.claims)))

    def letter(self, claim: Claim) -> str:
        """Return the letter of the claim's line below the table: a, b, ..., z, aa."""
        return letter_of(self.claim_lines.index(summarise_claim(claim)))


def _measured_columns(rows: Iterable[Row | LevelRow], columns: Iterable[str]) -> tuple[str, ...]:
    """Return those of the columns that some row has a number in."""
    measured = {column for row in rows for column in row.numbers}
    return tuple(column for column in columns if column in measured)


def letter_of(index: int) -> str:
    """Return the letter of line 0, 1, ...: a, b, ..., z, aa."""
    first, second = divmod(index, 26)
    prefix = chr(ord("a") + first - 1) if first else ""
    return prefix + chr(ord("a") + second)
