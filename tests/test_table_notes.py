"""What stands beside the numbers of a table, so that a reader knows what they are of: draws, surrogates, images that are not independent."""

import json

import numpy as np
import pytest
from made_runs import (
    COMPLETE,
    DECLARED,
    IDENTITY,
    LEARNED,
    TRANSFER,
    apgd,
    complete,
    printed,
    record,
)

import defend
from defend.datasets.digits_m import DigitsM, enlarge_digits
from defend.results.claims import missing
from defend.results.footnotes import widening
from defend.results.report import write_report


def words(records):
    return " ".join(printed(records).split())


def stochastic(draws):
    """The ladder of a stochastic purifier."""
    more = [
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
    return [r | {"stochastic": True, "draws": draws} for r in [*complete(), *more]]


# draws


@pytest.mark.parametrize(
    ("draws", "lacking"), [(1, ["20 draws"]), (19, ["20 draws"]), (20, []), (40, [])]
)
def test_a_claim_of_a_stochastic_purifier_needs_draws(draws, lacking):
    assert missing(stochastic(draws)) == lacking


def test_fewer_draws_beside_the_ladder_take_nothing_away_and_lend_nothing():
    assert missing([*stochastic(20), *stochastic(1)]) == []
    assert missing([*stochastic(20)[1:], stochastic(1)[0]]) == ["oblivious APGD-CE"]


# transfer


def test_transfer_by_one_step_alone_meets_no_claim():
    """FGSM from the right pipeline, in place of the two attacks that the protocol transfers."""
    fgsm = record(10, attack="fgsm", knowledge="transfer", surrogate="median+resnet20", **COMPLETE)
    assert missing([*(r for r in complete() if r["knowledge"] != "transfer"), fgsm]) == [TRANSFER]


# few images


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"images": 575}, "n >= 1,000 (digits has 575)"),
        ({"images": 1150}, "n >= 1,000"),
        ({}, "n >= 1,000"),
    ],
)
def test_what_no_run_can_meet_says_so(over, said):
    """Of the test split alone; an older record does not say."""
    few = [
        r | {"dataset": "digits", "n": 575, "eps": r["eps"] if r["eps"] == 1 else 0.2} | over
        for r in complete()
    ]
    assert missing(few) == [said]
    assert "n >= 1,000" in missing([r | {"split": "val"} for r in few])


def test_a_record_says_how_many_images_its_split_has(tmp_path):
    suite = {
        "dataset": "digits",
        "classifiers": ["convnet"],
        "defenses": ["none"],
        "attacks": ["fgsm"],
        "knowledge": "oblivious",
        "n": 8,
    }
    (r,) = defend.bench(suite, out=tmp_path, workers=1)
    assert r["images"] == 575
    assert "n >= 1,000 (digits has 575)" in words([r])


# images that are not independent


AGAIN = "The first {} test images of digits-m show 575 things, some again: they are not independent, and intervals and p-values, which take them for it,"


@pytest.mark.parametrize(
    ("n", "times"), [(1150, 1.41), (1000, 1.36), (600, 1.04), (575, None), (200, None)]
)
def test_images_that_repeat_are_said_to(tmp_path, n, times):
    records = [record(n // 2, n=n)]
    write_report([tmp_path], records=records)
    summary, page = (
        json.loads((tmp_path / "summary.json").read_text()),
        (tmp_path / "report.html").read_text(),
    )
    line = f"{AGAIN.format(f'{n:,}')} are too narrow by up to {times} times."
    for text in (words(records), page, " ".join(summary["reading"])):
        assert (line in text) is (times is not None) and ("not independent" in text) is (
            times is not None
        )


def test_images_that_do_not_repeat_are_not_said_to():
    for dataset in ("mnist", "digits", "no-longer-installed"):
        assert "not independent" not in words([record(500, n=2000, dataset=dataset)])


def test_by_how_much_an_interval_is_too_narrow():
    """Copies that are right or wrong together: the spread of the mean over many draws of the distinct ones."""
    rng = np.random.default_rng(0)
    right = rng.uniform(size=(20_000, 575)) < 0.5
    for n in (575, 1000, 1150):
        spread = np.tile(right, 2)[:, :n].mean(1).std()
        assert widening(n, 575) == pytest.approx(spread / np.sqrt(0.25 / n), rel=0.03)


def test_digits_m_has_as_many_digits_as_its_card_says():
    for split, count in DigitsM.card.distinct.items():
        assert len(enlarge_digits(split)[0]) == count


# surrogates


def test_what_transfer_was_made_on_stands_below_the_rows(tmp_path):
    made = [
        record(9, knowledge="transfer", surrogate=s, attack=a)
        for s in ("median+resnet20", "resnet20")
        for a in ("pgd", "fgsm")
    ]
    records = [
        *made,
        record(9, defense="jpeg", knowledge="transfer", surrogate="jpeg+resnet20"),
        record(20),
    ]
    write_report([tmp_path], records=records)
    summary, page = (
        json.loads((tmp_path / "summary.json").read_text()),
        (tmp_path / "report.html").read_text(),
    )
    lines = [
        "median before convnet: median+resnet20",
        "median before convnet: resnet20",
        "jpeg before convnet: jpeg+resnet20",
    ]
    assert summary["surrogates"] == lines
    assert f"Transfer attacks were made on: {' '.join(lines)}" in words(records)
    assert all(f"<li>{line}</li>" in page for line in lines)
    assert "were made on" not in words(records[-1:])


# width


@pytest.mark.parametrize(
    ("levels", "wide"),
    [
        ((DECLARED, IDENTITY, LEARNED), False),
        ((DECLARED, IDENTITY, LEARNED, {"knowledge": "transfer"}), True),
    ],
)
def test_a_table_of_many_levels_puts_intervals_below_its_numbers(tmp_path, levels, wide):
    """Beside them, the claim of a whole ladder lay off the page; a long attack breaks behind its fields, not in a word."""
    records = [record(9, attack="apgd:loss=dlr-targeted,steps=100", **level) for level in levels]
    text = write_report([tmp_path], records=records)[0].read_text()
    assert ('<table class="wide">' in text) is wide
    assert '<td class="name attack">apgd:<wbr>loss=dlr-targeted,<wbr>steps=100</td>' in text
