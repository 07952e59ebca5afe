"""Make what docs/split-vqvae.md shows from the run folder of the suite: a table with a row for each
cell, the curves, and the examples of images.

    defend bench defend/benchmarks/suites/split_vqvae.toml
    python docs/results/split_vqvae_page.py runs/split_vqvae ...
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from defend.eps import same_eps
from defend.records import Record, read_records
from defend.results.training_knowledge import format_trained_on
from defend.unit_files import Unit, find_unit

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
NAMES = ("classifier", "defense", "trained_on", "attack", "knowledge", "gradient", "eps", "n")
ACCURACIES = ("clean_accuracy", "robust_accuracy", "ci_low", "ci_high")
STYLES = {"oblivious": "-", "declared": "--", "identity": ":"}
EXAMPLE_EPS = 0.3


def main() -> None:
    runs = [Path(name) for name in sys.argv[1:]]
    records: list[Record] = []
    for run in runs:
        records += [r for r in read_records(run) if not r.failed]
    save(records, HERE / "split_vqvae.csv")
    fgsm = [r for r in records if r.attack == "fgsm"]
    of_first = [r for r in fgsm if r.classifier == fgsm[0].classifier]
    draw_curves(of_first, HERE.parent / "split_vqvae_curves.png")
    draw_examples(of_first, runs, HERE.parent / "split_vqvae_strips.png")


def save(records: Iterable[Record], file: Path) -> None:
    with file.open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow([*NAMES, *ACCURACIES])
        for record in records:
            values = {name: getattr(record, name) for name in NAMES}
            values |= {
                "eps": record.eps_text,
                "trained_on": format_trained_on(record.trained_on),
            }
            accuracies = [f"{getattr(record, name):.4f}" for name in ACCURACIES]
            writer.writerow([*values.values(), *accuracies])
    print(f"wrote {file}")


def shorten(spec: str) -> str:
    """Return quad for split-vqvae:weights=split-vqvae-mnist-quad; chains with an arrow."""
    members = [member.rpartition("split-vqvae-mnist-")[2] or member for member in spec.split("+")]
    return " > ".join(members)


def style_key(record: Record) -> str:
    """Return the level; at `adaptive` the gradient."""
    return record.knowledge if record.knowledge == "oblivious" else str(record.gradient)


def draw_curves(records: Sequence[Record], file: Path) -> None:
    """Draw a panel for each kind of attacker that was measured along eps, at its largest n.

    Each defense has a colour.
    """
    panels = {}
    for level in ("oblivious", "adaptive"):
        cells = with_most_images([r for r in records if r.knowledge == level])
        if len({r.eps for r in cells}) > 1:
            panels[level] = cells
    defenses = list(dict.fromkeys(r.defense for r in records))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 3.8), sharey=True, squeeze=False
    )
    for axis, (level, cells) in zip(axes[0], panels.items(), strict=True):
        draw_panel(axis, level, cells, defenses)
    axes[0][0].set_ylabel(f"accuracy of {records[0].classifier}")
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=80, bbox_inches="tight")
    print(f"wrote {file}")


def draw_panel(axis: Axes, level: str, cells: Sequence[Record], defenses: list[str]) -> None:
    series: dict[tuple[str, str], list[Record]] = {}
    for record in cells:
        series.setdefault((record.defense, style_key(record)), []).append(record)
    for (defense, style), points in series.items():
        by_eps = sorted(points, key=lambda r: r.eps)
        axis.plot(
            [r.eps for r in by_eps],
            [r.robust_accuracy for r in by_eps],
            STYLES[style],
            color=f"C{defenses.index(defense)}",
            label=shorten(defense) if style in ("oblivious", "declared") else None,
        )
    title = f"FGSM, {level}, n = {cells[0].n:,}"
    if level == "adaptive":
        title += " (dashed: declared, dotted: BPDA)"
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("eps, L-inf")
    axis.grid(alpha=0.3)


def with_most_images(records: Sequence[Record]) -> list[Record]:
    most = max((r.n for r in records), default=0)
    return [r for r in records if r.n == most]


def draw_examples(records: Sequence[Record], runs: Sequence[Path], file: Path) -> None:
    """Draw clean and attacked images, and what each defense restores, at one eps, oblivious."""
    units: dict[str, Unit] = {}
    for record in records:
        is_shown = record.knowledge == "oblivious" and record.defense != "none"
        if is_shown and same_eps(record.eps, EXAMPLE_EPS):
            unit = find_unit(record.units[0], runs)
            if unit is not None:
                units[shorten(record.defense)] = unit
    first = next(iter(units.values()))
    rows = {
        "clean": first.tensors["sample_x"],
        f"FGSM {EXAMPLE_EPS}": first.tensors["sample_adv"],
        **{name: unit.tensors["sample_purified"] for name, unit in units.items()},
    }
    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 1.15 * len(rows)))
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(side_by_side(images), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(file, dpi=80, bbox_inches="tight")
    print(f"wrote {file}")


def side_by_side(images: Tensor) -> Tensor:
    """Return the images in a row: (b, 1, h, w) -> (h, b w)."""
    return torch.cat(list(images[:, 0].float()), 1)


if __name__ == "__main__":
    main()
