"""Which images show the same thing, and what is made of their outcomes."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

import defend
from defend.benchmarks.describe_images import ImageDescriber, judge_classes
from defend.benchmarks.near_copies import NEAR, CopyFinder, list_runs
from defend.dataset import Dataset
from defend.protocols.images import LEAST_P
from defend.record_parts import ImageSample
from defend.stats import compare, interval, per_cluster, wilson
from defend.tasks.registry import load_task


def photographs(n, side=32, channels=3, seed=0):
    """Return n images of noise, which are far from each other."""
    levels = torch.randint(0, 256, (n, channels, side, side), generator=generator(seed))
    return levels / 255


def generator(seed):
    return torch.Generator().manual_seed(seed)


def firsts_of(*ranges, period=None):
    finder = CopyFinder()
    for images in ranges:
        finder.add(images)
    return finder.first_of_cluster(period).tolist()


# Copies.


def brighter(x, levels):
    """Return images that are so many grey levels away in each pixel, and stay in [0, 1]."""
    return torch.where(x < 0.5, x + levels / 255, x - levels / 255)


def one_white_pixel(x):
    changed = x.clone()
    changed[:, :, 3, 4] = 1.0
    return changed


@pytest.mark.parametrize(
    ("change", "is_copy"),
    [
        (lambda x: x, True),
        (lambda x: brighter(x, 1), True),
        (lambda x: brighter(x, 7), True),
        (one_white_pixel, True),
        (lambda x: brighter(x, 9), False),
        (lambda x: x.flip(3), False),
        (lambda x: 1 - x, False),
    ],
)
def test_copies_and_near_copies_are_one_thing(change, is_copy):
    x = photographs(4)
    firsts = [0, 1, 2, 3]
    assert firsts_of(x, change(x)) == firsts + (firsts if is_copy else [4, 5, 6, 7])


def test_the_ranges_in_which_images_come_do_not_matter():
    x = photographs(6)
    images = torch.cat([x, brighter(x[1:3], 3), x[:1]])
    expected = [0, 1, 2, 3, 4, 5, 1, 2, 0]
    for size in (1, 2, 4, 9):
        assert firsts_of(*images.split(size)) == expected


def test_a_chain_of_near_copies_is_one_thing():
    """The ends of the chain are 20 levels apart, and each link 5."""
    x = torch.full((1, 1, 8, 8), 0.5)
    chain = torch.cat([x + 5 * k / 255 for k in range(5)])
    assert firsts_of(chain) == [0] * 5
    assert firsts_of(chain[::2]) == [0, 1, 2]


def test_the_distance_is_a_root_mean_square_over_the_pixels():
    x = torch.zeros(1, 1, 16, 16)
    near, far = x.clone(), x.clone()
    near[..., 0, 0] = 0.99 * NEAR * 16
    far[..., 0, 0] = 1.01 * NEAR * 16
    assert firsts_of(x, near) == [0, 0] and firsts_of(x, far) == [0, 1]


def test_large_images_are_compared_when_they_are_small():
    """Single pixels of a photograph are averaged away; images of two sizes are no copies."""
    x = photographs(3, side=100)
    flat = torch.full((1, 3, 100, 100), 0.5)
    speckled = flat.clone()
    speckled[..., ::50, ::50] = 1.0
    assert firsts_of(x, x, flat, speckled) == [0, 1, 2, 0, 1, 2, 6, 6]
    assert firsts_of(flat, torch.full((1, 3, 64, 100), 0.5)) == [0, 1]


def test_what_the_card_says_is_joined_with_what_the_pixels_say():
    x = photographs(5)
    assert firsts_of(x, period=2) == [0, 1, 0, 1, 0]
    # Image 1 is image 0 again, so that all five show one thing.
    assert firsts_of(torch.cat([x[:1], x[:1], x[2:]]), period=2) == [0] * 5


@pytest.mark.parametrize(
    ("dataset", "n", "distinct", "things"),
    [("digits-m", 1000, 1000, 575), ("digits-m", 575, 575, 575), ("digits", 575, 575, 575)],
)
def test_the_things_of_a_data_set(dataset, n, distinct, things):
    data = defend.load(dataset, "dataset")
    describer = ImageDescriber()
    describer.add(*data.rows("test", 0, n))
    described = describer.describe(data, "test", has_claims=True)
    assert (described.sample.distinct, described.clusters) == (distinct, things)
    assert described.sample.classes.present == 10
    assert described.sample.classes.p > 0.01


@pytest.mark.parametrize(
    ("firsts", "runs"),
    [
        ([0, 1, 2], ()),
        ([0, 0, 0, 0], ((1, 4, 0),)),
        ([0, 1, 0, 1, 0], ((2, 5, 0),)),
        ([0, 1, 2, 3, 1, 2], ((4, 6, 1),)),
        ([0, 1, 0, 3, 0, 3], ((2, 3, 0), (4, 5, 0), (5, 6, 3))),
    ],
)
def test_a_record_holds_copies_as_runs(firsts, runs):
    assert list_runs(np.array(firsts)) == runs
    ids = ImageSample(distinct=1, copies=runs).clusters(len(firsts))
    assert (list(range(len(firsts))) if ids is None else ids.tolist()) == firsts


def test_any_copies_come_back_from_their_runs():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        firsts = np.arange(60)
        for i in range(1, 60):
            if rng.uniform() < 0.7:
                firsts[i] = firsts[rng.integers(i)]
        sample = ImageSample(distinct=1, copies=list_runs(firsts))
        assert np.array_equal(sample.clusters(60), firsts)
        assert np.array_equal(sample.clusters(10), firsts[:10])


@pytest.mark.parametrize("run", [(0, 4, 0), (3, 3, 0), (2, 4, -1), (2, 4, 3)])
def test_copies_of_no_earlier_image_are_refused(run):
    with pytest.raises(ValueError, match="images that show what earlier ones show"):
        ImageSample(distinct=1, copies=[run])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_labels_are_counted_alike_with_and_without_their_images(tmp_path, split):
    """The default reads images in ranges; arrays and folders know their labels."""
    for i in range(6):
        for name in ("cat", "dog")[: 1 + (i < 4)]:
            folder = tmp_path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    for spec in ("digits", f"image-folder:path={tmp_path},size=8"):
        data = defend.load(spec, "dataset")
        if split not in data.splits:
            continue
        counts = data.count_labels(split)
        assert counts == Dataset.count_labels(data, split)
        assert sum(counts) == data.count(split) and len(counts) == data.classes


# Intervals and tests.


def outcomes_of(k, draws, seed):
    rng = np.random.default_rng(seed)
    return (rng.uniform(size=(k, draws)) < rng.uniform(size=(k, 1))).astype(np.uint8)


@pytest.mark.parametrize("draws", [1, 5])
@pytest.mark.parametrize("copies", [2, 7])
def test_copies_of_images_give_the_interval_of_the_images(draws, copies):
    a, b = outcomes_of(40, draws, 0), outcomes_of(40, draws, 1)
    many_a, many_b = np.tile(a, (copies, 1)), np.tile(b, (copies, 1))
    clusters = np.tile(np.arange(40), copies)
    for name in ("classification", "reconstruction"):
        task = load_task(name)
        assert task.summarise(many_a, 0, clusters) == task.summarise(a, 0)
        assert task.compare(many_a, many_b, 0, clusters) == task.compare(a, b, 0)
        # What took copies for new images was too sure.
        one, wrong = task.summarise(a, 0), task.summarise(many_a, 0)
        assert wrong.high - wrong.low < 0.8 * (one.high - one.low)


def test_the_order_and_the_names_of_clusters_do_not_matter():
    a = outcomes_of(30, 1, 0)
    clusters = np.arange(30) % 12
    expected = interval(per_cluster(a, clusters))
    order = np.random.default_rng(0).permutation(30)
    assert interval(per_cluster(a[order], 90 - 7 * clusters[order])) == pytest.approx(expected)


def test_each_thing_counts_once_however_often_it_is_shown():
    """Nine hundred copies of a right image do not make a hundred wrong ones right."""
    scores = np.r_[np.ones(900), np.zeros(100)][:, None]
    clusters = np.r_[np.zeros(900), np.arange(1, 101)].astype(int)
    summary = load_task("classification").summarise(scores, 0, clusters)
    assert summary.value == pytest.approx(1 / 101)
    assert (summary.low, summary.high) == wilson(1, 101)


def test_images_of_one_thing_may_differ():
    shares = per_cluster([1, 0, 1, 1], [0, 0, 2, 3])
    assert shares.tolist() == [0.5, 1, 1]
    assert interval(shares[:, None]) == wilson(2.5, 3)
    assert compare(shares[:, None], shares[:, None]).test == "paired permutation"


def test_without_clusters_nothing_changes():
    a = outcomes_of(10, 3, 0)
    assert np.array_equal(per_cluster(a, None), a)
    with pytest.raises(ValueError, match="one cluster for each of 10 images, got 3"):
        per_cluster(a, [0, 1, 2])


def test_intervals_over_clusters_cover():
    """Of 60 things, each shown one to six times, copies being right or wrong together."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), rng.integers(1, 7, 60))
    task, p = load_task("classification"), 0.7
    covered, narrow = 0, 0
    for _ in range(1000):
        scores = (rng.uniform(size=60) < p)[clusters][:, None]
        over_things = task.summarise(scores, 0, clusters)
        over_images = task.summarise(scores, 0)
        covered += over_things.low <= p <= over_things.high
        narrow += over_images.low <= p <= over_images.high
    assert covered > 930 and narrow < 850


# Classes.


@pytest.mark.parametrize(
    ("counts", "training", "is_fair"),
    [
        ([100] * 10, [5000] * 10, True),
        ([140, *[95] * 9], [5000] * 10, False),
        ([120, *[98] * 9], [5000] * 10, True),
        ([140, *[95] * 9], [7000, *[4700] * 9], True),
        ([1000, 0], [500, 500], False),
        ([990, 10], [500, 500], False),
        ([990, 10], None, False),
        ([505, 495], None, True),
        ([10, 0, 0], None, False),
        ([4, 3, 3], None, True),
    ],
)
def test_a_class_above_its_share_in_training_is_told_from_chance(counts, training, is_fair):
    counts = np.array(counts)
    judged = judge_classes(counts, None if training is None else np.array(training))
    known = np.zeros(len(counts)) if training is None else np.array(training)
    shares = (known + 1) / (known + 1).sum()
    n = int(counts.sum())
    exact = [
        binomtest(int(k), n, q, alternative="greater").pvalue
        for k, q in zip(counts, shares, strict=True)
    ]
    assert judged.p == pytest.approx(min(1, len(counts) * min(exact)))
    assert judged.against == ("even" if training is None else "train")
    assert judged.present == (counts > 0).sum()
    assert (judged.p >= LEAST_P) == is_fair
    assert (judged.share, judged.expected) == (counts[judged.label] / n, shares[judged.label])


def test_images_drawn_as_in_training_are_rarely_accused():
    rng = np.random.default_rng(0)
    training = np.array([5000, 3000, 1500, 400, 100])
    accused = 0
    for _ in range(2000):
        counts = rng.multinomial(1000, training / training.sum())
        accused += judge_classes(counts, training).p < 0.01
    assert accused <= 40  # of 20 at most, on average
