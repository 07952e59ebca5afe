"""Weights know the network, not the use: which fields a file decides, and who may load it."""

import json

import pytest
import torch
from click.testing import CliRunner
from shared_prior import ARCHITECTURE, Diffuse, Prior, register, write_weights

import defend
from defend.benchmarks.components import Components
from defend.benchmarks.surrogates import Surrogates, default_surrogate
from defend.cli import main
from defend.errors import BadParameter, BadWeights
from defend.loading import load
from defend.registry import REGISTRY
from defend.weights.header import file_sha256, read_header

DIST = "prior-kit"
CPU = torch.device("cpu")


@pytest.fixture
def kit(tmp_path, install):
    """The folder of an installed package with the components of tests/shared_prior.py."""
    return install(register(tmp_path / "site", DIST))


@pytest.fixture
def trained(kit, tmp_path):
    """The path of weights of `diffuse`, trained with sigma=0.3 and steps=7."""
    assert kit.is_dir()
    return write_weights(tmp_path / "prior.safetensors", f"{DIST}/diffuse")


def settings_of(spec, path, *names):
    component = load(f"{spec}{',' if ':' in spec else ':'}weights={path}")
    return {name: component.settings[name] for name in names}


LOADED = {  # what is loaded -> spec, the fields that it then has
    "trained values are the default": ("diffuse", {"sigma": 0.3, "steps": 7}),
    "a use is free": ("diffuse:sigma=0.1", {"sigma": 0.1, "steps": 7}),
    "two uses are free": ("diffuse:sigma=0.9,steps=100", {"sigma": 0.9, "steps": 100}),
    "the network is the file's": ("diffuse", {"width": 3, "levels": (1, 2, 4)}),
    "a field that agrees": ("diffuse:width=3,sigma=0.1", {"width": 3, "sigma": 0.1}),
    "another component keeps its uses": ("restore", {"width": 3, "sigma": 0.7}),
    "another component is swept": ("restore:sigma=0.2", {"width": 3, "sigma": 0.2}),
}


@pytest.mark.parametrize(("spec", "expected"), LOADED.values(), ids=LOADED)
def test_which_fields_a_file_decides(trained, spec, expected):
    assert settings_of(spec, trained, *expected) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("diffuse:width=4", "the file has width=3, the spec has width=4"),
        ("restore:width=4", "the file has width=3, the spec has width=4"),
        ("diffuse:sigma=0.1,width=4", "the file has width=3"),
        ("alone", "expected weights of the defense 'prior-kit/alone', got .* 'test-prior'"),
        ("split-vqvae", "expected weights of the defense 'split-vqvae', got .* 'test-prior'"),
    ],
    ids=["a shape", "a shape in another component", "a use beside a shape", "no", "of defend"],
)
def test_a_file_of_another_network_is_refused(trained, spec, message):
    with pytest.raises(BadWeights, match=message):
        load(f"{spec}{',' if ':' in spec else ':'}weights={trained}")


@pytest.mark.usefixtures("kit")
def test_a_file_without_an_architecture_decides_every_field(tmp_path):
    """All fields shape the network of a component that names no use."""
    name = f"{DIST}/alone"
    path = write_weights(tmp_path / "a.safetensors", name, architecture=name)
    assert settings_of("alone", path, "sigma") == {"sigma": 0.3}
    with pytest.raises(BadWeights, match=r"the file has sigma=0\.3, the spec has sigma=0\.1"):
        load(f"alone:sigma=0.1,weights={path}")


def test_a_tuple_agrees_with_the_list_in_a_header(trained):
    assert load("diffuse", levels=(1, 2, 4), weights=str(trained)).levels == (1, 2, 4)
    with pytest.raises(BadWeights, match=r"the file has levels=\[1, 2, 4\], the spec has levels"):
        load("diffuse", levels=(1, 2), weights=str(trained))


def test_a_swept_component_is_rebuilt_from_its_settings(trained):
    swept = load(f"diffuse:sigma=0.1,weights={trained}")
    assert load("diffuse", **swept.settings).settings == swept.settings


@pytest.mark.usefixtures("kit")
@pytest.mark.parametrize("old_name", ["old-kit/diffuse", "diffuse"])
def test_a_renamed_package_loads_its_old_files(tmp_path, old_name):
    """The trained values of the uses come along, because the component is the same."""
    path = write_weights(tmp_path / "old.safetensors", old_name)
    assert settings_of("diffuse", path, "width", "sigma") == {"width": 3, "sigma": 0.3}
    assert settings_of("restore", path, "width", "sigma") == {"width": 3, "sigma": 0.7}


def test_a_class_that_an_entry_point_names_by_another_module_has_its_name(tmp_path, install):
    """A package often exports its classes at its top; the class says another module."""
    for folder in ("exported", "exported/inner"):
        (tmp_path / folder).mkdir()
    (tmp_path / "exported/inner/__init__.py").write_text("class Diffuse: ...\n")
    (tmp_path / "exported/__init__.py").write_text("from exported.inner import Diffuse\n")
    info = tmp_path / "exported-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: exported\nVersion: 1.0\n")
    points = "[defend.defenses]\nbroken = exported:Nothing\nspread = exported:Diffuse\n"
    (info / "entry_points.txt").write_text(points)
    install(tmp_path)
    cls = REGISTRY.entry("defense", "spread").load()
    assert cls.__module__ == "exported.inner"
    assert REGISTRY.component("defense", cls) == "exported/spread"
    assert REGISTRY.component("defense", Diffuse) == "Diffuse"


class Activated(Prior):
    """Another user of the network with two more fields that shape it, one of them a use above."""

    architecture = ARCHITECTURE
    act: str = "relu"
    sigma: float = 0.9


class Named(Prior):
    """A user of the network with a field that has no default."""

    architecture = ARCHITECTURE
    task: str


@pytest.mark.parametrize("text", ["no field of the file", "relu", "gelu"])
def test_a_set_shape_that_the_file_lacks_must_be_the_default(trained, text):
    """The file was trained before the field existed, or for a component that lacks it."""
    fields = {} if text.startswith("no") else {"act": text}
    if text != "gelu":
        assert Activated(weights=str(trained), **fields).act == "relu"
        return
    with pytest.raises(BadWeights, match="the file has no act, the spec has act='gelu'") as e:
        Activated(weights=str(trained), **fields)
    assert "\n" not in str(e.value) and "uses" in str(e.value)


def test_a_set_shape_without_a_default_must_be_in_the_file(trained, tmp_path):
    with pytest.raises(BadWeights, match="the file has no task, the spec has task='blur'"):
        Named(weights=str(trained), task="blur")
    path = write_weights(tmp_path / "named.safetensors", "Named", fields={"task": "blur"})
    assert Named(weights=str(path), task="blur").task == "blur"


def test_a_use_of_another_component_is_no_shape(tmp_path):
    uses = ("sigma", "steps")
    path = write_weights(tmp_path / "w.safetensors", f"{DIST}/diffuse", uses=uses)
    assert Activated(weights=str(path)).sigma == 0.9
    assert Activated(weights=str(path), sigma=0.9).width == 3
    with pytest.raises(BadWeights, match=r"the file has no sigma, the spec has sigma=0\.3"):
        Activated(weights=str(path), sigma=0.3)


@pytest.mark.usefixtures("kit")
def test_a_use_stays_the_default_of_its_own_component(tmp_path):
    path = write_weights(tmp_path / "w.safetensors", f"{DIST}/diffuse", uses=("sigma", "steps"))
    assert settings_of("diffuse", path, "sigma", "steps") == {"sigma": 0.3, "steps": 7}
    assert settings_of("restore", path, "width", "sigma") == {"width": 3, "sigma": 0.7}


def test_a_header_without_uses_is_written_as_before(tmp_path):
    """An older version of defend reads it."""
    without, with_uses = (
        write_weights(tmp_path / f"{len(uses)}.safetensors", "diffuse", uses=uses)
        for uses in ((), ("sigma",))
    )
    assert b"uses" not in without.read_bytes()
    assert read_header(without).uses == ()
    assert read_header(with_uses).uses == ("sigma",)


@pytest.mark.parametrize("uses", [3, "sigma", [3]], ids=repr)
def test_uses_of_another_type_are_no_header(tmp_path, uses):
    path = write_weights(tmp_path / "w.safetensors", "diffuse", uses=("sigma",))
    content = path.read_bytes()
    start, size = 8, int.from_bytes(content[:8], "little")
    header = json.loads(content[start : start + size])
    values = {**json.loads(header["__metadata__"]["defend"]), "uses": uses}
    header["__metadata__"]["defend"] = json.dumps(values)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start + size :])
    with pytest.raises(BadWeights, match="uses: expected a list of texts"):
        read_header(path)


WRONG_USES = {
    "no field": ({"sigmaa"}, "expected names of fields in uses, got sigmaa. Did you mean sigma?"),
    "a text": ("sigma", "expected a set of names of fields in uses, got 'sigma'; write uses = "),
}


@pytest.mark.parametrize(("names", "message"), WRONG_USES.values(), ids=WRONG_USES)
def test_uses_that_name_no_field_are_refused(names, message):
    with pytest.raises(BadParameter) as e:
        type("Wrong", (Prior,), {"uses": names, "sigma": 1.0, "__annotations__": {"sigma": float}})
    assert message in str(e.value)


@pytest.mark.parametrize("names", [{"width"}, ["width"], ("width",)], ids=repr)
def test_uses_may_be_any_collection_of_names(names):
    cls = type("Right", (Prior,), {"uses": names})
    assert cls.uses == frozenset({"width"})


# `weights=auto`, from a zoo.


@pytest.fixture
def ship(tmp_path, install):
    """Return ship(name=(component, row), ...): installs the components and a zoo with these files.

    row: lines of the row in zoo.toml beside those of the header.
    """

    def make(**files):
        folder = tmp_path / "site" / "prior_zoo"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        rows = []
        for name, (component, row) in files.items():
            rows.append(write_row(folder / f"{name}.safetensors", component, row))
        (folder / "zoo.toml").write_text("\n".join(rows))
        return install(register(tmp_path / "site", DIST, "prior_zoo"))

    return make


def write_row(path, component, row):
    write_weights(path, component, command=path.stem)  # so that no two files are equal
    row = {"component": component, "architecture": ARCHITECTURE, **row}
    lines = [f"{key} = {json.dumps(value)}" for key, value in row.items() if value is not None]
    return "\n".join(
        [
            f"[{path.stem}]",
            f'file = "{path.name}"\nsha256 = "{file_sha256(path)}"\nkind = "defense"',
            'dataset = "digits"\nlicence = "MIT"\ncommand = "defend train"\nseed = 0',
            'trained_on = {kind = "clean"}',
            "fields = {width = 3, levels = [1, 2, 4], sigma = 0.3, steps = 7}",
            *lines,
            "",
        ]
    )


DEFAULT = {"default": True}
OWN, OTHER = (f"{DIST}/diffuse", DEFAULT), (f"{DIST}/restore", DEFAULT)
AUTO = {  # shipped files -> spec, the name that auto finds
    "its own": ({"own": OWN, "other": OTHER}, "diffuse", "own"),
    "its own, in the other": ({"own": OWN, "other": OTHER}, "restore", "other"),
    "another's, where it has none": ({"other": OTHER}, "diffuse", "other"),
    "of a renamed package": (
        {"old": ("old-kit/diffuse", DEFAULT), "other": OTHER},
        "diffuse",
        "old",
    ),
    "its own before the old name": (
        {"old": ("old-kit/diffuse", DEFAULT), "own": OWN},
        "diffuse",
        "own",
    ),
    "whatever the use": ({"own": OWN}, "diffuse:sigma=0.01", "own"),
    "a short name in a row": ({"short": ("diffuse", DEFAULT)}, "diffuse", "short"),
}


@pytest.mark.parametrize(("files", "spec", "name"), AUTO.values(), ids=AUTO)
def test_auto_takes_its_own_files_first(ship, files, spec, name):
    ship(**files)
    assert load(spec, dataset="digits").weights == name


def test_a_short_name_without_an_architecture_is_completed(ship):
    """The row of a third-party package that leaves its package out is not lost."""
    ship(short=("diffuse", {**DEFAULT, "architecture": None}))
    result = CliRunner().invoke(main, ["list", "weights", "--json"])
    rows = [json.loads(line) for line in result.output.splitlines()]
    (row,) = [row for row in rows if row["name"] == "short"]
    assert row["for"] == "defense prior-kit/diffuse"


def test_two_defaults_of_others_are_ambiguous(ship):
    ship(one=(f"{DIST}/restore", DEFAULT), two=(f"{DIST}/restore", DEFAULT))
    with pytest.raises(BadWeights, match="prior-kit/diffuse: weights=auto is ambiguous on digits"):
        load("diffuse", dataset="digits")


@pytest.mark.parametrize(
    ("component", "shown"), [("diffuse", True), ("restore", True), ("alone", False)]
)
def test_show_names_the_weights_that_a_component_can_load(ship, component, shown):
    ship(own=OWN)
    result = CliRunner().invoke(main, ["show", component, "--json"])
    facts = json.loads(result.output)
    assert ("own" in facts["weights"]) is shown
    if component == "restore":
        assert "of prior-kit/diffuse" in facts["weights"]["own"]


def test_show_names_architecture_and_uses(ship):
    ship(own=OWN)
    runner = CliRunner()
    facts = json.loads(runner.invoke(main, ["show", "diffuse", "--json"]).output)
    assert (facts["architecture"], facts["uses"]) == (ARCHITECTURE, ["sigma", "steps"])
    text = runner.invoke(main, ["show", "diffuse"]).output
    assert "sigma, steps" in text and ARCHITECTURE in text
    assert "architecture" not in json.loads(runner.invoke(main, ["show", "jpeg", "--json"]).output)


def test_list_names_an_architecture_where_it_is_shared(ship):
    ship(own=OWN)
    result = CliRunner().invoke(main, ["list", "weights", "--json"])
    rows = {row["name"]: row for row in map(json.loads, result.output.splitlines())}
    assert rows["own"]["architecture"] == ARCHITECTURE
    assert rows["convnet-digits"]["architecture"] == ""


SURROGATES = {  # the spec of the attacked defense -> that of the default surrogate
    "diffuse": "diffuse:sigma=0.3,steps=7,weights=anew",
    "diffuse:sigma=0.1": "diffuse:sigma=0.1,steps=7,weights=anew",
    "diffuse:sigma=0.1,width=3": "diffuse:sigma=0.1,steps=7,weights=anew",
    "restore:sigma=0.2": "restore:sigma=0.2,weights=anew",
}


@pytest.mark.parametrize("spec", SURROGATES)
def test_a_surrogate_is_used_as_the_defense_is(ship, spec):
    """A sweep of sigma would else be attacked from a purifier of the trained sigma."""
    ship(own=OWN, anew=(f"{DIST}/diffuse", {"surrogate": True}))
    surrogates = default_surrogate(Components("digits", None, CPU), "convnet", spec)
    assert surrogates == Surrogates((f"{SURROGATES[spec]}+convnet",), "")


@pytest.mark.parametrize("spec", ["diffuse:sigma=0.1", "median", "median+diffuse:sigma=0.1"])
def test_a_record_names_the_uses(ship, tmp_path, spec):
    ship(own=OWN)
    suite = {"dataset": "digits", "classifiers": ["convnet"], "defenses": [spec]}
    suite |= {"attacks": ["fgsm"], "eps": "0.1", "knowledge": ["oblivious"], "n": 4}
    (record,) = defend.bench(suite, out=tmp_path / "run", workers=1)
    assert record.error is None
    assert record.uses == ({"diffuse": ("sigma", "steps")} if "diffuse" in spec else {})
