"""The conformance kit of classifiers with embeddings; for others its checks do not apply."""

from __future__ import annotations

from functools import partial

import torch

from defend.classifier import Classifier
from defend.embedding import EmbeddingClassifier
from defend.errors import BadParameter
from defend.testing.classifier_setup import logits, random_and_edge_images
from defend.testing.runner import NotApplicable, depends_on_weights, reads_only

PEOPLE = 3  # that are enrolled in a check


def embedding_classifier(c: Classifier) -> EmbeddingClassifier:
    """Return the classifier, if it has embeddings. Raise NotApplicable."""
    if not isinstance(c, EmbeddingClassifier):
        raise NotApplicable("it has no embeddings")
    return c


@depends_on_weights
@reads_only
def check_embeddings_have_length_one(c: Classifier) -> None:
    """Fail if embed(x) is not float32 (b, embedding), finite, with rows of length 1."""
    c = embedding_classifier(c)
    x = random_and_edge_images(c)
    with torch.no_grad():
        e = c.embed(x)
    assert (e.shape, e.dtype) == ((len(x), c.embedding), torch.float32), (
        f"expected embeddings float32 ({len(x)}, {c.embedding}), got {e.dtype} {tuple(e.shape)}"
    )
    lengths = e.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(len(x)), atol=1e-5), (
        f"expected embeddings of length 1, got lengths {float(lengths.min()):.3g} to"
        f" {float(lengths.max()):.3g}; normalise them"
    )


@depends_on_weights
@reads_only
def check_logits_are_scaled_cosines(c: Classifier) -> None:
    """Fail if the logits are not scale * cosine(embedding, centre): verification reads them so."""
    c = embedding_classifier(c)
    x = random_and_edge_images(c)
    with torch.no_grad():
        expected = c.scale * c.embed(x) @ c.gallery.T
    error = float((logits(c, x) - expected).abs().max())
    assert error <= 1e-4 * c.scale, (
        f"expected logits scale * embed(x) @ gallery.T, got a difference of {error:.2g} at"
        f" scale={c.scale:g}; leave the forward pass of EmbeddingNetwork as it is"
    )


@reads_only
def check_enrols_people(c: Classifier) -> None:
    """Fail if enrolled pictures are not identified, or if the classifier itself changes."""
    c = embedding_classifier(c)
    x, y = c.example(PEOPLE), torch.arange(PEOPLE)
    before = logits(c, x)
    enrolled = c.enrol(x, y)
    z = logits(enrolled, x)
    assert z.shape == (PEOPLE, PEOPLE), (
        f"expected a logit for each of {PEOPLE} people, got {tuple(z.shape)}"
    )
    assert torch.equal(z.argmax(1), y), (
        "a person's only picture is identified as another person; enrol must average embeddings"
    )
    assert torch.equal(logits(c, x), before), "enrol changed its classifier; it must return another"


@reads_only
def check_refuses_a_wrong_gallery(c: Classifier) -> None:
    """Fail if a gallery of another embedding size, or a person without a picture, is taken."""
    c = embedding_classifier(c)
    longer = torch.ones(PEOPLE, c.embedding + 1)
    with_gap = torch.arange(PEOPLE) * 2  # nobody is person 1
    refused = {
        "a gallery of another embedding size": partial(c.with_gallery, longer),
        "a person without a picture": partial(c.enrol, c.example(PEOPLE), with_gap),
    }
    for name, call in refused.items():
        try:
            call()
        except BadParameter:
            continue
        raise AssertionError(f"{name}: expected BadParameter, got a classifier")
