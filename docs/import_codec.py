"""Turn the tensors that docs/trainings/codec_by_time.py trained into weights of `robust-codec`.

    python docs/import_codec.py codec-cifar10.safetensors robust-codec-cifar10-adv.safetensors

The tensors have the names of `SmallCodec` already. What is added is the header: the fields, read
from the shapes, and what the training knew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from defend.defenses.small_codec import SmallCodec
from defend.errors import BadWeights, DefendError, one_line
from defend.trained_on import TrainedOn
from defend.weights.header import Header, save_weights
from defend.weights.third_party import read_state_dict
from defend.weights.zoo import read_zoos

CLASSIFIER = "resnet20-cifar10"  # the frozen one, through which the codec was trained
EPS = 8 / 255


def main() -> None:
    """Convert one file."""
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/import_codec.py CODEC.safetensors OUT.safetensors")
    try:
        convert(*map(Path, sys.argv[1:]))
    except DefendError as e:
        sys.exit(f"Error: {e}")


def convert(source: Path, out: Path) -> None:
    """Write the weights file. Raise BadWeights for the tensors of another network."""
    tensors = read_state_dict(source)
    fields = read_fields(source, tensors)
    classifier = read_zoos()[CLASSIFIER]
    trained_on = TrainedOn(
        kind="adversarial",
        attack="n-fgsm, pgd-3",
        norm="Linf",
        eps=EPS,
        classifiers={CLASSIFIER: classifier.sha256},
    )
    header = Header(
        kind="defense",
        component="robust-codec",
        architecture="robust-codec",
        dataset="cifar10",
        fields=fields,
        trained_on=trained_on,
        command="python docs/trainings/codec_by_time.py 600 OUT",
        seed=0,
        commit="",
        uses=("bit_depth", "recompress", "resize", "self_ensemble"),
    )
    save_weights(out, tensors, header)
    print(f"wrote {out}: {trained_on}")


def read_fields(source: Path, tensors: dict[str, Tensor]) -> dict[str, object]:
    """Return the fields of the network of these tensors. Raise BadWeights if it is another one."""
    try:
        width, pixels = tensors["g_a.1.weight"].shape[:2]
        deep_width, latents = tensors["g_a.3.weight"].shape[0], len(tensors["log_scale"])
        channels = pixels // 4
        codec = SmallCodec(channels, width, deep_width, latents, 2, 2, has_norms=True)
        codec.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as e:
        raise BadWeights(
            f"{source}: expected the tensors of docs/trainings/codec_by_time.py, got others"
            f" ({one_line(e)[:200]}); give the file that it wrote"
        ) from None
    return {
        "model": "small",
        "channels": channels,
        "width": width,
        "deep_width": deep_width,
        "latents": latents,
        "halvings": 2,
        "blocks": 2,
        "group_norm": True,
        "self_ensemble": False,
        "bit_depth": 0,
        "resize": 1.0,
        "recompress": 1,
    }


if __name__ == "__main__":
    main()
