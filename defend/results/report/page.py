"""report.html, results.csv and summary.json from the records of one or several runs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from defend.benchmarks.controls import is_control
from defend.errors import BadParameter
from defend.files import write_file
from defend.records import identity, read_records
from defend.results.build import table
from defend.results.diagnostics import marked
from defend.results.html import templates
from defend.results.outcomes import Reader, Record
from defend.results.report.curves import plots
from defend.results.report.image_examples import ROWS, strips
from defend.results.significance import image_by_image
from defend.results.table import (
    ADAPTIVE,
    COLUMNS,
    Table,
    claims,
    number_text,
    passes,
    percent,
    short,
)
from defend.results.worst_case import heading, said

HTML, CSV, JSON = "report.html", "results.csv", "summary.json"
_SCALARS = (str, int, float, bool, type(None))


def write_report(
    run_dirs: Sequence[Path | str],
    out: Path | str | None = None,
    records: Sequence[Record] | None = None,
) -> tuple[Path, Path]:
    """(report.html, results.csv), written into the folder `out`, by default the first run's; and summary.json beside them.

    run_dirs: folders of runs; of a cell that is in several the last counts. records: these cells alone; the others of
    run_dirs are not shown, but no claim stands that they refute. Raises BadParameter where there is nothing to report or no place to write.
    """
    folders = [Path(d) for d in run_dirs]
    found, beside = (
        (_merged(folders), [])
        if records is None
        else (list(records), [r for d in folders for r in read_records(d)])
    )
    if not found:
        raise BadParameter(
            "nothing to report: give the folder of a run, as runs/embedded; `defend bench` writes one"
        )
    folder = Path(out) if out is not None else folders[0]
    read = Reader(folders)
    model = table(found, folders, beside, read)
    pages = (
        (folder / HTML, _html(model, found, folders)),
        (folder / CSV, _csv(marked(found, image_by_image(read)))),
        (folder / JSON, _json(model)),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in pages:
            write_file(path, text)
    except OSError as e:
        raise BadParameter(
            f"{folder}: the report cannot be written there: {e.strerror}. Give another place."
        ) from None
    return pages[0][0], pages[1][0]


def _merged(folders: Sequence[Path]) -> list[Record]:
    cells: dict[str, Record] = {}
    for folder in folders:
        there = read_records(folder)
        if not there:
            raise BadParameter(f"{folder}: holds no records: {_why_none(folder)}")
        cells |= {identity(r): r for r in there}
    return list(cells.values())


def _why_none(folder: Path) -> str:
    if (damaged := folder / "records.json.damaged").is_file():
        return f"records.json could not be read, and lies there as {damaged.name}; the same `defend bench` with the same --out makes it again from its units"
    if folder.is_file():
        return f"it is a file; give the folder of the run, {folder.parent}"
    if (folder / "run.json").is_file():
        return "the run was stopped before its end, or records.json was taken away; the same `defend bench` with the same --out goes on with it"
    return f"expected {folder / 'records.json'}; give the folder of a run, as runs/embedded"


def _csv(records: Sequence[Record]) -> str:
    """A line for each cell: every field that holds one value; flags joined. Empty where there is no value."""
    fields = [k for k in records[0] if all(isinstance(r.get(k), _SCALARS) for r in records)]
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, "flags"])
    for r in records:
        writer.writerow(
            [*("" if r.get(k) is None else r.get(k) for k in fields), "; ".join(r["flags"] or ())]
        )
    return out.getvalue()


def _json(model: Table) -> str:
    """What compares cells, which no record holds: worst cases, pairs, claims, what keeps a defense from one, how to read it all."""
    worst = [{"section": s.title, **asdict(w)} for s in model.sections for w in s.worst]
    pairs = [{**asdict(c), "significant": c.significant} for c in model.comparisons]
    lines = {
        "claims": model.claims,
        "surrogates": model.surrogates,
        "signs": model.signs,
        "findings": model.findings,
        "reading": model.reading,
    }
    return (
        json.dumps({"worst": worst, "comparisons": pairs, **lines}, indent=1, allow_nan=False)
        + "\n"
    )


def _html(model: Table, records: Sequence[Record], folders: Sequence[Path]) -> str:
    env = templates()
    env.filters |= {
        "percent": percent,
        "passes": passes,
        "short": short,
        "number_text": number_text,
        "said": said,
        "heading": heading,
    }
    env.filters["breakable"] = _breakable
    env.filters["svg"] = Markup  # our own figures, whose texts matplotlib has escaped
    env.tests["claims"] = claims
    shown, left_out = strips(records, folders)
    return env.get_template(HTML).render(
        model=model,
        columns=COLUMNS,
        adaptive=ADAPTIVE,
        plots=plots(model.sections),
        strips=[
            (defense, attack, list(same))
            for (defense, attack), same in groupby(shown, lambda s: (s.defense, s.attack))
        ],
        strip_rows=ROWS,
        left_out=left_out,
        facts=_facts(records),
        defenses=_defenses(records),
        provenance=_provenance(records, folders),
    )


def _breakable(spec: str) -> Markup:
    """A spec that breaks behind its fields, before it breaks anywhere."""
    return Markup("<wbr>").join(re.split(r"(?<=[:,])", spec))  # which escapes the parts


def _facts(records: Sequence[Record]) -> dict[str, str]:
    """What the run was, in a few lines."""
    cells = (
        f"{len(records)}, {failed} failed"
        if (failed := sum(r["error"] is not None for r in records))
        else str(len(records))
    )
    names = {"data set": "dataset", "classifier": "classifier", "defenses": "defense"}
    facts = {name: _listed(r[key] for r in records) for name, key in names.items()}
    facts["attacks"] = _listed(
        "harmless controls" if is_control(r["attack"]) else r["attack"] for r in records
    )
    eps = list(
        dict.fromkeys(
            (r["eps"], r["eps_text"]) for r in sorted(records, key=lambda r: float(r["eps"]))
        )
    )
    return facts | {
        "eps": ", ".join(t for _, t in eps)
        if len(eps) <= 6
        else f"{eps[0][1]} to {eps[-1][1]}, {len(eps)} values",
        "images": _listed(f"{r['n']} of {r['split']}" for r in records),
        "cells": cells,
    }


def _defenses(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What each defense is, as it was in force."""
    first: dict[str, list[Record]] = {}
    for r in records:
        first.setdefault(r["defense"], []).append(r)
    return [
        {
            "name": name,
            "gradient": same[0].get("declared_gradient"),
            "draws": f"stochastic, {same[0]['draws']} draws"
            if same[0]["stochastic"]
            else "deterministic",
            "trained_on": same[0]["trained_on"] or "nothing",
            "learned": next(
                (f"{r['gradient_error']:.2f}" for r in same if r.get("gradient_error") is not None),
                "",
            ),
            "speed": _median(r["purify_images_per_second"] for r in same),
            "settings": _compact(same[0]["settings"].get("defense", {})),
        }
        for name, same in first.items()
    ]


def _provenance(records: Sequence[Record], folders: Sequence[Path]) -> dict[str, str]:
    weights = {name: digest for r in records for name, digest in r["weights"].items()}
    out = {
        "versions": _listed(
            ", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in records
        ),
        "commit": _listed(r["commit"] or "none: installed" for r in records),
        "device": _listed(r["device"] for r in records),
        "seed": _listed(str(r["seed"]) for r in records),
        "EOT copies": _listed(str(r["eot"]) for r in records),
        "attack settings": "; ".join(
            dict.fromkeys(
                f"{r['attack']} {_compact(r['settings'].get('attack', {}))}" for r in records
            )
        ),
        "classifier settings": "; ".join(
            dict.fromkeys(
                f"{r['classifier']} {_compact(r['settings'].get('classifier', {}))}"
                for r in records
            )
        ),
        "weights (sha256)": ", ".join(f"{name} {digest[:16]}" for name, digest in weights.items())
        or "none",
        "seconds of work": f"{sum(r['seconds'] or 0 for r in records):.0f}, over all cells",
    }
    return out | {
        f"run {folder.name}": _compact(run) for folder in folders if (run := _run_file(folder))
    }


def _run_file(folder: Path) -> Mapping[str, Any]:
    """How the run was run: run.json, where it is there and whole."""
    try:
        kept = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _compact(settings: Any) -> str:
    """key = value, lists of members in order."""
    if isinstance(settings, Mapping):
        return ", ".join(
            f"{k} = ({_compact(v)})" if isinstance(v, Mapping | list) else f"{k} = {v}"
            for k, v in settings.items()
        )
    return "; ".join(map(_compact, settings)) if isinstance(settings, list) else str(settings)


def _median(values: Iterable[float | None]) -> str:
    there = sorted(v for v in values if v is not None)
    return f"{there[len(there) // 2]:,.0f}" if there else ""


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
