"""Tables of tiny real runs: facts, flags, queries and signs of the records that the bench makes."""

import pytest
from made_runs import claim_line, missing_codes, printed

import defend
from defend.records import Flag, FlagCode
from defend.results.candidates import worst_outcomes
from defend.results.outcomes import read_outcomes
from defend.stats import interval

SUITE = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "eps": "0.2",
    "n": 48,
    "shard": 24,
    "draws": 5,
}
EOT_FLAGS = {FlagCode.GRADIENT_OF_ONE_DRAW, FlagCode.SCORES_OF_ONE_DRAW}


def run(folder, **keys):
    return defend.bench(SUITE | keys, out=folder, workers=1)


def codes_of(record):
    return {flag.code for flag in record.flags}


def test_a_record_holds_the_facts_of_the_data_sets_card(tmp_path):
    keys = {"defenses": ["none"], "attacks": ["fgsm"], "knowledge": "oblivious", "n": 8}
    (record,) = run(tmp_path, **keys)
    assert (record.images, record.classes, record.distinct_images) == (575, 10, 8)
    assert record.claim_eps == pytest.approx(0.2)
    assert "images" in missing_codes([record])
    line = " ".join(printed([record]).split())
    assert "none is possible on digits, whose test split has 575 images" in line
    assert "-n 1000" not in line


def test_queries_are_noted_and_printed(tmp_path):
    (record,) = run(tmp_path, defenses=["none"], attacks=["square:queries=100"])
    accuracy = record.robust_accuracy
    assert record.accuracy_after == {"100": accuracy, "1000": None, "5000": None}
    line = f"none, square:queries=100, query, eps 0.2: {100 * accuracy:.1f} % after 100\n"
    assert line in printed([record], [tmp_path])
    assert record.has_flag(FlagCode.UNCONVERGED)  # a hundred queries are too few


@pytest.mark.parametrize(("knowledge", "is_noted"), [("query", True), ("oblivious", False)])
def test_queries_are_told_of_the_pipeline_that_is_scored(tmp_path, knowledge, is_noted):
    keys = {"defenses": ["median"], "attacks": ["square:queries=30"], "knowledge": knowledge}
    (record,) = run(tmp_path, **keys)
    assert (record.accuracy_after is not None) is is_noted


WITHOUT_EOT = {
    "adaptive": {"attacks": ["fgsm"], "gradients": ["declared"]},
    "query": {"attacks": ["square:queries=3"]},
}


@pytest.mark.parametrize("knowledge", WITHOUT_EOT)
def test_a_randomised_purifier_without_eot_is_flagged(tmp_path, knowledge):
    keys = {"defenses": ["gaussian"], "knowledge": knowledge} | WITHOUT_EOT[knowledge]
    (single,) = run(tmp_path, eot=1, **keys)
    (averaged,) = run(tmp_path, eot=2, **keys)
    assert codes_of(single) & EOT_FLAGS and not codes_of(averaged) & EOT_FLAGS
    sign = "randomised, and attacked without EOT"
    assert (sign in claim_line([single])) == (knowledge == "adaptive")
    assert "without EOT" not in claim_line([averaged])


def test_a_value_that_is_not_finite_is_null_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("defend.benchmarks.make_record._gradient_error", lambda *_: float("nan"))
    keys = {"defenses": ["none"], "attacks": ["fgsm"], "knowledge": "oblivious", "n": 8}
    (record,) = run(tmp_path, **keys)
    assert record.error is None and record.gradient_error is None
    assert Flag(code=FlagCode.NOT_FINITE, value="gradient_error") in record.flags


@pytest.mark.usefixtures("plugin")
def test_a_masked_purifier_is_told_by_the_protocols_signs(tmp_path):
    """The purifier claims an exact gradient and has none: the declared gradient alone is attacked,
    it is zero, images survive at eps 1, and a black box does better.
    """
    attacks = ["pgd", "pgd:eps=1,random_start=false,steps=20", "square:queries=300"]
    records = run(
        tmp_path,
        defenses=["detached"],
        gradients=["declared"],
        eps=None,
        attacks=attacks,
        knowledge=["adaptive", "query"],
    )
    assert not any(r.failed for r in records)
    line = claim_line(records, [tmp_path])
    for sentence in (
        "declared gradient alone",
        "vanishes or is undefined on 100.0 %",
        "PGD at eps 1 from the clean image leaves",
        "black box beats white box: square",
    ):
        assert sentence in line


def test_null_attacks_leave_the_worst_case_where_it_was(tmp_path):
    null = ["control:draw=0,kind=clean", *(f"control:draw={i}" for i in range(9))]
    records = run(
        tmp_path,
        defenses=["gaussian:sigma=0.2"],
        eot=2,
        gradients=["identity"],
        attacks=["pgd:steps=5", *null],
        eps="0.05",
    )
    outcomes = [read_outcomes(r, [tmp_path]) for r in records if r.knowledge != "oblivious"]
    alone, beside = worst_outcomes(outcomes[:1]), worst_outcomes(outcomes)
    low, high = interval(alone)
    assert len(outcomes) == 11
    assert abs(beside.mean() - alone.mean()) <= (high - low) / 2
