"""A wrong name or eps on a command line is refused before torch is loaded, which takes seconds."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from defend.cli import main
try:
    main(sys.argv[1:])
finally:
    print("loaded" if "torch" in sys.modules else "not loaded")
"""
BENCH = ["bench", "--dataset", "digits", "--classifier", "convnet", "--n", "4"]
AUDIT = ["audit", "jpeg", "--dataset", "digits", "--classifier"]
WRONG = {
    "attack": ([*BENCH, "--attack", "pgdd"], "unknown attack 'pgdd'. Did you mean pgd"),
    "defense": ([*BENCH, "--defense", "jpeg+pgd"], "unknown defense 'pgd'. It is an attack."),
    "data set": (["bench", "--dataset", "mnits"], "unknown dataset 'mnits'. Did you mean mnist"),
    "surrogate": ([*BENCH, "--surrogate", "jpegg+convnet"], "unknown defense 'jpegg'."),
    "spec": ([*BENCH, "--defense", "jpeg:quality"], "jpeg:quality"),
    "eps": ([*BENCH, "--eps", "8/0"], "8/0"),
    "classifier of an audit": ([*AUDIT, "convnett"], "unknown classifier 'convnett'."),
    "eps of an audit": ([*AUDIT, "convnet", "--eps", "eight"], "eight"),
    "classifier of tune": (
        ["tune", "two-stage", "--dataset", "faces", "--classifier", "facenett"],
        "unknown classifier 'facenett'.",
    ),
}


def call(words):
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_without_torch(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, expected = WRONG[name]
    code, out, err = call(words)
    assert code == 2
    assert out == "not loaded\n"
    assert err.startswith("defend: ") and expected in err and err.count("\n") == 1


def test_a_command_that_computes_does_load_it(tmp_path, monkeypatch):
    """The broken example: the program above would tell that torch was loaded."""
    monkeypatch.chdir(tmp_path)
    words = [*BENCH, "--defense", "jpeg:nothing=3", "--attack", "fgsm"]
    code, out, _ = call(words)
    assert (code, out) == (2, "loaded\n")
