"""The user's own images: any folder in torchvision's ImageFolder layout."""

from __future__ import annotations

from pathlib import Path

from defend.dataset import DatasetCard, data_root
from defend.datasets.folders import FolderDataset
from defend.errors import MissingData
from defend.registry import REGISTRY


class ImageFolder(FolderDataset):
    """Provide the images of image-folder:path=P.

    The layout is P/{train,val,test}/CLASS/*, or P/CLASS/* split 70 : 10 : 20 by the hash of the
    relative path.
    """

    card = DatasetCard(source="none: the user's own images", licence="that of the images", claim={})
    path: str  # a folder, or a folder inside the data root

    @property
    def folder(self) -> Path:
        """Return the folder of the images. Raises MissingData if it does not exist."""
        path = Path(self.path).expanduser()
        # Joined to an absolute path, the data root disappears.
        candidates = [path, data_root(self.root) / path]
        for candidate in candidates:
            if candidate.is_dir():
                return candidate
        name = REGISTRY.component("dataset", type(self))
        places = " or ".join(dict.fromkeys(str(c.absolute()) for c in candidates))
        raise MissingData(
            f"{name}:path={self.path}: there is no folder {places}; write"
            f" {name}:path=FOLDER with FOLDER/CLASS/*.png in it"
        )
