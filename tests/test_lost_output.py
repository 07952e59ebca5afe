"""Closed pipes, full disks and folders that cannot be written: one line, and no file is lost."""

import json
import os
import resource
import subprocess
import sys

import pytest
from made_runs import IDENTITY, cell, keep

from defend.records import read_records

DEFEND = [sys.executable, "-m", "defend"]
BENCH = "bench --dataset digits --defense none --attack fgsm --eps 0.1 --n 8 --device cpu"
BENCH = [*BENCH.split(), "--workers", "1"]
REPORT = ("report.html", "results.csv", "summary.json")


def defend(*args, stdout=subprocess.PIPE, file_size=None, **options):
    """Run a command; file_size: bytes after which a write fails as on a full disk."""

    def limit():
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    return subprocess.run(
        [*DEFEND, *map(str, args)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        check=False,
        **options,
    )


def lines_of(stderr):
    """Return the lines that the command says, without its progress and the names of files."""
    return [line for line in stderr.splitlines() if line.startswith("defend: ")]


def closed_pipe():
    """Return the end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def full_device():
    return open("/dev/full", "w")  # noqa: PTH123


# A reader that closes a pipe has enough; a full disk loses what somebody wants.
OUTPUTS = {"a closed pipe": (closed_pipe, 0), "a full disk": (full_device, 1)}


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_bench_keeps_its_files_when_its_output_is_lost(tmp_path, name, flag):
    open_output, code = OUTPUTS[name]
    with open_output() as stdout:
        done = defend(*BENCH, "--out", tmp_path, *flag, stdout=stdout)
    assert done.returncode == code
    lines = lines_of(done.stderr)
    assert len(lines) == code and all("not all was printed" in line for line in lines)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert len(read_records(tmp_path)) == 3
    assert all((tmp_path / file).stat().st_size for file in REPORT)


def test_a_bench_before_head_keeps_its_files(tmp_path):
    command = f'"$0" -m defend {" ".join(BENCH)} --out "$1" | head -2; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, tmp_path], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[0].startswith("digits | convnet")
    assert lines[-1] == "0"  # whether or not all fitted into the pipe before head closed it
    assert all((tmp_path / file).stat().st_size for file in REPORT)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


COMMANDS = {
    "list": ["list"],
    "help": ["--help"],
    "report": ["report", "RUN", "--format", "latex"],
    "verify": ["verify", "RUN"],
    "diff": ["diff", "RUN", "RUN"],
}


@pytest.fixture
def run_folder_of_one_cell(tmp_path):
    return keep(tmp_path / "run", [cell(tmp_path / "run", [1, 0, 1], **IDENTITY)])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_in_one_line_that_its_output_is_lost(run_folder_of_one_cell, name):
    args = [run_folder_of_one_cell if arg == "RUN" else arg for arg in COMMANDS[name]]
    with full_device() as stdout:
        done = defend(*args, stdout=stdout)
    assert done.returncode == 1
    assert done.stderr == (
        "defend: stdout: No space left on device; not all was printed, and what was to be written"
        " into files is written\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_enough_changes_no_exit_code(run_folder_of_one_cell, name):
    args = [run_folder_of_one_cell if arg == "RUN" else arg for arg in COMMANDS[name]]
    expected = defend(*args).returncode
    with closed_pipe() as stdout:
        done = defend(*args, stdout=stdout)
    assert (done.returncode, done.stderr) == (expected, "")


def test_a_closed_stdout_is_one_line_and_takes_no_file(run_folder_of_one_cell, tmp_path):
    """Without stdout the next file that is opened would get its number, and what is printed."""
    folder, out = run_folder_of_one_cell, tmp_path / "page"
    command = '"$0" -m defend report "$1" --out "$2" >&-'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, folder, out], capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("defend: stdout: it is closed")
    assert (out / "report.html").read_text().rstrip().endswith("</html>")


def test_an_error_keeps_its_exit_code_when_stderr_is_lost(tmp_path):
    with full_device() as stderr:
        done = subprocess.run(
            [*DEFEND, "verify", tmp_path], stdout=subprocess.PIPE, stderr=stderr, check=False
        )
    assert (done.returncode, done.stdout) == (2, b"")


def test_what_can_be_printed_is_printed_and_exit_0(run_folder_of_one_cell):
    done = defend("verify", run_folder_of_one_cell)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 cell confirmed; no problem\n"


# Files that cannot be written.


def test_a_report_that_does_not_fit_is_one_line_after_the_table(tmp_path):
    first = defend(*BENCH, "--out", tmp_path / "whole")
    size = (tmp_path / "whole" / "report.html").stat().st_size
    done = defend(*BENCH, "--out", tmp_path / "run", file_size=size - 1000)
    assert done.returncode == 2
    (line,) = lines_of(done.stderr)
    assert "the report cannot be written there: File too large" in line
    assert done.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    assert len(read_records(tmp_path / "run")) == 3
    assert not list(tmp_path.rglob("*.part"))


def test_records_that_do_not_fit_are_one_line_and_the_units_stay(tmp_path):
    args = [*BENCH, "--eps", "0:0.4:0.02", "--knowledge", "oblivious", "--out", tmp_path, "--json"]
    done = defend(*args, file_size=40_000)
    assert done.returncode == 2, done.stderr
    (line,) = lines_of(done.stderr)
    assert "the records cannot be written there: File too large" in line
    units = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(units) == 21
    again = defend(*args)
    assert again.returncode == 0
    assert len([json.loads(row) for row in again.stdout.splitlines()]) == 21
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == units


def test_a_folder_that_cannot_be_written_is_one_line_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    done = defend(*BENCH, "--out", tmp_path / "file" / "run")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "cannot be written" in line and "--out" in line


def test_an_audit_page_that_does_not_fit_is_one_line_after_the_verdict(tmp_path):
    out = tmp_path / "audit.html"
    args = ["audit", "none", "--dataset", "digits", "--classifier", "convnet", "--budget", "quick"]
    done = defend(*args, "--n", 16, "--device", "cpu", "--out", out, file_size=500)
    assert done.returncode == 2, done.stderr
    assert "cannot be written: File too large" in lines_of(done.stderr)[-1]
    assert "no sign of masking" in done.stdout.lower() or "unreliable" in done.stdout.lower()
