"""Paths that users type in quotes, where no shell expands ~."""

import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import defend
from defend.cli import main
from defend.cli.common import UserPath
from defend.dataset import data_root
from defend.errors import BadParameter
from defend.files import cache_folder, user_path
from defend.records import read_records
from defend.weights.zoo import read_zoos


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, beside the folder in which a "~" would be made."""
    folder, work = tmp_path / "home", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(work)
    yield folder
    assert list(work.iterdir()) == []


def write_pictures(folder):
    for name in ("cat/1.png", "dog/2.png", "cat/3.png", "dog/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(folder / name)


def test_a_path_that_begins_with_the_home_folder(home):
    assert user_path("~/data") == home / "data"
    assert user_path("~") == home
    assert user_path("data/~") == Path("data/~")
    with pytest.raises(BadParameter, match="~nobody-of-this-name/x: expected a path"):
        user_path("~nobody-of-this-name/x")


def test_the_folders_of_data_and_of_the_cache(home, monkeypatch):
    monkeypatch.setenv("DEFEND_DATA", "~/data")
    assert data_root() == home / "data"
    assert data_root("~/other") == home / "other"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert cache_folder() == home / "cache/defend"


def test_a_field_that_names_a_folder_or_weights(home):
    write_pictures(home / "pets")
    data = defend.load("image-folder:path=~/pets,size=8", "dataset")
    assert data.names == ("cat", "dog")
    shutil.copy(read_zoos()["convnet-digits"].file, home / "net.safetensors")
    net = defend.load("convnet:weights=~/net.safetensors", "classifier")
    assert net.weights_sha256 == {"~/net.safetensors": read_zoos()["convnet-digits"].sha256}


def test_the_folder_of_a_run(home):
    records = defend.bench(
        dataset="digits",
        classifiers=["convnet"],
        defenses=["none"],
        attacks=["fgsm"],
        eps=0.1,
        n=4,
        workers=1,
        out="~/run",
    )
    assert len(read_records(home / "run")) == len(records)
    report = CliRunner().invoke(main, ["report", "~/run"])
    assert report.exit_code == 0, report.output
    assert (home / "run/report.html").exists()


def test_the_files_of_purify(home):
    write_pictures(home / "pets")
    done = CliRunner().invoke(main, ["purify", "none", "~/pets", "--out", "~/out"])
    assert done.exit_code == 0, done.output
    assert len(list((home / "out").rglob("*.png"))) == 4


def test_every_path_of_the_command_line_is_that_of_a_user():
    context = click.Context(main)
    for name in main.list_commands(context):
        commands = [main.get_command(context, name)]
        commands += getattr(commands[0], "commands", {}).values()
        for command in commands:
            for parameter in command.params:
                if isinstance(parameter.type, click.Path):
                    assert isinstance(parameter.type, UserPath), (name, parameter.name)
