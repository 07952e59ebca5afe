"""Write trained weights to a file: in 16 bits if that loses no quality."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from defend.learned import Learned
from defend.training.data import Batch
from defend.training.quality import measure_quality
from defend.weights.header import Header, save_weights

# What 16 bits may cost on validation images: no accuracy; 0.01 dB, 0.2 % of the squared error.
ALLOWED_LOSS = {"accuracy": 0.0, "PSNR": 0.01}


def store_weights(
    learner: Learned, val: Batch, path: Path, header: Header, keep_float32: bool
) -> str:
    """Write the weights of a trained component, and return a summary of the file.

    They are stored in float16 unless that costs more than ALLOWED_LOSS on the validation images, or
    `keep_float32` is set. Afterwards the component has the weights of the file.
    """
    net: nn.Module = learner.net  # type: ignore[attr-defined]
    full = {name: t.detach().clone() for name, t in net.state_dict().items()}
    half = {name: _to_half(t) for name, t in full.items()}
    quality_of_full = measure_quality(learner, *val)
    net.load_state_dict(half)
    quality_of_half = measure_quality(learner, *val)

    least = quality_of_full.value - ALLOWED_LOSS[quality_of_full.measure]
    if not keep_float32 and quality_of_half.value >= least:
        dtype, tensors, quality = "float16", half, quality_of_half
    else:
        dtype, tensors, quality = "float32", full, quality_of_full
    net.load_state_dict(tensors)
    save_weights(path, tensors, header)
    return f"{dtype}, {quality.measure} {quality.value:.4f} on {len(val[0])} images of val"


def _to_half(t: Tensor) -> Tensor:
    is_float32 = t.is_floating_point() and t.dtype.itemsize == 4
    return t.half() if is_float32 else t
