"""Under the table: the worst case over every attack and level, pairs of purifiers, null attacks and the control."""

import json

import numpy as np
import pytest
from made_runs import DECLARED, LEARNED, cell, keep, printed, record

from defend.results import table
from defend.results.outcomes import Outcomes, read_outcomes, worst
from defend.results.report import write_report
from defend.stats import wilson


def test_the_worst_case_is_over_every_attack_and_level(tmp_path):
    records = [
        cell(tmp_path, [1, 1, 1, 0], knowledge="oblivious"),
        cell(tmp_path, [1, 1, 0, 1], attack="fgsm", **DECLARED),
        cell(tmp_path, [0, 1, 1, 1], attack="square", knowledge="query", access="scores"),
        cell(tmp_path, [0, 0, 0, 0], eps=0.5, **DECLARED),  # another eps
    ]
    (w,) = table(records, [tmp_path]).sections[0].worst
    assert (w.number.accuracy, w.candidates, w.passes) == (0.25, 3, (60.0, 60.0))
    assert (w.number.low, w.number.high) == wilson(1, 4)
    assert w.purify_ms == pytest.approx(0.25)
    said = "median: 25.0 (4.6-69.9) of 100.0 clean at eps 16/255; 3 attacks, 60+60 passes; purifying costs 0.25 ms per image; [a]"
    assert said in printed(records, [tmp_path])


def test_without_units_it_is_a_bound():
    (w,) = table([record(100), record(50, **DECLARED)]).sections[0].worst
    assert (w.number.accuracy, w.number.bound) == (0.25, True)
    assert table([record(100), record(50, defense="jpeg")]).comparisons == ()


def noisy(folder, name, p, seed, n=300, **over):
    """A cell of a stochastic purifier whose image i is right with probability p[i]."""
    rng = np.random.default_rng(seed)
    score, select = ((rng.uniform(size=(n, k)) < p).astype(np.uint8) for k in (20, 10))
    clean = np.random.default_rng(0)
    clean_select, clean_score = (
        (clean.uniform(size=(n, k)) < P).astype(np.uint8) for k in (10, 20)
    )
    return cell(
        folder,
        score,
        clean=clean_score,
        select=select,
        clean_select=clean_select,
        attack=name,
        shard=100,
        **over,
    )


P = np.random.default_rng(1).uniform(0.3, 0.9, (300, 1))


def test_ten_null_attacks_do_not_move_a_stochastic_worst_case_by_more_than_its_interval(tmp_path):
    attack = noisy(tmp_path, "pgd", 0.8 * P, 2, **DECLARED)
    null = [
        noisy(tmp_path, f"null:draw={i}", P, 3 + i, knowledge="query", access="labels")
        for i in range(10)
    ]
    (alone,), (beside,) = (
        table(records, [tmp_path]).sections[0].worst for records in ([attack], [attack, *null])
    )
    assert (
        abs(beside.number.accuracy - alone.number.accuracy)
        <= (alone.number.high - alone.number.low) / 2
    )
    naive = np.minimum.reduce(
        [read_outcomes(r, [tmp_path]).score.mean(1) for r in [attack, *null]]
    ).mean()
    assert naive < alone.number.low  # what the minimum of the scores themselves would say


@pytest.mark.parametrize("strength", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("count", [1, 10])
def test_null_attacks_do_not_help_the_defender_either(strength, count):
    """On bare shares of ten draws, many images would go to a null attack that came out low by chance."""
    rng = np.random.default_rng(5)
    p = rng.uniform(0.3, 0.9, (2000, 1))

    def drawn(q, name):
        score, select = ((rng.uniform(size=(2000, k)) < q).astype(np.uint8) for k in (20, 10))
        return Outcomes(
            score=score, select=select, clean_score=clean[0], clean_select=clean[1], x_adv=(name,)
        )

    clean = [(rng.uniform(size=(2000, k)) < p).astype(np.uint8) for k in (20, 10)]
    attack, null = drawn(strength * p, "attack"), [drawn(p, str(i)) for i in range(count)]
    assert worst([attack, *null]).mean() == pytest.approx(strength * p.mean(), abs=0.015)


def test_two_attacks_that_break_different_images_are_both_used_among_null_attacks():
    rng = np.random.default_rng(6)
    p, first = rng.uniform(0.5, 0.9, (2000, 1)), rng.uniform(size=(2000, 1)) < 0.5

    def drawn(q, name):
        score, select = ((rng.uniform(size=(2000, k)) < q).astype(np.uint8) for k in (20, 10))
        return Outcomes(
            score=score, select=select, clean_score=clean[0], clean_select=clean[1], x_adv=(name,)
        )

    clean = [(rng.uniform(size=(2000, k)) < p).astype(np.uint8) for k in (20, 10)]
    halves = [drawn(np.where(first == one, 0.1, p), str(one)) for one in (True, False)]
    assert worst([*halves, *(drawn(p, f"null{i}") for i in range(10))]).mean() == pytest.approx(
        0.1, abs=0.02
    )


def test_the_control_is_treated_as_the_attacks_are_and_is_no_attack(tmp_path):
    attacks = [noisy(tmp_path, f"pgd:steps={i}", 0.8 * P, 20 + i, **DECLARED) for i in range(1, 4)]
    controls = [
        noisy(tmp_path, f"control:draw={i}", P, 30 + i, knowledge="query", access="labels")
        for i in range(3)
    ]
    model = table([*attacks, *controls], [tmp_path])
    (w,) = model.sections[0].worst
    assert {row.attack for row in model.rows} == {"pgd:steps=1", "pgd:steps=2", "pgd:steps=3"}
    assert (w.candidates, w.controls) == (3, 3)
    expected = worst([read_outcomes(r, [tmp_path]) for r in controls])
    assert w.control.accuracy == pytest.approx(expected.mean())
    score = worst([read_outcomes(r, [tmp_path]) for r in attacks])
    assert w.number.accuracy == pytest.approx(score.mean())
    assert w.all_draws == pytest.approx((score.min(1) == 1).mean()) and w.majority == pytest.approx(
        (score.mean(1) > 0.5).mean()
    )
    text = " ".join(printed([*attacks, *controls], [tmp_path]).split())
    assert (
        f"harmless control {100 * w.control.accuracy:.1f}" in text
        and "(a 20 times dearer defense)" in text
    )


def test_pairs_are_compared_on_the_same_images_with_holm_over_all(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = {
        "none": np.zeros(200),
        "jpeg": rng.uniform(size=200) < 0.5,
        "median": rng.uniform(size=200) < 0.5,
    }
    records = [
        cell(tmp_path, score, defense=d, shard=100, **DECLARED) for d, score in outcomes.items()
    ]
    found = table(records, [tmp_path]).comparisons
    assert [(c.a, c.b, c.significant) for c in found] == [
        ("none", "jpeg", True),
        ("none", "median", True),
        ("jpeg", "median", False),
    ]
    for c in found:
        assert c.difference == pytest.approx(outcomes[c.a].mean() - outcomes[c.b].mean())
        assert c.low < c.difference < c.high and c.p <= c.p_holm and c.same_attacks
    text = printed(records, [tmp_path])
    assert "no significant difference" in text and text.count("against median, eps 16/255") == 2


def test_a_pair_under_other_attacks_says_so(tmp_path):
    records = [
        cell(tmp_path, [1, 0, 1], defense="jpeg", **DECLARED),
        cell(tmp_path, [1, 1, 1], attack="fgsm", **DECLARED),
    ]
    assert "not under the same attacks" in printed(records, [tmp_path])


def test_the_worst_case_is_at_the_claim_eps_not_at_the_check_of_eps_1(tmp_path):
    records = [
        cell(tmp_path, [1, 0], eps=e, eps_text=str(e), dataset="digits", **DECLARED)
        for e in (0.1, 0.2, 0.3, 1.0)
    ]
    assert [w.eps for w in table(records, [tmp_path]).sections[0].worst] == [0.2]
    others = [r | {"dataset": "elsewhere"} for r in records]
    assert [w.eps for w in table(others, [tmp_path]).sections[0].worst] == [0.3]


def test_the_report_and_the_summary_hold_them(tmp_path):
    records = [
        cell(tmp_path, [1, 0, 1], defense=d, **g)
        for d in ("jpeg", "median")
        for g in (DECLARED, LEARNED)
    ]
    page, _ = write_report([keep(tmp_path, records)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [w["defense"] for w in summary["worst"]] == ["jpeg", "median"]
    assert [(c["a"], c["b"], c["significant"]) for c in summary["comparisons"]] == [
        ("jpeg", "median", False)
    ]
    for said in (
        "over everything that was run",
        "no significant difference",
        "No claim survives",
        "ms/image",
    ):
        assert (said in page.read_text()) is (said != "No claim survives")
    lone = [cell(tmp_path, [1, 0, 1], **DECLARED)]
    assert "No claim survives" in write_report([tmp_path], tmp_path / "lone", lone)[0].read_text()
