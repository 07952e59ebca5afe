"""report.html, results.csv and summary.json from the records of one or several runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from defend.errors import BadParameter
from defend.files import user_path, write_file
from defend.records import Record
from defend.results.build import table
from defend.results.claim_text import name_claim
from defend.results.diagnostics import format_finding, format_training_mark
from defend.results.html import make_environment
from defend.results.model import ADAPTIVE, COLUMNS, LEVEL_COLUMNS, Table, letter_of
from defend.results.outcomes import OutcomeReader
from defend.results.report.curves import make_plots
from defend.results.report.data_files import format_csv, format_json
from defend.results.report.facts import (
    describe_defenses,
    describe_numbers,
    describe_provenance,
    describe_run,
    format_score,
)
from defend.results.report.image_examples import ROWS, make_image_examples
from defend.results.report.marks import format_marks
from defend.results.report.place import choose_folder
from defend.results.report.roc import make_rocs
from defend.results.run_folders import collect_records
from defend.results.table_text import (
    describe_worst,
    format_count,
    format_number,
    format_pair,
    format_pairs_heading,
    format_passes,
    format_percent,
    format_value,
)
from defend.results.training_knowledge import format_trained_on
from defend.results.verify import verify_record

HTML, CSV, JSON = "report.html", "results.csv", "summary.json"
_FILES = (HTML, CSV, JSON)
_FILTERS: dict[str, Callable[..., object]] = {
    "describe_worst": describe_worst,
    "format_count": format_count,
    "format_finding": format_finding,
    "format_marks": format_marks,
    "format_number": format_number,
    "format_pair": format_pair,
    "format_pairs_heading": format_pairs_heading,
    "format_passes": format_passes,
    "format_percent": format_percent,
    "format_score": format_score,
    "format_trained_on": format_trained_on,
    "format_training_mark": format_training_mark,
    "format_value": format_value,
    "svg": Markup,  # our own figures, whose texts matplotlib has escaped
}


def write_report(
    run_dirs: Sequence[Path | str],
    out: Path | str | None = None,
    records: Sequence[Record] | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write report.html, results.csv and summary.json; return the paths of the first two.

    run_dirs: folders of runs; of a cell that is in several the last counts, and two versions of one
    component are labelled by run. out: the folder to write into, by default that of a single run,
    else a new one in the current directory. records: show these cells alone; the others of run_dirs
    are not shown, but no claim stands that they refute. overwrite: replace the report that `out`
    holds. Raises BadParameter if there is nothing to report or the folder cannot be written.
    """
    folders = [user_path(d) for d in run_dirs]
    shown, beside = collect_records(folders, records)
    place = None if out is None else user_path(out)
    if place is not None:  # before the work
        choose_folder(folders, place, _FILES, overwrite)
    reader = OutcomeReader(folders)
    # Records that are given were made from their units a moment ago.
    problems = [verify_record(r, folders) for r in shown] if records is None else []
    model = table(shown, folders, beside, reader, problems)
    texts = {
        HTML: _format_html(model, shown, folders),
        CSV: format_csv(shown, model.accusations),
        JSON: format_json(model),
    }
    folder = choose_folder(folders, place, _FILES, overwrite)
    _write(folder, texts)
    return folder / HTML, folder / CSV


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_file(folder / name, text)
    except OSError as e:
        raise BadParameter(
            f"{folder}: the report cannot be written there: {e.strerror}. Give another place with"
            " --out."
        ) from None


def _format_html(model: Table, records: Sequence[Record], folders: Sequence[Path]) -> str:
    examples, left_out = make_image_examples(records, folders)
    groups = groupby(examples, lambda example: (example.defense, example.attack))
    return (
        _make_environment()
        .get_template(HTML)
        .render(
            model=model,
            columns=COLUMNS,
            level_columns=LEVEL_COLUMNS,
            adaptive=ADAPTIVE,
            plots=make_plots(model.sections),
            rocs=make_rocs(model.sections),
            lead=describe_numbers(records),
            only_shares=all(section.task.unit == "share" for section in model.sections),
            examples=[(defense, attack, list(group)) for (defense, attack), group in groups],
            example_rows=ROWS,
            left_out=left_out,
            facts=describe_run(records),
            defenses=describe_defenses(records),
            provenance=describe_provenance(records, folders),
        )
    )


def _make_environment() -> Environment:
    environment = make_environment()
    environment.filters |= _FILTERS
    environment.filters["breakable"] = _make_breakable
    environment.filters["groupby_in_order"] = _group_in_order
    environment.filters["letter_of"] = letter_of
    environment.filters["name_claim"] = name_claim
    return environment


def _group_in_order(rows: Iterable[Any], name: str) -> list[tuple[Any, list[Any]]]:
    """Return neighbours of one value together, in their order; Jinja's own filter sorts."""
    return [(value, list(group)) for value, group in groupby(rows, attrgetter(name))]


def _make_breakable(spec: str) -> Markup:
    """Return a spec that breaks behind its fields, before it breaks anywhere; it is escaped."""
    return Markup("<wbr>").join(re.split(r"(?<=[:,])", spec))
