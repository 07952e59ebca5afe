"""Which label the folder of a class has, where a classifier has given its classes numbers already.

The numbers of ImageNet's 1,000 classes are the order of their WordNet ids: Russakovsky et al.,
arXiv:1409.0575.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.models import ResNet18_Weights

from defend.errors import BadParameter, one_line

IMAGENET = "imagenet"
IDS_FILE = "imagenet_ids.txt"  # beside this module: the WordNet ids in the order of the labels
ID2LABEL = "id2label"  # of a configuration of transformers
SEVERAL = -1  # the label of a name that two classes share
_WANTED = (
    'expected a list of names in the order of the labels, {"name": label}, {"label": "name"}, or'
    " a CSV file with the columns name and label"
)


@dataclass(frozen=True)
class ClassLabels:
    """The classes of a classifier."""

    names: tuple[str, ...]  # one for each label
    labels: Mapping[str, int]  # every name of a class, in lower case -> its label, or SEVERAL

    def find(self, folder: str) -> int | None:
        """Return the label of a folder's name, SEVERAL if it is ambiguous, None if unknown."""
        return self.labels.get(_plain(folder))


def read_class_labels(source: str, count: int = 0) -> ClassLabels:
    """Return the classes of "imagenet", or of a .json or .csv file.

    count: the number of classes, of which a file may name only some; 0: one more than the largest
    label. Raise BadParameter.
    """
    pairs = _imagenet() if source == IMAGENET else _read_file(Path(source).expanduser())
    labels: dict[str, int] = {}
    first_names: dict[int, str] = {}
    for name, label in pairs:
        first_names.setdefault(label, name)
        for alias in _aliases(name):
            labels[alias] = label if labels.get(alias, label) == label else SEVERAL
    largest = max(first_names, default=-1)
    if not first_names or min(first_names) < 0 or (count and largest >= count):
        raise BadParameter(
            f"labels={source}: expected labels from 0 to {count - 1 if count else 'one less than'}"
            f"{'' if count else ' the number of classes'}, got"
            f" {f'up to {largest}' if first_names else 'none'}; mend the file, or class_count="
        )
    names = tuple(first_names.get(i, str(i)) for i in range(count or largest + 1))
    return ClassLabels(names, labels)


def _plain(name: str) -> str:
    """Return a name as names are compared: in lower case, with spaces."""
    return " ".join(name.replace("_", " ").lower().split())


def _aliases(name: str) -> set[str]:
    """Return a name, and each of its synonyms, as in "tench, Tinca tinca"."""
    return {_plain(name), *(_plain(part) for part in name.split(","))}


def _imagenet() -> Iterator[tuple[str, int]]:
    """Yield the WordNet id and the name of each class."""
    ids = Path(__file__).with_name(IDS_FILE).read_text().split()
    categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    for label, (wordnet_id, name) in enumerate(zip(ids, categories, strict=True)):
        yield wordnet_id, label
        yield name, label


def _read_file(path: Path) -> list[tuple[str, int]]:
    """Return the names and labels of a file. Raise BadParameter."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="") as f:
                return _of_rows(csv.reader(f))
        return list(_of_json(json.loads(path.read_text())))
    except (OSError, ValueError, TypeError) as e:
        raise BadParameter(
            f"labels={path}: {_WANTED}, or {IMAGENET}; got {type(e).__name__}: {one_line(e)}"
        ) from None


def _of_rows(rows: Iterable[list[str]]) -> list[tuple[str, int]]:
    """Return the pairs of a table; its first row may be a header."""
    filled = [row for row in rows if row]
    if filled and not filled[0][-1].strip().isdigit():
        filled = filled[1:]
    return [(name, int(label)) for name, label in filled]


def _of_json(values: Any) -> Iterator[tuple[str, int]]:
    """Yield the pairs of a list or an object. Raise TypeError, ValueError."""
    if isinstance(values, Mapping) and ID2LABEL in values:
        values = values[ID2LABEL]
    if isinstance(values, Mapping) and values and all(str(key).isdigit() for key in values):
        values = {int(label): names for label, names in values.items()}
        yield from _of_names(values.items())
    elif isinstance(values, Mapping):
        yield from ((str(name), int(label)) for name, label in values.items())
    elif isinstance(values, list):
        yield from _of_names(enumerate(values))
    else:
        raise TypeError(f"a {type(values).__name__}")


def _of_names(items: Iterable[tuple[int, Any]]) -> Iterator[tuple[str, int]]:
    """Yield the pairs of labels with one name or several."""
    for label, names in items:
        for name in [names] if isinstance(names, str) else list(names):
            yield str(name), label
