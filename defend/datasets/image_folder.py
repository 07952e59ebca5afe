"""The user's own images: any folder in torchvision's ImageFolder layout."""

from __future__ import annotations

from defend.dataset import DatasetCard
from defend.datasets.folders import PathFolder


class ImageFolder(PathFolder):
    """Provide the images of image-folder:path=P.

    The layout is P/{train,val,test}/CLASS/*, or P/CLASS/* split 70 : 10 : 20 by the hash of the
    relative path. Photographs without labels lie in P/{train,val,test}/* or P/*.
    """

    card = DatasetCard(source="none: the user's own images", licence="that of the images", claim={})
    expected = "FOLDER/CLASS/*.png in it, or FOLDER/*.png for images without labels"
