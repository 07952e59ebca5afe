"""`defend zoo add` ships weights so that `weights=auto` finds them; `measure` says what is true."""

import math
import shutil
import tomllib

import pytest
from click.testing import CliRunner
from shared_prior import ARCHITECTURE, Diffuse, register, write_weights

from defend.cli import main
from defend.errors import Mismatch
from defend.loading import load
from defend.testing.classifier_checks import check_declared_accuracy
from defend.trained_on import TrainedOn
from defend.training.measuring import measure_component
from defend.training.recipe import Recipe
from defend.weights.header import read_header
from defend.weights.zoo import read_zoo, read_zoos

DIST = "prior-kit"
DIFFUSE = f"{DIST}/diffuse"


@pytest.fixture
def package(tmp_path, install):
    """The folder of weights of an installed package with the components of shared_prior.py."""
    folder = tmp_path / "site" / "prior_zoo"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    install(register(tmp_path / "site", DIST, "prior_zoo"))
    return folder


@pytest.fixture
def file(package, tmp_path):
    assert package.is_dir()
    return write_weights(tmp_path / "prior.safetensors", DIFFUSE)


def run(*args):
    """Run `defend zoo ...`, and return its exit code and what it printed."""
    result = CliRunner().invoke(main, ["zoo", *map(str, args)])
    return result.exit_code, result.output


def add(file, *args, licence="MIT"):
    code, output = run("add", file, "--licence", licence, *args)
    assert code == 0, output
    return output


def test_added_weights_are_found_without_a_path(package, file):
    output = add(file, "--default")
    assert f"the default of the defense {DIFFUSE} on digits" in output
    assert "note" not in output
    purifier = load("diffuse:sigma=0.1", dataset="digits")
    assert (purifier.weights, purifier.sigma, purifier.width) == ("prior", 0.1, 3)
    assert load("restore", dataset="digits").weights == "prior"
    assert purifier.file.path == package / "prior.safetensors"
    assert file.exists()


def test_the_row_says_what_the_header_says(package, file):
    add(file, "--name", "other-name", "--surrogate", licence="CC BY 4.0")
    row = tomllib.loads((package / "zoo.toml").read_text())["other-name"]
    header = read_header(file)
    assert list(row)[:6] == ["file", "sha256", "size", "kind", "component", "architecture"]
    assert (row["file"], row["licence"], row["surrogate"]) == (
        "other-name.safetensors",
        "CC BY 4.0",
        True,
    )
    assert row["trained_on"] == {"kind": "clean"}
    assert row["fields"] == header.fields
    assert row["architecture"] == ARCHITECTURE
    assert row["size"] == file.stat().st_size
    for name in ("kind", "component", "dataset", "command", "seed"):
        assert row[name] == getattr(header, name)
    entry = read_zoos()["other-name"]
    assert (entry.trained_on, entry.default, entry.source) == (
        header.trained_on,
        False,
        "prior_zoo",
    )


def test_a_second_row_leaves_the_first_as_it_is(package, file):
    (package / "zoo.toml").write_text("# ours\n")
    add(file)
    before = (package / "zoo.toml").read_bytes()
    add(file, "--name", "again")
    after = (package / "zoo.toml").read_bytes()
    assert after.startswith(before) and before.startswith(b"# ours\n")
    assert set(read_zoo("prior_zoo")) == {"prior", "again"}


def test_a_row_is_replaced_with_overwrite_alone(file, tmp_path):
    add(file)
    (tmp_path / "new").mkdir()
    changed = write_weights(tmp_path / "new" / "prior.safetensors", DIFFUSE, seed=5)
    assert run("add", changed, "--licence", "MIT")[0] == 2
    assert read_zoos()["prior"].seed == 0
    add(changed, "--overwrite")
    assert read_zoos()["prior"].seed == 5
    assert load("diffuse:weights=prior").file.header.seed == 5


def test_a_row_that_cannot_be_replaced_leaves_its_file_as_it_is(package, file, tmp_path):
    """A part of the row stands below another one."""
    add(file, "--name", "first")
    add(file, "--name", "second")
    toml, copy = package / "zoo.toml", package / "first.safetensors"
    rows = toml.read_text().replace("measured = {}", "")
    toml.write_text(f"{rows}\n[first.measured]\npsnr = 3\n")
    read_zoo.cache_clear()
    before = toml.read_bytes(), copy.read_bytes()
    changed = write_weights(tmp_path / "changed.safetensors", DIFFUSE, seed=5)
    options = ("--name", "first", "--licence", "MIT", "--overwrite")
    code, output = run("add", changed, *options)
    assert code == 2 and "got another layout" in output
    assert (toml.read_bytes(), copy.read_bytes()) == before
    assert load("diffuse:weights=first").file.header.seed == 0


def test_a_file_that_lies_in_the_zoo_is_not_copied(package, file):
    inside = shutil.copy(file, package / "inside.safetensors")
    add(inside)
    assert read_zoos()["inside"].file == inside
    assert {path.name for path in package.iterdir()} == {
        "__init__.py",
        "inside.safetensors",
        "zoo.toml",
    }


def test_a_folder_that_no_package_names_is_said(file, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    output = add(file, "--package", folder)
    assert "note: no installed package names" in output and "defend.weights" in output
    assert "prior" not in read_zoos()


REFUSED = {  # options after `zoo add FILE --package DIR` -> words of the one line
    "no licence": ([], "expected the licence of these weights, got none; give --licence"),
    "an empty licence": (["--licence", " "], "expected the licence"),
    "default and surrogate": (
        ["--licence", "MIT", "--default", "--surrogate"],
        "--default and --surrogate contradict",
    ),
    "a name of two words": (["--licence", "MIT", "--name", "a b"], "give another name"),
    "a name that is a number": (["--licence", "MIT", "--name", "1e5"], "give another name"),
    "a name that is a word": (["--licence", "MIT", "--name", "auto"], "give another name"),
    "a path as a name": (["--licence", "MIT", "--name", "../a"], "give another name"),
    "a name of another package": (
        ["--licence", "MIT", "--name", "convnet-digits"],
        "--name convnet-digits: the package defend.zoo has weights of that name",
    ),
    "a name that is used": (
        ["--licence", "MIT", "--name", "first"],
        "has a row first already; give another --name, or replace it with --overwrite",
    ),
    "a second default": (
        ["--licence", "MIT", "--default"],
        f"--default: first is the default of {DIFFUSE} on digits already",
    ),
    "no folder": (
        ["--licence", "MIT", "--package", "no-such-folder"],
        "no-such-folder: expected the folder of a package, got none",
    ),
    "a file that no row names": (
        ["--licence", "MIT", "--name", "stray"],
        "stray.safetensors exists and is another file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_one_line(package, file, case):
    add(file, "--name", "first", "--default")
    (package / "stray.safetensors").write_bytes(b"")
    before = (package / "zoo.toml").read_bytes()
    options, message = REFUSED[case]
    code, output = run("add", file, "--package", package, *options)
    assert code == 2
    assert message in output and output.count("\n") <= 1 and "Traceback" not in output
    assert (package / "zoo.toml").read_bytes() == before


UNREGISTERED = {  # header -> words of the one line, or None if it is added
    "nothing of this name": (
        ("Soften", "Soften"),
        "'Soften', which no installed package",
    ),
    "a short name": (("alone", "alone"), "'alone', which no installed package registers"),
    "an uninstalled package": (("gone/alone", "gone/alone"), "no installed package registers"),
    "a kind that has no weights": (("mnist", "mnist"), "no installed package registers"),
    "a renamed package": (("gone/diffuse", ARCHITECTURE), None),
}


@pytest.mark.parametrize("case", UNREGISTERED)
def test_weights_that_nothing_would_find_are_refused(package, tmp_path, case):
    (component, architecture), message = UNREGISTERED[case]
    file = write_weights(tmp_path / "x.safetensors", component, architecture)
    code, output = run("add", file, "--licence", "MIT", "--default")
    if message is None:
        assert code == 0, output
        assert load("diffuse", dataset="digits").weights == "x"
    else:
        assert code == 2 and message in output and "entry point" in output
        assert not (package / "zoo.toml").exists()


def test_a_package_without_a_folder_of_weights_is_told_to_name_one(tmp_path, install):
    install(register(tmp_path / "site", DIST))
    file = write_weights(tmp_path / "prior.safetensors", DIFFUSE)
    code, output = run("add", file, "--licence", "MIT")
    assert code == 2
    assert f"the package {DIST} has no entry point of the group defend.weights" in output


@pytest.mark.parametrize(
    ("content", "message"),
    [("[a]\nfile = 3", "not a list of weights"), ("[a", "not a list of weights")],
    ids=["a broken row", "no TOML"],
)
def test_a_broken_zoo_is_not_written_to(package, file, content, message):
    (package / "zoo.toml").write_text(content)
    code, output = run("add", file, "--licence", "MIT", "--package", package)
    assert code == 2 and message in output
    assert (package / "zoo.toml").read_text() == content


# `defend train --zoo`.


class TinyRecipe(Recipe):
    """One pass over few images."""

    trained_on = TrainedOn(kind="clean")

    def loss(self, net, x, y, noise):
        return net(x).square().mean()


def train(*args):
    args = ["train", *map(str, args), "--dataset", "digits", "-o", "epochs=0.1"]
    result = CliRunner().invoke(main, args)
    return result.exit_code, result.output


def test_trained_weights_go_straight_into_a_zoo(package, monkeypatch):
    monkeypatch.setattr(Diffuse, "recipe", TinyRecipe)
    options = ("--zoo", package, "--licence", "MIT", "--default")
    code, output = train("diffuse:sigma=0.4", *options)
    assert code == 0, output
    assert "added diffuse-digits to" in output
    assert load("diffuse", dataset="digits").settings["sigma"] == 0.4
    assert read_zoos()["diffuse-digits"].fields["sigma"] == 0.4
    assert read_zoos()["diffuse-digits"].uses == ("sigma", "steps")
    assert read_header(package / "diffuse-digits.safetensors").uses == ("sigma", "steps")
    assert not list(package.glob("*.resume"))


def test_a_file_outside_of_the_zoo_is_copied_there(package, tmp_path, monkeypatch):
    monkeypatch.setattr(Diffuse, "recipe", TinyRecipe)
    out = tmp_path / "own-name.safetensors"
    code, output = train("diffuse", "--zoo", package, "--licence", "MIT", "--out", out)
    assert code == 0, output
    assert out.read_bytes() == read_zoos()["own-name"].file.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--zoo"], "expected the licence of these weights"),
        (["--zoo", "--licence", "MIT", "--default"], "first is the default of prior-kit/diffuse"),
        (["--licence", "MIT"], "--licence and --default belong to a zoo, got no --zoo"),
    ],
    ids=["no licence", "a second default", "no zoo"],
)
def test_a_zoo_is_checked_before_training(package, file, monkeypatch, options, message):
    add(file, "--name", "first", "--default")
    monkeypatch.setattr(Diffuse, "recipe", None)  # training would be another error
    zoo = ["--zoo", package] if "--zoo" in options else []
    code, output = train("diffuse", *zoo, *(o for o in options if o != "--zoo"))
    assert code == 2 and message in output


# `defend zoo measure`.


@pytest.fixture
def classifier_zoo(tmp_path):
    """A folder with a copy of the classifier of `digits`, without measured numbers."""
    folder = tmp_path / "copy"
    folder.mkdir()
    source = read_zoos()["convnet-digits"].file
    code, output = run("add", source, "--name", "mine", "--licence", "MIT", "--package", folder)
    assert code == 0, output
    return folder


def read_row(folder, name):
    return tomllib.loads((folder / "zoo.toml").read_text())[name]


def test_the_accuracy_of_a_classifier_is_measured(classifier_zoo):
    code, output = run("measure", "mine", "--package", classifier_zoo)
    assert code == 0, output
    measured = read_row(classifier_zoo, "mine")["measured"]
    declared = read_zoos()["convnet-digits"].measured["clean_accuracy"]
    assert measured == {"clean_accuracy": round(declared, 4), "split": "test", "images": 575}


def test_other_numbers_of_a_row_stay(classifier_zoo):
    toml = classifier_zoo / "zoo.toml"
    text = toml.read_text().replace("measured = {}", "measured = { fgsm_1000 = 0.25, images = 1 }")
    toml.write_text(text)
    assert run("measure", "mine", "--package", classifier_zoo, "--n", 20)[0] == 0
    measured = read_row(classifier_zoo, "mine")["measured"]
    assert measured["fgsm_1000"] == 0.25
    assert measured["images"] == 20
    assert toml.read_text().startswith(text[: text.index("measured")])


def test_the_kit_accepts_what_was_measured(package, tmp_path):
    """The check of a declared accuracy reads the row of an installed package."""
    file = shutil.copy(read_zoos()["convnet-digits"].file, tmp_path / "mine.safetensors")
    add(file, "--package", package)
    assert run("measure", "mine")[0] == 0
    check_declared_accuracy(load("convnet:weights=mine", "classifier"))
    toml = package / "zoo.toml"
    toml.write_text(toml.read_text().replace("clean_accuracy = 0.98", "clean_accuracy = 0.58"))
    read_zoo.cache_clear()
    with pytest.raises(AssertionError, match=r"an accuracy of 0\.58"):
        check_declared_accuracy(load("convnet:weights=mine", "classifier"))


def test_a_purifier_is_measured_behind_a_named_classifier(package, file):
    """x' = (1 - s) x has a mean square error of s^2 mean(x^2)."""
    add(file)
    code, output = run("measure", "prior", "--classifier", "convnet", "--n", 300)
    assert code == 0, output
    measured = read_row(package, "prior")["measured"]
    x, y = load("digits", "dataset").rows("test", 0, 300)
    psnr = -10 * math.log10(0.3**2 * x.square().mean())
    correct = load("convnet", "classifier", "digits").network(0.7 * x).argmax(1) == y
    assert measured == {
        "clean_accuracy": round(correct.float().mean().item(), 4),
        "psnr": round(psnr, 2),
        "classifier": "convnet-digits",
        "split": "test",
        "images": 300,
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["priorr", "--classifier", "convnet"], "unknown weights 'priorr'. Did you mean prior?"),
        (
            ["prior"],
            "expected a classifier whose accuracy behind prior is measured, got none; give",
        ),
        (["prior", "--classifier", "lenet:weights=lenet-mnist"], "classifier lenet takes 1x28x28"),
        (["prior", "--classifier", "convnet", "--n", "0"], "--n 0: expected 1 or more"),
        (["prior", "--classifier", "convnet", "--n", "9999"], "give --n 575 or fewer"),
        (["convnet-digits", "--classifier", "convnet"], "is a classifier itself"),
    ],
    ids=["name", "no classifier", "another data set", "no images", "too many", "two"],
)
def test_what_cannot_be_measured_is_one_line(package, file, args, message):
    add(file)
    before = (package / "zoo.toml").read_bytes()
    code, output = run("measure", *args)
    assert code == 2
    assert message in output and "Traceback" not in output
    assert (package / "zoo.toml").read_bytes() == before


def test_a_classifier_of_other_images_is_refused():
    classifier = load("convnet:weights=convnet-mnist", "classifier")
    with pytest.raises(Mismatch, match="28x28"):
        measure_component(classifier, None, load("digits", "dataset"), None)


def test_the_command_alone_shows_its_help():
    code, output = run()
    assert code == 0
    assert "add" in output and "measure" in output
