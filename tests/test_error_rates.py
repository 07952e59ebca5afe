"""Thresholds, ROC and equal error rate against closed forms; thresholds held in a bench run."""

import numpy as np
import pytest
import torch
from bench_suite import SMALL
from scipy.stats import norm

import defend
from defend.loading import load
from defend.tasks.error_rates import CURVE_FAR, Attempts, threshold_at
from defend.tasks.registry import load_task
from defend.tasks.task import Deployed
from defend.tasks.verification import FARS

RNG = np.random.default_rng(0)


def gaussian_attempts(distance, n=4000, m=5):
    """Return attempts whose scores are normal, genuine ones higher by `distance`."""
    return Attempts(RNG.normal(distance, 1, (n, 1)), RNG.normal(0, 1, (n, m)))


@pytest.mark.parametrize("far", [0.0, 0.001, 0.01, 0.1, 0.5])
def test_at_a_threshold_no_more_impostors_are_accepted_than_asked_for(far):
    scores = RNG.normal(size=997)
    threshold = threshold_at(scores, far)
    assert (scores > threshold).mean() <= far
    lower = np.sort(scores[scores < threshold])[-1]
    assert (scores > lower).mean() > far, "a lower threshold accepts too many"


def test_scores_that_are_equal_are_rejected_together():
    assert threshold_at(np.ones(100), 0.5) == 1.0
    with pytest.raises(ValueError, match="got none"):
        threshold_at(np.empty(0), 0.1)


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 4.0])
def test_the_equal_error_rate_of_two_normal_distributions(distance):
    """It is Phi(-d / 2)."""
    value, low, high = gaussian_attempts(distance).equal_error_rate(seed=0)
    assert value == pytest.approx(norm.cdf(-distance / 2), abs=0.02)
    assert low <= value <= high and high - low < 0.05


@pytest.mark.parametrize("far", CURVE_FAR)
def test_the_roc_of_two_normal_distributions(far):
    curve = dict(gaussian_attempts(2.0, n=20_000).curve())
    assert curve[far] == pytest.approx(norm.sf(norm.isf(far) - 2), abs=0.03)


def test_the_roc_rises_and_ends_of_the_equal_error_rate():
    tar = [point[1] for point in gaussian_attempts(1.0).curve()]
    assert tar == sorted(tar)
    apart = Attempts(np.full((9, 1), 2.0), np.zeros((9, 3)))
    assert apart.equal_error_rate(0) == (0.0, 0.0, 0.0)
    reversed_attempts = Attempts(np.zeros((9, 1)), np.full((9, 3), 2.0))
    assert reversed_attempts.equal_error_rate(0)[0] == 1.0
    same = Attempts(np.zeros((9, 1)), np.zeros((9, 3)))
    assert same.equal_error_rate(0)[0] == 0.5


def test_a_rising_function_of_the_scores_changes_nothing():
    attempts = gaussian_attempts(1.5, n=300)
    changed = Attempts(np.exp(3 * attempts.genuine) - 7, np.exp(3 * attempts.impostors) - 7)
    assert changed.curve() == attempts.curve()
    assert changed.equal_error_rate(0) == attempts.equal_error_rate(0)


def test_verification_needs_no_scale_of_the_scores():
    """Cosines times any scale and plus any offset give the same verdicts."""
    task = load_task("verification")
    logits, y = (
        torch.randn(200, 6, generator=torch.Generator().manual_seed(1)),
        torch.arange(200) % 6,
    )
    verdicts = task.calibrated(logits, y).score(logits, y)
    for a, b in ((16.0, 0.0), (0.5, 3.0)):
        assert torch.equal(task.calibrated(a * logits + b, y).score(a * logits + b, y), verdicts)


@pytest.mark.parametrize("spec", ["verification", "verification:goal=impersonation"])
def test_the_far_that_a_threshold_reaches_is_counted_on_the_scored_images(spec):
    """Impostors whose scores are higher than those of val by d are accepted at Phi(d - z)."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(1000, 1, 2, 2, generator=generator), torch.arange(1000) % 11
    val, scored = torch.randn(2, 1000, 11, generator=generator)
    reference = load_task(spec).reference(x, y, 11)
    task = load_task(spec).calibrated(val, reference)
    for d in (0.0, 1.0):
        deployed = Deployed(
            x=x,
            source=x,
            output=scored + d,
            clean_output=None,
            reference=reference,
            rate=None,
            is_clean=True,
        )
        details = {name: v[:, None].numpy() for name, v in task.details(deployed).items()}
        for name, far in FARS.items():
            measured = task.measure(details, details, 0)[f"{name}_reached"]
            expected = norm.sf(norm.isf(far) - d)
            error = 2 * np.sqrt(expected / 10_000)
            assert measured.value == pytest.approx(expected, abs=3 * error + 0.1 * expected)
            assert measured.low <= measured.value <= measured.high


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """A run of verification, and the same images without an attack."""
    folder = tmp_path_factory.mktemp("verified")
    suite = SMALL | {"task": "verification", "attacks": ["fgsm"], "defenses": ["none", "median"]}
    return defend.bench(suite, out=folder, workers=1, device="cpu")


def val_scores(defense):
    """Return the logits of all clean `val` images behind a defense, with their labels."""
    data = load("digits", "dataset")
    x, y = data.rows("val", 0, data.count("val"))
    purifier, classifier = load(defense), load("convnet", "classifier", "digits")
    with torch.no_grad():
        return classifier.network(purifier.purified(x)), y


@pytest.mark.parametrize("defense", ["none", "median"])
def test_thresholds_are_those_of_clean_val_images_behind_the_same_defense(verified, defense):
    logits, y = val_scores(defense)
    impostors = logits[torch.arange(10) != y[:, None]].numpy()
    for record in verified:
        if record.defense == defense:
            assert record.thresholds["far_1"] == pytest.approx(
                threshold_at(impostors, 0.01), abs=1e-4
            )
            assert (impostors > record.thresholds["far_1"] + 1e-4).mean() <= 0.01


def test_thresholds_are_held_under_attack_and_differ_between_defenses(verified):
    by_defense = {r.defense: r.thresholds["far_1"] for r in verified}
    for record in verified:
        assert record.thresholds["far_1"] == by_defense[record.defense]
    assert by_defense["none"] != by_defense["median"]


def test_a_verification_record_holds_its_measures(verified):
    for record in verified:
        names = {"strict", "clean_strict", "eer", "clean_eer", "far_1_reached", "far_01_reached"}
        assert set(record.measures) == names
        assert record.measures["far_01_reached"].value <= record.measures["far_1_reached"].value
        assert record.measures["strict"].value <= record.robust_accuracy
        assert record.measures["eer"].value >= record.measures["clean_eer"].value
        assert [far for far, _ in record.curve] == list(CURVE_FAR)
        assert record.robust_accuracy < record.clean_accuracy
