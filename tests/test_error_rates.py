"""Thresholds, ROC and equal error rate against closed forms; thresholds held in a bench run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench_suite import SMALL, without_times
from made_runs import printed
from scipy.stats import norm

import defend
from defend.cell_numbers.flags import _of_thresholds
from defend.loading import load
from defend.noise import Noise
from defend.records import Flag, FlagCode
from defend.tasks.error_rates import CURVE_FAR, Attempts, threshold_at
from defend.tasks.registry import load_task
from defend.tasks.task import Deployed
from defend.tasks.verification import FARS
from defend.unit_files import find_unit

NOISE = "gaussian:sigma=0.1"
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
    """It is Phi(-d / 2), and its error is half the sum of the errors of both rates."""
    n, m = 4000, 5
    value, low, high = gaussian_attempts(distance, n, m).equal_error_rate(seed=0)
    rate = norm.cdf(-distance / 2)
    error = np.sqrt(rate * (1 - rate) * (1 / n + 1 / (n * m))) / 2
    assert value == pytest.approx(rate, abs=4 * error) and 4 * error < rate / 2
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.3)


@pytest.mark.parametrize("far", CURVE_FAR)
def test_the_roc_of_two_normal_distributions(far):
    """The threshold has an error, too: a change of FAR moves TAR by the ratio of densities."""
    n, m, d = 20_000, 5, 2.0
    curve = dict(gaussian_attempts(d, n, m).curve())
    threshold = norm.isf(far)
    tar = norm.sf(threshold - d)
    slope = norm.pdf(threshold - d) / norm.pdf(threshold)
    error = np.sqrt(tar * (1 - tar) / n + slope**2 * far * (1 - far) / (n * m))
    assert curve[far] == pytest.approx(tar, abs=4 * error)


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


FEW_CODES = {
    "far_1": FlagCode.FEW_IMPOSTORS_AT_FAR_1,
    "far_01": FlagCode.FEW_IMPOSTORS_AT_FAR_01,
}


def test_a_threshold_that_rests_on_few_impostors_is_flagged_with_their_number(verified):
    """On digits that of FAR 1 % rests on tens of them, and that of .1 % on a few."""
    for record in verified:
        logits, y = val_scores(record.defense)
        impostors = logits[torch.arange(10) != y[:, None]].numpy()
        flags = {flag.code: flag.value for flag in record.flags}
        for name, far in FARS.items():
            count = (impostors > threshold_at(impostors, far)).sum()
            assert (count < 10) == (name == "far_01")
            assert flags.get(FEW_CODES[name]) == (count if count < 10 else None)


@pytest.mark.parametrize(("count", "is_flagged"), [(0, True), (9, True), (10, False)])
@pytest.mark.parametrize("name", FARS)
def test_ten_impostors_are_not_few(name, count, is_flagged):
    unit = SimpleNamespace(header={"accepted": {name: count}})
    expected = [Flag(code=FEW_CODES[name], value=count)] if is_flagged else []
    assert list(_of_thresholds([unit])) == expected
    assert list(_of_thresholds([SimpleNamespace(header={})])) == []  # of other tasks


@pytest.mark.parametrize(
    ("task", "attack", "is_flagged"),
    [
        ("verification", "apgd:steps=3", True),
        ("verification", "pgd:steps=3", False),
        ("identification", "apgd:steps=3", False),
        ("classification", "apgd:steps=3", False),
    ],
)
def test_an_attack_on_the_label_is_marked_where_the_task_asks_for_another_goal(
    task, attack, is_flagged, tmp_path
):
    suite = SMALL | {"defenses": ["none"], "eps": "0.2", "n": 16}
    suite |= {"task": task, "attacks": [attack]}
    records = defend.bench(suite, out=tmp_path, workers=1, device="cpu")
    assert [r.error for r in records] == [None] * len(records)
    assert {r.has_flag(FlagCode.LABEL_IS_NOT_THE_GOAL) for r in records} == {is_flagged}
    is_told = "makes the classifier lose the label, and not the claim" in printed(records)
    assert is_told == is_flagged


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


# Runs of both goals, behind noise, and by several processes.


GOALS = ["identification:goal=impersonation", "verification:goal=impersonation"]


@pytest.mark.parametrize("task", GOALS)
def test_impersonation_is_run_and_leads_to_the_target_of_each_image(task, tmp_path):
    """The score of the images that are kept in the unit file is computed again."""
    suite = SMALL | {"defenses": ["none"], "attacks": ["pgd:steps=10", "apgd"], "eps": "0.1,0.3"}
    records = defend.bench(suite | {"task": task}, out=tmp_path, workers=1, device="cpu")
    assert {r.attack_name for r in records} == {"pgd"}, "attacks on labels know no target"
    by_eps = {r.eps: r.robust_accuracy for r in records}
    assert 1 > by_eps[0.1] > by_eps[0.3], "more images are taken for their targets"
    goal, classifier = load_task(task), load("convnet", "classifier", "digits")
    x, y = load("digits", "dataset").rows("test", 0, 6)
    reference = goal.reference(x, y, 10)
    for record in records:
        unit = find_unit(record.units[0], [tmp_path])
        with torch.no_grad():
            logits = classifier.network(unit.tensors["sample_adv"].float())
        threshold = record.thresholds.get("far_1", logits.max(1).values - 1e-6)
        is_taken = logits.gather(1, reference[:, 1:])[:, 0] > threshold
        score = unit.tensors["score"][:6, 0]
        assert (score == (~is_taken).to(score.dtype)).sum() >= 5  # half precision may move one
        assert record.clean_accuracy > 0.9 and record.measures


@pytest.fixture(scope="module")
def behind_noise(tmp_path_factory):
    """Verification behind noise, by one process and by two."""
    suite = SMALL | {"task": "verification", "attacks": ["fgsm"], "defenses": [NOISE], "n": 32}
    folders = [tmp_path_factory.mktemp(f"workers{n}") for n in (1, 2)]
    runs = [
        defend.bench(suite, out=folder, workers=n, device="cpu")
        for n, folder in enumerate(folders, 1)
    ]
    return folders, runs


def test_thresholds_are_the_same_however_the_work_is_spread(behind_noise):
    """Each process calibrates for itself, and a unit holds the thresholds that it was scored by."""
    (_, folder), (alone, spread) = behind_noise
    assert without_times(spread) == without_times(alone)
    for record in spread:
        headers = [find_unit(key, [folder]).header for key in record.units]
        assert len(headers) == 2
        assert [header["thresholds"] for header in headers] == [dict(record.thresholds)] * 2


def test_thresholds_behind_noise_are_of_one_draw_of_each_val_image(behind_noise):
    data = load("digits", "dataset")
    x, y = data.rows("val", 0, data.count("val"))
    network = load("convnet", "classifier", "digits").network
    rows = torch.arange(len(y))
    purified = load(NOISE).purified(x, Noise.of(0, rows).fork("calibrate"))
    with torch.no_grad():
        impostors = network(purified)[torch.arange(10) != y[:, None]].numpy()
    for record in behind_noise[1][0]:
        for name, far in FARS.items():
            expected = threshold_at(impostors, far)
            assert record.thresholds[name] == pytest.approx(expected, abs=1e-4)
        assert record.draws == SMALL["draws"] and record.stochastic
        assert record.robust_accuracy <= record.clean_accuracy
    without = val_scores("none")[0][torch.arange(10) != y[:, None]].numpy()
    assert threshold_at(without, 0.01) != pytest.approx(threshold_at(impostors, 0.01), abs=1e-4)
