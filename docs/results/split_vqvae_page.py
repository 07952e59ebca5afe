"""What docs/split-vqvae.md shows, from the run folder of the suite: a table with a row for each cell, the curves, the strips of images.

defend bench defend/benchmarks/suites/split_vqvae.toml
python docs/results/split_vqvae_page.py runs/split_vqvae ...
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from defend.records import read_records
from defend.results.outcomes import find_unit

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
COLUMNS = (
    "classifier",
    "defense",
    "trained_on",
    "attack",
    "knowledge",
    "gradient",
    "eps",
    "n",
    "clean_accuracy",
    "robust_accuracy",
    "ci_low",
    "ci_high",
)
STYLES = {"oblivious": "-", "declared": "--", "identity": ":"}
STRIP_EPS = 0.3
Record = Mapping[str, Any]


def main() -> None:
    runs = [Path(name) for name in sys.argv[1:]]
    records = [r for run in runs for r in read_records(run) if r["error"] is None]
    save(records, HERE / "split_vqvae.csv")
    fgsm = [r for r in records if r["attack"] == "fgsm"]
    curves(
        [r for r in fgsm if r["classifier"] == fgsm[0]["classifier"]],
        HERE.parent / "split_vqvae_curves.png",
    )
    strips(fgsm, runs, HERE.parent / "split_vqvae_strips.png")


def save(records: Iterable[Record], file: Path) -> None:
    with file.open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for r in records:
            writer.writerow({**r, "eps": r["eps_text"]} | {k: f"{r[k]:.4f}" for k in COLUMNS[-4:]})
    print(f"wrote {file}")


def short(spec: str) -> str:
    """split-vqvae:weights=split-vqvae-mnist-quad -> quad; chains with an arrow."""
    return " > ".join(part.rpartition("split-vqvae-mnist-")[2] or part for part in spec.split("+"))


def column(r: Record) -> str:
    return r["knowledge"] if r["knowledge"] == "oblivious" else r["gradient"]


def curves(records: list[Record], file: Path) -> None:
    """A panel for each kind of attacker that was measured along eps, at its largest n; a colour for each defense."""
    defenses = list(dict.fromkeys(r["defense"] for r in records))
    panels = {
        level: largest([r for r in records if r["knowledge"] == level])
        for level in ("oblivious", "adaptive")
    }
    panels = {level: panel for level, panel in panels.items() if len({r["eps"] for r in panel}) > 1}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 3.8), sharey=True, squeeze=False
    )
    for axis, (level, panel) in zip(axes[0], panels.items(), strict=True):
        for (defense, style), series in grouped(panel).items():
            series.sort(key=lambda r: r["eps"])
            label = short(defense) if style in ("oblivious", "declared") else None
            axis.plot(
                [r["eps"] for r in series],
                [r["robust_accuracy"] for r in series],
                STYLES[style],
                color=f"C{defenses.index(defense)}",
                label=label,
            )
        axis.set_title(
            f"FGSM, {level}, n = {panel[0]['n']:,}"
            + (" (dashed: declared, dotted: BPDA)" if level == "adaptive" else ""),
            fontsize=9,
        )
        axis.set_xlabel("eps, L-inf")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"accuracy of {records[0]['classifier']}")
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=80, bbox_inches="tight")
    print(f"wrote {file}")


def largest(records: list[Record]) -> list[Record]:
    n = max((r["n"] for r in records), default=0)
    return [r for r in records if r["n"] == n]


def grouped(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        found.setdefault((r["defense"], column(r)), []).append(r)
    return found


def strips(records: list[Record], runs: list[Path], file: Path) -> None:
    """Clean, attacked, and restored by each defense, of the first classifier at one eps, oblivious."""
    wanted = [
        r
        for r in records
        if r["classifier"] == records[0]["classifier"]
        and r["knowledge"] == "oblivious"
        and abs(r["eps"] - STRIP_EPS) < 1e-9
    ]
    units = {
        short(r["defense"]): find_unit(r["units"][0], runs)
        for r in wanted
        if r["defense"] != "none"
    }
    first = next(u for u in units.values() if u is not None)
    rows = {"clean": first.tensors["sample_x"], f"FGSM {STRIP_EPS}": first.tensors["sample_adv"]}
    rows |= {name: u.tensors["sample_purified"] for name, u in units.items() if u is not None}
    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 1.15 * len(rows)))
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(side_by_side(images), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(file, dpi=80, bbox_inches="tight")
    print(f"wrote {file}")


def side_by_side(images: Tensor) -> Tensor:
    """(b, 1, h, w) -> (h, b w)."""
    return torch.cat(list(images[:, 0].float()), 1)


if __name__ == "__main__":
    main()
