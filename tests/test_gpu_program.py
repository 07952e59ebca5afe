"""The program behind `make gpu` runs on a CPU, records what fails, and goes on."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "gpu" / "check_gpu.py"


def run(folder, *arguments):
    out = folder / "gpu.json"
    command = [sys.executable, str(PROGRAM), "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    return done, json.loads(out.read_text()) if out.exists() else None


def test_steps_run_on_a_cpu_and_leave_one_json(tmp_path):
    done, results = run(tmp_path, "--steps", "startup,matmul")
    assert done.returncode == 0, done.stderr
    assert results["about"]["device"] == "cpu"
    assert results["steps"]["matmul"]["teraflops"] > 0
    assert results["steps"]["startup"]["import_seconds"] > 0


def test_a_step_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done, results = run(tmp_path, "--steps", "fgsm,matmul")
    assert done.returncode == 0, done.stderr
    assert "MNIST" in results["steps"]["fgsm"]["error"]
    assert "teraflops" in results["steps"]["matmul"]


def test_an_unknown_step_is_refused(tmp_path):
    done, _ = run(tmp_path, "--steps", "everything")
    assert done.returncode == 2
    assert "everything" in done.stderr
