"""Per-image outcomes of a cell, read from its units, and the worst case over several cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defend.benchmarks.units import Unit, read_unit
from defend.spec import parse_single

Record = Mapping[str, Any]
Bits = NDArray[np.uint8]
SECTION = (
    "dataset",
    "classifier",
    "norm",
    "n",
    "split",
    "seed",
)  # of a record: what all rows of a section share, beside `frame_of`


def frame_of(r: Record) -> tuple[str, ...]:
    """How a classifier ran and which it is, by settings and weights: what records side by side share beyond their names."""
    return (
        str(r.get("precision", "float32")),
        str(r.get("layout", "contiguous")),
        str((r.get("pipeline") or {}).get("classifier", "")),
    )


def section_of(r: Record) -> tuple[object, ...]:
    """Which section of the table a record stands in."""
    return *(r[k] for k in SECTION), *frame_of(r)


def bare_attack(r: Record) -> str:
    """The attack without its eps, so that pgd:eps=8/255 and pgd:eps=16/255 are one series."""
    return str(parse_single(r["attack"], "attack").without("eps")[0])


def spelled_alike(records: Sequence[Record]) -> list[Record]:
    """Pipelines of the same settings and weights under the spelling that stands first, however each was typed."""
    first: dict[tuple[str, str], str] = {}
    return [
        r | {k: first.setdefault((k, h), r[k]) for k, h in (r.get("pipeline") or {}).items() if h}
        for r in map(dict, records)
    ]


def purifier_of(r: Record) -> str:
    """Which purifier a record is of, by settings and weights; nothing where it does not say."""
    return str((r.get("pipeline") or {}).get("defense", ""))


HOW = ("seed", "precision", "layout")


def how_of(r: Record) -> tuple[str, ...]:
    """From which seed, and how it was computed."""
    return str(r["seed"]), *frame_of(r)[:-1]


def of_claim(r: Record) -> tuple[str, ...]:
    """What one claim is of: one pipeline, by name and by weights, in one norm, from one seed. The norm last."""
    return (
        r["dataset"],
        r["classifier"],
        r["defense"],
        *how_of(r),
        frame_of(r)[-1],
        purifier_of(r),
        r["norm"],
    )


def pipeline_of(r: Record) -> tuple[str, ...]:
    """The same, from whatever seed and however it was computed."""
    return r["dataset"], r["classifier"], r["defense"], frame_of(r)[-1], purifier_of(r), r["norm"]


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Right (1) or wrong (0), image by image and draw by draw. `select` chooses worst cases, `score` is read off."""

    score: Bits  # (n, K)
    clean_score: Bits  # (n, K)
    select: Bits | None = None  # (n, 10); None where the purifier is deterministic
    clean_select: Bits | None = None
    x_adv: tuple[str, ...] = ()  # sha256 of the adversarial images, unit by unit


def find_unit(key: str, run_dirs: Sequence[Path]) -> Unit | None:
    """From the first folder that has it, whole. None where no folder has."""
    return next((unit for d in run_dirs if (unit := read_unit(d, key)) is not None), None)


def read_outcomes(record: Record, run_dirs: Sequence[Path]) -> Outcomes | None:
    """Of all n images. None where the cell failed or one of its units lies in none of the folders."""
    if record["error"] is not None:
        return None
    units = [find_unit(key, run_dirs) for key in record["units"]]
    there = sorted((u for u in units if u is not None), key=lambda u: int(u.header["start"]))
    if not there or len(there) < len(units):
        return None
    names = [
        name
        for name in ("score", "clean_score", "select", "clean_select")
        if name in there[0].tensors
    ]
    joined = {name: np.concatenate([u.tensors[name].numpy() for u in there]) for name in names}
    return Outcomes(**joined, x_adv=tuple(str(u.header["x_adv_sha256"]) for u in there))


class Reader:
    """`read_outcomes` that reads each cell once: one table asks for the same cell many times."""

    def __init__(self, run_dirs: Sequence[Path]) -> None:
        self.run_dirs = run_dirs
        self._kept: dict[tuple[str, ...], Outcomes | None] = {}

    def __call__(self, record: Record) -> Outcomes | None:
        key = tuple(record["units"])
        if not key or record["error"] is not None:
            return None
        if key not in self._kept:
            self._kept[key] = read_outcomes(record, self.run_dirs)
        return self._kept[key]


def distinct(candidates: Sequence[Outcomes]) -> list[Outcomes]:
    """Candidates whose adversarial images are the same, to the bit, count once."""
    return list({c.x_adv: c for c in candidates}.values())


def worst(candidates: Sequence[Outcomes]) -> Bits:
    """The worst case of each image over the candidates, the clean image among them: (n, K).

    Deterministic: right only where right under all. Stochastic: the candidate that does worst on `select`, as far as that tells more
    than chance (see `_estimated`), read off on `score`, because the minimum of noisy estimates falls by itself.
    """
    some = distinct(candidates)
    if some[0].select is None or some[0].clean_select is None:
        return np.asarray(
            np.minimum.reduce([some[0].clean_score, *(c.score for c in some)]), np.uint8
        )
    select = np.stack([some[0].clean_select, *(c.select for c in some if c.select is not None)])
    score = np.stack([some[0].clean_score, *(c.score for c in some)])
    return np.asarray(score[chosen(select), np.arange(score.shape[1])], np.uint8)


def chosen(select: Bits) -> NDArray[np.int64]:
    """Which of m candidates does worst on each image, as far as its draws (m, n, 10) tell more than chance: (n,)."""
    strongest_first = np.argsort(
        select.mean((1, 2)), kind="stable"
    )  # ties go to the candidate that is stronger over all images
    return np.asarray(strongest_first[_estimated(select[strongest_first]).argmin(0)])


def _estimated(select: Bits) -> NDArray[np.float64]:
    """The share of right draws of each image under each candidate, from draws (m, n, 10): (m, n). Efron, Morris, JASA 70 (1975) 311.

    The mean of the image and of the candidate, and of what is left the part that is no sampling noise. With the bare shares, an image
    would often go to a null attack whose ten draws came out low by chance, and adding null attacks would raise the worst case.
    """
    share = select.mean(2)
    additive = share.mean(0) + share.mean(1, keepdims=True) - share.mean()
    left = share - additive
    noise = _noise(select)
    spread = (left**2).sum(1) / max(1, left.shape[1] - 1)
    trust = np.clip(1 - noise / np.maximum(spread, 1e-12), 0, 1)
    return np.asarray(
        np.round(additive + trust[:, None] * left, 12), np.float64
    )  # rounded: the order of the candidates decides nothing


def _noise(select: Bits) -> NDArray[np.float64]:
    """The sampling variance of the shares of right draws, less the mean of the image, for each candidate: (m,).

    From draw to draw, after what is common to the candidates: they are scored with the same noise, and what it does to all of them is
    gone with the mean of the image. As if they had noise of their own, p (1 - p) / draws, it is several times too large (docs/adr/0004).
    """
    own = select - select.mean(0)
    draws = select.shape[2]
    squares = ((own - own.mean(2, keepdims=True)) ** 2).sum(2)
    return np.asarray(squares.mean(1) / (max(1, draws - 1) * draws), np.float64)
