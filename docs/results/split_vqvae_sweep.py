"""Tables 2 and 3 of the Split-VQ-VAE papers: twenty models, K = 100 to 1000, whole and in quadrants, trained and measured on MNIST.

    python docs/results/split_vqvae_sweep.py --classifier lenet --classifier convnet

Interrupted, the same command goes on: models that are trained are kept, a training goes on where it was, cells that are measured are read.
Writes a table with a row for each model, classifier and eps, and what the papers print beside what was measured. Needs MNIST: DEFEND_DATA.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

import defend
from defend.spec import write_value

KS = range(100, 1001, 100)
GRIDS = {"whole": 1, "quad": 2}
PRINTED = (
    "0",
    "0.02",
    "0.04",
    "0.26",
    "0.28",
    "0.3",
)  # the papers' column heads 0, 0.2, 0.4, 2.6, 2.8, 3.0 are eps x 10
PUBLISHED = {
    "whole": """
        .976 .971 .963 .522 .433 .346
        .977 .972 .966 .531 .423 .325
        .978 .974 .968 .484 .372 .282
        .979 .974 .968 .556 .462 .381
        .977 .974 .968 .635 .553 .465
        .976 .972 .967 .566 .466 .371
        .980 .975 .969 .607 .530 .434
        .983 .979 .974 .478 .367 .285
        .983 .981 .975 .488 .385 .298
        .981 .978 .971 .573 .476 .385""",
    "quad": """
        .9836 .9787 .974 .401 .330 .278
        .9816 .9781 .973 .403 .322 .259
        .9874 .9838 .978 .495 .397 .316
        .9847 .9820 .977 .471 .388 .312
        .9859 .9822 .978 .368 .286 .220
        .9874 .9833 .980 .403 .329 .265
        .9873 .9836 .979 .444 .352 .277
        .9868 .9842 .979 .393 .312 .239
        .9872 .9840 .979 .413 .323 .256
        .9873 .9845 .980 .412 .323 .250""",
}
COLUMNS = (
    "model",
    "codes",
    "classifier",
    "eps",
    "published",
    "measured",
    "difference",
    "ci_low",
    "ci_high",
    "n",
    "trained_on",
)


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    files = {
        (model, k): options.out / f"{model}-{k}.safetensors"
        for model in GRIDS
        for k in KS
        if k in options.codes
    }
    for (model, k), file in files.items():
        if not file.exists():
            train(model, k, file, options)
    records = defend.bench(
        name="split_vqvae_sweep",
        dataset="mnist",
        classifiers=options.classifier or ["convnet"],
        defenses=["none", *(spec(file) for file in files.values())],
        attacks=["fgsm"],
        knowledge=["oblivious"],
        eps=",".join(PRINTED),
        n=options.n,
        out=options.out / "bench",
        progress=True,
    )
    table = rows(records, {spec(file): key for key, file in files.items()})
    save(options.table, table)
    for line in summary(table):
        print(line)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=float, default=2, help="of each training (default: 2)")
    parser.add_argument(
        "--codes",
        type=int,
        nargs="+",
        default=list(KS),
        choices=KS,
        metavar="K",
        help="some of 100, 200 ... 1000 (default: all)",
    )
    parser.add_argument("--n", type=int, default=10000, help="test images (default: all 10,000)")
    parser.add_argument(
        "--classifier",
        action="append",
        help="a classifier's spec; may be repeated (default: convnet)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/split_vqvae_sweep"),
        help="where models and cells lie",
    )
    parser.add_argument(
        "--table", type=Path, default=Path(__file__).with_suffix(".csv"), help="what is written"
    )
    return parser.parse_args()


def train(model: str, codes: int, file: Path, options: argparse.Namespace) -> None:
    words = [
        "split-vqvae:" + f"grid={GRIDS[model]},codes={codes}",
        "--dataset",
        "mnist",
        "--out",
        str(file),
        "-o",
        f"epochs={options.epochs:g}",
    ]
    print("defend train", *words, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "defend", "train", *words], check=True)


def spec(file: Path) -> str:
    return f"split-vqvae:weights={write_value(str(file))}"


def rows(records: list[dict[str, Any]], models: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """One for each record; without the defense first. Raises RuntimeError where a cell failed."""
    if failed := [r for r in records if r["error"]]:
        raise RuntimeError(
            f"{len(failed)} cells failed; the first: {failed[0]['defense']} at eps {failed[0]['eps']}: {failed[0]['error']}"
        )
    return [row(record, *models.get(record["defense"], ("none", 0))) for record in records]


def row(record: dict[str, Any], model: str, codes: int) -> dict[str, Any]:
    eps, measured = f"{float(record['eps']):g}", record["robust_accuracy"]
    known = published(model, codes).get(eps)
    return {
        "model": model,
        "codes": codes or "",
        "classifier": record["classifier"],
        "eps": eps,
        "published": "" if known is None else known,
        "measured": f"{measured:.4f}",
        "difference": "" if known is None else f"{measured - known:+.4f}",
        "trained_on": record["trained_on"] or "",
        **{
            key: record[key] if key == "n" else f"{record[key]:.4f}"
            for key in ("ci_low", "ci_high", "n")
        },
    }


def published(model: str, codes: int) -> dict[str, float]:
    """eps -> accuracy, for the cells that the papers print."""
    if model not in PUBLISHED:
        return {}
    table = [
        [float(cell) for cell in line.split()] for line in PUBLISHED[model].strip().splitlines()
    ]
    return dict(zip(PRINTED, table[KS.index(codes)], strict=True))


def save(file: Path, table: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(f"wrote {file}: {len(table)} rows", file=sys.stderr)


def summary(table: list[dict[str, Any]]) -> Iterator[str]:
    """Over all K that both have: the means, and quadrants minus the whole image, paired by K, with its t interval."""
    measured = {
        (r["classifier"], r["eps"], r["model"], r["codes"]): 100 * float(r["measured"])
        for r in table
    }
    for classifier, eps in dict.fromkeys((r["classifier"], r["eps"]) for r in table):
        whole, quad = (
            np.array(
                [
                    measured[classifier, eps, model, k]
                    for k in KS
                    if (classifier, eps, "quad", k) in measured
                ]
            )
            for model in GRIDS
        )
        low, high = ttest_rel(quad, whole).confidence_interval()
        means = f"whole {whole.mean():.1f}, quadrants {quad.mean():.1f}"
        yield f"{classifier}, eps {eps}: {means}, difference {(quad - whole).mean():+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
