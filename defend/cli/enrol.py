"""defend enrol: give a face classifier the people of another data set, without training."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from defend.cli.common import UserPath, data_root_option, device_option
from defend.cli.train import check_output, default_path, make_header
from defend.errors import BadParameter, MissingData
from defend.spec import parse_single

if TYPE_CHECKING:
    from torch import Tensor

    from defend.dataset import Dataset
    from defend.embedding import EmbeddingClassifier


@click.command("enrol")
@click.argument("spec")
@click.option("--dataset", required=True, metavar="SPEC", help="The data set with the people.")
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="The file to write. Default: COMPONENT-DATASET.safetensors in this folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@device_option
@data_root_option
def enrol(
    spec: str,
    dataset: str,
    out: Path | None,
    overwrite: bool,
    device: str,
    data_root: str | None,
) -> None:
    """Enrol the people of a data set in a face classifier, and write its weights.

    SPEC is a classifier with embeddings, as in face-resnet:weights=FILE. The centre of each person
    is the mean of the embeddings of the training pictures. Nothing is trained.
    """
    bare, _ = parse_single(spec, "classifier").without("weights")
    out = out or default_path(bare, dataset)
    check_output(out, overwrite)
    from defend.loading import load, pick_device  # loads torch, so only after the options are read
    from defend.training.store import store_weights

    data: Dataset = load(dataset, "dataset", **({"root": data_root} if data_root else {}))
    trained = load_embedding_classifier(spec, pick_device(device))
    check_pictures_fit(trained, data, spec, dataset)
    enrolled = trained.enrol(*read_split(data, "train"), data.names)
    command = shlex.join(
        ["defend", "enrol", spec, "--dataset", dataset, "--out", out.name],
    )
    header = make_header(enrolled, "classifier", data, _with_training(trained, command), {})
    seed = trained.file.header.seed if trained.file else 0
    measured = read_split(data, "val" if data.count("val") else "train")
    summary = store_weights(enrolled, measured, out, replace(header, seed=seed), False)
    click.echo(f"wrote {out}: {summary}, {enrolled.classes} people enrolled", err=True)


def load_embedding_classifier(spec: str, device: object) -> EmbeddingClassifier:
    """Return the classifier of a spec. Raises BadParameter if it has no embeddings."""
    from defend.embedding import EmbeddingClassifier
    from defend.loading import load

    classifier = load(spec, "classifier", device=device)  # type: ignore[arg-type]
    if not isinstance(classifier, EmbeddingClassifier):
        raise BadParameter(
            f"enrol: expected a classifier with embeddings, got {spec}, which has none; give"
            " face-resnet or facenet with weights"
        )
    return classifier


def check_pictures_fit(
    classifier: EmbeddingClassifier, data: Dataset, spec: str, dataset: str
) -> None:
    """Raise BadParameter for images of another shape, MissingData for no training images."""
    expected, received = (classifier.channels, classifier.size), (data.channels, data.size)
    if expected != received:
        raise BadParameter(
            f"enrol: {spec} takes {expected[0]}x{expected[1]}x{expected[1]} images, {dataset} has"
            f" {received[0]}x{received[1]}x{received[1]}; set channels and size in --dataset, as in"
            f" size={expected[1]}"
        )
    if not data.count("train"):
        raise MissingData(
            f"enrol: expected training pictures in {dataset}, got none; add pictures of each person"
        )


def read_split(data: Dataset, split: str) -> tuple[Tensor, Tensor]:
    """Return all images and labels of a split."""
    return data.rows(split, 0, data.count(split))  # type: ignore[arg-type]


def _with_training(trained: EmbeddingClassifier, command: str) -> str:
    """Return the command, behind the one that trained the network if it is known."""
    if trained.file is None:
        return command
    return f"{trained.file.header.command} && {command}"
