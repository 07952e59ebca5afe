"""Outcomes of a small bench, image by image and draw by draw, kept in golden.json.

    python tests/golden.py    # writes golden.json anew; only for a change that is meant

The first version was written by the code of commit 3369b0e, before the rooms were moved.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

import defend
from defend.unit_files import read_unit

FILE = Path(__file__).parent / "golden.json"
SUITE = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "defenses": ["none", "median", "gaussian:sigma=0.1"],
    "attacks": ["fgsm", "pgd:steps=5", "apgd:steps=5", "square:queries=40"],
    "eps": "0.1,0.2",
    "n": 24,
    "shard": 16,
    "eot": 2,
    "draws": 4,
}
OUTCOMES = ("score", "clean_score", "select", "clean_select")


def compute():
    """Return cell -> outcome -> one hexadecimal text for all images and draws."""
    with tempfile.TemporaryDirectory() as folder:
        records = defend.bench(SUITE, out=folder, workers=1, device="cpu")
        return {name_cell(r): encode(Path(folder), r.units) for r in records}


def name_cell(record):
    parts = (record.defense, record.attack, record.knowledge, record.gradient, record.eps_text)
    return " ".join(map(str, parts))


def encode(folder, keys):
    tensors = [read_unit(folder, key).tensors for key in keys]
    encoded = {}
    for outcome in OUTCOMES:
        if outcome in tensors[0]:
            bits = np.concatenate([t[outcome].numpy().ravel() for t in tensors])
            encoded[outcome] = f"{len(bits)}:{np.packbits(bits).tobytes().hex()}"
    return encoded


def decode(text):
    """Return the outcomes that one text of golden.json holds."""
    count, digits = text.split(":")
    packed = np.frombuffer(bytes.fromhex(digits), np.uint8)
    return np.unpackbits(packed)[: int(count)]


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
