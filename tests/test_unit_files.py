"""Unit files are complete or absent, verified when read, and named by their key."""

import pytest
import torch

from defend.benchmarks.units import split_ranges
from defend.hashing import cache_key
from defend.unit_files import read_unit, unit_path, write_unit

KEY_INPUTS = {"eps": 0.1, "range": [0, 4]}
KEY = cache_key(KEY_INPUTS)
TENSORS = {
    "score": torch.tensor([[1], [0], [1], [1]], dtype=torch.uint8),
    "sample_x": torch.rand(2, 1, 4, 4).half(),
}
HEADER = {"key_inputs": KEY_INPUTS, "costs": {"seconds": 1.5}}


def write_example(folder):
    write_unit(folder, KEY, TENSORS, HEADER)
    return unit_path(folder, KEY)


def test_what_is_written_is_read(tmp_path):
    write_example(tmp_path)
    unit = read_unit(tmp_path, KEY)
    assert all(torch.equal(unit.tensors[name], t) for name, t in TENSORS.items())
    assert unit.header == HEADER


def test_nothing_else_is_left_behind(tmp_path):
    file = write_example(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]


def test_no_file_is_no_unit(tmp_path):
    assert read_unit(tmp_path, KEY) is None


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "empty": lambda _: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "last byte gone": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "a bit of the tensors": lambda data: flip(data, len(data) - 1),
    "a bit of the size": lambda data: flip(data, 0),
    "a digit of the costs": lambda data: data.replace(b"1.5", b"1.6"),
    "outcomes of another header": lambda data: data.replace(b"0.1", b"0.2"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found(tmp_path, what):
    file = write_example(tmp_path)
    before = file.read_bytes()
    file.write_bytes(DAMAGE[what](before))
    assert file.read_bytes() != before
    assert read_unit(tmp_path, KEY) is None


def test_every_flipped_bit_of_a_file_is_found_or_harmless(tmp_path):
    file = write_example(tmp_path)
    data = file.read_bytes()
    for at in range(0, len(data), 7):
        file.write_bytes(flip(data, at))
        unit = read_unit(tmp_path, KEY)
        assert unit is None or (
            unit.header == HEADER
            and all(torch.equal(unit.tensors[n], t) for n, t in TENSORS.items())
        )


def test_a_unit_under_another_name_is_no_unit(tmp_path):
    other = cache_key({"eps": 0.2})
    write_unit(tmp_path, other, TENSORS, HEADER)
    assert read_unit(tmp_path, other) is None


def test_ranges_cover_n_once():
    assert split_ranges(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert split_ranges(4, 4) == [(0, 4)]


def test_keys_do_not_depend_on_the_order_of_the_fields():
    assert (
        cache_key({"a": 1, "b": 2.0})
        == cache_key({"b": 2.0, "a": 1})
        != cache_key({"a": 1, "b": 2.5})
    )
