"""The benchmark end to end on embedded data: resumable, identical however the work was spread, and right."""

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
from audit_toys import AliveOnTheGrid, RightAtFirst, Rough, Startled, Undefined, digits, network

import defend
from defend import Chain
from defend.benchmarks import read_unit
from defend.benchmarks.flags import NOTHING_DRAWN
from defend.benchmarks.gradient_probe import GradientProbe
from defend.benchmarks.units import path_of
from defend.errors import BadParameter, BrokenPurifier
from defend.noise import Noise
from defend.records import read_records
from defend.target import Target

SMALL = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "defenses": ["none", "gaussian:sigma=0.1"],
    "attacks": ["pgd:steps=3"],
    "eps": "0.1,0.2",
    "n": 48,
    "shard": 16,
    "eot": 2,
    "draws": 5,
}
COSTS = ("seconds", "purify_images_per_second")


def timeless(records):
    return json.dumps([{k: v for k, v in r.items() if k not in COSTS} for r in records])


def unit_files(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, defend.bench(SMALL, out=folder, workers=1)


def test_records_are_in_the_order_of_the_suite(undisturbed):
    got = [(r["defense"], r["eps"], r["knowledge"], r["gradient"]) for r in undisturbed[1]]
    ways = [("oblivious", "declared"), ("adaptive", "identity"), ("adaptive", "declared")]
    assert got == [(d, e, *w) for d in SMALL["defenses"] for e in (0.1, 0.2) for w in ways]
    assert all(r["error"] is None for r in undisturbed[1])


def test_records_survive_json_and_lie_in_the_folder(undisturbed):
    folder, records = undisturbed
    assert read_records(folder) == records == json.loads(json.dumps(records, allow_nan=False))


def test_the_same_command_again_computes_nothing(undisturbed):
    folder, records = undisturbed
    before = unit_files(folder)
    again = defend.bench(SMALL, out=folder, workers=1)
    assert unit_files(folder) == before
    assert json.dumps(again) == json.dumps(records)


def test_two_workers_give_the_bytes_of_one(undisturbed, tmp_path):
    assert timeless(defend.bench(SMALL, out=tmp_path, workers=2)) == timeless(undisturbed[1])


def test_half_of_the_eps_computed_already(undisturbed, tmp_path):
    half = defend.bench(SMALL | {"eps": "0.1"}, out=tmp_path, workers=1)
    there = unit_files(tmp_path)
    whole = defend.bench(SMALL, out=tmp_path, workers=1)
    after = unit_files(tmp_path)
    assert {name: after[name] for name in there} == there
    assert len(after) == 2 * len(there)
    assert timeless(whole) == timeless(undisturbed[1])
    assert timeless(half) == timeless([r for r in whole if r["eps"] == 0.1])


def test_a_cell_does_not_depend_on_its_company(undisturbed, tmp_path):
    alone = defend.bench(
        SMALL
        | {
            "defenses": ["gaussian:sigma=0.1"],
            "eps": "0.2",
            "gradients": ["declared"],
            "knowledge": ["adaptive"],
        },
        out=tmp_path,
        workers=1,
    )
    wanted = [
        r
        for r in undisturbed[1]
        if (r["defense"], r["eps"], r["knowledge"], r["gradient"])
        == ("gaussian:sigma=0.1", 0.2, "adaptive", "declared")
    ]
    assert timeless(alone) == timeless(wanted)


def test_spelling_is_not_in_the_key(undisturbed):
    folder, _ = undisturbed
    before = unit_files(folder)
    records = defend.bench(
        SMALL | {"defenses": ["none", "gaussian:sigma=1/10"], "eps": ["1/10", "0.2"]},
        out=folder,
        workers=1,
    )
    assert unit_files(folder) == before
    assert {r["defense"] for r in records} == {"none", "gaussian:sigma=1/10"}


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_unit_is_made_again(undisturbed, damage, capfd):
    folder, records = undisturbed
    file = path_of(folder, records[-1]["units"][0])
    data = file.read_bytes()
    file.write_bytes(
        data[:100] if damage == "truncated" else data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]
    )
    assert read_unit(folder, records[-1]["units"][0]) is None
    assert timeless(defend.bench(SMALL, out=folder, workers=1)) == timeless(records)
    assert read_unit(folder, records[-1]["units"][0]) is not None
    assert f"1 damaged unit in {folder}: made again" in " ".join(capfd.readouterr().err.split())


KILLS = int(os.environ.get("DEFEND_TEST_KILLS", "3"))


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again(undisturbed, tmp_path, workers):
    """SIGKILL at random moments, then a run to the end: the records of an undisturbed run."""
    script = textwrap.dedent(f"""
        import defend
        defend.bench({SMALL!r}, out={str(tmp_path)!r}, workers={workers})
    """)
    rng = random.Random(workers)
    for _ in range(KILLS):
        (tmp_path / "run.json").unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        while process.poll() is None and not (tmp_path / "run.json").exists():
            time.sleep(0.05)  # importing torch and ART: nothing of ours has begun
        time.sleep(rng.uniform(0, 3 * workers))  # two workers begin by importing torch themselves
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert timeless(defend.bench(SMALL, out=tmp_path, workers=workers)) == timeless(undisturbed[1])


def test_what_a_killed_run_left_half_written_is_swept_but_not_what_is_being_written(tmp_path):
    old, new = (tmp_path / "units" / "ab" / f"{name}.part" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    defend.bench(
        SMALL | {"defenses": ["none"], "attacks": ["fgsm"], "eps": "0.1", "n": 16},
        out=tmp_path,
        workers=1,
    )
    assert (old.exists(), new.exists()) == (False, True)


def test_oblivious_images_are_made_once_for_all_defenses(undisturbed):
    folder, records = undisturbed
    oblivious = [r for r in records if r["knowledge"] == "oblivious" and r["eps"] == 0.2]
    hashes = [
        [read_unit(folder, key).header["x_adv_sha256"] for key in r["units"]] for r in oblivious
    ]
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]


def test_units_hold_the_outcomes_of_every_draw(undisturbed):
    folder, records = undisturbed
    for r in records:
        unit = read_unit(folder, r["units"][0])
        shapes = {
            name: tuple(t.shape)
            for name, t in unit.tensors.items()
            if not name.startswith("sample")
        }
        draws = {
            "score": (16, 5),
            "clean_score": (16, 5),
            "select": (16, 10),
            "clean_select": (16, 10),
        }
        assert shapes == (draws if r["stochastic"] else {"score": (16, 1), "clean_score": (16, 1)})


def test_eps_zero_is_the_clean_image(tmp_path):
    for r in defend.bench(SMALL | {"eps": "0"}, out=tmp_path, workers=1):
        assert r["robust_accuracy"] == r["clean_accuracy"]
        assert r["forwards"] == r["backwards"] == 0


def test_a_record_scores_what_a_plain_loop_scores(undisturbed):
    """Accuracy of the bare classifier on clean images and of the noisy one, draw by draw, computed here by hand."""
    data = defend.load("digits", "dataset")
    net = defend.load("convnet", "classifier", "digits").network
    x, y = data.rows("test", 0, 48)
    noisy = defend.load("gaussian:sigma=0.1")
    draws = [
        noisy.purified(x, Noise.of(0, torch.arange(48)).fork("score").nth(torch.full((48, 1), k)))
        for k in range(5)
    ]
    by_hand = torch.stack([net(d).argmax(1) == y for d in draws]).double().mean().item()
    clean = {r["defense"]: r["clean_accuracy"] for r in undisturbed[1]}
    assert clean["none"] == (net(x).argmax(1) == y).double().mean().item()
    assert clean["gaussian:sigma=0.1"] == pytest.approx(by_hand)


@pytest.mark.usefixtures("plugin")
def test_a_failing_attack_fails_its_cells_and_leaves_no_file(tmp_path):
    suite = SMALL | {"attacks": ["leaves-the-ball", "fgsm"], "defenses": ["none"]}
    records = defend.bench(suite, out=tmp_path, workers=1)
    failed = [r for r in records if r["attack"] == "leaves-the-ball"]
    assert all("left the Linf ball" in r["error"] and r["robust_accuracy"] is None for r in failed)
    assert all(r["error"] is None for r in records if r["attack"] == "fgsm")
    assert not any(path_of(tmp_path, key).exists() for r in failed for key in r["units"])


MISBEHAVES = {
    "writes": "wrote into its input",
    "nan": "logits behind it are not finite",
    "random": "its card says stochastic=False, and two draws of the same images differ",
    "late": "its card says stochastic=False, and two draws of the same images differ",  # of adversarial ones alone
    "remembers": "one loaded anew answers otherwise: it remembers what it saw",
    "centres": "8 of 8 images are purified otherwise alone than in their batch",
    "cuts": "1, 8, 8); let it keep the shape",
    "raises": "adversarial images are not to my taste",
}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("how", MISBEHAVES)
def test_a_purifier_that_breaks_its_contract_fails_alone(undisturbed, tmp_path, how):
    """With its reason, whatever the level; what stands beside it gets the numbers it gets alone."""
    records = defend.bench(
        SMALL | {"defenses": ["none", f"misbehaves:how={how}"], "attacks": ["pgd:steps=3"]},
        out=tmp_path,
        workers=1,
    )
    assert all(
        MISBEHAVES[how] in r["error"] and r["robust_accuracy"] is None
        for r in records
        if r["defense"] != "none"
    )
    assert timeless([r for r in records if r["defense"] == "none"]) == timeless(
        [r for r in undisturbed[1] if r["defense"] == "none"]
    )


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("once", "why"),
    [
        ("false", "it gives something else for the same image and noise"),
        ("true", "something is drawn when it is made"),
    ],
)
def test_who_draws_from_elsewhere_is_told_so(tmp_path, once, why):
    """Neither remembers anything."""
    wanted = SMALL | {
        "defenses": [f"careless:once={once}"],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": ["oblivious"],
        "n": 16,
    }
    assert all(why in r["error"] for r in defend.bench(wanted, out=tmp_path, workers=1))


@pytest.mark.usefixtures("plugin")
def test_a_model_trained_anew_into_the_same_file_is_another(tmp_path):
    file, wanted = (
        tmp_path / "factor.txt",
        SMALL | {"attacks": ["fgsm"], "eps": "0.1", "knowledge": ["oblivious"], "n": 32},
    )
    accuracy = []
    for factor in ("1", "0", "1"):
        file.write_text(factor)
        (r,) = defend.bench(
            wanted | {"defenses": [f'from-file:file="{file}"']}, out=tmp_path / "run", workers=1
        )
        accuracy.append(r["clean_accuracy"])
    assert accuracy[0] == accuracy[2] > 0.9 and accuracy[1] < 0.3


def test_noise_that_changes_nothing_is_said(tmp_path):
    """A card that says stochastic=True is asked fewer queries: where that is not so, no claim stands."""
    wanted = SMALL | {
        "defenses": ["gaussian:sigma=0", "gaussian:sigma=0.01"],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": ["oblivious"],
        "draws": 2,
    }
    flags = {r["defense"]: r["flags"] for r in defend.bench(wanted, out=tmp_path, workers=1)}
    assert flags == {"gaussian:sigma=0": [NOTHING_DRAWN], "gaussian:sigma=0.01": []}


@pytest.mark.parametrize(
    ("purifier", "seen"),
    [(Undefined, (0, 24)), (RightAtFirst, (0, 0)), (AliveOnTheGrid, (24, 0)), (Rough, (0, 0))],
)
def test_gradients_are_looked_at_on_the_grid_and_off_it(purifier, seen):
    """A gradient that is no number makes no step: the sign of NaN is 0."""
    x, y = digits().rows("val", 0, 24)
    watch = GradientProbe(
        Target(network(), purifier(), Noise.of(0, torch.arange(24))),
        x,
        y,
        defend.load("fgsm", "attack"),
    )
    assert (watch.seen["zero_gradients"], watch.seen["undefined_gradients"]) == seen


@pytest.mark.parametrize("noise", [False, True])
def test_what_is_attacked_is_what_is_scored(noise):
    """One that looks whether a gradient is asked for fails, with noise or without; one that rounds otherwise does not."""
    x, y = digits().rows("val", 0, 24)
    random = (defend.load("gaussian:sigma=0.05"),) if noise else ()

    def watched(purifier):
        GradientProbe(
            Target(
                network(), Chain(members=(*random, purifier)), Noise.of(0, torch.arange(24)), eot=3
            ),
            x,
            y,
            defend.load("fgsm", "attack"),
        )

    watched(Rough())
    with pytest.raises(
        BrokenPurifier, match="of 24 images get another label where a gradient is asked for"
    ):
        watched(Startled())


@pytest.mark.usefixtures("plugin")
def test_an_attack_that_looks_where_it_may_not_fails_and_one_that_does_nothing_is_flagged(tmp_path):
    wanted = SMALL | {
        "defenses": ["none"],
        "attacks": ["peeks", "idles", "fgsm"],
        "eps": "0.1",
        "knowledge": ["query", "oblivious"],
    }
    said = {
        (r["attack"], r["knowledge"]): (r["error"], r["flags"])
        for r in defend.bench(wanted, out=tmp_path, workers=1)
    }
    assert 'its card says access="scores"' in said["peeks", "query"][0]
    assert said["idles", "oblivious"][1] == [
        "nothing changed: the attack gave every image back as it was"
    ]
    assert said["fgsm", "oblivious"] == (None, [])


def test_records_that_cannot_be_gone_on_with_are_said_before_anything_is_computed(tmp_path):
    (tmp_path / "records.json").write_text('[{"dataset": "digits"}]')
    with pytest.raises(BadParameter, match="Move that file away"):
        defend.bench(SMALL, out=tmp_path, workers=1)
    assert not (tmp_path / "units").exists()


@pytest.mark.usefixtures("plugin")
def test_a_worker_that_dies_fails_what_it_had_in_hand(tmp_path):
    records = defend.bench(
        SMALL | {"defenses": ["misbehaves:how=dies"], "knowledge": ["bpda"], "eps": "0.1", "n": 32},
        out=tmp_path,
        workers=2,
    )
    assert [("worker" in r["error"] and "died" in r["error"]) for r in records] == [True]


def test_another_precision_is_another_record(tmp_path):
    small = SMALL | {
        "defenses": ["none"],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": ["bpda"],
        "n": 16,
    }
    for precision in ("float32", "bfloat16"):
        defend.bench(small, out=tmp_path, workers=1, precision=precision)
    assert [r["precision"] for r in read_records(tmp_path)] == ["float32", "bfloat16"]


@pytest.mark.data("MNIST")
def test_fgsm_on_mnist_is_reproduced_by_a_few_lines_of_torch(tmp_path):
    """Every eps of a sweep, to the image."""
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
    )
    net = defend.load("convnet", "classifier", "mnist").network
    x, y = defend.load("mnist", "dataset").rows("test", 0, n)
    x.requires_grad_()
    torch.nn.functional.cross_entropy(net(x), y, reduction="sum").backward()
    for r in records:
        adversarial = (x.detach() + r["eps"] * x.grad.sign()).clamp(0, 1)
        right = (net(adversarial).argmax(1) == y) & (net(x).argmax(1) == y)
        assert abs(r["robust_accuracy"] - right.double().mean().item()) <= 1e-3


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(undisturbed, tmp_path):
    for cpu, gpu in zip(
        undisturbed[1], defend.bench(SMALL, out=tmp_path, device="cuda"), strict=True
    ):
        assert abs(cpu["robust_accuracy"] - gpu["robust_accuracy"]) <= 0.5 / 48 + 0.005
