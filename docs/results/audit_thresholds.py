"""How often the audit is wrong: every purifier of tests/masked.py, audited on val, beside the gap to the best attack known for it.

    python docs/results/audit_thresholds.py --dataset digits --soft-eps 0.1
    python docs/results/audit_thresholds.py --dataset mnist --classifier lenet --robust convnet:weights=convnet-madry --soft-eps 0.13

Interrupted, the same command goes on: what is measured is read, as long as options and code are the same. Half of the families set
thresholds: for each check the values on honest and on masked ones are printed, and what would part them. The other half judges them: misses
(a gap of 5 points or more, and no sign of masking) and false alarms (an honest one, called unreliable), with Wilson intervals. Honest ones
are audited at the claim eps, where little of them stands, and at --soft-eps, where other attacks have something to win; by their specs,
as the command line does, where they have one. Writes audit_thresholds_DATASET.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import defend
from defend.audit.thresholds import THRESHOLDS
from defend.stats import wilson

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import masked

GAP = 0.05  # from here on a masked purifier must be called unreliable
WORTH = THRESHOLDS["gap"].value / 100  # standing, of which an attack can win enough


@dataclass(frozen=True)
class Case:
    """One purifier before one classifier. half: 0 sets thresholds, 1 judges."""

    name: str
    family: str
    half: int
    honest: bool
    purifier: Callable[[], Any]
    classifier: Any  # a spec, or an object
    spec: str | None = None  # of the purifier
    eps: float | None = None  # the claim's


def main() -> None:
    options = arguments()
    folder = options.out / f"{options.dataset}-{key(options)}"
    folder.mkdir(parents=True, exist_ok=True)
    measured = []
    for case in cases(options):
        file = folder / f"{''.join(c if c.isalnum() else '-' for c in case.name)}.json"
        if not file.exists():
            made = measure(case, options)
            file.with_suffix(".part").write_text(json.dumps(made))
            file.with_suffix(".part").replace(file)
        measured.append(json.loads(file.read_text()))
        print(line(measured[-1]), file=sys.stderr, flush=True)
    name = f"audit_thresholds_{options.dataset}"
    measured = merged(options.table / f"{name}.json", measured) if options.only else measured
    options.table.joinpath(f"{name}.json").write_text(
        "[\n" + ",\n".join(json.dumps(kept(r)) for r in measured) + "\n]\n"
    )
    text = page(measured, options)
    options.table.joinpath(f"{name}.md").write_text(text)
    print(text)


def merged(table: Path, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured now in place of the same names of the table; its other rows stay, measured by the code of their day."""
    now = {r["name"]: r for r in measured}
    there = json.loads(table.read_text()) if table.exists() else []
    return [*(now.pop(r["name"], r) for r in there), *now.values()]


def key(options: argparse.Namespace) -> str:
    """Of all that decides what is measured: options, the code, thresholds among it, and the purifiers."""
    chosen = [
        str(getattr(options, name)) for name in ("classifier", "budget", "n", "robust", "soft_eps")
    ]
    code = [
        *sorted(Path(defend.__file__).parent.rglob("*.py")),
        Path(masked.__file__),
        Path(__file__),
    ]
    return hashlib.sha256(
        "\0".join([*chosen, *(file.read_text() for file in code)]).encode()
    ).hexdigest()[:12]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--classifier", default="convnet")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--n", type=int, help="images (default: the budget's, or all of val)")
    parser.add_argument(
        "--robust",
        help="an adversarially trained classifier; on digits one is trained where none is given",
    )
    parser.add_argument(
        "--soft-eps", type=float, help="where attacks leave a part of the honest ones"
    )
    parser.add_argument(
        "--honest",
        nargs="*",
        default=[],
        metavar="SPEC",
        help="more honest purifiers, as split-vqvae",
    )
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="FAMILY_OR_NAME",
        help="some families, into the table that is there (default: all)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/audit_thresholds"),
        help="where what is measured lies",
    )
    parser.add_argument(
        "--table", type=Path, default=Path(__file__).parent, help="where the tables are written"
    )
    return parser.parse_args()


def cases(options: argparse.Namespace) -> Iterator[Case]:
    data = defend.load(options.dataset, "dataset")
    network = defend.load(options.classifier, "classifier", dataset=options.dataset).network
    memory = data.rows("train", 0, 500)[0]
    for family, graded in masked.FAMILIES.items():
        for strength in graded.strengths:
            made = partial(masked.make, family, strength, network, memory)
            yield from wanted(
                options,
                Case(
                    f"{family} {strength:g}", family, graded.half, False, made, options.classifier
                ),
            )
    for name, (purifier, half) in masked.HONEST.items():
        spec = None if isinstance(purifier(), masked.Blur) else name
        yield from wanted(
            options,
            *sound(options, Case(name, "honest", half, True, purifier, options.classifier, spec)),
        )
    for spec in options.honest:
        yield from wanted(
            options,
            *sound(
                options,
                Case(
                    spec,
                    "honest",
                    1,
                    True,
                    lambda s=spec: defend.load(s, dataset=data),
                    options.classifier,
                    spec,
                ),
            ),
        )
    if not options.only or "robust" in options.only:
        robust = options.robust or trained(options, data)
        for name, (purifier, half) in {
            "none": (lambda: defend.load("none"), 1),
            "blur": (masked.Blur, 0),
        }.items():
            yield Case(
                f"{name} before an adversarially trained classifier",
                "robust",
                half,
                True,
                purifier,
                robust,
            )


def sound(options: argparse.Namespace, case: Case) -> list[Case]:
    soft = replace(case, name=f"{case.name} at eps {options.soft_eps}", eps=options.soft_eps)
    return [case, soft] if options.soft_eps else [case]


def wanted(options: argparse.Namespace, *some: Case) -> Iterator[Case]:
    yield from (
        case for case in some if not options.only or {case.family, case.name} & set(options.only)
    )


def trained(options: argparse.Namespace, data: Any) -> Any:
    """PGD-10 at the claim eps, 40 epochs."""
    made = defend.load("convnet:weights=untrained", "classifier", dataset=data)
    file = options.out / options.dataset / "robust.safetensors"
    if not file.exists():
        x, y = data.rows("train", 0, data.count("train"))
        made.fit(
            x, y, epochs=40, lr=0.05, batch=64, adversarial=data.card.claim["Linf"], progress=False
        )
        save_file(made.net.state_dict(), file)
    made.net.load_state_dict(load_file(file))
    return made


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    began, classifier = time.process_time(), case.classifier
    if case.spec is None and isinstance(classifier, str):
        classifier = defend.load(classifier, "classifier", dataset=options.dataset)
    given = {"n": options.n, "split": "val", "eps": case.eps}
    report = defend.audit(
        case.spec or case.purifier(), options.dataset, classifier, options.budget, **given
    ).as_dict()
    spent = time.process_time() - began
    x, y = defend.load(options.dataset, "dataset").rows("val", 0, report["n"])
    net = (
        defend.load(classifier, "classifier", dataset=options.dataset)
        if isinstance(classifier, str)
        else classifier
    )
    known = float(masked.best_known(case.purifier(), net.network, x, y, report["eps"]).mean())
    declared, lowest = report["declared_accuracy"], report["lowest_accuracy"]
    best = known if lowest is None else min(known, lowest)
    return {
        "name": case.name,
        "family": case.family,
        "half": case.half,
        "honest": case.honest,
        "declared": declared,
        "best_known": best,
        "gap": None if declared is None else declared - best,
        "cpu_seconds": round(spent, 1),
        "report": report,
    }


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """What the page is made of: of each check its number and whether it turned the verdict."""
    checks = [{k: c[k] for k in ("name", "value", "turns")} for c in row["report"]["checks"]]
    return row | {
        "report": {k: row["report"][k] for k in ("verdict", "n", "eps", "reasons")}
        | {"checks": checks}
    }


def unreliable(row: dict[str, Any]) -> bool:
    return row["report"]["verdict"] == "unreliable"


def should_be(row: dict[str, Any]) -> bool | None:
    """Unreliable (True), sound (False), or neither: masked, and little hidden. No number at all hides everything."""
    return False if row["honest"] else True if row["gap"] is None or row["gap"] >= GAP else None


def line(row: dict[str, Any]) -> str:
    declared = "none" if row["declared"] is None else f"{100 * row['declared']:.1f}"
    turned = ", ".join(c["name"] for c in row["report"]["checks"] if c["turns"])
    wrong = should_be(row) is not None and unreliable(row) != should_be(row)
    return f"{row['name']}: declared {declared}, best known {100 * row['best_known']:.1f}: {row['report']['verdict']} ({turned}){' WRONG' if wrong else ''}"


def page(measured: list[dict[str, Any]], options: argparse.Namespace) -> str:
    reports = [r["report"] for r in measured]
    images = " or ".join(map(str, sorted({r["n"] for r in reports})))
    about = f"{images} images of {options.dataset} val, eps {reports[0]['eps']:.6g} where no other is named, budget {options.budget}, {options.classifier}"
    parts = [
        f"# Misses and false alarms of the audit: {options.dataset}",
        "Written by `docs/results/audit_thresholds.py`. " + about + ".",
        *rates(measured),
    ]
    return (
        "\n\n".join(
            [
                *parts,
                table(measured),
                "## What would part honest from masked (the half that sets thresholds)",
                suggestions(measured),
            ]
        )
        + "\n"
    )


def rates(measured: list[dict[str, Any]]) -> list[str]:
    lines = []
    for half, title in ((1, "the half that judges"), (0, "the half that set the thresholds")):
        for expected, what in (
            (True, f"misses, of the masked with a gap of {100 * GAP:g} points or more"),
            (False, "false alarms, of the honest"),
        ):
            some = [r for r in measured if r["half"] == half and should_be(r) is expected]
            fought = [r for r in some if r["declared"] is not None and r["declared"] >= WORTH]
            lines.append(f"- {title}: {wrong_of(some, expected)} {what}")
            if not expected:
                lines.append(
                    f"  - where attacks have something to win (the declared gradient leaves {100 * WORTH:g} % or more): {wrong_of(fought, expected)}"
                )
    return ["\n".join(lines), families(measured)]


def wrong_of(some: list[dict[str, Any]], expected: bool) -> str:
    wrong = sum(unreliable(r) != expected for r in some)
    low, high = wilson(wrong, len(some)) if some else (0.0, 1.0)
    return f"{wrong} of {len(some)} (95 %: {100 * low:.0f} to {100 * high:.0f} %)"


def families(measured: list[dict[str, Any]]) -> str:
    """The members of a family are alike: it is families that an interval should count, and they are few."""
    rows = [
        "| family | half | masked, with a gap of 5 points or more | missed |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["family"] for r in measured if not r["honest"]):
        some = [r for r in measured if r["family"] == name and should_be(r)]
        half = next(r["half"] for r in measured if r["family"] == name)
        rows.append(
            f"| {name} | {('sets', 'judges')[half]} | {len(some)} | {sum(not unreliable(r) for r in some)} |"
        )
    return "\n".join(rows)


def table(measured: list[dict[str, Any]]) -> str:
    rows = [
        "| purifier | half | n | declared % | best known % | gap | verdict | what turned it | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in measured:
        declared, gap = (
            ("", "")
            if r["declared"] is None
            else (f"{100 * r['declared']:.1f}", f"{100 * r['gap']:.1f}")
        )
        turned = ", ".join(c["name"] for c in r["report"]["checks"] if c["turns"])
        name = f"{r['name']} (honest)" if r["honest"] else r["name"]
        half = ("sets", "judges")[r["half"]]
        n, verdict = r["report"]["n"], r["report"]["verdict"]
        rows.append(
            f"| {name} | {half} | {n} | {declared} | {100 * r['best_known']:.1f} | {gap} | {verdict} | {turned} | {r['cpu_seconds']:.0f} |"
        )
    return "\n".join(rows)


def suggestions(measured: list[dict[str, Any]]) -> str:
    """For each check with a number: its range on honest and on masked purifiers, and the middle between them where they do not meet."""
    rows = ["| check | honest | masked, gap of 5 or more | between |", "|---|---|---|---|"]
    half = [r for r in measured if r["half"] == 0]
    for name in [c["name"] for c in measured[0]["report"]["checks"]]:
        honest, hidden = (
            values(name, [r for r in half if should_be(r) is expected])
            for expected in (False, True)
        )
        if honest and hidden:
            apart = max(honest) < min(hidden) or max(hidden) < min(honest)
            middle = (
                (max(honest) + min(hidden)) / 2
                if max(honest) < min(hidden)
                else (max(hidden) + min(honest)) / 2
            )
            spans = [f"{min(v):.3g} to {max(v):.3g} ({len(v)})" for v in (honest, hidden)]
            rows.append(
                f"| {name} | {spans[0]} | {spans[1]} | {f'{middle:.3g}' if apart else 'they meet'} |"
            )
    return "\n".join(rows)


def values(name: str, some: list[dict[str, Any]]) -> list[float]:
    found = [c["value"] for r in some for c in r["report"]["checks"] if c["name"] == name]
    return [v for v in found if v is not None]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
