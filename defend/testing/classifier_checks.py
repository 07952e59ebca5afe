"""What every classifier must do. Each check takes one fresh instance and asserts one thing.

Small on purpose: CPU, a handful of random images, 300 real ones where the weights name a data set that is at hand. Where weights or data are
absent, a check that needs them is not applicable.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor import SpatialSmoothing
from art.estimators.classification import PyTorchClassifier
from scipy.stats import binomtest
from torch import Tensor

from defend.classifier import Classifier
from defend.dataset import Dataset, Split
from defend.errors import DefendError, Mismatch
from defend.loading import dataset_name, load
from defend.noise import Noise
from defend.purifier import Card, Purifier
from defend.registry import REGISTRY
from defend.spec import parse_single
from defend.testing.dataset_checks import no_network
from defend.testing.runner import Check, NotApplicable
from defend.weights.header import file_sha256
from defend.weights.zoo import read_zoos

N = 300  # real images
RARE = 1e-4  # a p-value below which an accuracy is another one than declared
NOWHERE = "no-such-weights"


class Dimmed(Purifier):
    """A PyTorch preprocessor for ART."""

    card = Card(paper="none: for the check alone", gradient="exact", stochastic=False)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x * 0.9


def logits(c: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        z: Tensor = c.network(x)
    return z


def varied(c: Classifier) -> Tensor:
    """Random images, then black, white, a checkerboard, one hot pixel."""
    edges = torch.zeros_like(c.example(4))
    edges[1] = 1
    edges[2, :, ::2, ::2] = 1
    edges[3, 0, 0, 0] = 1
    return torch.cat([c.example(), edges])


def slope(c: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """A weighted sum of the logits, which saturates nowhere, and the x it was computed for."""
    x = x.clone().requires_grad_()
    weights = torch.randn(c.classes, generator=torch.Generator().manual_seed(1))
    return (c.network(x) @ weights).sum(), x


def data_of(c: Classifier) -> Dataset:
    """What its weights were trained on, at the size of the classifier. NotApplicable where there are no weights or no data."""
    file = c.file
    if file is None:
        raise NotApplicable("untrained: no weights to hold to their word")
    try:
        spec = parse_single(file.header.dataset, "dataset")
        fields = getattr(REGISTRY.entry("dataset", spec.name).load(), "__dataclass_fields__", {})
        more: dict[str, Any] = (
            {"size": c.size} if "size" in fields.keys() - dict(spec.params).keys() else {}
        )
        data: Dataset = load(spec, "dataset", **more)
        data.count("test")
    except DefendError as e:
        raise NotApplicable(
            f"weights {file.name} name the data set {file.header.dataset!r}: {e}"
        ) from None
    return data


def predicted(c: Classifier, data: Dataset, split: Split) -> tuple[Tensor, Tensor]:
    """Labels predicted and true, of the first N images."""
    x, y = data.rows(split, 0, min(N, data.count(split)))
    return torch.cat([logits(c, part).argmax(1) for part in x.split(50)]), y


def in_art(c: Classifier, preprocessor: Any) -> PyTorchClassifier:
    loss, shape = torch.nn.CrossEntropyLoss(), (c.channels, c.size, c.size)
    return PyTorchClassifier(
        c.network,
        loss,
        shape,
        c.classes,
        clip_values=(0.0, 1.0),
        preprocessing_defences=preprocessor,
        device_type="cpu",
    )


def check_returns_logits(c: Classifier) -> None:
    """Not probabilities, nor their logarithms: attacks on losses of logits fail silently there."""
    z = logits(c, varied(c))
    probabilities = bool((z >= 0).all()) and torch.allclose(z.sum(1), torch.ones(len(z)), atol=1e-4)
    assert not probabilities, (
        "returns probabilities: every row is positive and sums to 1; leave the softmax out"
    )
    assert not torch.allclose(z.logsumexp(1), torch.zeros(len(z)), atol=1e-4), (
        "returns log-probabilities; leave the log-softmax out"
    )


def check_shape_and_dtype(c: Classifier) -> None:
    x = varied(c)
    z = logits(c, x)
    assert (z.shape, z.dtype) == ((len(x), c.classes), torch.float32), (
        f"{tuple(x.shape)} -> {z.dtype} {tuple(z.shape)}, wanted float32 ({len(x)}, {c.classes})"
    )
    assert z.isfinite().all(), "NaN or inf on random, black, white, checkerboard or one-hot images"


def check_takes_pixels_from_0_to_1(c: Classifier) -> None:
    """It normalises inside, on a copy. A network made for pixels from 0 to 255 hardly sees the difference between black and white."""
    x = varied(c)
    kept = x.clone()
    z = logits(c, x)
    assert torch.equal(x, kept), "wrote into its input: normalise a copy"
    moved, size = (z - z.mean(0)).abs().max().item(), z.abs().max().item()
    assert moved > 0.01 * size, (
        f"between black, white and random images the logits move by {moved:.2g} of {size:.2g}: made for pixels from 0 to 255?"
    )


def check_eval_mode(c: Classifier) -> None:
    c.network.train()
    assert not any(m.training for m in c.network.modules()), (
        "train() puts it into training mode: dropout and batch statistics come back"
    )
    assert torch.equal(logits(c, c.example()), logits(c, c.example())), (
        "two calls disagree: something is random, or remembers"
    )


def check_batch_mates_do_not_matter(c: Classifier) -> None:
    x = varied(c)
    alone = torch.cat([logits(c, x[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(logits(c, x), alone, rtol=1e-4, atol=1e-4), (
        "an image's logits depend on its batch mates"
    )


def check_gradient_reaches_input(c: Classifier) -> None:
    value, x = slope(c, c.example())
    assert value.requires_grad, "no gradient at all: the logits are detached from the image"
    (g,) = torch.autograd.grad(value, x)
    dead = int((g.flatten(1).abs().sum(1) == 0).sum())
    assert g.isfinite().all() and not dead, (
        f"the gradient is not finite, or zero for {dead} of {len(x)} images: attacks would fail for free"
    )


def check_keeps_no_gradients(c: Classifier) -> None:
    slope(c, c.example())[0].backward()
    kept = [
        name for name, p in c.network.named_parameters() if p.requires_grad or p.grad is not None
    ]
    assert not kept, (
        f"{len(kept)} parameters take gradients, {kept[0]} first: freeze them, attacks differentiate the image alone"
    )


def check_fits_its_data_set(c: Classifier) -> None:
    """Channels, size and classes; and no class is mostly called by the name of another: labels in another order."""
    data = data_of(c)
    try:
        c.check_fits(data.channels, data.size, data.classes, dataset_name(data))
    except Mismatch as e:
        raise AssertionError(str(e)) from None
    got, y = predicted(c, data, "val")
    for label in y.unique().tolist():
        called = got[y == label].bincount(minlength=data.classes)
        most, n = int(called.argmax()), int(called.sum())
        wrong = most != label and n >= 5 and called[most] > n / 2
        assert not wrong, (
            f"{called[most]} of {n} images of {data.names[label]} are called {data.names[most]}"
        )


def check_declared_accuracy(c: Classifier) -> None:
    """`measured.clean_accuracy` of zoo.toml, on the test split: the accuracy on its first images is one that may come from it."""
    entry = read_zoos().get(c.file.name) if c.file else None
    if entry is None or "clean_accuracy" not in entry.measured:
        raise NotApplicable("declares no accuracy: `measured.clean_accuracy` of a zoo.toml")
    declared = float(entry.measured["clean_accuracy"])
    got, y = predicted(c, data_of(c), "test")
    right = int((got == y).sum())
    p = binomtest(right, len(y), declared).pvalue
    assert p > RARE, (
        f"{right} of {len(y)} test images are right, {declared:.4f} is declared: p = {p:.1g}"
    )


def check_weights_load_by_hash_and_offline(c: Classifier) -> None:
    with no_network():
        try:
            again = rebuilt(c, {})
        except Exception as e:
            raise AssertionError(
                f"it cannot be built again from its settings, without a network: {type(e).__name__}: {e}"
            ) from e
        assert torch.equal(logits(again, c.example()), logits(c, c.example())), (
            "built again from its settings, it is another network"
        )
        assert NOWHERE in refusal(c, NOWHERE), (
            f"the error for unknown weights must name them: {refusal(c, NOWHERE)}"
        )
        if c.file is None:
            return
        assert c.file.sha256 == file_sha256(c.file.path), (
            "the sha256 it reports is not that of the file"
        )
        with tempfile.TemporaryDirectory() as folder:
            cut = Path(folder, "cut.safetensors")
            cut.write_bytes(c.file.path.read_bytes()[:-1])
            assert str(cut) in refusal(c, str(cut)), (
                f"the error for a damaged file must name it: {refusal(c, str(cut))}"
            )


def rebuilt(c: Classifier, changes: dict[str, Any]) -> Classifier:
    return type(c)(**(c.settings | changes))


def refusal(c: Classifier, weights: str) -> str:
    try:
        rebuilt(c, {"weights": weights})
    except DefendError as e:
        return str(e)
    except Exception as e:
        raise AssertionError(
            f"weights={weights}: {type(e).__name__} instead of an error of defend: {e}"
        ) from e
    raise AssertionError(f"weights={weights}: was built all the same")


def check_works_inside_art(c: Classifier) -> None:
    """Without a preprocessor, behind a numpy one and behind a PyTorch one: ART takes another path for each."""
    x = c.example().numpy()
    least = np.eye(c.classes, dtype=np.float32)[
        logits(c, c.example()).argmin(1)
    ]  # no loss saturates there
    for preprocessor in (
        None,
        SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0.0, 1.0)),
        Dimmed(),
    ):
        art, name = (
            in_art(c, preprocessor),
            type(preprocessor).__name__ if preprocessor else "no preprocessor",
        )
        seen = x if preprocessor is None else preprocessor(x)[0]
        assert np.allclose(
            art.predict(x), logits(c, torch.from_numpy(seen)), rtol=1e-4, atol=1e-4
        ), f"ART's predict behind {name} disagrees with the network"
        g = art.loss_gradient(x, least)
        assert (
            g.shape == x.shape
            and np.isfinite(g).all()
            and np.abs(g).reshape(len(x), -1).sum(1).all()
        ), f"ART's gradient behind {name} is zero or not finite"


def check_moves_to_a_device_and_back(c: Classifier) -> None:
    """Where there is no GPU, to the device without memory, which tells a tensor that stayed behind just as well."""
    before = logits(c, c.example())
    device = "cuda" if torch.cuda.is_available() else "meta"
    try:
        moved = copy.deepcopy(c.network).to(device)(c.example().to(device))
    except NotImplementedError as e:  # it looks at values, and the device without memory has none
        raise NotApplicable(f"there is no GPU, and {e}") from None
    except RuntimeError as e:
        raise AssertionError(
            f"on {device}: {e}. Register tensors as buffers or parameters"
        ) from None
    assert (moved.device.type, moved.shape) == (device, before.shape), (
        f"on {device}: logits {tuple(moved.shape)} on {moved.device}"
    )
    if device == "cuda":
        c.move(device)
    c.move("cpu")
    assert torch.equal(logits(c, c.example()), before), (
        "moved to another device and back, it gives other logits"
    )


def classifier_checks() -> Iterator[Check]:
    for name, value in list(globals().items()):
        if name.startswith("check_"):
            yield value
