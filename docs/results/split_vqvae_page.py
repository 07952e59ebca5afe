"""What docs/split-vqvae.md shows, from the run folder of the suite: a table with a row for each cell, the curves, the strips of images.

defend bench defend/benchmarks/suites/split_vqvae.toml
python docs/results/split_vqvae_page.py runs/split_vqvae
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

from defend.benchmarks.records import read_records
from defend.benchmarks.units import read_unit

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
COLUMNS = ("classifier", "defense", "trained_on", "attack", "knowledge", "gradient", "eps", "n", "clean_accuracy", "robust_accuracy", "ci_low", "ci_high")
STYLES = {"oblivious": "-", "declared": "--", "identity": ":"}
STRIP_EPS = 0.3
Record = Mapping[str, Any]


def main() -> None:
    run = Path(sys.argv[1])
    records = [r for r in read_records(run) if r["error"] is None]
    save(records, HERE / "split_vqvae.csv")
    curves([r for r in records if r["attack"] == "fgsm"], HERE.parent / "split_vqvae_curves.png")
    strips([r for r in records if r["attack"] == "fgsm"], run, HERE.parent / "split_vqvae_strips.png")


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
    """A panel for each classifier and kind of attacker; a colour for each defense."""
    classifiers, levels = list(dict.fromkeys(r["classifier"] for r in records)), ("oblivious", "adaptive")
    defenses = list(dict.fromkeys(r["defense"] for r in records))
    figure, axes = plt.subplots(len(classifiers), 2, figsize=(10, 3.4 * len(classifiers)), sharex=True, sharey=True, squeeze=False)
    for row, classifier in zip(axes, classifiers, strict=True):
        for axis, level in zip(row, levels, strict=True):
            panel = [r for r in records if r["classifier"] == classifier and r["knowledge"] == level]
            for (defense, style), series in grouped(panel).items():
                series.sort(key=lambda r: r["eps"])
                label = short(defense) if style in ("oblivious", "declared") else None
                axis.plot([r["eps"] for r in series], [r["robust_accuracy"] for r in series], STYLES[style], color=f"C{defenses.index(defense)}", label=label)
            axis.set_title(f"{classifier}, FGSM, {level}" + (" (dashed: declared, dotted: BPDA)" if level == "adaptive" else ""), fontsize=9)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("accuracy, 10,000 test images")
    axes[0][0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("eps, L-inf")
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    print(f"wrote {file}")


def grouped(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        found.setdefault((r["defense"], column(r)), []).append(r)
    return found


def strips(records: list[Record], run: Path, file: Path) -> None:
    """Clean, attacked, and restored by each defense, of the first classifier at one eps, oblivious."""
    wanted = [r for r in records if r["classifier"] == records[0]["classifier"] and r["knowledge"] == "oblivious" and abs(r["eps"] - STRIP_EPS) < 1e-9]
    units = {short(r["defense"]): read_unit(run, r["units"][0]) for r in wanted if r["defense"] != "none"}
    first = next(u for u in units.values() if u is not None)
    rows = {"clean": first.tensors["sample_x"], f"FGSM {STRIP_EPS}": first.tensors["sample_adv"]}
    rows |= {name: u.tensors["sample_purified"] for name, u in units.items() if u is not None}
    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 1.15 * len(rows)))
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(side_by_side(images), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.2)
    figure.savefig(file, dpi=80)
    print(f"wrote {file}")


def side_by_side(images: Tensor) -> Tensor:
    """(b, 1, h, w) -> (h, b w)."""
    return torch.cat(list(images[:, 0].float()), 1)


if __name__ == "__main__":
    main()
