"""The user's own images: any folder in torchvision's ImageFolder layout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from torchvision.transforms.functional import center_crop, resize

from defend.dataset import DatasetCard
from defend.datasets.class_labels import SEVERAL, ClassLabels, read_class_labels
from defend.datasets.folders import FolderDataset, PathFolder
from defend.datasets.pixels import read_image, read_pixels
from defend.errors import MissingData


class ImageFolder(PathFolder):
    """Provide the images of image-folder:path=P.

    The layout is P/{train,val,test}/CLASS/*, or P/CLASS/* split 70 : 10 : 20 by the hash of the
    relative path. Photographs without labels lie in P/{train,val,test}/* or P/*. `labels` says
    which folder is which class of a classifier, of whose classes the folder may have only some.
    """

    card = DatasetCard(source="none: the user's own images", licence="that of the images", claim={})
    expected = "FOLDER/CLASS/*.png in it, or FOLDER/*.png for images without labels"
    labels: str = ""  # imagenet, or a .json or .csv file; without it the sorted folders count
    class_count: int = 0  # of which `labels` may name only some; 0: as many as it names
    # As evaluations on ImageNet have it: the shorter side becomes `resize` pixels, bilinearly, and
    # the central square of `crop` pixels is cut out. 0: the largest central square is scaled.
    resize: int = 0
    crop: int = 0  # 0: size

    def validate(self) -> None:
        """Raise BadParameter if a field is outside its range."""
        default_size = FolderDataset.size
        fits = self.crop in (0, self.size) or self.size == default_size
        self.require(fits, "crop", f"size={self.size}, which is that of the images")
        self.size = self.crop or self.size
        super().validate()
        smallest = self.size if self.resize or self.crop else 0
        self.require(
            self.resize >= smallest, "resize", f"at least {smallest}, the side of the crop"
        )
        has_labels = bool(self.labels) or not self.class_count
        self.require(has_labels, "class_count", "0 without labels=")

    @cached_property
    def _classes(self) -> ClassLabels:
        """Return the classes that `labels` names."""
        return read_class_labels(self.labels, self.class_count)

    @property
    def least_classes(self) -> int:
        """Return how many folders of classes there must be."""
        return 1 if self.labels else super().least_classes

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the classes in the order of their labels, none of images without labels."""
        if not self.labels or not self.class_folders:
            return self.class_folders
        return self._classes.names

    @cached_property
    def folder_labels(self) -> Mapping[str, int]:
        """Return the label of each folder. Raise MissingData for one that is no class."""
        if not self.labels:
            return super().folder_labels
        labels = {}
        for folder in self.class_folders:
            label = self._classes.find(folder)
            if label is None or label == SEVERAL:
                reason = "is no class" if label is None else "is the name of several classes"
                raise MissingData(
                    f"{self.folder}: the folder {folder} {reason} of labels={self.labels}; rename"
                    " it (for imagenet to its WordNet id, as n01440764), or give labels=FILE.json"
                )
            labels[folder] = label
        return labels

    def read(self, file: Path) -> np.ndarray:
        """Return uint8 (c, size, size) of one image. Raise MissingData if the file is no image."""
        if not self.resize:
            return read_pixels(file, self.size, self.channels)
        image = resize(read_image(file, self.channels), [self.resize])
        pixels = np.asarray(center_crop(image, [self.size]))
        return pixels.reshape(self.size, self.size, self.channels).transpose(2, 0, 1)
