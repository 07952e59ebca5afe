"""Claims that a choice of images or of eps could make, and what is said of them."""

import numpy as np
import pytest
import torch
from made_runs import (
    EVEN,
    cell,
    change_all,
    change_where,
    claim_line,
    complete,
    keep,
    missing_codes,
    printed,
    sample_of,
)
from test_result_pages import load_script
from torch import nn

import defend
from defend import ArrayDataset, DatasetCard
from defend.datasets.cifar10 import Cifar10
from defend.datasets.digits import Digits
from defend.datasets.digits_m import DigitsM
from defend.datasets.faces import Faces
from defend.datasets.fashion_mnist import FashionMNIST
from defend.datasets.kodak import Kodak
from defend.datasets.mnist import MNIST
from defend.protocols.standard_eps import STANDARD_EPS, is_standard_eps
from defend.record_parts import ImageSample
from defend.records import read_records
from defend.registry import REGISTRY
from defend.results import table
from defend.results.claim_text import format_claim
from defend.results.report import write_report
from defend.results.verify import verify_run
from defend.stats import wilson

REPEATS = ("sample", "distinct_images", "clusters", "classes", "class_shares")


def asked_of_images(records):
    """Return what of the images keeps the records from a claim."""
    return [code for code in missing_codes(records) if code in REPEATS]


# Real images, through the bench.


class Images(ArrayDataset):
    """One image of 8x8 pixels in some versions, with a claim eps of its own."""

    card = DatasetCard(source="none: synthetic", licence="MIT", claim={"Linf": 0.001})
    channels, size, names = 1, 8, ("dark", "bright")
    n: int = 1000
    far: bool = False  # True: each image is another one
    levels: int = 0  # of noise on each image
    second: int = 0  # of every so many images one is of the second class; 0: none

    def arrays(self, split):
        rng = np.random.default_rng(("train", "val", "test").index(split))
        image = np.random.default_rng(0).integers(40, 200, (1, 1, 8, 8))
        x = np.repeat(image, self.n, 0) + rng.integers(0, self.levels + 1, (self.n, 1, 8, 8))
        if self.far:
            x = rng.integers(0, 256, (self.n, 1, 8, 8))
        every = 2 if split == "train" else self.second
        y = np.arange(self.n) % every == 0 if every else np.zeros(self.n)
        return x.astype(np.uint8), y.astype(np.int64)


class Constant(nn.Module):
    """The first class, for nearly every image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 2)

    def forward(self, x):
        return self.layer(x.flatten(1)) + torch.tensor([3.0, -3.0])


def bench(out, **fields):
    """Return the record of one weak attack on a data set of a plugin."""
    keys = {"classifiers": [Constant()], "defenses": ["none"], "attacks": ["fgsm"]}
    data = Images(**fields)
    (record,) = defend.bench(
        dataset=data, knowledge="oblivious", n=data.n, out=out, workers=1, **keys
    )
    return record


@pytest.mark.parametrize(
    ("fields", "missing", "things"),
    [
        ({}, ["distinct_images", "clusters", "classes"], 1),
        ({"second": 2}, ["distinct_images", "clusters", "classes"], 1),
        ({"levels": 3, "second": 2}, ["clusters", "classes"], 1),
        ({"far": True}, ["classes", "class_shares"], 1000),
        ({"far": True, "second": 100}, ["class_shares"], 1000),
        ({"far": True, "second": 2}, [], 1000),
        ({"n": 100}, ["distinct_images", "clusters", "classes"], 1),
        ({"n": 100, "far": True, "second": 2}, [], 100),
    ],
)
def test_what_the_images_of_a_plugin_lack(tmp_path, fields, missing, things):
    record = bench(tmp_path, **fields)
    assert asked_of_images([record]) == missing
    assert record.distinct_images == things
    if not fields:
        assert record.clean_accuracy == record.robust_accuracy == 1
        assert (record.ci_low, record.ci_high) == wilson(1, 1)
    assert read_records(tmp_path) == [record]


def test_the_thousandfold_image_gets_no_claim_though_every_attack_was_run(tmp_path):
    """The ladder is made by hand, its images are those of the bench."""
    real = bench(tmp_path)
    ladder = change_where(complete(), lambda r: r.eps != 1, eps=0.001, eps_text="0.001")
    of_images = {
        "dataset": real.dataset,
        "claim_eps": 0.001,
        "sample": real.sample,
        "distinct_images": real.distinct_images,
    }
    gamed = change_all(ladder, **of_images)
    assert claim_line(gamed) == (
        "no claim (missing: 1,000 distinct images, 500 images that are no near copies of each"
        " other, images of at least 2 classes)"
    )
    honest = change_all(gamed, claim_eps=0.001, sample=sample_of(1000, 1000), distinct_images=1000)
    assert claim_line(honest).startswith("claim at a non-standard eps: ladder-1, ")


def test_a_thousand_images_of_digits_m_are_575_digits(tmp_path):
    """The record, the table and the units agree on the interval over digits."""
    keys = {"classifiers": ["lenet"], "defenses": ["none"], "attacks": ["fgsm"], "eps": "2/255"}
    (record,) = defend.bench(
        dataset="digits-m", knowledge="oblivious", n=1000, out=tmp_path, workers=1, **keys
    )
    assert (record.n, record.distinct_images, record.sample.distinct) == (1000, 575, 1000)
    assert record.sample.copies == ((575, 1000, 0),)
    assert (record.ci_low, record.ci_high) == wilson(575 * record.robust_accuracy, 575)
    number = table([record], [tmp_path]).rows[0].numbers["oblivious"]
    assert (number.value, number.low) == (record.robust_accuracy, record.ci_low)
    assert asked_of_images([record]) == []
    assert not verify_run(tmp_path).problems


# What is asked of the images, on a whole ladder.


def classes(**changes):
    return sample_of(1000, 1000, EVEN.model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, []),
        ({"sample": None}, ["sample"]),
        ({"sample": ImageSample(distinct=999, classes=EVEN)}, ["distinct_images"]),
        ({"distinct_images": 499}, ["clusters"]),
        ({"distinct_images": 500}, []),
        ({"sample": classes(present=1)}, ["classes"]),
        ({"sample": classes(present=2)}, []),
        ({"sample": ImageSample(distinct=1000)}, ["classes"]),
        ({"sample": classes(p=0.0009)}, ["class_shares"]),
        ({"sample": classes(p=0.001)}, []),
        ({"n": 2000, "sample": ImageSample(distinct=1000, classes=EVEN)}, []),
        ({"n": 200, "sample": sample_of(200, 200)}, ["images"]),
        ({"n": 200, "distinct_images": 99}, ["images", "clusters"]),
    ],
)
def test_each_condition_on_the_images_is_needed(changes, missing):
    assert missing_codes(change_all(complete(), **changes)) == missing


def test_one_cell_on_other_images_is_enough_to_take_a_claim_away():
    first, *rest = complete()
    (old,) = change_all([first], sample=None)
    assert missing_codes([old, *rest]) == ["sample"]


def test_records_of_older_versions_are_read_and_said_to_lack_the_count(tmp_path):
    records = change_all(complete(), sample=None)
    line = "no claim (missing: a count of its distinct images (older records lack it: run"
    assert claim_line(records).startswith(line)
    fields = [r.model_dump(mode="json") for r in records]
    assert all(row.pop("sample", "absent") is None for row in fields)
    folder = keep(tmp_path, records)
    assert read_records(folder) == records and records[0].clusters is None


def test_defenses_are_compared_over_things_not_images(tmp_path):
    """Ten digits of 575 are broken by one side alone; all thousand images made it twenty."""
    wrong = np.ones(1000)
    wrong[[*range(10), *range(575, 585)]] = 0
    cells = [
        cell(tmp_path, score, defense=name, shard=500)
        for name, score in (("median", wrong), ("jpeg", np.ones(1000)))
    ]
    (pair,) = table(cells, [tmp_path]).comparisons
    assert pair.p == pytest.approx(2 * 0.5**10) and pair.test == "McNemar, exact"
    assert abs(pair.difference) == pytest.approx(10 / 575)


# The eps of a claim.

CARDS = {
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "cifar10": Cifar10,
    "digits": Digits,
    "digits-m": DigitsM,
    "faces": Faces,
    "kodak": Kodak,
}


def test_the_table_of_standard_eps_is_that_of_the_cards():
    """A card that is changed alone would move what claims are compared at."""
    of_cards = {
        (name, norm): eps for name, d in CARDS.items() for norm, eps in d.card.claim.items()
    }
    assert of_cards == pytest.approx(dict(STANDARD_EPS))
    own = {e.name for e in REGISTRY.entries("dataset") if e.full_name.startswith("defend/")}
    assert own == CARDS.keys() | {"image-folder", "identity-folder"}


@pytest.mark.parametrize(
    ("dataset", "norm", "eps", "is_standard"),
    [
        ("mnist", "Linf", 0.3, True),
        ("defend/mnist", "Linf", 0.3, True),
        ("mnist", "Linf", 0.1, False),
        ("mnist", "L2", 0.3, False),
        ("cifar10", "Linf", 0.031372549, True),
        ("cifar10", "L2", 0.5, True),
        ("cifar10", "L2", 0.25, False),
        ("plugin/mnist", "Linf", 0.3, False),
        ("object/MNIST-0123", "Linf", 0.3, False),
        ("./mine.py:mnist", "Linf", 0.3, False),
        ("image-folder:path=mnist", "Linf", 0.3, False),
    ],
)
def test_which_eps_is_the_fields(dataset, norm, eps, is_standard):
    assert is_standard_eps(dataset, norm, eps) is is_standard


def at_eps(eps, **changes):
    ladder = change_where(complete(), lambda r: r.eps != 1, eps=eps, eps_text=f"{eps:g}")
    return change_all(ladder, claim_eps=eps, **changes)


@pytest.mark.parametrize(
    ("dataset", "eps", "title"),
    [
        ("mnist", 0.3, "claim"),
        ("mnist", 0.001, "claim at a non-standard eps"),
        ("plugin/mnist", 0.3, "claim at a non-standard eps"),
    ],
)
def test_a_claim_at_an_eps_of_its_own_is_named_so_and_never_bold(tmp_path, dataset, eps, title):
    records = at_eps(eps, dataset=dataset)
    (claim,) = table(records).claims
    assert claim.stands and claim.ranks == (title == "claim")
    assert format_claim(claim).startswith(f"{title}: ladder-1, ")
    assert f"at Linf eps {eps:g}" in format_claim(claim)
    page = load_script("ladder_page")
    folder = keep(tmp_path / "run", records)
    (row,), _ = page.read_run(folder)
    line = page.format_row(row)
    assert ("**" in line) == (title == "claim")
    assert line.endswith(f"| {title}: ladder-1, Linf {eps:g} |")
    assert ("at a non-standard eps [a]" in printed(records)) == (title != "claim")
    write_report([folder], records=records)
    assert f">{title}&nbsp;[a]</a>" in (folder / "report.html").read_text()
