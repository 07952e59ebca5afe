"""Choose the scale of a defense: accuracy on validation images, clean and attacked, at each scale.

The two steps of Lim, Hong, Lee, "Two-Stage Image Restoration", section III-A: measure at some
scales, and look at the restored images. The attack is made on the bare classifier, which does not
know the defense, once for all scales. A stochastic defense draws once for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defend.attack import Attack
from defend.benchmarks.attacking import attack_images
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.eps import parse_one_eps
from defend.errors import BadParameter
from defend.loading import load, pick_device
from defend.noise import Noise
from defend.pairing import check_logits, check_pair
from defend.progress import MeasuringProgress
from defend.purifier import Purifier
from defend.registry import REGISTRY
from defend.spec import Spec, parse_single
from defend.stats import wilson
from defend.target import Target
from defend.threat_models import NO_DEFENSE
from defend.training.quality import to_psnr
from defend.training.sheets import write_grid

FIELD = "scale"
CHUNK = 64  # images at a time


@dataclass(frozen=True, kw_only=True)
class ScaleResult:
    """The accuracies behind a defense at one scale, with 95 % intervals; None: no defense."""

    scale: int | None
    n: int
    clean: float
    clean_interval: tuple[float, float]
    attacked: float
    attacked_interval: tuple[float, float]
    psnr: float | None  # dB, of clean images behind the defense

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """What is measured, and on what."""

    spec: str  # of a defense with the field `scale`
    dataset: str
    classifier: str
    scales: Sequence[int]
    attack: str = "pgd"
    eps: str | float | None = None  # None: the claim eps of the data set
    n: int = 100  # validation images
    seed: int = 0
    device: str = "auto"
    data_root: str | None = None
    sheet: Path | None = None  # a PNG: clean, attacked, then both restored at each scale
    sheet_images: int = 8


@dataclass
class _Tally:
    """Outcomes and errors of one defense."""

    clean: list[Tensor] = field(default_factory=list)
    attacked: list[Tensor] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)

    def add(self, network: Any, y: Tensor, pair: tuple[Tensor, Tensor], x: Tensor) -> None:
        """Add images of labels y, clean and attacked, behind the defense; x: without it."""
        clean, attacked = pair
        self.clean.append(network(clean).argmax(1) == y)
        self.attacked.append(network(attacked).argmax(1) == y)
        self.errors.append((clean - x).square().mean((1, 2, 3)))

    def result(self, scale: int | None) -> ScaleResult:
        """Return the accuracies."""
        clean, attacked = torch.cat(self.clean), torch.cat(self.attacked)
        n, right, survivors = len(clean), int(clean.sum()), int(attacked.sum())
        return ScaleResult(
            scale=scale,
            n=n,
            clean=right / n,
            clean_interval=wilson(right, n),
            attacked=survivors / n,
            attacked_interval=wilson(survivors, n),
            psnr=None if scale is None else to_psnr(torch.cat(self.errors)),
        )


def tune(request: TuningRequest, progress: bool = False) -> list[ScaleResult]:
    """Return one result without a defense and one for each scale. Raise DefendError."""
    spec = _check_spec(request)
    device = pick_device(request.device)
    root = {"root": request.data_root} if request.data_root else {}
    data: Dataset = load(request.dataset, "dataset", **root)
    n = _check_count(request.n, data)
    classifier: Classifier = load(request.classifier, "classifier", data, device)
    check_pair(classifier, data)
    check_logits(classifier)
    attack: Attack = load(request.attack, "attack")
    eps = _choose_eps(request.eps, attack, data)
    purifiers = {
        scale: load(Spec(spec.name, (*spec.params, (FIELD, scale))), "defense", data, device)
        for scale in request.scales
    }
    tallies: dict[int | None, _Tally] = {scale: _Tally() for scale in (None, *purifiers)}
    rows: list[Tensor] = []
    bar = MeasuringProgress(progress)
    with bar.counting(n):
        for start in range(0, n, CHUNK):
            x, y = (t.to(device) for t in data.rows("val", start, min(start + CHUNK, n)))
            noise = Noise.of(request.seed, torch.arange(start, start + len(x), device=device))
            x_adv = _attack(attack, request.attack, classifier, x, y, eps, noise)
            with torch.no_grad():
                pairs = {None: (x, x_adv)} | _purify(purifiers, x, x_adv, noise)
                for scale, pair in pairs.items():
                    tallies[scale].add(classifier.network, y, pair, x)
            if not rows:
                rows = [
                    images[: request.sheet_images] for pair in pairs.values() for images in pair
                ]
            bar.advance(len(x))
    if request.sheet:
        write_grid(torch.cat(rows), len(rows[0]), request.sheet)
    return [tally.result(scale) for scale, tally in tallies.items()]


def _attack(
    attack: Attack,
    name: str,
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    eps: float,
    noise: Noise,
) -> Tensor:
    """Return x attacked through the bare classifier."""
    target = Target(classifier.network, load(NO_DEFENSE, device=x.device), noise.fork("target"))
    return attack_images(attack, name, target, x, y, eps, noise.fork("attack"))


def _purify(
    purifiers: dict[int, Purifier], x: Tensor, x_adv: Tensor, noise: Noise
) -> dict[int | None, tuple[Tensor, Tensor]]:
    """Return the clean and the attacked images behind each defense, with noise of their own."""
    return {
        scale: (
            purifier.purified(x, noise.fork("clean")),
            purifier.purified(x_adv, noise.fork("attacked")),
        )
        for scale, purifier in purifiers.items()
    }


def _check_spec(request: TuningRequest) -> Spec:
    """Return the spec. Raise BadParameter unless its scale is free and some scales are named."""
    spec = parse_single(request.spec, "defense")
    component = REGISTRY.entry("defense", spec.name).load()
    if FIELD not in getattr(component, "__dataclass_fields__", {}):
        raise BadParameter(
            f"{request.spec}: expected a defense with the field {FIELD}, got one without; give"
            " two-stage, or another one with this field"
        )
    if FIELD in dict(spec.params):
        raise BadParameter(
            f"{request.spec}: expected no {FIELD} in the spec, since --scales names them; leave it"
            " out"
        )
    if not request.scales:
        raise BadParameter("--scales: expected whole numbers, got none; give some, as 2,4,8")
    return spec


def _check_count(n: int, data: Dataset) -> int:
    count = data.count("val")
    if not 1 <= n <= count:
        raise BadParameter(f"--n {n}: expected 1 to {count}, the validation images; give fewer")
    return n


def _choose_eps(eps: str | float | None, attack: Attack, data: Dataset) -> float:
    if eps is not None:
        return parse_one_eps(eps).value
    if attack.norm not in data.card.claim:
        raise BadParameter(
            f"--eps: expected a number for {attack.norm}, got none; give --eps 4/255"
        )
    return data.card.claim[attack.norm]
