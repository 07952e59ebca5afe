"""Measure the operating curve of ComDefend: how well it reconstructs against how much it purifies.

    python docs/results/comdefend_curve.py 10000=a.safetensors 3500000=comdefend-cifar10-late

Each argument is the number of images that a training saw, its weights, and the noises at test time
(a.safetensors=0,20; without them 0). The curve has one point for each of these, on validation
images of CIFAR-10 before resnet20. Interrupted, the same command goes on. It writes
comdefend_curve.csv beside this file and a figure for docs/comdefend.md. Needs CIFAR-10:
DEFEND_DATA.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import matplotlib
import torch

import defend
from defend.defenses.comdefend import ComDefend
from defend.distortion import psnr
from defend.noise import Noise
from defend.records import Record
from defend.spec import write_value

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
DATASET, CLASSIFIER = "cifar10", "resnet20"
OBLIVIOUS = ("fgsm 8/255", "pgd 2/255", "pgd 8/255")
ADAPTIVE = "adaptive 8/255"
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model with one noise at test time. Accuracies in percent."""

    weights: str
    images: int  # that the training saw, repeats counted
    width: int
    code_maps: int
    noise: float
    code_size: float  # mean |c| over images, maps and pixels
    psnr: float  # dB, mean over images, of reconstructions of clean images
    clean: float
    fgsm_8: float
    pgd_2: float
    pgd_8: float
    adaptive_8: float
    n: int  # images of all columns but adaptive_8
    n_adaptive: int


def main() -> None:
    options = parse_arguments()
    points = []
    for argument in options.models:
        images, weights, *noises = argument.split("=")
        for noise in noises[0].split(",") if noises else ["0"]:
            points.append(measure(int(images), weights, float(noise), options))
            print(points[-1], flush=True)
    save(points, HERE / "comdefend_curve.csv")
    draw(points, HERE.parent / "comdefend_curve.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="IMAGES=WEIGHTS=NOISES")
    parser.add_argument("--n", type=int, default=256, help="validation images")
    parser.add_argument("--n-adaptive", type=int, default=128, help="of them, for adaptive attacks")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/comdefend_curve"), help="the folder of cells"
    )
    return parser.parse_args()


def measure(images: int, weights: str, noise: float, options: argparse.Namespace) -> Point:
    """Return the point of one model at one noise."""
    spec = f"comdefend:weights={write_value(weights)},noise={noise:g}"
    purifier = defend.load(spec, "defense", DATASET)
    assert isinstance(purifier, ComDefend)
    purifier.run_as("float32", "contiguous")
    code_size, decibels = measure_codes(purifier, options.n)
    oblivious = {
        f"{record.attack.split(':')[0]} {record.eps_text}": record
        for record in bench(spec, ["fgsm"], "8/255", "oblivious", options.n, options)
        + bench(spec, ["pgd:steps=20"], "2/255,8/255", "oblivious", options.n, options)
    }
    adaptive = bench(spec, ["pgd:steps=10"], "8/255", "adaptive", options.n_adaptive, options)
    fgsm_8, pgd_2, pgd_8 = (to_percent(oblivious[name].robust_accuracy) for name in OBLIVIOUS)
    return Point(
        weights=Path(weights).stem,
        images=images,
        width=purifier.width,
        code_maps=purifier.code_maps,
        noise=noise,
        code_size=code_size,
        psnr=decibels,
        clean=to_percent(oblivious[OBLIVIOUS[0]].clean_accuracy),
        fgsm_8=fgsm_8,
        pgd_2=pgd_2,
        pgd_8=pgd_8,
        adaptive_8=min(to_percent(record.robust_accuracy) for record in adaptive),
        n=options.n,
        n_adaptive=options.n_adaptive,
    )


def measure_codes(purifier: ComDefend, n: int) -> tuple[float, float]:
    """Return the mean |c| and the mean PSNR in dB over the first n validation images."""
    dataset = defend.load(DATASET, "dataset")
    sizes, decibels = [], []
    with torch.no_grad():
        for start in range(0, n, BATCH):
            x, _ = dataset.rows("val", start, min(n, start + BATCH))
            sizes.append(purifier.net.encode(x).abs().mean((1, 2, 3)))
            y = purifier.purified(x, Noise.of(0, torch.arange(start, start + len(x))))
            decibels.append(psnr(y, x))
    return torch.cat(sizes).mean().item(), torch.cat(decibels).mean().item()


def bench(
    spec: str,
    attacks: Sequence[str],
    eps: str,
    knowledge: str,
    n: int,
    options: argparse.Namespace,
) -> list[Record]:
    """Return the records of one purifier. Adaptive attacks use the declared gradient alone."""
    records = defend.bench(
        name="comdefend_curve",
        dataset=DATASET,
        split="val",
        classifiers=[CLASSIFIER],
        defenses=[spec],
        attacks=list(attacks),
        knowledge=[knowledge],
        gradients=["declared"] if knowledge == "adaptive" else None,
        eps=eps,
        n=n,
        out=options.out,
    )
    failed = [record for record in records if record.failed]
    if failed:
        raise RuntimeError(f"{failed[0].defense}: {failed[0].error}")
    return records


def to_percent(accuracy: float | None) -> float:
    assert accuracy is not None, "a cell without an error has its numbers"
    return 100 * accuracy


def save(points: Sequence[Point], file: Path) -> None:
    columns = [field.name for field in fields(Point)]
    with file.open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(columns)
        for point in points:
            writer.writerow([format_cell(getattr(point, name)) for name in columns])
    print(f"wrote {file}: {len(points)} points")


def format_cell(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw accuracies against PSNR, one line for each model, along its noise."""
    labels = {"clean": "clean", "pgd_2": "PGD 2/255, oblivious", "pgd_8": "PGD 8/255, oblivious"}
    figure, axes = plt.subplots(1, len(labels), figsize=(12, 3.4), sharex=True, sharey=True)
    models: dict[tuple[str, int, int], list[Point]] = {}
    for point in points:
        models.setdefault((point.weights, point.images, point.width), []).append(point)
    for ax, (name, title) in zip(axes, labels.items(), strict=True):
        for (_, images, width), line in models.items():
            label = f"{images:,} images, width {width}"
            ax.plot([p.psnr for p in line], [getattr(p, name) for p in line], "o-", label=label)
        ax.set(title=title, xlabel="PSNR of clean images, dB")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    figure.tight_layout(rect=(0, 0, 0.83, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="center right", fontsize=8)
    figure.savefig(file, dpi=110)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
