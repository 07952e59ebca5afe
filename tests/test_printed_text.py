"""Text that people read: plurals, blanks at the ends of lines, and what weights decide."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from made_runs import IDENTITY, cell, keep

from defend.cli import main
from defend.errors import count_of


def run(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 cells"), (1, "1 cell"), (2, "2 cells"), (1000, "1,000 cells")]
)
def test_a_count_has_its_plural(number, text):
    assert count_of(number, "cell") == text


@pytest.mark.parametrize(("cells", "text"), [(1, "1 cell confirmed"), (2, "2 cells confirmed")])
def test_verify_counts_cells(tmp_path, cells, text):
    fields = ({"eps": eps, "eps_text": str(eps)} | IDENTITY for eps in (0.1, 0.2)[:cells])
    folder = keep(tmp_path, [cell(tmp_path, np.ones(4), **f) for f in fields])
    assert run("verify", folder).output.startswith(text + ";")


COMMANDS = [("list",), ("show", "median"), ("show", "convnet"), ("list", "weights")]


@pytest.mark.parametrize("words", COMMANDS)
def test_lines_in_a_log_end_with_no_blank(words):
    done = run(*words)
    assert done.exit_code == 0 and len(done.output.splitlines()) > 5
    assert not [line for line in done.output.splitlines() if line != line.rstrip()]


FIELDS = {
    "comdefend": "width: int, decided by the weights; 256 with weights=untrained",
    "comdefend:weights=comdefend-digits-m": "width: int = 64 (of comdefend-digits-m)",
    "comdefend:weights=comdefend-cifar10-late": "width: int = 256 (of comdefend-cifar10-late)",
    "comdefend:weights=comdefend-digits-m,noise=1": "noise: float = 1.0",
    "comdefend:weights=untrained": "width: int = 256",
    "median": "size: int = 3",
}


@pytest.mark.parametrize("spec", FIELDS)
def test_show_says_what_the_weights_decide(spec):
    lines = [line.removeprefix("fields").strip() for line in run("show", spec).output.splitlines()]
    assert FIELDS[spec] in lines


def test_show_says_so_as_data():
    fields = json.loads(run("show", "comdefend", "--json").output)["fields"]
    assert fields["width"] == {"type": "int", "default": "256", "weights": ""}
    assert "weights" not in fields["weights"]
