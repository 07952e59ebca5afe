"""Under the table: the worst case over every attack and level, the control, pairs of purifiers."""

import json

import numpy as np
import pytest
from made_runs import DECLARED, LEARNED, RELAXED, cell, change_all, keep, printed, record

from defend.results import table
from defend.results.candidates import worst_outcomes
from defend.results.outcomes import read_outcomes
from defend.results.report import write_report
from defend.stats import wilson

# The probability that each image is right without an attack.
P = np.random.default_rng(1).uniform(0.3, 0.9, (300, 1))
NULL = {"knowledge": "query", "access": "labels"}


@pytest.mark.parametrize(
    ("defense", "speeds", "cost"),
    [
        ("median", (4000.0, 4000.0), 0.25),
        ("median", (1000.0, 2000.0), 0.75),  # 1 ms and 0.5 ms
        ("median", (1000.0, 9000.0), None),  # 1 ms and 0.11 ms: they differ by more than either
        ("none", (4000.0, 4000.0), None),
        ("none+none", (4000.0, 4000.0), None),
    ],
)
def test_a_cost_below_the_spread_of_its_measurements_is_not_printed(
    tmp_path, defense, speeds, cost
):
    attacks = zip(("pgd", "fgsm"), speeds, strict=True)
    records = [
        cell(tmp_path, [1, 1, 1, 0], attack=a, defense=defense, purify_images_per_second=speed)
        for a, speed in attacks
    ]
    (worst,) = table(records, [tmp_path]).sections[0].worst
    assert worst.purify_ms == cost
    assert ("purifying costs" in printed(records, [tmp_path])) is (cost is not None)


def test_the_worst_case_is_over_every_attack_and_level(tmp_path):
    records = [
        cell(tmp_path, [1, 1, 1, 0], knowledge="oblivious"),
        cell(tmp_path, [1, 1, 0, 1], attack="fgsm", **DECLARED),
        cell(tmp_path, [0, 1, 1, 1], attack="square", knowledge="query", access="scores"),
        cell(tmp_path, [0, 0, 0, 0], eps=0.5, **DECLARED),  # another eps
    ]
    (worst,) = table(records, [tmp_path]).sections[0].worst
    assert (worst.number.value, worst.candidates, worst.passes) == (0.25, 3, (60.0, 60.0))
    assert (worst.number.low, worst.number.high) == wilson(1, 4)
    assert worst.purify_ms == pytest.approx(0.25)
    assert (
        "median: 25.0 (4.6-69.9) of 100.0 clean at eps 16/255; 3 attacks, 60+60 passes;"
        " purifying costs 0.25 ms per image; [a]"
    ) in printed(records, [tmp_path])


def test_passes_of_units_that_two_cells_share_count_once(tmp_path):
    declared = cell(tmp_path, [1, 1, 1, 0], **DECLARED)
    alias = declared.replace(gradient="identity")
    other = cell(tmp_path, [1, 1, 1, 0], attack="fgsm", **DECLARED)
    (worst,) = table([declared, alias, other], [tmp_path]).sections[0].worst
    assert worst.passes == (40.0, 40.0)


def test_without_units_it_is_a_bound():
    (worst,) = table([record(100), record(50, **DECLARED)]).sections[0].worst
    assert (worst.number.value, worst.number.bound) == (0.25, True)
    assert table([record(100), record(50, defense="jpeg")]).comparisons == ()


def sample(rng, p, count):
    return (rng.uniform(size=(len(p), count)) < p).astype(np.uint8)


def noisy(folder, name, p, seed, **changes):
    """Return a cell of a stochastic purifier whose image i is right with probability p[i]."""
    rng, clean_rng = np.random.default_rng(seed), np.random.default_rng(0)
    return cell(
        folder,
        sample(rng, p, 20),
        select=sample(rng, p, 10),
        clean_select=sample(clean_rng, P, 10),
        clean=sample(clean_rng, P, 20),
        attack=name,
        shard=100,
        **changes,
    )


def test_ten_null_attacks_do_not_move_a_stochastic_worst_case_by_more_than_its_interval(tmp_path):
    attack = noisy(tmp_path, "pgd", 0.8 * P, 2, **DECLARED)
    null = [noisy(tmp_path, f"null:draw={i}", P, 3 + i, **NULL) for i in range(10)]
    (alone,) = table([attack], [tmp_path]).sections[0].worst
    (beside,) = table([attack, *null], [tmp_path]).sections[0].worst
    moved = abs(beside.number.value - alone.number.value)
    assert moved <= (alone.number.high - alone.number.low) / 2
    scores = [read_outcomes(r, [tmp_path]).score.mean(1) for r in [attack, *null]]
    # The minimum of the scores themselves would fall below the interval.
    assert np.minimum.reduce(scores).mean() < alone.number.low


def test_the_control_is_chosen_as_the_attacks_are_and_is_no_attack(tmp_path):
    attacks = [noisy(tmp_path, f"pgd:steps={i}", 0.8 * P, 20 + i, **DECLARED) for i in (1, 2, 3)]
    controls = [noisy(tmp_path, f"control:draw={i}", P, 30 + i, **NULL) for i in range(3)]
    model = table([*attacks, *controls], [tmp_path])
    (worst,) = model.sections[0].worst
    assert {row.attack for row in model.rows} == {"pgd:steps=1", "pgd:steps=2", "pgd:steps=3"}
    assert (worst.candidates, worst.controls) == (3, 3)
    control = worst_outcomes([read_outcomes(r, [tmp_path]) for r in controls])
    assert worst.control.value == pytest.approx(control.mean())
    score = worst_outcomes([read_outcomes(r, [tmp_path]) for r in attacks])
    assert worst.number.value == pytest.approx(score.mean())
    assert worst.all_draws == pytest.approx((score.min(1) == 1).mean())
    assert worst.majority == pytest.approx((score.mean(1) > 0.5).mean())
    text = " ".join(printed([*attacks, *controls], [tmp_path]).split())
    assert f"harmless control {100 * worst.control.value:.1f}" in text
    assert "(a 20 times dearer defense)" in text


def test_pairs_are_compared_on_the_same_images_with_holm_over_all(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = {
        "none": np.zeros(200),
        "jpeg": rng.uniform(size=200) < 0.5,
        "median": rng.uniform(size=200) < 0.5,
    }
    records = [
        cell(tmp_path, score, defense=defense, shard=100, **DECLARED)
        for defense, score in outcomes.items()
    ]
    pairs = table(records, [tmp_path]).comparisons
    assert [(pair.a, pair.b, pair.significant) for pair in pairs] == [
        ("none", "jpeg", True),
        ("none", "median", True),
        ("jpeg", "median", False),
    ]
    for pair in pairs:
        difference = outcomes[pair.a].mean() - outcomes[pair.b].mean()
        assert pair.difference == pytest.approx(difference)
        assert pair.low < pair.difference < pair.high
        assert pair.p <= pair.p_holm and pair.same_attacks
    text = printed(records, [tmp_path])
    assert "no significant difference" in text
    assert text.count("against median, eps 16/255") == 2


def test_a_pair_under_other_attacks_says_so(tmp_path):
    records = [
        cell(tmp_path, [1, 0, 1], defense="jpeg", **DECLARED),
        cell(tmp_path, [1, 1, 1], attack="fgsm", **DECLARED),
    ]
    assert "not under the same attacks" in printed(records, [tmp_path])


def test_without_a_purifier_the_learned_gradient_is_no_other_attack(tmp_path):
    records = [
        cell(tmp_path, [1, 0, 1], **DECLARED),
        cell(tmp_path, [1, 0, 1], **LEARNED),
        cell(tmp_path, [1, 1, 1], defense="none", **DECLARED),
    ]
    assert "not under the same attacks" not in printed(records, [tmp_path])
    other = [records[0], records[1], cell(tmp_path, [1, 1, 1], defense="jpeg", **DECLARED)]
    assert "not under the same attacks" in printed(other, [tmp_path])


def test_without_a_step_to_relax_the_relaxed_gradient_is_no_other_attack(tmp_path):
    """An approximate purifier that declares no relaxation was attacked otherwise."""
    rounded = [
        cell(tmp_path, [1, 0, 1], defense="jpeg", relaxation=True, **gradient)
        for gradient in (DECLARED, RELAXED)
    ]
    for relaxation, alike in ((None, True), (False, False)):
        other = cell(tmp_path, [1, 1, 1], relaxation=relaxation, **DECLARED)
        text = printed([*rounded, other], [tmp_path])
        assert ("not under the same attacks" not in text) is alike


def test_the_worst_case_is_at_the_claim_eps_not_at_the_check_of_eps_1(tmp_path):
    records = [
        cell(tmp_path, [1, 0], eps=eps, eps_text=str(eps), dataset="digits", **DECLARED)
        for eps in (0.1, 0.2, 0.3, 1.0)
    ]
    assert [w.eps for w in table(records, [tmp_path]).sections[0].worst] == [0.2]
    elsewhere = change_all(records, dataset="elsewhere")
    assert [w.eps for w in table(elsewhere, [tmp_path]).sections[0].worst] == [0.3]


def test_the_report_and_the_summary_hold_them(tmp_path):
    records = []
    for defense in ("jpeg", "median"):
        for level in (DECLARED, LEARNED):
            records.append(cell(tmp_path, [1, 0, 1], defense=defense, **level))
    page, _ = write_report([keep(tmp_path, records)], records=records)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [worst["defense"] for worst in summary["worst"]] == ["jpeg", "median"]
    assert [(c["a"], c["b"], c["significant"]) for c in summary["comparisons"]] == [
        ("jpeg", "median", False)
    ]
    text = page.read_text()
    for words in (
        "under the worst of 2 attacks on each image",
        "no significant difference",
        "ms/image",
    ):
        assert words in text
    assert "Why there is no claim" not in text
    alone = [cell(tmp_path, [1, 0, 1], **DECLARED)]
    assert "Why there is no claim" in write_report([tmp_path], tmp_path / "x", alone)[0].read_text()
