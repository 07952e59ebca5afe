"""Scoring at a task that compares with clean outputs: what is purified, and on which noise."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from defend import Card, Purifier
from defend.benchmarks.no_classifier import NoClassifier
from defend.benchmarks.range_scores import RangeScores
from defend.benchmarks.scoring import SELECT_DRAWS, Scorer
from defend.benchmarks.stopwatch import Stopwatch
from defend.noise import Noise
from defend.tasks.registry import load_task
from defend.threat_models import Pipeline

N, DRAWS = 4, 3
X = torch.rand(N, 3, 6, 6, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
TASK = load_task("reconstruction")


class CountingNoise(Purifier):
    """Add noise that is far larger than the perturbation, and count the images of each call."""

    card = Card(paper="none: a test", gradient="exact", stochastic=True)

    def purify(self, x, noise):
        self.__dict__.setdefault("counts", []).append(len(x))
        return x + 0.2 * noise.uniform(x)


def make_scorer(purifier, **fields):
    return Scorer(
        purifier=purifier,
        network=NoClassifier().network,
        source=X,
        reference=X,
        noise=Noise.of(0, torch.arange(N)),
        draws=DRAWS,
        task=TASK,
        **fields,
    )


def score(scorer, batches, is_clean=False):
    return scorer.score(batches, Stopwatch(torch.device("cpu")), is_clean)


def adversarial(count):
    return [X + 0.001 * (i + 1) for i in range(count)]


@pytest.fixture
def purifier():
    return CountingNoise()


def images_purified(purifier):
    return sum(purifier.__dict__.pop("counts", []))


PER_VERSION = N * (DRAWS + SELECT_DRAWS)


@pytest.mark.parametrize("count", [1, 3])
def test_the_source_is_purified_once_for_each_draw_however_many_eps_there_are(purifier, count):
    scorer = make_scorer(purifier)
    score(scorer, adversarial(count))
    assert images_purified(purifier) == count * PER_VERSION + N * DRAWS
    score(scorer, adversarial(count))
    assert images_purified(purifier) == count * PER_VERSION, "another group of eps"


def test_after_the_clean_images_were_scored_the_source_is_not_purified_again(purifier):
    shared = {}
    score(make_scorer(purifier, clean_outputs=shared), [X], is_clean=True)
    assert images_purified(purifier) == PER_VERSION
    score(make_scorer(purifier, clean_outputs=shared), adversarial(2))
    assert images_purified(purifier) == 2 * PER_VERSION


@pytest.mark.parametrize("is_scored_before", [True, False])
def test_both_outputs_are_of_the_same_draw(purifier, is_scored_before):
    """R(x) = x + noise moves by the perturbation alone, whose index is 0 dB; another draw of noise
    would make it 38 dB.
    """
    scorer = make_scorer(purifier)
    if is_scored_before:
        score(scorer, [X], is_clean=True)
    for i, scores in enumerate(score(scorer, adversarial(3))):
        shift = scores.details["mse_shift"].numpy()
        assert shift.shape == (N, DRAWS)
        assert shift == pytest.approx(np.full((N, DRAWS), (0.001 * (i + 1)) ** 2), rel=1e-3)


def test_another_task_purifies_no_source(purifier):
    changes = {"task": load_task("identification"), "network": torch.nn.Flatten()}
    scorer = replace(make_scorer(purifier), reference=torch.zeros(N, dtype=torch.long), **changes)
    score(scorer, adversarial(2))
    assert images_purified(purifier) == 2 * PER_VERSION and not scorer.clean_outputs


def test_a_job_purifies_the_source_once_for_each_draw(purifier):
    components = SimpleNamespace(
        device=torch.device("cpu"),
        defense=lambda _: purifier,
        classifier=lambda _: NoClassifier(),
    )
    calibrations = SimpleNamespace(task_of=lambda _: TASK)
    pipeline = Pipeline(classifier="none", defense="noise")
    cell = SimpleNamespace(
        task=TASK,
        scored=pipeline,
        defense="noise",
        classifier="none",
        draws=DRAWS,
        split="test",
        seed=0,
        task_spec="reconstruction",
    )
    clean_cache = {}
    for job in range(2):  # of the second, the clean scores are known
        noise = Noise.of(0, torch.arange(N))
        scores = RangeScores(components, calibrations, clean_cache, X, X, noise, start=N)
        scores.score(cell, adversarial(2))
        scores.clean(cell)
        scores.score(cell, adversarial(1))
        source = PER_VERSION if job == 0 else N * DRAWS
        assert images_purified(purifier) == 3 * PER_VERSION + source
