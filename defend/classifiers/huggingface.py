"""Any image classifier of transformers, with the normalisation of its preprocessor inside.

A spec is `huggingface:path=./folder` or `huggingface:path=OWNER/NAME`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from defend.classifier import ClassifierCard
from defend.classifiers.foreign_network import Description, ForeignNetwork, read_json, to_tuple
from defend.errors import BadWeights
from defend.weights.header import file_sha256
from defend.weights.third_party import find_in_cache, import_extra, load_pretrained

EXTRA = "defend-purifiers[huggingface]"
PREPROCESSOR = "preprocessor_config.json"


class HuggingFaceModel(ForeignNetwork):
    """Classify by an image classifier of transformers.

    path: a folder that `save_pretrained` wrote, with preprocessor_config.json; or the name of a
    model on the hub, which is downloaded if it is not in the cache. Safetensors alone are read, and
    no code of the model is run.
    """

    card = ClassifierCard(
        paper="none: whatever transformers holds",
        licence="Apache-2.0; weights have licences of their own",
    )
    path: str

    def describe(self) -> Description:
        """Return the network. Raise MissingPackage, BadWeights."""
        self.require(
            self.weights == "auto", "weights", "none: path= names the folder of the weights"
        )
        transformers = import_extra("transformers", EXTRA)
        with no_progress_bars():
            net = load_pretrained(transformers.AutoModelForImageClassification, self.path)
        config: Any = net.config
        file = self._find_preprocessor()
        pixels = read_json(file)
        channels = int(getattr(config, "num_channels", 3))
        mean, std = read_normalisation(pixels, channels, str(file))
        return Description(
            net=net,
            channels=channels,
            size=read_size(pixels, getattr(config, "image_size", None), str(file)),
            classes=len(config.id2label),
            mean=mean,
            std=std,
            hashes={f"{Path(self.path).name}/{PREPROCESSOR}": file_sha256(file)},
        )

    def _find_preprocessor(self) -> Path:
        """Return the file that says how pixels are normalised. Raise BadWeights."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            folder = self._download_preprocessor()
        file = folder / PREPROCESSOR
        if not file.is_file():
            raise BadWeights(
                f"{self.path}: expected {PREPROCESSOR} with image_mean and image_std, got none;"
                " save the image processor into the folder, too"
            )
        return file

    def _download_preprocessor(self) -> Path:
        """Return the folder in the hub's cache, with the file if the model has one."""
        hub = import_extra("huggingface_hub", EXTRA)
        try:
            return Path(hub.hf_hub_download(self.path, PREPROCESSOR)).parent
        except (OSError, ValueError):  # of the hub: no such file, or no network
            return find_in_cache(self.path, {}) or Path(self.path)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Let transformers draw no progress bars, which would lie across those of a bench."""
    logging = import_extra("transformers.utils.logging", EXTRA)
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def read_normalisation(
    pixels: Mapping[str, Any], channels: int, file: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation by which pixels in [0, 1] are normalised, one for each channel.

    The processor takes pixels p = 255 x and computes ((f p - o) - mean) / std, with the factor f if
    it rescales, and o = 1 if it also has an offset; mean and std only if it normalises. Raise
    BadWeights.
    """
    rescales = pixels.get("do_rescale", True)
    scale = 255 * float(pixels.get("rescale_factor", 1 / 255)) if rescales else 255.0
    offset = 1.0 if rescales and pixels.get("rescale_offset", False) else 0.0
    means, stds = (0.0,) * channels, (1.0,) * channels
    if pixels.get("do_normalize", True):
        for key in ("image_mean", "image_std"):
            if pixels.get(key) is None:
                raise BadWeights(f"{file}: expected {key}, got none; add it, or do_normalize=false")
        means = to_tuple(pixels["image_mean"], channels, f"{file}: image_mean")
        stds = to_tuple(pixels["image_std"], channels, f"{file}: image_std")
    return tuple((m + offset) / scale for m in means), tuple(s / scale for s in stds)


def read_size(pixels: Mapping[str, Any], image_size: Any, file: str) -> int:
    """Return the height and width that the network takes: those of the crop, or of the resizing.

    image_size: of the configuration, for a preprocessor that says nothing. Raise BadWeights.
    """
    sizes = [pixels.get("size"), image_size]
    if pixels.get("do_center_crop", False):
        sizes.insert(0, pixels.get("crop_size"))
    for size in sizes:
        values = size if isinstance(size, list | tuple) else [size]
        if isinstance(size, Mapping):
            values = [size.get(key) for key in ("height", "width", "shortest_edge")]
        sides = {int(side) for side in values if side is not None}
        if len(sides) == 1:
            return sides.pop()
    raise BadWeights(f"{file}: expected the size of square images, got size={pixels.get('size')}")
