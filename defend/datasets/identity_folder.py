"""A folder of people, by the protocol that takes the same number of pictures of each.

The protocol is that of the two-stage defense by diffusion on CASIA-WebFace: 1,000 people with 44 or
more pictures, 40 of each for training and 4 for the test.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from defend.dataset import SPLITS, DatasetCard, Split
from defend.datasets.folders import LabelledFile, PathFolder, list_classes, list_images
from defend.datasets.hash_order import hash_position
from defend.errors import MissingData


class IdentityFolder(PathFolder):
    """Provide the same number of pictures of each person, from P/NAME/*.

    People with fewer than `per_identity` pictures are left out. Of each other one, the first
    `per_identity` by the hash of their names are read: the first `test` of them are the test split,
    the rest is for training. The split `val` is not part of the protocol: it has up to `val`
    further pictures of each person, so that nothing is taken from training.
    """

    card = DatasetCard(source="none: the user's own images", licence="that of the images", claim={})
    splits = SPLITS  # whatever the people are called
    size: int = 160
    people: int = 1000  # the first ones by the hash of their names; 0: all that have enough
    per_identity: int = 44  # pictures of each person, for training and test
    test: int = 4  # of these, for the test
    val: int = 4  # at most this many pictures of each person beyond `per_identity`

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        super().validate()
        self.require(self.people == 0 or self.people >= 2, "people", ">= 2, or 0 for all")
        self.require(self.test >= 1, "test", ">= 1")
        self.require(self.per_identity > self.test, "per_identity", f"more than test={self.test}")
        self.require(self.val >= 0, "val", ">= 0")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the sorted names of the people that are read.

        Raise MissingData if too few have enough pictures.
        """
        enough = [name for name, files in self._pictures.items() if len(files) >= self.per_identity]
        if len(enough) < max(self.people, 2):
            wanted = self.people or "two or more"
            raise MissingData(
                f"identity-folder: expected {wanted} people with {self.per_identity} or more"
                f" pictures in {self.folder}/NAME, got {len(enough)}; give fewer people= or"
                " per_identity="
            )
        enough.sort(key=lambda name: hash_position(name.encode()))
        return tuple(sorted(enough[: self.people or None]))

    @cached_property
    def _pictures(self) -> dict[str, list[Path]]:
        """Return the pictures of each person, in the order of their hashes."""
        all_names = tuple(sorted(list_classes(self.folder)))
        pictures: dict[str, list[Path]] = {name: [] for name in all_names}
        labels = {name: label for label, name in enumerate(all_names)}
        for file, label in list_images(self.folder, labels, 0.0, 1.0):
            pictures[all_names[label]].append(file)
        return pictures

    def _list_files(self, split: Split) -> list[LabelledFile]:
        first, stop = {
            "test": (0, self.test),
            "train": (self.test, self.per_identity),
            "val": (self.per_identity, self.per_identity + self.val),
        }[split]
        placed = []
        for label, name in enumerate(self.names):
            for file in self._pictures[name][first:stop]:
                position = hash_position(file.relative_to(self.folder).as_posix().encode())
                placed.append((position, file, label))
        return [(file, label) for _, file, label in sorted(placed)]
