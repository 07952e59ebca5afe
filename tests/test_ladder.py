"""What ladder-1 asks for: each attack and each condition without which there is no claim."""

import pytest
from made_runs import (
    DECLARED,
    apgd,
    change,
    change_all,
    change_where,
    complete,
    eot_attacks,
    failed,
    missing_codes,
    record,
)

from defend.protocols import LADDER_1
from defend.results import table
from defend.results.claim_text import format_claim
from defend.stats import wilson


def is_at_eps_1(r):
    return r.eps == 1


def is_transfer(r):
    return r.knowledge == "transfer"


def test_nothing_is_missing_from_the_whole_ladder():
    assert missing_codes(complete()) == []
    mnist = change_all(complete(), dataset="mnist", eps_text="0.3")
    mnist = change_where(mnist, lambda r: not is_at_eps_1(r), eps=0.3)
    low, high = wilson(10, 1000)
    mnist = change_where(mnist, lambda r: not is_at_eps_1(r), ci_low=low, ci_high=high)
    assert (
        format_claim(table(mnist).rows[0].claim)
        == "claim: ladder-1, <= 1.0 % right (0.5 to 1.8) in the worst case at Linf eps 0.3"
        "; ladder-2 attacks further"
    )
    assert (
        format_claim(table(complete()).rows[0].claim)
        == "claim: ladder-1, <= 1.0 % right (0.5 to 2.2) in the worst case at Linf eps 16/255,"
        " over 575 things that 1,000 images show; ladder-2 attacks further"
    )


@pytest.mark.parametrize(
    ("dropped", "code"),
    [
        (0, "oblivious_apgd_ce"),
        (1, "oblivious_pgd"),
        (2, "adaptive_apgd_ce"),
        (7, "adaptive_apgd_dlr_targeted"),
        (8, "transfer"),
        (9, "transfer"),
        (10, "unbounded_pgd"),
        (13, "square"),
    ],
)
def test_each_attack_of_the_ladder_is_needed(dropped, code):
    records = complete()
    del records[dropped]
    assert missing_codes(records) == [code]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"eps": 8 / 255}, "claim_eps"),
        ({"n": 999}, "images"),
        ({"split": "val"}, "test_split"),
        ({"protocol": None}, "run_as_protocol"),
        ({"dataset": "nowhere"}, "claim_eps"),
    ],
)
def test_each_condition_of_the_ladder_is_needed(changes, code):
    def is_changed(r):
        return "eps" not in changes or not is_at_eps_1(r)

    assert missing_codes(change_where(complete(), is_changed, **changes)) == [code]


def test_a_failed_or_smaller_cell_is_no_evidence():
    *first, last = complete()
    assert missing_codes([*first, failed(attack="square", knowledge="query")]) == ["square"]
    assert missing_codes([*first, change(last, n=100)]) == ["square"]
    # More than is needed takes nothing away.
    assert missing_codes([*complete(), change(complete()[0], n=100)]) == []


@pytest.mark.parametrize(
    "surrogate",
    ["resnet20", "none+resnet20", "jpeg+resnet20", "median+jpeg+resnet20"],
)
def test_a_classifier_alone_or_another_purifier_is_no_pipeline_to_transfer_from(surrogate):
    records = change_where(complete(), is_transfer, surrogate=surrogate)
    assert missing_codes(records) == ["transfer"]


def test_no_purifier_and_other_settings_do_not_change_which_purifier_a_surrogate_has():
    surrogate = "none+median:size=2+resnet20"
    assert missing_codes(change_where(complete(), is_transfer, surrogate=surrogate)) == []


def test_a_stochastic_purifier_needs_more():
    stochastic = {"stochastic": True, "draws": 20}
    records = change_all(complete(), **stochastic)
    assert missing_codes(records) == ["pgd_eot", "apgd_eot", "square_eot"]
    averaged = change_all(eot_attacks(), **stochastic)
    assert missing_codes([*records, *averaged]) == []
    one_gradient = [r for r in averaged if r.gradient in (None, "declared")]
    assert missing_codes([*records, *one_gradient]) == ["pgd_eot", "apgd_eot"]


@pytest.mark.parametrize(
    ("weakened", "setting", "code"),
    [
        (0, {"steps": 5}, "oblivious_apgd_ce"),
        (3, {"steps": 5}, "adaptive_apgd_dlr_targeted"),
        (8, {"steps": 1}, "transfer"),
        (9, {"steps": 5}, "transfer"),
        (3, {"targets": 1}, "adaptive_apgd_dlr_targeted"),
    ],
)
def test_a_cheaper_attack_of_the_same_name_is_no_evidence(weakened, setting, code):
    records = complete()
    settings = {"attack": {**records[weakened].settings.attack, **setting}}
    records[weakened] = change(records[weakened], settings=settings)
    assert missing_codes(records) == [code]


def test_no_more_targets_are_needed_than_there_are_wrong_classes():
    records = []
    for r in complete():
        settings = {"attack": {**r.settings.attack, "targets": 3}}
        records.append(change(r, settings=settings, classes=4))
    assert missing_codes(records) == []
    assert "adaptive_apgd_dlr_targeted" in missing_codes(change_all(records, classes=5))


def test_the_conditions_of_a_claim_are_met_by_the_same_records():
    """A whole ladder on val, and beside it one weak cell on test at another eps, is no claim."""
    val = change_all(complete(), split="val")
    beside = record(990, attack="fgsm", n=1000, eps=0.01, **DECLARED)
    assert missing_codes([*val, beside])[-1] == "test_split"
    assert "test_split" in table([*val, beside]).rows[0].claim.missing
    one_of_val = [change(complete()[0], split="val"), *complete()[1:]]
    assert missing_codes(one_of_val) == ["oblivious_apgd_ce"]


def test_the_claim_is_of_one_defense_and_one_norm():
    jpeg = [
        change(r, defense="jpeg", surrogate=r.surrogate and "jpeg+resnet20") for r in complete()
    ]
    claims = {(row.defense, row.claim.stands) for row in table([*jpeg, *complete()[1:]]).rows}
    assert claims == {("jpeg", True), ("median", False)}
    assert not table(change_all(complete(), norm="L2")).rows[0].claim.stands


def test_a_claim_without_an_eps_in_the_record_is_none():
    assert apgd("oblivious", None, "ce").claim_eps == pytest.approx(16 / 255)
    unknown = change_all(complete(), claim_eps=None)
    assert missing_codes(unknown) == ["claim_eps"]


def test_requirements_have_codes_and_titles_of_their_own():
    requirements = LADDER_1.requirements
    assert len({q.code for q in requirements}) == len(requirements)
    assert len({q.title for q in requirements}) == len(requirements)
