"""The training of a classifier behind a purifier, which is frozen and has its own noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from defend.chain import members_of
from defend.classifier import Classifier
from defend.errors import BadParameter
from defend.learned import Learned
from defend.loading import load
from defend.noise import Noise
from defend.purifier import Purifier
from defend.spec import canonical_spec
from defend.trained_on import TrainedOn
from defend.training.quality import Advance, no_display

STREAM = "behind"  # of the noise that purifies


def load_behind(spec: str, classifier: Classifier) -> Purifier | None:
    """Return the defense before which the classifier is trained, on its device; None for "".

    Raises DefendError, as for a defense that is not trained itself.
    """
    if not spec:
        return None
    device = next(classifier.net.parameters()).device
    purifier: Purifier = load(spec, "defense", classifier.dataset, device)
    purifier.run_as("float32", "contiguous")  # not the layout that was the fastest when loading
    for member in members_of(purifier):
        if isinstance(member, Learned) and not member.own_weights:
            raise BadParameter(
                f"behind={spec}: expected a defense with trained weights, got weights=untrained;"
                " train it with `defend train`, or name its weights"
            )
    return purifier


def purify_images(
    purifier: Purifier, x: Tensor, seed: int, advance: Advance = no_display
) -> Tensor:
    """Return validation images x (n, c, h, w) purified, on the host. `advance` counts them."""
    device = torch.device(purifier.device)
    noise = Noise.of(seed, torch.arange(len(x), device=device)).fork("val").fork(STREAM)
    purified = []
    size = purifier.images_at_once(x)
    cuts = zip(x.split(size), noise.split(size), strict=True)
    with torch.no_grad():
        for images, image_noise in cuts:
            purified.append(purifier.purified(images.to(device), image_noise).cpu())
            advance(len(images))
    return torch.cat(purified)


def trained_behind(training: TrainedOn, spec: str, purifier: Purifier) -> TrainedOn:
    """Return what a training knows that saw its images through the purifier of this spec."""
    return replace(training, behind=canonical_spec(spec), behind_weights=purifier.weights_sha256)
