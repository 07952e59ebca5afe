"""A table as data: sections of rows of numbers, and what stands below. Terminal and report print the same one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from defend.benchmarks.flags import is_unconverged

COLUMNS = {  # in this order, whichever were measured
    "clean": "clean",
    "oblivious": "oblivious",
    "identity": "BPDA",
    "declared": "declared",
    "learned": "learned",
    "worst": "worst",
    "query": "query",
    "transfer": "transfer",
}
ADAPTIVE = ("identity", "declared", "learned", "worst")  # the columns under the heading `adaptive`


@dataclass(frozen=True, kw_only=True)
class Number:
    """An accuracy with its interval, all in [0, 1]; None and `failed` where there is none."""

    accuracy: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""  # "declared only", "declared = BPDA"
    bound: bool = False  # per-image outcomes were not at hand: the worst case is at most this
    flags: tuple[str, ...] = ()
    failed: str | None = None  # the reason

    @property
    def unconverged(self) -> bool:
        """A bound under zero says nothing: where nothing is left, nothing more can fall."""
        return bool(self.accuracy != 0) and is_unconverged(self.flags)

    @property
    def at_most(self) -> str:
        return "<= " * (self.bound or self.unconverged)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack at one eps against one defense, all levels side by side."""

    defense: str
    attack: str  # without its eps
    eps: float
    eps_text: str
    numbers: Mapping[str, Number]
    trained_on: str | None
    stochastic: bool
    draws: int
    forwards: float | None  # per image, of the dearest cell of the row
    backwards: float | None
    claim: str


@dataclass(frozen=True, kw_only=True)
class Worst:
    """One defense at one eps: the worst case of each image over everything that was run, the clean image among it."""

    defense: str
    purifier: str  # which, of several of this name: see `outcomes.purifier_of`
    eps: float
    eps_text: str
    number: Number
    clean: Number
    candidates: int  # cells whose adversarial images differ
    draws: int
    all_draws: (
        float | None
    )  # the share of images right in every draw; None where the defense is deterministic
    majority: float | None  # ... in more than half of them
    control: Number | None  # the worst over as many null attacks, chosen and read off alike
    controls: int
    passes: tuple[float, float]  # forward and backward, per image, over all cells
    purify_ms: (
        float | None
    )  # per image, on top of the classifier: what the defense costs against none
    claim: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two defenses, worst case against worst case, on the same images."""

    title: str  # of the section
    a: str
    b: str
    eps_text: str
    difference: float  # a - b, as shares
    low: float
    high: float
    p: float
    p_holm: float  # over all pairs of the table
    test: str
    same_attacks: bool

    @property
    def significant(self) -> bool:
        return self.p_holm < 0.05


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows over the same images and classifier, in one norm."""

    dataset: str
    classifier: str
    norm: str
    n: int
    split: str
    seed: int
    frame: tuple[str, ...]  # precision, layout, which classifier: see `outcomes.frame_of`
    rows: tuple[Row, ...]
    worst: tuple[Worst, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c for c in COLUMNS if any(c in row.numbers for row in self.rows))

    @property
    def by_defense(self) -> list[tuple[str, list[Row]]]:
        return [
            (defense, list(rows)) for defense, rows in groupby(self.rows, lambda row: row.defense)
        ]

    @property
    def title(self) -> str:
        unusual = [
            f" | {said}"
            for said, usual in zip(self.frame, ("float32", "contiguous"), strict=False)
            if said != usual
        ]
        return f"{self.dataset} | {self.classifier} | {self.norm} | n = {self.n} of {self.split} | seed {self.seed}{''.join(unusual)}"


@dataclass(frozen=True, kw_only=True)
class Table:
    sections: tuple[Section, ...]
    claims: tuple[str, ...]  # each distinct claim line once
    surrogates: tuple[str, ...]  # what the transfer attacks were made on
    signs: tuple[str, ...]  # of masking, or of an attack too weak: no claim survives them
    comparisons: tuple[Compared, ...]
    queries: tuple[str, ...]
    findings: tuple[str, ...]
    flags: tuple[str, ...]
    failures: tuple[str, ...]
    reading: tuple[str, ...]  # how to read the numbers

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for section in self.sections for row in section.rows)

    def mark(self, row: Row) -> str:
        """The letter of the row's claim line below the table."""
        return self.letter(row.claim)

    def letter(self, claim: str) -> str:
        """a, b, ..., z, aa."""
        i = self.claims.index(claim)
        return (chr(ord("a") + i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


def claims(line: str) -> bool:
    """Is this a claim, or what keeps it from being one?"""
    return not line.startswith("no claim")


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def number_text(number: Number) -> str:
    """25.0 (19.5-31.4); <= 25.0 where the images were not at hand, <= 25.0 (19.5-31.4, unconverged) where an attack was still winning."""
    if number.accuracy is None:
        return "failed"
    still = ", unconverged" if number.unconverged else ""
    span = (
        f" ({percent(number.low)}-{percent(number.high)}{still})" if number.low is not None else ""
    )
    return f"{number.at_most}{percent(number.accuracy)}{span}"


def passes(row: Row) -> str:
    """Forward + backward passes of the pipeline for each image: 20+20, 1.2k+1.2k."""
    if row.forwards is None or row.backwards is None:
        return ""
    return f"{short(row.forwards)}+{short(row.backwards)}"


def short(count: float) -> str:
    if count >= 9999.5:
        return f"{count / 1000:.0f}k"
    return f"{count / 1000:.1f}k" if count >= 999.95 else f"{count:.3g}"
