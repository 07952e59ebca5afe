"""Faces: Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild" (LFW).

It is report 07-49 of the University of Massachusetts, 2007.
"""

from __future__ import annotations

from pathlib import Path

from defend.dataset import DatasetCard, data_root
from defend.datasets.folders import FolderDataset
from defend.errors import MissingData


class Faces(FolderDataset):
    """Provide the 158 people of LFW with ten or more pictures, aligned, RGB; the label is the
    person.

    Every person is in all three splits.
    """

    card = DatasetCard(
        source="https://vis-www.cs.umass.edu/lfw/",
        licence="research on face recognition; the photographs belong to their owners",
        claim={"Linf": 4 / 255},
    )
    size: int = 112  # height and width in pixels; smaller ones are averaged down by area

    @property
    def checksum(self) -> str:
        """Return the checksum of the first 64 test images and labels at their size on disk."""
        return "8011edd34cc6658e" if (self.size, self.channels) == (112, 3) else ""

    @property
    def folder(self) -> Path:
        """Return the folder of the images. Raises MissingData if it does not exist."""
        folder = data_root(self.root) / "lfw158"
        if not folder.is_dir():
            raise MissingData(
                f"faces: there is no folder {folder}; put aligned 112x112 faces of LFW into"
                f" {folder}/{{train,val,test}}/NAME/*.png, or give the folder that contains lfw158"
                " by --data-root or DEFEND_DATA"
            )
        return folder
