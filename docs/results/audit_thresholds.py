"""Measure how often the audit is wrong: audit every purifier of tests/masked.py on val.

    python docs/results/audit_thresholds.py --dataset digits --soft-eps 0.1
    python docs/results/audit_thresholds.py --dataset mnist --classifier lenet \
        --robust convnet:weights=convnet-madry --soft-eps 0.13

Each audit is compared with the gap between the declared gradient's accuracy and that of the best
known attack. Half of the families set thresholds: for each check the values on honest and on masked
purifiers are printed, and the value half way between them. The other half judges the thresholds:
misses (a gap of 5 points or more, and no sign of masking) and false alarms (an honest purifier
called unreliable), with Wilson intervals.

Honest purifiers are audited at the claim eps, at which attacks leave little, and at --soft-eps, at
which other attacks have something to gain. They are audited by their specs, as on the command line,
where they have one. The script writes audit_thresholds_DATASET.json and .md. If it was interrupted,
the same command continues: measurements are read again if the options and the code are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import defend

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import audit_measurements
import best_known
import masked
import masked_stochastic
from audit_measurements import Measurement, format_page, format_progress

OPTIONS_OF_KEY = ("classifier", "budget", "n", "robust", "soft_eps", "best_steps")


@dataclass(frozen=True)
class Case:
    """One purifier before one classifier."""

    name: str
    family: str
    half: int  # 0 sets thresholds, 1 judges them
    honest: bool
    purifier: Callable[[], Any]
    classifier: Any  # a spec, or an object
    spec: str | None = None  # of the purifier
    eps: float | None = None  # None: the data set's claim eps


def main() -> None:
    options = parse_arguments()
    folder = options.out / f"{options.dataset}-{hash_inputs(options)}"
    folder.mkdir(parents=True, exist_ok=True)
    measurements = []
    for case in make_cases(options):
        measurement = read_or_measure(case, folder, options)
        measurements.append(measurement)
        print(format_progress(measurement), file=sys.stderr, flush=True)
    table = options.table / f"audit_thresholds_{options.dataset}.json"
    if options.only:
        measurements = merge_into_table(table, measurements)
    rows = ",\n".join(json.dumps(asdict(measurement)) for measurement in measurements)
    table.write_text(f"[\n{rows}\n]\n")
    text = format_page(measurements, options.dataset)
    table.with_suffix(".md").write_text(text)
    print(text)


def read_or_measure(case: Case, folder: Path, options: argparse.Namespace) -> Measurement:
    """Return the measurement in the folder; make it first if it is missing."""
    name = "".join(c if c.isalnum() else "-" for c in case.name)
    file = folder / f"{name}.json"
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_text(json.dumps(measure(case, options)))
        part.replace(file)
    row = json.loads(file.read_text())
    made_with = {name: getattr(options, name) for name in ("budget", "classifier", "n")}
    return Measurement.from_dict({**row, **made_with})


def merge_into_table(table: Path, measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return the rows of the table, with the new measurements in place of those of equal names.

    The other rows stay as the code of their day measured them. Ends the program if the options
    differ: a page names one budget and one classifier.
    """
    new = {measurement.name: measurement for measurement in measurements}
    old_rows = json.loads(table.read_text()) if table.exists() else []
    merged = []
    for row in old_rows:
        old = Measurement.from_dict(row)
        if old.made_with != measurements[0].made_with:
            sys.exit(
                f"{table}: {old.name} was measured with {old.made_with}, and now with"
                f" {measurements[0].made_with}: use --table FOLDER for another table"
            )
        merged.append(new.pop(old.name, old))
    return [*merged, *new.values()]


def hash_inputs(options: argparse.Namespace) -> str:
    """Return a hash of all that decides a measurement: options, code and purifiers."""
    texts = [str(getattr(options, name)) for name in OPTIONS_OF_KEY]
    package = sorted(Path(defend.__file__).parent.rglob("*.py"))
    modules = (masked, masked_stochastic, best_known, audit_measurements)
    scripts = [*(Path(module.__file__) for module in modules), Path(__file__)]
    texts += [file.read_text() for file in (*package, *scripts)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", default="digits")
    add("--classifier", default="convnet")
    add("--budget", default="standard")
    add("--best-steps", type=int, default=100, help="of each best known attack")
    add("--n", type=int, help="images (default: the budget's, or all of val)")
    add("--robust", help="an adversarially trained classifier (on digits one is trained)")
    add("--soft-eps", type=float, help="eps at which attacks leave honest purifiers some images")
    add("--honest", nargs="*", default=[], metavar="SPEC", help="more honest purifiers")
    add(
        "--only",
        nargs="*",
        default=[],
        metavar="FAMILY_OR_NAME",
        help="measure some families, and replace them in the existing table (default: all)",
    )
    add("--out", type=Path, default=Path("runs/audit_thresholds"), help="folder of measurements")
    add("--table", type=Path, default=Path(__file__).parent, help="folder of the tables")
    return parser.parse_args()


def make_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases that the options ask for."""
    data = defend.load(options.dataset, "dataset")
    for case in (*masked_cases(options, data), *honest_cases(options, data)):
        if not options.only or {case.family, case.name} & set(options.only):
            yield case
    if not options.only or "robust" in options.only:
        yield from robust_cases(options, data)


def masked_cases(options: argparse.Namespace, data: Any) -> Iterator[Case]:
    network = defend.load(options.classifier, "classifier", dataset=options.dataset).network
    memory = data.rows("train", 0, 500)[0]
    for name, family in masked_stochastic.ALL_FAMILIES.items():
        for strength in family.strengths:
            make = partial(masked_stochastic.make, name, strength, network, memory)
            yield Case(f"{name} {strength:g}", name, family.half, False, make, options.classifier)


def honest_cases(options: argparse.Namespace, data: Any) -> Iterator[Case]:
    for name, entry in masked_stochastic.ALL_HONEST.items():
        spec = None if type(entry.make()).__module__.startswith("masked") else name
        yield from at_both_eps(
            options, Case(name, "honest", entry.half, True, entry.make, options.classifier, spec)
        )
    for spec in options.honest:
        make = partial(defend.load, spec, dataset=data)
        yield from at_both_eps(
            options, Case(spec, "honest", 1, True, make, options.classifier, spec)
        )


def at_both_eps(options: argparse.Namespace, case: Case) -> Iterator[Case]:
    """Yield a case at the claim eps and, if the options name one, at the soft eps."""
    yield case
    if options.soft_eps:
        yield replace(case, name=f"{case.name} at eps {options.soft_eps}", eps=options.soft_eps)


def robust_cases(options: argparse.Namespace, data: Any) -> Iterator[Case]:
    robust = options.robust or train_robust(options, data)
    suffix = "before an adversarially trained classifier"
    none = partial(defend.load, "none")
    yield Case(f"none {suffix}", "robust", 1, True, none, robust)
    yield Case(f"blur {suffix}", "robust", 0, True, masked.Blur, robust)


def train_robust(options: argparse.Namespace, data: Any) -> Any:
    """Return a classifier trained on PGD-10 images at the claim eps for 40 epochs."""
    classifier = defend.load("convnet:weights=untrained", "classifier", dataset=data)
    file = options.out / options.dataset / "robust.safetensors"
    if not file.exists():
        x, y = data.rows("train", 0, data.count("train"))
        eps = data.card.claim["Linf"]
        classifier.fit(x, y, epochs=40, lr=0.05, batch=64, adversarial=eps, progress=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(classifier.net.state_dict(), file)
    classifier.net.load_state_dict(load_file(file))
    return classifier


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return a measurement as JSON can hold it, with the whole report of the audit."""
    start = time.process_time()
    classifier = case.classifier
    if case.spec is None and isinstance(classifier, str):
        classifier = defend.load(classifier, "classifier", dataset=options.dataset)
    report = defend.audit(
        case.spec or case.purifier(),
        options.dataset,
        classifier,
        options.budget,
        n=options.n,
        split="val",
        eps=case.eps,
    ).as_dict()
    seconds = time.process_time() - start
    declared, lowest = report["declared_accuracy"], report["lowest_accuracy"]
    best = measure_best_known(case, classifier, options, report["n"], report["eps"])
    if lowest is not None:
        best = min(best, lowest)
    return {
        "name": case.name,
        "family": case.family,
        "half": case.half,
        "honest": case.honest,
        "declared": declared,
        "best_known": best,
        "gap": None if declared is None else declared - best,
        "cpu_seconds": round(seconds, 1),
        "report": report,
    }


def measure_best_known(
    case: Case, classifier: Any, options: argparse.Namespace, n: int, eps: float
) -> float:
    """Return the accuracy under the best known attack."""
    if isinstance(classifier, str):
        classifier = defend.load(classifier, "classifier", dataset=options.dataset)
    x, y = defend.load(options.dataset, "dataset").rows("val", 0, n)
    shares = best_known.best_known(
        case.purifier(), classifier.network, x, y, eps, options.best_steps
    )
    return float(shares.mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
