"""Tables for a paper: levels side by side, the same numbers in every format, sound LaTeX."""

import csv
import re
import shutil
import subprocess
from io import StringIO

import numpy as np
import pytest
from click.testing import CliRunner
from made_runs import DECLARED, IDENTITY, cell, change, failed, keep, record

from defend.cli import main
from defend.records import Flag, FlagCode
from defend.results import table
from defend.results.formats import TEXT_FORMATS
from defend.results.formats.level_table import make_level_tables
from defend.results.formats.level_table_latex import escape_latex
from defend.results.formats.level_table_markdown import escape_markdown
from defend.results.text_report import format_report

EVIL = r"""art:name='a&b%c$d#e_f{g}h~i^j\k|l<m>n"o`p[q]r*s--t ?` 50% \\ \end{tabular}'"""
NAMES = ("none", "median", EVIL, "[median", "*x", "naïve", "净化")
SQUARE = {"attack": "square", "knowledge": "query", "access": "scores"}


def right(count, n=40):
    return np.repeat([1, 0], [count, n - count])


def make_run(folder, names=NAMES, **changes):
    """Return a run with the levels oblivious, query and adaptive at two eps."""
    records = []
    for i, name in enumerate(names):
        for eps in (0.1, 0.2):
            fields = {"defense": name, "eps": eps, "eps_text": str(eps)} | changes
            records.append(cell(folder, right(30 - i), **fields))
            records.append(cell(folder, right(20 - i), **fields | IDENTITY))
            records.append(cell(folder, right(20 - i)[::-1], **fields | DECLARED))
            records.append(cell(folder, right(25), **fields | SQUARE))
    return keep(folder, records), records


# The structure of LaTeX.


def structure_faults(text):
    """Return what is wrong with LaTeX: environments, braces, columns, bare special characters."""
    faults = []
    text = re.sub(r"(?<!\\)%.*", "", text)
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            faults.append(f"\\end{{{name}}} closes nothing")
    faults += [f"{name} is not closed" for name in stack]
    plain = re.sub(r"\\[\\{}]", "", text)
    if plain.count("{") != plain.count("}"):
        faults.append("braces")
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S
    ):
        for line in body.splitlines():
            if line.endswith(r"\\") and len(re.findall(r"(?<!\\)&", line)) + 1 != len(columns):
                faults.append(f"columns: {line}")
            if line.lstrip().startswith(("[", "*")):
                faults.append(f"argument of the row before: {line}")
    outside = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", "", text, flags=re.S)
    faults += re.findall(r"(?<!\\)[$#_^~&\"`]", outside)
    faults += re.findall(r"[^\x00-\u017f]", text)
    return faults


BROKEN_LATEX = {
    "an environment": r"\begin{table}",
    "another environment": r"\begin{table}\end{tabular}",
    "a brace": r"\caption{x",
    "a column": "\\begin{tabular}{ll}\na & b & c \\\\\n\\end{tabular}",
    "an unescaped &": "a & b",
    "an unescaped _": "a_b",
    "an argument": "\\begin{tabular}{l}\n[a] \\\\\n\\end{tabular}",
    "a letter": "净",
}


@pytest.mark.parametrize("name", BROKEN_LATEX)
def test_a_broken_structure_is_seen(name):
    assert structure_faults(BROKEN_LATEX[name])


def test_latex_is_sound_whatever_the_names(tmp_path):
    flags = [Flag(code=FlagCode.NOT_FINITE, value=EVIL)]
    folder, records = make_run(tmp_path, flags=flags)
    keep(folder, [*records, failed(EVIL, defense=EVIL, attack="apgd", n=40)])
    text = format_report([folder], "latex")
    assert not structure_faults(text)
    assert text.count(r"\begin{tabular}") == 1
    assert "U+51C0U+5316" in text and "naïve" in text


ENGINE = next(filter(shutil.which, ("tectonic", "pdflatex", "lualatex", "xelatex")), None)


@pytest.mark.skipif(ENGINE is None, reason="needs a TeX engine, which is not installed")
def test_latex_compiles(tmp_path):
    folder, _ = make_run(tmp_path)
    body = format_report([folder], "latex")
    page = f"\\documentclass{{article}}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(page)
    options = [] if ENGINE == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [ENGINE, *options, "page.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 %", r"50 \%"),
        ("a_b", r"a\_b"),
        ("{x}", r"\{x\}"),
        ("a\nb", "a b"),
        ("---", "-{}-{}-"),
        ("8/255 - 1", "8/255 - 1"),
        ("\\", r"\textbackslash{}"),
        ("[a]", "{[}a{]}"),
        ("≤", "U+2264"),
        ("\x07", "U+0007"),
    ],
)
def test_latex_is_escaped(text, escaped):
    assert escape_latex(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a|b", r"a\|b"), ("<b>", r"\<b\>"), ("a_b*", r"a\_b\*"), ("x\ny", "x y"), ("(1-2)", "(1-2)")],
)
def test_markdown_is_escaped(text, escaped):
    assert escape_markdown(text) == escaped


def test_every_row_of_markdown_has_as_many_cells(tmp_path):
    lines = format_report([make_run(tmp_path)[0]], "markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 2 * len(NAMES)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}


# The numbers.


def read_csv(text):
    return list(csv.DictReader(StringIO(text)))


def test_levels_are_the_worst_case_of_their_attacks_image_by_image(tmp_path):
    folder, _ = make_run(tmp_path, names=("median",))
    row = read_csv(format_report([folder], "csv"))[0]
    # Adaptive: the first 20 and the last 20 of 40 are right, never both.
    numbers = {name: float(row[name]) for name in ("clean", "oblivious", "adaptive", "query")}
    assert numbers == {"clean": 1, "oblivious": 0.75, "adaptive": 0, "query": 0.625}
    assert float(row["worst"]) == 0
    assert "transfer" not in row
    assert (row["eps_text"], row["unit"], row["n"]) == ("0.1", "share", "40")


def test_every_format_prints_the_numbers_of_the_model(tmp_path):
    folder, records = make_run(tmp_path, names=("none", "median"))
    model = table(records, [folder])
    latex, markdown = (format_report([folder], name) for name in ("latex", "markdown"))
    rows = read_csv(format_report([folder], "csv"))
    (section,) = model.sections
    assert len(rows) == len(section.levels) == 4
    for row, line in zip(section.levels, rows, strict=True):
        for column, number in row.numbers.items():
            text = f"{100 * number.value:.1f} ({100 * number.low:.1f}-{100 * number.high:.1f})"
            assert text in latex and text in markdown
            assert float(line[column]) == number.value
            assert float(line[f"{column}_low"]) == number.low


def test_what_speaks_against_a_number_is_a_note_of_it():
    accused, square = record(100, **DECLARED), record(20, **SQUARE)
    (model,) = make_level_tables(table([accused, square]))
    (cells,) = model.rows
    by_heading = dict(zip(model.headings, cells, strict=True))
    (note,) = by_heading["adaptive"].notes
    assert model.notes[note - 1].startswith("black box beats it: median, square, query leaves")
    assert by_heading["query"].notes == ()
    (claim,) = by_heading["defense"].notes
    assert model.notes[claim - 1].startswith("no claim (missing: ")


def test_a_level_whose_cells_all_failed_says_so():
    records = [record(100, **DECLARED), failed("no memory", knowledge="oblivious")]
    (model,) = make_level_tables(table(records))
    by_heading = dict(zip(model.headings, model.rows[0], strict=True))
    assert by_heading["oblivious"].text == "failed"
    assert [model.notes[i - 1] for i in by_heading["oblivious"].notes] == ["no memory"]
    assert by_heading["adaptive"].text.startswith("50.0 (")


def test_the_check_at_eps_1_and_controls_are_no_rows():
    records = [record(100, **DECLARED), record(0, eps=1.0, eps_text="1", **DECLARED)]
    records.append(change(record(150), attack="control:number=0", knowledge="adaptive"))
    (section,) = table(records).sections
    assert [row.eps_text for row in section.levels] == ["16/255"]
    assert set(section.levels[0].numbers) == {"clean", "adaptive", "worst"}
    assert section.levels[0].numbers["worst"].value == 0.5


# The command.


def run(*args, code=0):
    done = CliRunner().invoke(main, ["report", *map(str, args)])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_the_command_prints_or_writes_a_table(tmp_path, name):
    folder, _ = make_run(tmp_path / "run", names=("none",))
    before = sorted(folder.rglob("*"))
    text = run(folder, "--format", name).stdout
    assert text == format_report([folder], name)
    out = tmp_path / "table.txt"
    assert run(folder, "--format", name, "--out", out).stdout == f"{out}\n"
    assert out.read_text() == text
    assert sorted(folder.rglob("*")) == before


def test_a_file_is_replaced_only_when_that_is_asked_for(tmp_path):
    folder, _ = make_run(tmp_path / "run", names=("none",))
    out = tmp_path / "paper.tex"
    out.write_text("my paper")
    error = run(folder, "--format", "latex", "--out", out, code=2).stderr
    assert "there is such a file; give another name, or --overwrite" in error
    assert out.read_text() == "my paper"
    run(folder, "--format", "latex", "--out", out, "--overwrite")
    assert r"\begin{tabular}" in out.read_text()


@pytest.mark.parametrize(
    ("out", "message"),
    [(".", "expected a file, got a folder"), ("absent/table.tex", "cannot be written")],
)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, out, message):
    folder, _ = make_run(tmp_path / "run", names=("none",))
    error = run(folder, "--format", "latex", "--out", tmp_path / out, code=2).stderr
    assert message in error and error.count("\n") == 1


def test_outcomes_of_each_image_are_a_table(tmp_path):
    keep(tmp_path, [cell(tmp_path, [1, 0, 1], clean=[1, 1, 0], **IDENTITY)])
    rows = read_csv(run(tmp_path, "--format", "csv", "--per-image").stdout)
    outcomes = [(row["image"], float(row["clean"]), float(row["score"])) for row in rows]
    assert outcomes == [("0", 1.0, 1.0), ("1", 1.0, 0.0), ("2", 0.0, 1.0)]
    assert {row["gradient"] for row in rows} == {"identity"}
    assert "add --format csv" in run(tmp_path, "--per-image", code=2).stderr
