"""The command line, as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import defend
from defend.cli import main
from defend.cli.bench import suite_keys
from defend.registry import GROUPS, REGISTRY

COMMANDS = main.list_commands(None)
SMALL = "--dataset digits --attack fgsm --eps 0.1 --n 8 --draws 2 --device cpu --workers 1"


def run(args, code=0):
    done = CliRunner().invoke(main, args.split() if isinstance(args, str) else args)
    assert done.exit_code == code, done.output
    return done


def records(args, code=0):
    return [
        json.loads(line) for line in run(f"bench {SMALL} --json {args}", code).stdout.splitlines()
    ]


# what is there


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    text = run(f"{command} --help").stdout
    assert text.startswith(f"Usage: defend {command} ") and len(text.splitlines()) > 5


def test_help_lists_every_command():
    text = run("--help").stdout
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert run([]).stdout == text == run("-h").stdout
    assert defend.__version__ in run("--version").stdout


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "--json"],
        ["list", "weights"],
        ["bench", "--help"],
        ["lisst"],
    ],
    ids=" ".join,
)
def test_what_answers_at_once_loads_nothing_heavy(args):
    heavy = {"torch", "art", "numpy", "pydantic"}
    code = f"import sys\nfrom defend.cli import main\ntry: main({args!r})\nexcept SystemExit: print('loaded', {heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded set()", done


def test_python_m_defend_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "defend", "--help"], capture_output=True, text=True
    )
    assert done.stdout.split() == run("--help").stdout.split()


# list and show


@pytest.mark.parametrize("kind", GROUPS)
def test_list_names_every_component(kind):
    names = [e.name for e in REGISTRY.entries(kind)]
    rows = [json.loads(line) for line in run(f"list {kind}s --json").stdout.splitlines()]
    assert [r["name"] for r in rows] == names and all(
        r["kind"] == kind and r["package"] == "defend" and r["version"] for r in rows
    )
    assert [line.split()[0] for line in run(f"list {kind}").stdout.splitlines()[2:-1]] == names


NAMES = ("bitcut", "broken", "careless", "detached", "from-file", "grey", "misbehaves")


@pytest.mark.usefixtures("plugin")
def test_list_shows_a_broken_plugin_beside_the_others():
    text = run("list defenses").stdout
    assert [line.split() for line in text.splitlines() if "bitcut" in line] == [
        [n, "defend-bitcut", "0.1.0"] for n in NAMES
    ]


EVERY = [(kind, e.name) for kind in GROUPS for e in REGISTRY.entries(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_show_says_what_a_component_takes(kind, name):
    facts = json.loads(run(f"show {kind} {name} --json").stdout)
    assert (
        facts["name"] == f"defend/{name}"
        and facts["about"]
        and facts["source"].partition(":")[0].endswith(".py")
    )
    assert facts["card"] or name == "art"  # a function that wraps whatever ART has
    text = run(f"show {kind} {name}").stdout
    assert all(f"{field}: {what['type']}" in text for field, what in facts["fields"].items())


def test_show_writes_defaults_as_a_spec_takes_them():
    facts = json.loads(run("show gaussian --json").stdout)
    assert facts["fields"]["sigma"] == {"type": "float", "default": "0.1"}
    assert facts["card"]["stochastic"] is True


def test_show_shows_the_fields_that_are_given():
    assert "size: int = 5" in run("show median:size=5").stdout
    assert "size: int = 3" in run("show median").stdout


@pytest.mark.usefixtures("plugin")
def test_show_says_where_a_plugin_comes_from():
    assert json.loads(run("show bitcut --json").stdout)["package"] == "defend-bitcut 0.1.0"


# bench and report


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run folder and its records."""
    folder = tmp_path_factory.mktemp("run")
    return folder, records(f"--defense none --defense gaussian:sigma=0.05 --eot 1 --out {folder}")


def test_json_is_one_record_per_line_in_the_order_of_the_options(done):
    _, got = done
    assert [r["defense"] for r in got] == ["none"] * (len(got) // 2) + ["gaussian:sigma=0.05"] * (
        len(got) // 2
    )
    assert all(r["n"] == 8 and r["eps"] == 0.1 and r["error"] is None for r in got)


def test_the_same_command_again_computes_nothing(done):
    folder, got = done
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert records(f"--defense none --defense gaussian:sigma=0.05 --eot 1 --out {folder}") == got
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before


def test_bench_prints_a_table_and_writes_a_report(done):
    folder, _ = done
    out = run(f"bench {SMALL} --defense none --eot 1 --out {folder}")
    assert "none" in out.stdout and "fgsm" in out.stdout and "no claim" in out.stdout
    assert (folder / "report.html").stat().st_size and (folder / "results.csv").stat().st_size


def test_report_prints_what_it_wrote(done):
    folder, _ = done
    (folder / "report.html").unlink()
    wrote = run(f"report {folder}").stdout.split()
    assert wrote == [str(folder / "report.html"), str(folder / "results.csv")]
    assert "<html" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("plugin")
def test_a_failed_cell_is_exit_1_and_the_others_finish(tmp_path):
    done = run(
        f"bench {SMALL} --json --attack leaves-the-ball --defense none --knowledge oblivious --out {tmp_path}",
        1,
    )
    got = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["attack"]: r["error"] is None for r in got} == {
        "fgsm": True,
        "leaves-the-ball": False,
    }
    assert "failed: none, leaves-the-ball, oblivious, before convnet, eps " in done.stderr


def test_options_replace_the_keys_of_a_suite(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "dataset = 'digits'\nclassifiers = ['convnet']\ndefenses = ['none']\nattacks = ['fgsm']\neps = [0.1]\nn = 8\n"
    )
    assert suite_keys(file, {"n": 4, "defenses": ["median"]}) == {
        "name": "mine",
        "dataset": "digits",
        "classifiers": ["convnet"],
        "defenses": ["median"],
        "attacks": ["fgsm"],
        "eps": [0.1],
        "n": 4,
    }


def test_without_a_suite_options_replace_those_of_the_embedded_one():
    embedded = suite_keys(None, {})
    assert embedded["name"] == "embedded" and embedded["dataset"] == "digits-m"
    assert suite_keys(None, {"n": 4}) == embedded | {"name": "adhoc", "n": 4}


@pytest.mark.parametrize("given", [{"dataset": "mnist"}, {"attacks": ["pgd:norm=L2"]}], ids=str)
def test_the_embedded_eps_is_for_its_own_data_and_norm(given):
    assert "eps" not in suite_keys(None, given)
    assert suite_keys(None, given | {"eps": "0.3"})["eps"] == "0.3"


@pytest.mark.parametrize(
    ("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (1, signal.SIGTERM)]
)
def test_an_interrupted_run_is_exit_130_and_goes_on_later(tmp_path, workers, number):
    """Control-C reaches the whole group of processes, workers too; a batch system's SIGTERM is heard alike."""
    what = f"--dataset digits --defense none --attack pgd:steps=5000 --eps 0.1 --n 64 --knowledge oblivious --device cpu --workers {workers} --out {tmp_path}"
    command = [sys.executable, "-m", "defend", "bench", *what.split()]
    heard = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    }  # a shell's background jobs ignore it, and so would we
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **heard,
    )
    while not (tmp_path / "run.json").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(
        2
    )  # past the imports: Python itself ends by the signal when it lands in one that runs `exec` on text
    os.killpg(process.pid, number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == "" and err.splitlines()[-1] == "defend: interrupted" and "Traceback" not in err
    assert "goes on with it" in err
    assert not list(tmp_path.rglob("*.part"))


# purify


def picture(path, shape, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_purify_keeps_names_shapes_and_folders(tmp_path):
    shapes = {
        "a.png": (12, 8),
        "b.jpg": (8, 12, 3),
        "deep/c.png": (8, 12, 3),
        "deep/d.bmp": (8, 12, 3),
    }
    for seed, (name, shape) in enumerate(shapes.items()):
        picture(tmp_path / "in" / name, shape, seed)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    lines = run(
        f"purify bitdepth:bits=2 {tmp_path}/in --out {tmp_path}/out --device cpu"
    ).stdout.splitlines()
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.glob("out/**/*.png")) == [
        "a.png",
        "b.png",
        "deep/c.png",
        "deep/d.png",
    ]
    for line, (name, shape) in zip(lines, shapes.items(), strict=True):
        before, after = (
            pixels(tmp_path / "in" / name),
            pixels((tmp_path / "out" / name).with_suffix(".png")),
        )
        assert after.shape == shape
        assert np.array_equal(after, np.rint(np.rint(before / 255 * 3) / 3 * 255))
        psnr = 10 * np.log10(255**2 / np.mean((after.astype(float) - before) ** 2))
        assert (
            line
            == f"{tmp_path / 'in' / name} -> {(tmp_path / 'out' / name).with_suffix('.png')}  {psnr:.2f} dB PSNR"
        )


def test_purify_takes_more_images_than_it_holds_at_once(tmp_path):
    for i in range(70):
        picture(tmp_path / "in" / f"{i:02}.png", (4, 4, 3), i)
    run(f"purify none {tmp_path}/in --out {tmp_path}/out --device cpu")
    assert all(
        np.array_equal(
            pixels(tmp_path / "in" / f"{i:02}.png"), pixels(tmp_path / "out" / f"{i:02}.png")
        )
        for i in range(70)
    )


def test_purify_leaves_out_what_is_no_image_and_says_so(tmp_path):
    for name in ("a", "c"):
        picture(tmp_path / "in" / f"{name}.png", (4, 4, 3))
    (tmp_path / "in" / "b.png").write_text("no image")
    done = run(f"purify none {tmp_path}/in --out {tmp_path}/out --device cpu", 2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert (
        len(done.stdout.splitlines()) == 2
        and f"left out 1 of 3: {tmp_path}/in/b.png: no image that can be read" in done.stderr
    )


def test_purify_names_the_file_that_the_purifier_cannot_take(tmp_path):
    picture(tmp_path / "in" / "colour.png", (28, 28, 3))
    picture(tmp_path / "in" / "grey.png", (28, 28))
    done = run(
        f"purify split-vqvae:weights=split-vqvae-mnist-quad {tmp_path}/in --out {tmp_path}/out --device cpu",
        2,
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["grey.png"]
    assert (
        f"left out 1 of 2: {tmp_path}/in/colour.png: SplitVQVAE: takes images of 1 channels, got 3"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [("L", "L"), ("1", "L"), ("LA", "L"), ("P", "RGB"), ("RGBA", "RGB"), ("CMYK", "RGB")],
)
def test_purify_reads_every_mode_of_8_bits(tmp_path, mode, becomes):
    source = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (4, 4)).save(source)
    out = run(f"purify none {source} --out {tmp_path}/out --device cpu").stdout
    with Image.open(tmp_path / "out" / "x.png") as after:
        assert after.mode == becomes and "unchanged" in out


def test_purify_can_be_repeated_with_a_seed_and_is_fresh_without(tmp_path):
    picture(tmp_path / "x.png", (8, 8))
    for name, spec in {
        "a": "gaussian:seed=1",
        "b": "gaussian:seed=1",
        "c": "gaussian",
        "d": "gaussian",
    }.items():
        run(f"purify {spec} {tmp_path}/x.png --out {tmp_path}/{name} --device cpu")
    a, b, c, d = (pixels(tmp_path / name / "x.png") for name in "abcd")
    assert np.array_equal(a, b) and not np.array_equal(c, d)


# check


def test_check_passes_what_is_sound():
    out = run("check gaussian:sigma=0.05").stdout
    assert (
        out.splitlines()[0] == "defense gaussian:sigma=0.05"
        and " fail" not in out
        and "pass" in out.splitlines()[-1]
    )


@pytest.mark.usefixtures("plugin")
def test_check_is_exit_1_where_a_check_fails():
    out = run("check leaves-the-ball", code=1).stdout
    assert "fail" in out and "left the Linf ball" in out
    assert run("check defense defend-bitcut/bitcut+gaussian")
