"""Faces: Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", University of Massachusetts report 07-49, 2007."""

from __future__ import annotations

from pathlib import Path

from defend.dataset import DatasetCard, data_root
from defend.datasets.folders import FolderDataset
from defend.errors import MissingData


class Faces(FolderDataset):
    """The 158 people of LFW with ten or more pictures, aligned, RGB: who of them is it? Every person is in all three splits."""

    card = DatasetCard(
        source="https://vis-www.cs.umass.edu/lfw/",
        licence="research on face recognition; the photographs belong to their owners",
        claim={"Linf": 4 / 255},
    )
    size: int = 112  # height and width, in pixels; smaller ones are averaged down by area

    @property
    def checksum(self) -> str:
        """Of the first 64 test images and labels, as they lie on disk."""
        return "8011edd34cc6658e" if (self.size, self.channels) == (112, 3) else ""

    @property
    def folder(self) -> Path:
        folder = data_root(self.root) / "lfw158"
        if not folder.is_dir():
            raise MissingData(
                f"faces: there is no folder {folder}. Put aligned 112x112 faces of LFW into {folder}/{{train,val,test}}/NAME/*.png, "
                "or say where they are with --data-root or DEFEND_DATA"
            )
        return folder
