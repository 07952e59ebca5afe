"""What ladder-1 asks for: each attack and each condition without which there is no claim."""

import pytest
from made_runs import (
    COMPLETE,
    DECLARED,
    IDENTITY,
    LEARNED,
    TRANSFER,
    apgd,
    complete,
    failed,
    record,
)

from defend.results import table
from defend.results.claims import LADDER_1, claim_eps, missing


def test_the_whole_ladder_misses_nothing():
    assert missing(complete()) == []
    elsewhere = [
        r | {"dataset": "mnist", "eps": 1.0 if r["eps"] == 1 else 0.3, "eps_text": "0.3"}
        for r in complete()
    ]
    assert (
        table(elsewhere).rows[0].claim
        == "claim: ladder-1, <= 1.0 % right (0.5 to 1.8) in the worst case at Linf eps 0.3"
    )
    wide = ", of 575 distinct images, so that the interval is too narrow by up to 1.36 times"
    assert (
        table(complete()).rows[0].claim
        == f"claim: ladder-1, <= 1.0 % right (0.5 to 1.8) in the worst case at Linf eps 16/255{wide}"
    )


@pytest.mark.parametrize(
    ("drop", "lacking"),
    [
        (0, ["oblivious APGD-CE"]),
        (1, ["oblivious PGD-40"]),
        (2, ["adaptive APGD-CE through every gradient"]),
        (7, ["adaptive targeted APGD-DLR through every gradient"]),
        (8, [TRANSFER]),
        (9, [TRANSFER]),
        (10, ["PGD at eps 1 from the clean image, through every gradient"]),
        (13, ["Square 5,000"]),
    ],
)
def test_each_attack_of_the_ladder_is_needed(drop, lacking):
    records = complete()
    del records[drop]
    assert missing(records) == lacking


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"eps": 8 / 255}, "claim eps"),
        ({"n": 999}, "n >= 1,000"),
        ({"split": "val"}, "test split"),
        ({"protocol": None}, "run as protocol ladder-1"),
        ({"dataset": "nowhere"}, "claim eps"),
    ],
)
def test_each_condition_of_the_ladder_is_needed(change, lacking):
    assert missing(
        [r if "eps" in change and r["eps"] == 1 else r | change for r in complete()]
    ) == [lacking]


def test_a_failed_or_smaller_cell_is_no_evidence():
    records = complete()
    broken = [*records[:-1], failed(attack="square", knowledge="query")]
    assert missing(broken) == ["Square 5,000"]
    small = [*records[:-1], records[-1] | {"n": 100}]
    assert missing(small) == ["Square 5,000"]
    assert (
        missing([*records, records[0] | {"n": 100}]) == []
    )  # more than is needed takes nothing away


def test_a_bare_classifier_is_no_pipeline_to_transfer_from():
    records = complete()
    for surrogate in (
        "resnet20",
        "none+resnet20",
        "jpeg+resnet20",
        "median+jpeg+resnet20",
    ):  # the last two: another purifier
        records[8:10] = [r | {"surrogate": surrogate} for r in records[8:10]]
        assert missing(records) == [TRANSFER]
    records[8:10] = [r | {"surrogate": "none+median:size=2+resnet20"} for r in records[8:10]]
    assert missing(records) == []


def test_stochastic_purifiers_owe_more():
    records = [r | {"stochastic": True, "draws": 20} for r in complete()]
    owed = ["PGD-EOT (200 steps x 20) through every gradient", "APGD-EOT through every gradient"]
    assert missing(records) == [*owed, "Square 1,000 x 20"]
    eot = [
        *(
            record(10, settings={"attack": {"steps": 200}}, eot=20, **g, **COMPLETE)
            for g in (DECLARED, IDENTITY, LEARNED)
        ),
        *(apgd("adaptive", g, "ce", eot=20) for g in ("declared", "identity", "learned")),
        record(
            10,
            attack="square",
            knowledge="query",
            settings={"attack": {"queries": 1000}},
            eot=20,
            **COMPLETE,
        ),
    ]
    assert missing([r | {"stochastic": True, "draws": 20} for r in [*records, *eot]]) == []
    one_gradient = [r for r in eot if r["gradient"] in (None, "declared")]
    assert (
        missing([r | {"stochastic": True, "draws": 20} for r in [*records, *one_gradient]]) == owed
    )


@pytest.mark.parametrize(
    ("drop", "setting", "lacking"),
    [
        (0, {"steps": 5}, "oblivious APGD-CE"),
        (3, {"steps": 5}, "adaptive targeted APGD-DLR through every gradient"),
        (8, {"steps": 1}, TRANSFER),
        (9, {"steps": 5}, TRANSFER),
        (3, {"targets": 1}, "adaptive targeted APGD-DLR through every gradient"),
    ],
)
def test_a_cheaper_attack_of_the_same_name_is_no_evidence(drop, setting, lacking):
    records = complete()
    mine = records[drop]["settings"]["attack"]
    records[drop] = records[drop] | {"settings": {"attack": mine | setting}}
    assert missing(records) == [lacking]


def test_no_more_targets_are_owed_than_there_are_other_classes():
    few = [
        r
        | {
            "settings": r["settings"]
            | {"classifier": {"classes": 4}, "attack": r["settings"]["attack"] | {"targets": 3}}
        }
        for r in complete()
    ]
    assert missing(few) == []


def test_the_conditions_of_a_claim_are_met_by_the_same_records():
    """A whole ladder on val, and beside it one weak cell on test at another eps."""
    val = [r | {"split": "val"} for r in complete()]
    beside = record(990, attack="fgsm", n=1000, eps=0.01, **DECLARED)
    assert missing([*val, beside])[-1] == "test split"
    assert "test split" in table([*val, beside]).rows[0].claim
    one_of_val = [complete()[0] | {"split": "val"}, *complete()[1:]]
    assert missing(one_of_val) == ["oblivious APGD-CE"]


def test_the_claim_is_of_one_defense_and_one_norm():
    other = [
        r | {"defense": "jpeg", "surrogate": r["surrogate"] and "jpeg+resnet20"} for r in complete()
    ]
    claims = {
        (row.defense, row.claim.startswith("no claim"))
        for row in table([*other, *complete()[1:]]).rows
    }
    assert claims == {("jpeg", False), ("median", True)}
    assert table([r | {"norm": "L2"} for r in complete()]).rows[0].claim.startswith("no claim")


def test_claim_eps_comes_from_the_data_sets_card():
    assert claim_eps("digits-m")["Linf"] == pytest.approx(16 / 255)
    assert claim_eps("not-installed") == {}


def test_requirements_have_names_of_their_own():
    assert len({q.name for q in LADDER_1}) == len(LADDER_1)
