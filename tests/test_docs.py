"""The documents are true: their code runs, their commands exist, their links lead to files."""

import contextlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from itertools import dropwhile
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import defend
from defend.cli import main
from defend.registry import GROUPS, REGISTRY
from defend.weights.header import file_sha256, read_header

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)
PIP = [sys.executable, "-m", "pip", "install", "-q"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index"]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
MOST_LINES = 25  # of the plugin in the README
HUB_NAME = "google/ddpm-cifar10-32"  # a model that tests do not download
HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
MISSING_EXTRA = (
    "expected the package diffusers, which is not installed;"
    " type `pip install 'defend-denoise[diffusion]'`"
)


def page_id(page):
    return str(page.relative_to(ROOT))


def code_blocks(page):
    """Return (language, title or None, text) of each block of code on a page."""
    return [match.groups() for match in BLOCK.finditer((ROOT / page).read_text())]


class Reader:
    """Does what a page says: it writes the files, installs the package and runs the commands."""

    def __init__(self, folder, install):
        self.package, self.site = folder / "package", folder / "site"
        self.install = install
        self.package.mkdir()

    def follow(self, page):
        """Follow a page from its first file on; earlier blocks do not belong to the package."""
        blocks = dropwhile(lambda block: block[1] is None, code_blocks(page))
        for language, title, text in blocks:
            if title:
                (self.package / title).parent.mkdir(exist_ok=True)
                (self.package / title).write_text(text)
                self.unload_modules()
            elif language == "console":
                for line in text.splitlines():
                    self.run(line.removeprefix("$ "))

    def unload_modules(self):
        for name in list(sys.modules):
            if name.startswith("defend_"):
                del sys.modules[name]

    def run(self, command):
        program, *args = shlex.split(command)
        if program == "pip":
            assert args == ["install", "-e", "."], command
            self.install_package()
        elif program == "pytest":
            subprocess.run(
                [*PYTEST, *args], cwd=self.package, check=True, stdout=subprocess.DEVNULL
            )
        else:
            assert program == "defend", command
            self.run_defend(args)

    def install_package(self):
        """Install the package so that later changes of its files count, as `pip install -e` does.

        pip writes its entry points into a folder, and the source folder comes before that folder.
        """
        target = ["--upgrade", "--target", str(self.site)]
        subprocess.run([*PIP, *OFFLINE, *target, "."], cwd=self.package, check=True)
        self.install(self.site)
        self.install(self.package)

    def run_defend(self, args):
        if args[0] == "bench":
            args = [*args, "--out", str(self.package / "run"), "--workers", "1"]
        needs_extra = any(HUB_NAME in arg for arg in args)
        if needs_extra and HAS_DIFFUSERS:
            args = [arg.replace(HUB_NAME, self.save_tiny_model()) for arg in args]
        with contextlib.chdir(self.package):
            result = CliRunner().invoke(main, args)
        if needs_extra and not HAS_DIFFUSERS:
            assert (result.exit_code, MISSING_EXTRA in result.output) == (2, True), result.output
        else:
            assert result.exit_code == 0, f"defend {shlex.join(args)}\n{result.output}"

    def save_tiny_model(self):
        """Return a folder with a small model of the same class as that on the hub."""
        from diffusers import UNet2DModel

        torch.manual_seed(0)
        model = UNet2DModel(
            sample_size=32,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
        model.save_pretrained(self.site / "tiny")
        return str(self.site / "tiny")


@pytest.fixture
def reader(tmp_path, install):
    page_reader = Reader(tmp_path, install)
    yield page_reader
    page_reader.unload_modules()


def test_the_tutorial(reader):
    reader.follow("docs/write-a-plugin.md")


def test_the_tutorial_quotes_the_error_of_a_missing_extra():
    text = " ".join((ROOT / "docs/write-a-plugin.md").read_text().split())
    assert MISSING_EXTRA in text


def test_the_recipes_of_the_training_page(reader, monkeypatch):
    monkeypatch.chdir(reader.package)
    reader.follow("docs/training.md")
    first, guided = (
        read_header(reader.package / name)
        for name in ("denoiser-digits.safetensors", "guided.safetensors")
    )
    assert guided.started_from == file_sha256(reader.package / "denoiser-digits.safetensors")
    assert guided.package == "defend-denoiser 0.1.0"
    assert set(guided.trained_on.classifiers) == {"convnet-digits"}
    assert first.trained_on.classifiers == {}


def test_the_training_page_runs_in_python():
    for _, title, text in code_blocks("docs/training.md"):
        if "classifier.fit(" in text and not title:
            exec(compile(text, "training.md", "exec"), {})
            return
    raise AssertionError("expected a block with classifier.fit")


SIGNATURE = re.compile(r"`(\w+)(?:\(([\w, ]+)\))?`")


def test_the_signatures_of_the_training_page():
    """Each name exists in its module, and its first parameters are those that stand there."""
    text = (ROOT / "docs/training.md").read_text()
    rows = re.search(r"\| module of `defend.training`.*?\n\n", text, re.S)
    checked = 0
    for row in rows.group().strip().splitlines()[2:]:
        _, module_name, names, _ = row.split("|")
        module = import_module(f"defend.training.{module_name.strip(' `')}")
        for name, parameters in SIGNATURE.findall(names):
            if name == "train" and not parameters:
                continue
            member = getattr(module, name)
            if parameters:
                expected = parameters.split(", ")
                assert list(inspect.signature(member).parameters)[: len(expected)] == expected
            checked += 1
    assert checked > 15


def test_the_plugin_of_the_readme(reader):
    reader.follow("README.md")
    lines = 0
    for _, title, text in code_blocks("README.md"):
        if title and title.endswith(".py"):
            lines += len(text.splitlines())
    assert 0 < lines <= MOST_LINES


def test_three_lines_with_art():
    """The code of the README runs, with a model and images that its reader has."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    x = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    names = {
        "model": model,
        "loss": torch.nn.CrossEntropyLoss(),
        "input_shape": (3, 32, 32),
        "nb_classes": 10,
        "x": x,
        "torch": torch,
    }
    executed = 0
    for language, title, text in code_blocks("README.md"):
        if language == "python" and not title:
            exec(compile(text, "README.md", "exec"), names)
            executed += 1
    assert executed
    gradient = names["classifier"].loss_gradient(x, np.eye(10, dtype=np.float32)[:4])
    assert (np.abs(gradient).reshape(4, -1).sum(1) > 0).all()
    assert names["guarded"](torch.from_numpy(x)).shape == (4, 10)
    assert names["clean"].shape == x.shape


def missing_links(page):
    """Return the links of a page to files that do not exist."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    return [t for t in targets if "://" not in t and not (page.parent / t).exists()]


def test_links_lead_to_files():
    missing = {page_id(page): missing_links(page) for page in PAGES}
    assert not {page: links for page, links in missing.items() if links}


COMMAND = re.compile(r"^\$? ?(?:\.venv/bin/)?(defend (?:[a-z]+|--)[^#\n]*)", re.M)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_options_exist(page):
    for line in COMMAND.findall(page.read_text()):
        words = shlex.split(line)
        command = main.get_command(None, words[1])
        assert command, line
        if isinstance(command, click.Group):  # as in `defend zoo add`
            command = command.get_command(None, words[2])
            assert command, line
        options = {o for p in command.params for o in p.opts} | {"--help"}
        used = {w.partition("=")[0] for w in words if w.startswith("-")}
        assert used <= options, line


def test_the_readme_names_every_component():
    text = (ROOT / "README.md").read_text()
    missing = []
    for kind in GROUPS:
        missing += [e.name for e in REGISTRY.entries(kind) if f"`{e.name}`" not in text]
    assert not missing


def test_the_changelog_has_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == defend.__version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    mentioned = set()
    for page in PAGES:
        mentioned |= set(re.findall(r"(?:`|\$ )make ([a-z]+)", page.read_text()))
    assert {"bench", "test"} <= mentioned <= targets


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example, tmp_path):
    process = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout
