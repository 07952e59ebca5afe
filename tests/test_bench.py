"""The benchmark end to end on embedded data: resumed, spread over workers, and correct."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from bench_suite import SMALL, without_times

import defend
from defend.benchmarks.engines import local
from defend.noise import Noise
from defend.records import FlagCode, read_records
from defend.unit_files import read_unit, unit_path


def unit_files(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


def test_records_are_in_the_order_of_the_suite(undisturbed):
    views = [("oblivious", "declared"), ("adaptive", "identity"), ("adaptive", "declared")]
    expected = [
        (defense, eps, *view)
        for defense in SMALL["defenses"]
        for eps in (0.1, 0.2)
        for view in views
    ]
    records = undisturbed[1]
    assert [(r.defense, r.eps, r.knowledge, r.gradient) for r in records] == expected
    assert not any(r.failed for r in records)


def test_records_survive_json_and_lie_in_the_folder(undisturbed):
    folder, records = undisturbed
    assert read_records(folder) == records
    rows = json.loads((folder / "records.json").read_text())
    assert rows == [json.loads(r.to_json()) for r in records]


def test_the_same_command_again_computes_nothing(undisturbed):
    folder, records = undisturbed
    before = unit_files(folder)
    again = defend.bench(SMALL, out=folder, workers=1)
    assert unit_files(folder) == before
    assert again == records


def test_two_workers_give_the_records_of_one(undisturbed, tmp_path):
    records = defend.bench(SMALL, out=tmp_path, workers=2)
    assert without_times(records) == without_times(undisturbed[1])


def test_half_of_the_eps_computed_already(undisturbed, tmp_path):
    half = defend.bench(SMALL | {"eps": "0.1"}, out=tmp_path, workers=1)
    first = unit_files(tmp_path)
    whole = defend.bench(SMALL, out=tmp_path, workers=1)
    both = unit_files(tmp_path)
    assert {name: both[name] for name in first} == first
    assert len(both) == 2 * len(first)
    assert without_times(whole) == without_times(undisturbed[1])
    assert without_times(half) == without_times([r for r in whole if r.eps == 0.1])


def test_a_cell_does_not_depend_on_its_company(undisturbed, tmp_path):
    keys = {
        "defenses": ["gaussian:sigma=0.1"],
        "eps": "0.2",
        "gradients": ["declared"],
        "knowledge": ["adaptive"],
    }
    alone = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    cell = ("gaussian:sigma=0.1", 0.2, "adaptive", "declared")
    expected = [r for r in undisturbed[1] if (r.defense, r.eps, r.knowledge, r.gradient) == cell]
    assert without_times(alone) == without_times(expected)


def test_spelling_is_not_in_the_key(undisturbed):
    folder, _ = undisturbed
    before = unit_files(folder)
    keys = {"defenses": ["none", "gaussian:sigma=1/10"], "eps": ["1/10", "0.2"]}
    records = defend.bench(SMALL | keys, out=folder, workers=1)
    assert unit_files(folder) == before
    assert {r.defense for r in records} == {"none", "gaussian:sigma=1/10"}


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_unit_is_computed_again(undisturbed, damage, capfd):
    folder, records = undisturbed
    key = records[-1].units[0]
    file = unit_path(folder, key)
    data = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(data[:100])
    else:
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
    assert read_unit(folder, key) is None
    again = defend.bench(SMALL, out=folder, workers=1)
    assert without_times(again) == without_times(records)
    assert read_unit(folder, key) is not None
    assert f"1 damaged unit in {folder}" in " ".join(capfd.readouterr().err.split())


KILLS = int(os.environ.get("DEFEND_TEST_KILLS", "3"))


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again(undisturbed, tmp_path, workers):
    """After SIGKILL at random moments, a run to the end gives the records of an undisturbed run."""
    script = textwrap.dedent(f"""
        import defend
        defend.bench({SMALL!r}, out={str(tmp_path)!r}, workers={workers})
    """)
    rng = random.Random(workers)
    for _ in range(KILLS):
        kill_after_units(script, tmp_path, rng.randrange(1, 8))
    records = defend.bench(SMALL, out=tmp_path, workers=workers)
    assert without_times(records) == without_times(undisturbed[1])


def kill_after_units(script, folder, count):
    """Kill the script when it has written `count` units more, unless it ends before."""
    target = len(unit_files(folder)) + count
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=env)
    while process.poll() is None and len(unit_files(folder)) < target:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_abandoned_parts_are_removed_and_parts_being_written_are_not(tmp_path):
    old, new = (tmp_path / "units" / "ab" / f"{name}.part" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    keys = {"defenses": ["none"], "attacks": ["fgsm"], "eps": "0.1", "n": 16}
    defend.bench(SMALL | keys, out=tmp_path, workers=1)
    assert (old.exists(), new.exists()) == (False, True)


def test_oblivious_images_are_made_once_for_all_defenses(undisturbed):
    folder, records = undisturbed
    oblivious = [r for r in records if r.knowledge == "oblivious" and r.eps == 0.2]
    hashes = []
    for record in oblivious:
        units = [read_unit(folder, key) for key in record.units]
        hashes.append([unit.header["x_adv_sha256"] for unit in units])
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]


def test_units_hold_the_outcomes_of_every_draw(undisturbed):
    folder, records = undisturbed
    deterministic = {"score": (16, 1), "clean_score": (16, 1)}
    stochastic = {
        "score": (16, 5),
        "clean_score": (16, 5),
        "select": (16, 10),
        "clean_select": (16, 10),
    }
    for record in records:
        tensors = read_unit(folder, record.units[0]).tensors
        shapes = {k: tuple(t.shape) for k, t in tensors.items() if not k.startswith("sample")}
        assert shapes == (stochastic if record.stochastic else deterministic)


def test_eps_zero_is_the_clean_image(tmp_path):
    for record in defend.bench(SMALL | {"eps": "0"}, out=tmp_path, workers=1):
        assert record.robust_accuracy == record.clean_accuracy
        assert record.forwards == record.backwards == 0


@pytest.mark.parametrize("eps", ["0.1", "0:0.2:0.05"])
def test_eps_scored_together_give_what_each_gives_alone(tmp_path, eps):
    """FGSM shares one gradient, and all its images are scored in one batch."""
    keys = {"attacks": ["fgsm"], "eps": eps}
    together = defend.bench(SMALL | keys, out=tmp_path / "together", workers=1)
    for record in together:
        one = SMALL | keys | {"eps": [record.eps_text], "defenses": [record.defense]}
        one |= {"knowledge": [record.knowledge], "gradients": None}
        alone = defend.bench(one, out=tmp_path / "alone", workers=1)
        (twin,) = [r for r in alone if r.gradient == record.gradient]
        assert twin.robust_accuracy == record.robust_accuracy


def test_a_record_scores_what_a_plain_loop_scores(undisturbed):
    """The clean accuracy of both defenses, draw by draw, is computed here by hand."""
    data = defend.load("digits", "dataset")
    net = defend.load("convnet", "classifier", "digits").network
    x, y = data.rows("test", 0, 48)
    noisy = defend.load("gaussian:sigma=0.1")
    noise = Noise.of(0, torch.arange(48)).fork("score")
    draws = [noisy.purified(x, noise.nth(torch.full((48, 1), k))) for k in range(5)]
    by_hand = torch.stack([net(d).argmax(1) == y for d in draws]).double().mean().item()
    clean = {r.defense: r.clean_accuracy for r in undisturbed[1]}
    assert clean["none"] == (net(x).argmax(1) == y).double().mean().item()
    assert clean["gaussian:sigma=0.1"] == pytest.approx(by_hand)


@pytest.mark.usefixtures("plugin")
def test_a_network_trained_anew_into_the_same_file_is_another(tmp_path):
    file = tmp_path / "factor.txt"
    keys = {"attacks": ["fgsm"], "eps": "0.1", "knowledge": ["oblivious"], "n": 32}
    keys |= {"defenses": [f'from-file:file="{file}"']}
    accuracies = []
    for factor in ("1", "0", "1"):
        file.write_text(factor)
        (record,) = defend.bench(SMALL | keys, out=tmp_path / "run", workers=1)
        accuracies.append(record.clean_accuracy)
    assert accuracies[0] == accuracies[2] > 0.9
    assert accuracies[1] < 0.3


def test_noise_that_changes_nothing_is_flagged(tmp_path):
    """A stochastic purifier gets a smaller query budget, so its card's word is measured."""
    keys = {
        "defenses": ["gaussian:sigma=0", "gaussian:sigma=0.01"],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": ["oblivious"],
        "draws": 2,
    }
    records = defend.bench(SMALL | keys, out=tmp_path, workers=1)
    codes = {r.defense: [flag.code for flag in r.flags] for r in records}
    assert codes == {
        "gaussian:sigma=0": [FlagCode.NO_DRAW_CHANGES_A_PIXEL],
        "gaussian:sigma=0.01": [],
    }


def test_another_precision_is_another_record(tmp_path):
    keys = {
        "defenses": ["none"],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": ["bpda"],
        "n": 16,
    }
    for precision in ("float32", "bfloat16"):
        defend.bench(SMALL | keys, out=tmp_path, workers=1, precision=precision)
    assert [r.precision for r in read_records(tmp_path)] == ["float32", "bfloat16"]


@pytest.mark.data("MNIST")
def test_fgsm_on_mnist_is_reproduced_by_a_few_lines_of_torch(tmp_path):
    """Every eps of a sweep agrees to the image."""
    n = 1000
    records = defend.bench(
        dataset="mnist",
        classifiers=["convnet"],
        defenses=["none"],
        attacks=["fgsm"],
        eps="0:0.3:0.1",
        n=n,
        knowledge=["oblivious"],
        out=tmp_path,
        workers=1,
    )
    net = defend.load("convnet", "classifier", "mnist").network
    x, y = defend.load("mnist", "dataset").rows("test", 0, n)
    x.requires_grad_()
    torch.nn.functional.cross_entropy(net(x), y, reduction="sum").backward()
    for record in records:
        adversarial = (x.detach() + record.eps * x.grad.sign()).clamp(0, 1)
        right = (net(adversarial).argmax(1) == y) & (net(x).argmax(1) == y)
        images_apart = abs(round(n * record.robust_accuracy) - int(right.sum()))
        assert images_apart <= 1  # by rounding in batches of another size


@pytest.mark.usefixtures("plugin")
def test_jobs_go_on_when_a_worker_dies(tmp_path):
    """The units that it owed fail; the others are computed."""
    keys = {"defenses": ["misbehaves:how=dies", "none"], "knowledge": ["bpda"], "eps": "0.1"}
    records = defend.bench(SMALL | keys, out=tmp_path, workers=2)
    errors = {r.defense: r.error for r in records}
    assert "the worker ended with exit code 3" in errors["misbehaves:how=dies"]


def test_one_worker_works_in_this_process(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "_Worker", None)
    keys = {"defenses": ["none"], "attacks": ["fgsm"], "eps": "0.1", "n": 16}
    assert not any(r.failed for r in defend.bench(SMALL | keys, out=tmp_path, workers=1))


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(undisturbed, tmp_path):
    """At most one image of 48 may round to the other side."""
    on_gpu = defend.bench(SMALL, out=tmp_path, device="cuda")
    for cpu, gpu in zip(undisturbed[1], on_gpu, strict=True):
        assert abs(cpu.robust_accuracy - gpu.robust_accuracy) <= 0.5 / 48 + 0.005
