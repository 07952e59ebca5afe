"""Write trained weights to a file: in 16 bits if that loses no quality."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from defend.learned import Learned
from defend.progress import MeasuringProgress
from defend.training.data import Batch
from defend.training.fitting import limit_images
from defend.training.objectives import frozen_tensors
from defend.training.quality import Quality, measure_quality, no_display
from defend.training.recipe import Recipe
from defend.weights.header import Header, save_weights


def store_weights(
    learner: Learned,
    val: Batch,
    path: Path,
    header: Header,
    keep_float32: bool,
    recipe: Recipe | None = None,
) -> str:
    """Write the weights of a trained component, and return a summary of the file.

    They are stored in float16 unless that costs more quality on the validation images than its
    tolerance, or `keep_float32` is set. What `build` or `trainee` froze keeps its
    precision. Afterwards the component has the weights of the file. recipe: measures the quality;
    without one, it is that of `measure_quality`.
    """
    net: nn.Module = learner.net  # type: ignore[attr-defined]
    full = {name: t.detach().clone() for name, t in net.state_dict().items()}
    frozen = frozen_tensors(net, learner.frozen_in_build | learner.frozen_in_fit)
    half = {name: t if name in frozen else _to_half(t) for name, t in full.items()}
    val = limit_images(val, recipe.val_images) if recipe else val
    quality_of_full = _measure(learner, recipe, val)
    net.load_state_dict(half)
    quality_of_half = _measure(learner, recipe, val)

    least = quality_of_full.value - quality_of_full.tolerance
    if not keep_float32 and quality_of_half.value >= least:
        dtype, tensors, quality = "float16", half, quality_of_half
    else:
        dtype, tensors, quality = "float32", full, quality_of_full
    net.load_state_dict(tensors)
    save_weights(path, tensors, header)
    images = quality.images or len(val[0])
    return f"{dtype}, {quality.measure} {quality.value:.4f} on {images} images of val"


def _measure(learner: Learned, recipe: Recipe | None, val: Batch) -> Quality:
    """Return the quality, with progress on stderr if that is a terminal."""
    if recipe is None:
        return measure_quality(learner, *val)
    progress = MeasuringProgress(True)
    with progress.counting(len(val[0])):
        recipe.advance = progress.advance
        try:
            return recipe.quality(learner, *val)
        finally:
            recipe.advance = no_display


def _to_half(t: Tensor) -> Tensor:
    is_float32 = t.is_floating_point() and t.dtype.itemsize == 4
    return t.half() if is_float32 else t
