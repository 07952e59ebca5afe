"""A report as text: the table by level of one or several runs, for a paper or a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from defend.files import user_path
from defend.results.build import table
from defend.results.formats import TEXT_FORMATS
from defend.results.run_folders import collect_records
from defend.results.verify import verify_record


def format_report(run_dirs: Sequence[Path | str], text_format: str) -> str:
    """Return the table by level of the records of all folders as "csv", "latex" or "markdown".

    Rows are defenses at one eps, columns are levels of knowledge with 95 % intervals, each the
    worst case image by image over the attacks of that level. Raises BadParameter if a folder has no
    records.
    """
    folders = [user_path(d) for d in run_dirs]
    shown, beside = collect_records(folders)
    problems = [verify_record(record, folders) for record in shown]
    return TEXT_FORMATS[text_format](table(shown, folders, beside, problems=problems))
