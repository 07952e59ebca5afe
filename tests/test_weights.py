"""Named weights: found without imports, verified, and refused if they belong to another
component.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from defend.errors import BadWeights, DefendError, UnknownName
from defend.trained_on import TrainedOn
from defend.weights.header import Header, file_sha256, load_tensors, read_header, save_weights
from defend.weights.zoo import Wanted, find_weights, read_zoos

NET = {"scale": torch.tensor([2.0]), "codes": torch.linspace(0, 1, 7, dtype=torch.float16)}
HEADER = Header(
    kind="defense",
    component="vq",
    architecture="vq",
    dataset="mnist",
    fields={"codes": 300, "grid": 2},
    trained_on=TrainedOn(kind="clean"),
    command="defend train vq",
    seed=0,
    commit="abc",
)


def saved(path, **changes):
    save_weights(path, NET, replace(HEADER, **changes))
    return path


def toml(path, **row):
    """Return the table of a zoo.toml for a file beside it. row: values that replace the
    right ones.
    """
    header = read_header(path)
    table = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "MIT",
        "fields": dict(header.fields),
        **row,
    }
    for name in ("kind", "component", "dataset", "command", "seed"):
        table[name] = getattr(header, name)
    table["trained_on"] = str(header.trained_on)
    fields = table.pop("fields")
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    lines += [f"fields.{key} = {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join([f"[{path.stem}]", *lines, ""])


@pytest.fixture
def zoo(tmp_path, install):
    """Return zoo(name=(changes of the header, changes of the row), ...).

    It installs a package with these weights that raises if it is imported.
    """

    def make(package="foreign_zoo", **files):
        folder, info = tmp_path / package, tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        info.mkdir()
        code = "raise ImportError('a zoo is found without importing its package')"
        (folder / "__init__.py").write_text(code)
        tables = []
        for name, (changes, row) in files.items():
            tables.append(toml(saved(folder / f"{name}.safetensors", **changes), **row))
        (folder / "zoo.toml").write_text("".join(tables))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[defend.weights]\nzoo = {package}\n")
        install(tmp_path)
        return folder

    return make


def find(name="auto", dataset="mnist", **fields):
    wanted = Wanted(
        kind="defense", component="vq", architecture="vq", dataset=dataset, fields=fields
    )
    return find_weights(name, wanted)


DEFAULT = {"default": True}


def test_save_then_load(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    tensors = load_tensors(path)
    assert read_header(path) == HEADER
    assert tensors["codes"].dtype == torch.float32
    assert all(torch.equal(tensors[name], values.float()) for name, values in NET.items())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_header_is_read_without_torch(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    lines = [
        "import sys, pathlib, defend.weights.zoo",
        "from defend.weights.header import read_header",
        "print(read_header(pathlib.Path(sys.argv[1])).component)",
        "print({'torch', 'numpy'} & set(sys.modules))",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vq", "set()"]


def test_a_foreign_zoo_is_found_without_importing_it(zoo):
    folder = zoo(quad=({}, DEFAULT))
    entry = read_zoos()["quad"]
    assert (entry.source, entry.file, entry.default, entry.fields) == (
        "foreign_zoo",
        folder / "quad.safetensors",
        True,
        {"codes": 300, "grid": 2},
    )
    assert find().name == find("quad").name == "quad"
    assert find("quad").sha256 == entry.sha256
    assert "foreign_zoo" not in sys.modules


def test_auto_prefers_a_file_that_knows_the_field(zoo):
    """An older default does not say how its network was shaped."""
    zoo(old=({}, DEFAULT), newer=({"fields": {"codes": 300, "grid": 2, "act": "gelu"}}, DEFAULT))
    assert find(act="gelu").name == "newer"
    with pytest.raises(BadWeights, match="the file has no act, the spec has act='gelu'"):
        find("old", act="gelu")


def test_auto_takes_the_default_of_component_data_set_and_fields(zoo):
    zoo(
        quad=({}, DEFAULT),
        quad_big=({"fields": {"codes": 900, "grid": 2}}, {}),
        full=({"fields": {"codes": 900, "grid": 1}}, DEFAULT),
        fashion=({"dataset": "fashion-mnist"}, DEFAULT),
        other=({"component": "vae"}, DEFAULT),
    )
    assert find(grid=1).name == "full"
    assert find(grid=2).name == find(codes=300).name == "quad"
    assert find(dataset="fashion-mnist").name == "fashion"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "vq: weights=auto is ambiguous on mnist: quad, full. Write weights=NAME."),
        (
            {"codes": 5},
            "vq: weights=auto finds nothing trained on mnist, codes=5; "
            "available weights on mnist: quad, full, big. "
            "Train some with `defend train defense vq:codes=5 --dataset mnist`",
        ),
        (
            {"codes": 9},
            "finds nothing trained on mnist, codes=9 that is a default. "
            "Write weights=NAME, one of: big.",
        ),
        (
            {"dataset": "svhn"},
            "vq: weights=auto finds nothing trained on svhn; available weights on svhn: none. "
            "Train some with `defend train defense vq --dataset svhn`",
        ),
        ({"dataset": None}, "weights=auto is ambiguous: quad, full"),
    ],
    ids=["two", "no such field", "no default", "no such data set", "no data set"],
)
def test_auto_that_finds_none_or_several_lists_them(zoo, query, message):
    zoo(
        quad=({}, DEFAULT),
        full=({"fields": {"codes": 900, "grid": 1}}, DEFAULT),
        big=({"fields": {"codes": 9, "grid": 1}}, {}),
        retrained=({"fields": {"codes": 9, "grid": 1}}, {"surrogate": True}),
    )
    with pytest.raises(BadWeights) as e:
        find(**query)
    assert message in str(e.value)


def test_an_unknown_name_suggests(zoo):
    zoo(quad=({}, DEFAULT))
    message = (
        r"vq: no weights named 'quat', nor a file of that path\. "
        r"Did you mean quad\? Weights of vq: quad\."
    )
    with pytest.raises(UnknownName, match=message):
        find("quat")


def test_a_path_needs_no_zoo(tmp_path):
    path = saved(tmp_path / "mine.safetensors")
    assert find(str(path)).name == str(path)
    assert find(str(path), codes=300).header.fields["grid"] == 2


def test_a_contradicting_field_is_an_error(tmp_path):
    path = saved(tmp_path / "mine.safetensors")
    message = (
        r"contradict the spec: the file has codes=300, the spec has codes=500\. Leave the field"
    )
    with pytest.raises(BadWeights, match=message):
        find(str(path), codes=500, grid=2)


@pytest.mark.parametrize("changes", [{"architecture": "vae"}, {"kind": "classifier"}], ids=str)
def test_weights_of_another_architecture_are_refused(tmp_path, changes):
    path = saved(tmp_path / "mine.safetensors", **changes)
    message = (
        r"expected weights of the defense 'vq', got weights of the (defense 'vae'|classifier 'vq')"
    )
    with pytest.raises(BadWeights, match=message):
        find(str(path))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


WRONG_HASH = "the file is damaged or was replaced"
DAMAGE = {  # kind of damage -> function that does it, message
    "a bit flipped": (flip_a_bit, WRONG_HASH),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-4]), WRONG_HASH),
    "empty": (lambda p: p.write_bytes(b""), WRONG_HASH),
    "gone": (lambda p: p.unlink(), "cannot be read (No such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_zoo_is_refused(zoo, damage):
    path = zoo(quad=({}, DEFAULT)) / "quad.safetensors"
    apply_damage, message = DAMAGE[damage]
    apply_damage(path)
    with pytest.raises(BadWeights) as e:
        find("quad")
    assert message in str(e.value) and str(path) in str(e.value)


FOREIGN = {
    "empty": b"",
    "text": b"not weights",
    "a pickle": b"\x80\x04K\x01.",
    "a header that never ends": b"\xff" * 64,
    "no metadata": (2).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
    "no object": (2).to_bytes(8, "little") + b"[]",
    "another's metadata": (35).to_bytes(8, "little") + b'{"__metadata__": {"format": "pt"}}  ',
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(FOREIGN[content])
    with pytest.raises(BadWeights, match="not a weights file of defend"):
        find(str(path))


def test_a_file_that_cannot_be_read_is_not_called_a_foreign_one(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(BadWeights) as e:
            read_header(path)
        assert f"{path}: cannot be read (" in str(e.value)


def saved_header(path, **changes):
    """Write a file whose header has these values; None leaves a field out."""
    values = {**vars(HEADER), "trained_on": HEADER.trained_on.to_json(), **changes}
    written = json.dumps({name: value for name, value in values.items() if value is not None})
    header = json.dumps({"__metadata__": {"defend": written}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


WRONG_FIELDS = {  # changes of the header -> words of the message
    "newer": ({"epochs": 3}, ["epochs", "update defend"]),
    "a field short": ({"commit": None}, ["not a weights file", "commit"]),
    "text for a number": ({"seed": "0"}, ["not a weights file", "seed: expected int, got str"]),
    "a list for a text": ({"dataset": []}, ["dataset: expected str, got list"]),
    "text for a table": ({"fields": "codes"}, ["fields: expected dict, got str"]),
}


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_a_header_with_other_fields_is_refused(tmp_path, case):
    changes, words = WRONG_FIELDS[case]
    path = saved_header(tmp_path / "x.safetensors", **changes)
    with pytest.raises(BadWeights) as e:
        read_header(path)
    assert all(word in str(e.value) for word in [str(path), *words])


def test_a_file_cut_short_is_refused_when_it_is_loaded(tmp_path):
    path = saved(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadWeights, match="damaged"):
        load_tensors(find(str(path)).path)


@pytest.mark.parametrize(
    "text",
    ["[quad]\nfile = 3", "[quad]\nfoo = 1", "quad = 1", "[quad", "\xff"],
    ids=["a row short", "a field", "no table", "no TOML", "no text"],
)
def test_one_broken_zoo_costs_its_own_weights_alone(zoo, text):
    zoo(quad=({}, DEFAULT))
    broken = zoo("zoo_that_is_broken")
    (broken / "zoo.toml").write_bytes(text.encode("latin-1"))
    message = (
        r"zoo_that_is_broken.zoo\.toml: not a list of weights "
        r".*the weights of zoo_that_is_broken are left out"
    )
    with pytest.warns(UserWarning, match=message):
        entries = read_zoos()
    assert entries["quad"].source == "foreign_zoo"


def test_the_zoo_that_ships_is_complete():
    """Check hash, size and header of every file of the package's own zoo against its row."""
    for entry in read_zoos().values():
        assert file_sha256(entry.file, entry.sha256)
        header = read_header(entry.file)
        for name in ("kind", "component", "dataset", "trained_on", "seed"):
            assert getattr(entry, name) == getattr(header, name)
        assert {name: header.fields[name] for name in entry.fields} == dict(entry.fields)
        assert entry.file.stat().st_size == entry.size
        assert entry.licence and entry.command and entry.measured
    assert sum(e.file.stat().st_size for e in read_zoos().values()) < 80e6


def test_errors_are_one_line():
    with pytest.raises(DefendError) as e:
        find("no-such-file")
    assert "\n" not in str(e.value)
