"""Measure tables 2 and 3 of the Split-VQ-VAE papers: twenty models, K = 100 to 1000, whole and in
quadrants, trained and measured on MNIST.

    python docs/results/split_vqvae_sweep.py --classifier lenet --classifier convnet

Interrupted, the same command goes on: trained models stay, a training continues where it stopped,
and measured cells are read. It writes a table with a row for each model, classifier and eps, and
prints the published numbers beside the measured ones. Needs MNIST: DEFEND_DATA.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel

import defend
from defend.records import Record
from defend.results.training_knowledge import format_trained_on
from defend.spec import write_value

KS = range(100, 1001, 100)
GRIDS = {"whole": 1, "quad": 2}
# The papers' column heads 0, 0.2, 0.4, 2.6, 2.8 and 3.0 are eps x 10.
PRINTED_EPS = ("0", "0.02", "0.04", "0.26", "0.28", "0.3")
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


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One model at one eps, as the table prints it."""

    model: str
    codes: str
    classifier: str
    eps: str
    published: str
    measured: str
    difference: str
    ci_low: str
    ci_high: str
    n: int
    trained_on: str


Models = Mapping[str, tuple[str, int]]  # spec -> model, codes


def main() -> None:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    models: dict[str, tuple[str, int]] = {}
    for model in GRIDS:
        for codes in KS:
            if codes in options.codes:
                file = options.out / f"{model}-{codes}.safetensors"
                models[make_spec(file)] = (model, codes)
                if not file.exists():
                    train(model, codes, file, options)
    records = defend.bench(
        name="split_vqvae_sweep",
        dataset="mnist",
        classifiers=options.classifier or ["convnet"],
        defenses=["none", *models],
        attacks=["fgsm"],
        knowledge=["oblivious"],
        eps=",".join(PRINTED_EPS),
        n=options.n,
        out=options.out / "bench",
        progress=True,
    )
    rows = make_rows(records, models)
    save(options.table, rows)
    for line in summarise(rows):
        print(line)


def parse_arguments() -> argparse.Namespace:
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
        help="the folder of models and cells",
    )
    parser.add_argument(
        "--table",
        type=Path,
        default=Path(__file__).with_suffix(".csv"),
        help="the table to write",
    )
    return parser.parse_args()


def train(model: str, codes: int, file: Path, options: argparse.Namespace) -> None:
    words = [f"split-vqvae:grid={GRIDS[model]},codes={codes}", "--dataset", "mnist"]
    words += ["--out", str(file), "-o", f"epochs={options.epochs:g}"]
    print("defend train", *words, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "defend", "train", *words], check=True)


def make_spec(file: Path) -> str:
    return f"split-vqvae:weights={write_value(str(file))}"


def make_rows(records: Sequence[Record], models: Models) -> list[SweepRow]:
    """Return one row for each record, those without a defense first.

    Raises RuntimeError if a cell failed.
    """
    failed = [r for r in records if r.failed]
    if failed:
        first = failed[0]
        raise RuntimeError(
            f"{len(failed)} cells failed; the first: {first.defense} at eps {first.eps}:"
            f" {first.error}"
        )
    return [make_row(record, *models.get(record.defense, ("none", 0))) for record in records]


def make_row(record: Record, model: str, codes: int) -> SweepRow:
    eps, measured = f"{record.eps:g}", record.robust_accuracy
    assert measured is not None, "a cell without an error has its numbers"
    published = read_published(model, codes).get(eps)
    return SweepRow(
        model=model,
        codes=str(codes) if codes else "",
        classifier=record.classifier,
        eps=eps,
        published="" if published is None else str(published),
        measured=f"{measured:.4f}",
        difference="" if published is None else f"{measured - published:+.4f}",
        ci_low=f"{record.ci_low:.4f}",
        ci_high=f"{record.ci_high:.4f}",
        n=record.n,
        trained_on=format_trained_on(record.trained_on),
    )


def read_published(model: str, codes: int) -> dict[str, float]:
    """Return eps -> accuracy for the cells that the papers print."""
    if model not in PUBLISHED:
        return {}
    line = PUBLISHED[model].strip().splitlines()[KS.index(codes)]
    return dict(zip(PRINTED_EPS, map(float, line.split()), strict=True))


def save(file: Path, rows: Sequence[SweepRow]) -> None:
    columns = [field.name for field in fields(SweepRow)]
    with file.open("w", newline="") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(row) for row in rows)
    print(f"wrote {file}: {len(rows)} rows", file=sys.stderr)


def summarise(rows: Sequence[SweepRow]) -> Iterator[str]:
    """Yield the means over all K that both models have, and quadrants minus the whole image.

    The difference is paired by K, with its t interval.
    """
    measured = {
        (row.classifier, row.eps, row.model, row.codes): 100 * float(row.measured) for row in rows
    }
    for classifier, eps in dict.fromkeys((row.classifier, row.eps) for row in rows):
        codes = [str(k) for k in KS if (classifier, eps, "quad", str(k)) in measured]
        values: dict[str, NDArray[np.float64]] = {}
        for model in GRIDS:
            values[model] = np.array([measured[classifier, eps, model, k] for k in codes])
        means = {model: accuracies.mean() for model, accuracies in values.items()}
        gains = values["quad"] - values["whole"]
        low, high = ttest_rel(values["quad"], values["whole"]).confidence_interval()
        yield (
            f"{classifier}, eps {eps}: whole {means['whole']:.1f}, quadrants {means['quad']:.1f},"
            f" difference {gains.mean():+.2f} ({low:+.2f} to {high:+.2f})"
        )


if __name__ == "__main__":
    main()
