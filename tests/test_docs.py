"""The documents are true: their code runs, their commands exist, their links lead somewhere."""

import re
import shlex
import subprocess
import sys
import tomllib
from itertools import dropwhile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import defend
from defend.cli import main
from defend.registry import GROUPS, REGISTRY

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)


def blocks(page):
    return [match.groups() for match in BLOCK.finditer((ROOT / page).read_text())]


class Reader:
    """Does what a page says: writes its files into a folder, installs them, and runs its commands."""

    def __init__(self, folder, install):
        self.folder, self.site, self.install = folder / "package", folder / "site", install
        self.folder.mkdir()

    def follow(self, page):
        """From the first file on: what stands before is no part of the package."""
        for language, title, text in dropwhile(lambda block: not block[1], blocks(page)):
            if title:
                (self.folder / title).write_text(text)
                self.forget()
            elif language == "console":
                for line in text.splitlines():
                    self.run(line.removeprefix("$ "))

    def forget(self):
        for name in [m for m in sys.modules if m.startswith("defend_")]:
            del sys.modules[name]

    def run(self, command):
        tool, *args = shlex.split(command)
        if tool == "pip":
            assert args == ["install", "-e", "."]
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--no-build-isolation",
                "--no-index",
                "--upgrade",
                "--target",
                str(self.site),
                ".",
            ]
            subprocess.run(pip, cwd=self.folder, check=True)
            self.install(self.site)
            self.install(
                self.folder
            )  # before the copy, so that changes are seen, as in an editable installation
        elif tool == "pytest":
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "--rootdir",
                    ".",
                    *args,
                ],
                cwd=self.folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        else:
            assert tool == "defend", command
            done = CliRunner().invoke(
                main,
                [
                    *args,
                    *(
                        ["--out", str(self.folder / "run"), "--workers", "1"]
                        if args[0] == "bench"
                        else []
                    ),
                ],
            )
            assert done.exit_code == 0, f"{command}\n{done.output}"


@pytest.fixture
def reader(tmp_path, install):
    made = Reader(tmp_path, install)
    yield made
    made.forget()


def test_the_tutorial(reader):
    reader.follow("docs/write-a-plugin.md")


def test_the_plugin_of_the_readme(reader):
    reader.follow("README.md")
    assert (
        len(
            [
                line
                for _, title, text in blocks("README.md")
                if title and title.endswith(".py")
                for line in text.splitlines()
            ]
        )
        <= 25
    )


def test_three_lines_with_art():
    """The README's own code, with somebody's model and images."""
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
    code = [
        text for language, title, text in blocks("README.md") if language == "python" and not title
    ]
    assert code
    for text in code:
        exec(compile(text, "README.md", "exec"), names)
    gradient = names["classifier"].loss_gradient(x, np.eye(10, dtype=np.float32)[:4])
    assert (np.abs(gradient).reshape(4, -1).sum(1) > 0).all()
    assert names["guarded"](torch.from_numpy(x)).shape == (4, 10)
    assert names["clean"].shape == x.shape


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    places = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [p for p in places if "://" not in p and not (page.parent / p).exists()]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_options_exist(page):
    for line in re.findall(
        r"^\$? ?(?:\.venv/bin/)?(defend (?:[a-z]+|--)[^#\n]*)", page.read_text(), re.M
    ):
        words = shlex.split(line)
        command = main.get_command(None, words[1])
        assert command, line
        known = {o for p in command.params for o in p.opts}
        assert {w.partition("=")[0] for w in words if w.startswith("-")} <= known | {"--help"}, line


def test_every_component_stands_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert not [
        e.name for kind in GROUPS for e in REGISTRY.entries(kind) if f"`{e.name}`" not in text
    ]


def test_the_changelog_knows_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == defend.__version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_targets_of_make_that_are_named_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        name for page in PAGES for name in re.findall(r"(?:`|\$ )make ([a-z]+)", page.read_text())
    }
    assert named <= targets and {"bench", "test"} <= named


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example, tmp_path):
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
