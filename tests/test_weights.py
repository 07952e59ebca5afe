"""Named weights: found without importing anyone, verified, and refused where they do not belong."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from defend.errors import BadWeights, DefendError, UnknownName
from defend.weights.header import Header, file_sha256, load_tensors, read_header, save_weights
from defend.weights.zoo import find_weights, read_zoos

NET = {"scale": torch.tensor([2.0]), "codes": torch.linspace(0, 1, 7, dtype=torch.float16)}
HEAD = Header(
    kind="defense",
    component="vq",
    dataset="mnist",
    fields={"codes": 300, "grid": 2},
    trained_on="clean",
    command="defend train vq",
    seed=0,
    commit="abc",
)


def saved(path, **changes):
    save_weights(path, NET, replace(HEAD, **changes))
    return path


def toml(path, **row):
    """A zoo.toml's table for a file beside it."""
    head = read_header(path)
    row = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "MIT",
        "fields": dict(head.fields),
    } | row
    row |= {
        k: getattr(head, k)
        for k in ("kind", "component", "dataset", "trained_on", "command", "seed")
    }
    lines = [f"{k} = {json.dumps(v)}" for k, v in row.items() if k != "fields"] + [
        f"fields.{k} = {json.dumps(v)}" for k, v in row["fields"].items()
    ]
    return "\n".join([f"[{path.stem}]", *lines, ""])


@pytest.fixture
def zoo(tmp_path, install):
    """zoo(name=(changes of the header, of the row), ...): an installed package that may not be imported, with these weights."""

    def make(package="zoo_of_a_stranger", **files):
        folder, info = tmp_path / package, tmp_path / f"{package}-1.0.dist-info"
        for f in (folder, info):
            f.mkdir()
        (folder / "__init__.py").write_text(
            "raise ImportError('a zoo is found without importing its package')"
        )
        text = "".join(
            toml(saved(folder / f"{name}.safetensors", **head), **row)
            for name, (head, row) in files.items()
        )
        (folder / "zoo.toml").write_text(text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[defend.weights]\nzoo = {package}\n")
        install(tmp_path)
        return folder

    return make


def find(name="auto", dataset="mnist", **given):
    return find_weights("defense", "vq", name, dataset, given)


DEFAULT = {"default": True}


def test_save_then_load(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    got = load_tensors(path)
    assert read_header(path) == HEAD
    assert got["codes"].dtype == torch.float32 and all(
        torch.equal(got[k], v.float()) for k, v in NET.items()
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_header_is_read_without_torch(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    code = "import sys, pathlib; from defend import weights; print(read_header(pathlib.Path(sys.argv[1])).component, {'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["vq", "set()"]


def test_a_strangers_zoo_is_found_without_importing_it(zoo):
    folder = zoo(quad=({}, DEFAULT))
    entry = read_zoos()["quad"]
    assert (entry.source, entry.file, entry.default, entry.fields) == (
        "zoo_of_a_stranger",
        folder / "quad.safetensors",
        True,
        {"codes": 300, "grid": 2},
    )
    assert find().name == find("quad").name == "quad"
    assert find("quad").sha256 == entry.sha256
    assert "zoo_of_a_stranger" not in sys.modules


def test_auto_takes_the_default_of_component_data_set_and_fields(zoo):
    zoo(
        quad=({}, DEFAULT),
        quad_big=({"fields": {"codes": 900, "grid": 2}}, {}),
        whole=({"fields": {"codes": 900, "grid": 1}}, DEFAULT),
        fashion=({"dataset": "fashion-mnist"}, DEFAULT),
        other=({"component": "vae"}, DEFAULT),
    )
    assert find(grid=1).name == "whole"
    assert find(grid=2).name == find(codes=300).name == "quad"
    assert find(dataset="fashion-mnist").name == "fashion"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "vq: weights=auto is ambiguous on mnist: quad, whole. Write weights=NAME."),
        (
            {"codes": 5},
            "vq: weights=auto finds nothing trained on mnist, codes=5; weights there are on mnist: quad, whole, big. "
            "Train some with `defend train defense vq:codes=5 --dataset mnist`",
        ),
        (
            {"codes": 9},
            "finds nothing trained on mnist, codes=9 that is a default. Write weights=NAME, one of: big.",
        ),
        (
            {"dataset": "svhn"},
            "vq: weights=auto finds nothing trained on svhn; weights there are on svhn: none. Train some with `defend train defense vq --dataset svhn`",
        ),
        ({"dataset": None}, "weights=auto is ambiguous: quad, whole"),
    ],
    ids=["two", "no such field", "no default", "no such data set", "no data set"],
)
def test_auto_that_finds_none_or_several_lists_them(zoo, given, message):
    zoo(
        quad=({}, DEFAULT),
        whole=({"fields": {"codes": 900, "grid": 1}}, DEFAULT),
        big=({"fields": {"codes": 9, "grid": 1}}, {}),
        again=({"fields": {"codes": 9, "grid": 1}}, {"surrogate": True}),
    )
    with pytest.raises(BadWeights) as e:
        find(**given)
    assert message in str(e.value)


def test_an_unknown_name_suggests(zoo):
    zoo(quad=({}, DEFAULT))
    with pytest.raises(
        UnknownName,
        match=r"vq: no weights named 'quat', nor a file of that path\. Did you mean quad\? There are: quad\.",
    ):
        find("quat")


def test_a_path_needs_no_zoo(tmp_path):
    path = saved(tmp_path / "mine.safetensors")
    assert find(str(path)).name == str(path)
    assert find(str(path), codes=300).header.fields["grid"] == 2


def test_a_contradicting_field_is_an_error(tmp_path):
    path = saved(tmp_path / "mine.safetensors")
    with pytest.raises(
        BadWeights,
        match=r"contradict the spec: codes=300 in the file, 500 given\. Leave the field out",
    ):
        find(str(path), codes=500, grid=2)


@pytest.mark.parametrize("changes", [{"component": "vae"}, {"kind": "classifier"}], ids=str)
def test_anothers_weights_are_refused(tmp_path, changes):
    path = saved(tmp_path / "mine.safetensors", **changes)
    with pytest.raises(
        BadWeights,
        match=r"holds weights of the (defense 'vae'|classifier 'vq'), wanted the defense 'vq'",
    ):
        find(str(path))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {  # what happened to the file -> the message
    "a bit flipped": (flip, "its zoo.toml says"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-4]), "its zoo.toml says"),
    "empty": (lambda p: p.write_bytes(b""), "its zoo.toml says"),
    "gone": (lambda p: p.unlink(), "cannot be read: No such file"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_of_a_zoo_is_refused(zoo, what):
    path = zoo(quad=({}, DEFAULT)) / "quad.safetensors"
    damage, message = DAMAGE[what]
    damage(path)
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


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_weights_file_is_refused(tmp_path, what):
    path = tmp_path / "x.safetensors"
    path.write_bytes(FOREIGN[what])
    with pytest.raises(BadWeights, match="not a weights file of defend"):
        find(str(path))


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
    with pytest.warns(
        UserWarning,
        match=r"zoo_that_is_broken.zoo\.toml: no list of weights .*the weights of zoo_that_is_broken are left out",
    ):
        found = read_zoos()
    assert found["quad"].source == "zoo_of_a_stranger"


def test_what_ships_is_whole():
    """Every file of the package's own zoo: its hash, its size, and its header against the row of zoo.toml."""
    for entry in read_zoos().values():
        assert file_sha256(entry.file, entry.sha256)
        head = read_header(entry.file)
        assert [
            getattr(entry, k) for k in ("kind", "component", "dataset", "trained_on", "seed")
        ] == [getattr(head, k) for k in ("kind", "component", "dataset", "trained_on", "seed")]
        assert {k: head.fields[k] for k in entry.fields} == dict(entry.fields)
        assert entry.file.stat().st_size == entry.size
        assert entry.licence and entry.command and entry.measured
    assert sum(e.file.stat().st_size for e in read_zoos().values()) < 40e6


def test_errors_are_one_line():
    with pytest.raises(DefendError) as e:
        find("no-such-file")
    assert "\n" not in str(e.value)
