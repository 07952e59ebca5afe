"""Your own images: any folder in torchvision's ImageFolder layout."""

from __future__ import annotations

from pathlib import Path

from defend.dataset import DatasetCard, data_root
from defend.datasets.folders import FolderDataset
from defend.errors import MissingData


class ImageFolder(FolderDataset):
    """image-folder:path=P: P/{train,val,test}/CLASS/*, or P/CLASS/* cut 70 : 10 : 20 by the hash of the relative path."""

    card = DatasetCard(source="none: the user's own images", licence="that of the images", claim={})
    path: str  # as it stands, or inside the data root

    @property
    def folder(self) -> Path:
        given = Path(self.path).expanduser()
        places = [
            given,
            data_root(self.root) / given,
        ]  # joined to an absolute path, the root falls away
        found = next((p for p in places if p.is_dir()), None)
        if found is None:
            where = " or ".join(dict.fromkeys(str(p.absolute()) for p in places))
            raise MissingData(
                f"image-folder:path={self.path}: there is no folder {where}. Write image-folder:path=FOLDER with FOLDER/CLASS/*.png in it"
            )
        return found
