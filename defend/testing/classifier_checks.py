"""The conformance kit of classifiers. Each check takes one classifier and asserts one property.

The checks are small on purpose: they run on a CPU, on a handful of random images, and on 300 real
ones if the weights name a data set that is on disk. If weights or data are absent, a check that
needs them is not applicable.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from art.defences.preprocessor import SpatialSmoothing
from scipy.stats import binomtest

from defend.classifier import Classifier
from defend.errors import Mismatch
from defend.loading import dataset_name
from defend.own_network import OwnNetwork
from defend.testing import embedding_checks
from defend.testing.classifier_setup import (
    Dimmed,
    classifier_in_art,
    dataset_of_weights,
    logits,
    logits_projection,
    predicted_and_true_labels,
    random_and_edge_images,
    rebuilt,
    refusal,
)
from defend.testing.embedding_checks import (
    check_embeddings_have_length_one as check_embeddings_have_length_one,
)
from defend.testing.embedding_checks import (
    check_enrols_people as check_enrols_people,
)
from defend.testing.embedding_checks import (
    check_logits_are_scaled_cosines as check_logits_are_scaled_cosines,
)
from defend.testing.embedding_checks import (
    check_refuses_a_wrong_gallery as check_refuses_a_wrong_gallery,
)
from defend.testing.no_network import no_network
from defend.testing.runner import (
    ConformanceCheck,
    NotApplicable,
    checks_defined_in,
    depends_on_weights,
    reads_only,
)
from defend.weights.header import WeightsFile, file_sha256
from defend.weights.zoo import read_zoos

SMALLEST_P = 1e-4  # below this p-value an accuracy is another one than the declared accuracy
UNKNOWN_WEIGHTS = "no-such-weights"


@reads_only
def check_returns_logits(c: Classifier) -> None:
    """Fail if it returns probabilities or their logarithms.

    On these, attacks that climb a loss of logits fail silently.
    """
    z = logits(c, random_and_edge_images(c))
    sums_to_one = torch.allclose(z.sum(1), torch.ones(len(z)), atol=1e-4)
    assert not ((z >= 0).all() and sums_to_one), (
        "expected logits, got probabilities: each row is positive and sums to 1; "
        "leave the softmax out"
    )
    assert not torch.allclose(z.logsumexp(1), torch.zeros(len(z)), atol=1e-4), (
        "expected logits, got log-probabilities; leave the log-softmax out"
    )


@depends_on_weights
@reads_only
def check_shape_and_dtype(c: Classifier) -> None:
    """Fail if the logits are not finite float32 numbers, one for each image and class."""
    x = random_and_edge_images(c)
    z = logits(c, x)
    assert (z.shape, z.dtype) == ((len(x), c.classes), torch.float32), (
        f"expected logits float32 ({len(x)}, {c.classes}), got {z.dtype} {tuple(z.shape)}"
    )
    assert z.isfinite().all(), (
        "expected finite logits, got NaN or inf for a random, black, white, checkerboard or "
        "one-hot image"
    )


@depends_on_weights
@reads_only
def check_takes_pixels_from_0_to_1(c: Classifier) -> None:
    """Fail if it normalises its input in place, or was trained on pixels from 0 to 255.

    A network for pixels from 0 to 255 hardly sees the difference between black and white.
    """
    x = random_and_edge_images(c)
    before = x.clone()
    z = logits(c, x)
    assert torch.equal(x, before), "wrote into its input; normalise a copy"
    spread, size = (z - z.mean(0)).abs().max().item(), z.abs().max().item()
    assert spread > 0.01 * size, (
        f"expected logits that differ between black, white and random images, got a spread of "
        f"{spread:.2g} for logits of {size:.2g}; does the network expect pixels from 0 to 255?"
    )


def check_eval_mode(c: Classifier) -> None:
    """Fail if train() changes a mode, or two calls give other logits."""
    c.network.train()
    assert not any(m.training for m in c.network.modules()), (
        "train() puts the network into training mode, which turns dropout and batch statistics on; "
        "wrap it in Frozen"
    )
    assert torch.equal(logits(c, c.example()), logits(c, c.example())), (
        "two calls give other logits; remove randomness and state"
    )


@reads_only
def check_batch_mates_do_not_matter(c: Classifier) -> None:
    """Fail if an image alone gets other logits than in a batch."""
    x = random_and_edge_images(c)
    alone = torch.cat([logits(c, x[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(logits(c, x), alone, rtol=1e-4, atol=1e-4), (
        "an image's logits depend on the other images of its batch"
    )


@depends_on_weights
@reads_only
def check_gradient_reaches_input(c: Classifier) -> None:
    """Fail if the gradient of an image is zero or not finite."""
    value, x = logits_projection(c, c.example())
    assert value.requires_grad, (
        "expected logits with a gradient, got logits that are detached from the image"
    )
    (g,) = torch.autograd.grad(value, x)
    assert g.isfinite().all(), "expected a finite gradient, got NaN or inf"
    zero_count = int((g.flatten(1).abs().sum(1) == 0).sum())
    assert zero_count == 0, (
        f"{zero_count} of {len(x)} images have a zero gradient, so attacks fail without any "
        "robustness"
    )


def check_keeps_no_gradients(c: Classifier) -> None:
    """Fail if a parameter takes gradients: attacks differentiate the image alone."""
    value, _ = logits_projection(c, c.example())
    value.backward()
    names = [n for n, p in c.network.named_parameters() if p.requires_grad or p.grad is not None]
    assert not names, f"{len(names)} parameters take gradients, {names[0]} first; freeze them"


@depends_on_weights
@reads_only
def check_fits_its_data_set(c: Classifier) -> None:
    """Fail if channels, size or classes are not those of the data set, or labels are permuted.

    Labels count as permuted if most images of a class are predicted as one other class.
    """
    data = dataset_of_weights(c)
    try:
        c.check_fits(data.channels, data.size, data.classes, dataset_name(data))
    except Mismatch as e:
        raise AssertionError(str(e)) from None
    predicted, y = predicted_and_true_labels(c, data, "val")
    for label in y.unique().tolist():
        counts = predicted[y == label].bincount(minlength=data.classes)
        most_frequent, n = int(counts.argmax()), int(counts.sum())
        permuted = most_frequent != label and n >= 5 and counts[most_frequent] > n / 2
        assert not permuted, (
            f"{counts[most_frequent]} of {n} images of {data.names[label]} are predicted as "
            f"{data.names[most_frequent]}; check the order of the classes"
        )


@depends_on_weights
@reads_only
def check_declared_accuracy(c: Classifier) -> None:
    """Fail if the accuracy on the first test images contradicts `measured.clean_accuracy` of the
    zoo.toml, by an exact binomial test.
    """
    entry = read_zoos().get(c.file.name) if c.file else None
    if entry is None or "clean_accuracy" not in entry.measured:
        raise NotApplicable("no zoo.toml declares `measured.clean_accuracy` for its weights")
    declared = float(entry.measured["clean_accuracy"])
    predicted, y = predicted_and_true_labels(c, dataset_of_weights(c), "test")
    correct = int((predicted == y).sum())
    p = binomtest(correct, len(y), declared).pvalue
    assert p > SMALLEST_P, (
        f"expected an accuracy of {declared:.4f} as declared, got {correct} of {len(y)} test "
        f"images correct: p = {p:.1g}"
    )


@depends_on_weights
@reads_only
def check_weights_load_by_hash_and_offline(c: Classifier) -> None:
    """Fail if the settings do not rebuild the classifier without a network, or if unknown and
    damaged weights raise no error that names them.
    """
    if isinstance(c, OwnNetwork):
        raise NotApplicable("a network of the user is read from its own file, not by settings")
    with no_network():
        try:
            copied = rebuilt(c)
        except Exception as e:
            raise AssertionError(
                f"expected to rebuild it from its settings without a network, "
                f"got {type(e).__name__}: {e}"
            ) from e
        assert torch.equal(logits(copied, c.example()), logits(c, c.example())), (
            "rebuilt from its settings it gives other logits; make everything that matters a field"
        )
        message = refusal(c, UNKNOWN_WEIGHTS)
        assert UNKNOWN_WEIGHTS in message, (
            f"expected an error that names the unknown weights {UNKNOWN_WEIGHTS}, got: {message}"
        )
        if c.file is not None:
            _check_file(c, c.file)


def _check_file(c: Classifier, file: WeightsFile) -> None:
    """Fail if the file has another hash than reported, or a truncated file is not refused."""
    actual = file_sha256(file.path)
    assert file.sha256 == actual, (
        f"expected the sha256 of its weights file, {actual}, got {file.sha256}"
    )
    with tempfile.TemporaryDirectory() as folder:
        truncated = Path(folder, "cut.safetensors")
        truncated.write_bytes(file.path.read_bytes()[:-1])
        message = refusal(c, str(truncated))
        assert str(truncated) in message, (
            f"expected an error that names the damaged file {truncated}, got: {message}"
        )


def check_works_inside_art(c: Classifier) -> None:
    """Fail if ART's predictions or gradients are wrong: without a preprocessor, behind a numpy one
    and behind a PyTorch one. ART takes another path for each.
    """
    x = c.example().numpy()
    # The loss of the least likely class saturates nowhere.
    least_likely = logits(c, c.example()).argmin(1)
    labels = np.eye(c.classes, dtype=np.float32)[least_likely]
    smoothing = SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0.0, 1.0))
    for preprocessor in (None, smoothing, Dimmed()):
        name = type(preprocessor).__name__ if preprocessor else "no preprocessor"
        images = preprocessor(x)[0] if preprocessor else x
        art_classifier = classifier_in_art(c, preprocessor)
        expected = logits(c, torch.from_numpy(images))
        assert np.allclose(art_classifier.predict(x), expected, rtol=1e-4, atol=1e-4), (
            f"ART's predict behind {name} gives other logits than the network"
        )
        g = art_classifier.loss_gradient(x, labels)
        assert g.shape == x.shape, f"ART behind {name}: expected {x.shape}, got {g.shape}"
        assert np.isfinite(g).all() and np.abs(g).reshape(len(x), -1).sum(1).all(), (
            f"ART's gradient behind {name} is zero for an image, or not finite"
        )


def check_moves_to_a_device_and_back(c: Classifier) -> None:
    """Fail if the network does not work on another device, or gives other logits afterwards.

    Without a GPU the other device is torch's "meta", on which a tensor that was not moved raises
    too.
    """
    before = logits(c, c.example())
    device = "cuda" if torch.cuda.is_available() else "meta"
    try:
        moved = copy.deepcopy(c.network).to(device)(c.example().to(device))
    except NotImplementedError as e:
        # The network reads values, which the meta device does not have.
        raise NotApplicable(f"there is no GPU, and {e}") from None
    except RuntimeError as e:
        raise AssertionError(
            f"on {device}: {e}; register tensors as buffers or parameters"
        ) from None
    assert (moved.device.type, moved.shape) == (device, before.shape), (
        f"expected logits {tuple(before.shape)} on {device}, "
        f"got {tuple(moved.shape)} on {moved.device}"
    )
    if device == "cuda":
        c.move(device)
    c.move("cpu")
    assert torch.equal(logits(c, c.example()), before), (
        "after a move to another device and back it gives other logits"
    )


def list_checks() -> Iterator[ConformanceCheck]:
    """Yield every check of a classifier, those of embeddings last."""
    yield from checks_defined_in(sys.modules[__name__], embedding_checks)
