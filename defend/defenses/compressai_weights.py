"""Weights of CompressAI: pretrained ones in the user's cache, and checkpoints of its training.

Nothing is downloaded. Of a checkpoint the tensors alone are read, and no other object.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from defend.defenses.compressai_codecs import (
    CLASSES,
    WRAPPERS,
    CompressAICodec,
    import_compressai,
)
from defend.errors import BadWeights
from defend.weights.third_party import load_pretrained, read_state_dict

ZOO_NAMES = {  # of their pretrained weights
    "factorized": "bmshj2018-factorized",
    "hyperprior": "bmshj2018-hyperprior",
    "mean-scale": "mbt2018-mean",
    "cheng2020": "cheng2020-anchor",
}
METRICS = ("mse", "ms-ssim")  # what pretrained weights are trained for
TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")  # of the entropy coder
LISTED = 3  # names of tensors that an error lists
OWN_SUFFIX = ".safetensors"  # of files of `defend train`; CompressAI writes pickles of tensors


def find_weights_file(model: str, weights: str) -> Path | None:
    """Return the file of CompressAI's weights: "mse-3" in the user's cache, or a checkpoint's path.

    Return None for any other text, and for a file of `defend train`. Raise BadWeights if weights of
    that name are not in the cache, or if there are none of that quality; MissingPackage.
    """
    path = Path(weights).expanduser()
    if path.suffix != OWN_SUFFIX and path.is_file():
        return path
    return find_pretrained(model, weights)


def find_pretrained(model: str, weights: str) -> Path | None:
    """Return the file of CompressAI's weights "mse-3" in the user's cache.

    Return None for a text that is not the name of such weights. Raise BadWeights if they are not in
    the cache, or if there are none of that quality; MissingPackage.
    """
    metric, _, quality = weights.rpartition("-")
    if metric not in METRICS or not quality.isdecimal():
        return None
    urls = import_compressai("zoo.image").model_urls[ZOO_NAMES[model]][metric]
    if int(quality) not in urls:
        raise BadWeights(
            f"robust-codec:model={model}: expected a quality of {min(urls)} to {max(urls)}, got"
            f" weights={weights}"
        )
    url: str = urls[int(quality)]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise BadWeights(
            f"weights={weights}: expected {path}, which is not there; nothing is downloaded here:"
            f" put {url} there yourself"
        )
    return path


def load_codec(model: str, path: Path) -> CompressAICodec:
    """Return a codec from a state dict of CompressAI. Raise MissingPackage, BadWeights."""
    network = getattr(import_compressai("models"), CLASSES[model])
    rename = import_compressai("zoo.pretrained").load_pretrained

    class Loader(network):  # type: ignore[misc, valid-type]
        """The same network, from weights of older versions, too."""

        @staticmethod
        def from_state_dict(state: dict[str, Tensor]) -> nn.Module:
            net: nn.Module = network.from_state_dict(rename(state))
            return net

    Loader.__name__ = CLASSES[model]
    check_model(model, path, rename(read_state_dict(path)))
    net = load_pretrained(Loader, path)
    drop_coder_tables(net)
    return WRAPPERS[model](net)


def check_model(model: str, path: Path, state: dict[str, Tensor]) -> None:
    """Raise BadWeights if a state dict is that of another model, or of no codec."""
    actual = recognise_model(state)
    if actual == model:
        return
    if actual:
        raise BadWeights(
            f"{path}: expected weights of model={model}, got those of model={actual}; write"
            f" model={actual}"
        )
    raise BadWeights(
        f"{path}: expected weights of CompressAI's {CLASSES[model]} for model={model}, got tensors"
        f" such as {', '.join(list(state)[:LISTED]) or 'none'}; give a checkpoint of that class"
    )


def recognise_model(state: dict[str, Tensor]) -> str:
    """Return the model whose tensors these are, or "" for those of another network."""
    if "g_a.6.weight" not in state:
        return ""
    if "context_prediction.weight" in state:
        return "cheng2020" if "g_a.0.conv1.weight" in state else ""
    if "h_a.0.weight" not in state:
        return "factorized"
    latents = len(state["g_a.6.weight"])
    statistics = len(state.get("h_s.4.weight", ()))  # means and scales, or scales alone
    return {latents: "hyperprior", 2 * latents: "mean-scale"}.get(statistics, "")


def drop_coder_tables(net: nn.Module) -> None:
    """Empty the tables of the entropy coder, which runs nowhere here and gives them their sizes."""
    for path, buffer in list(net.named_buffers()):
        module, _, name = path.rpartition(".")
        if name in TABLES:
            net.get_submodule(module).register_buffer(name, buffer.new_empty(0))
