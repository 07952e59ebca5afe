"""What stands beside the numbers of a table, so that a reader knows what they are of: draws,
transfers, few images, images that are not independent.
"""

import json

import numpy as np
import pytest
from made_runs import (
    CLAIM_EPS,
    COMPLETE,
    DECLARED,
    DISTINCT_IMAGES,
    IDENTITY,
    LEARNED,
    change,
    change_all,
    complete,
    eot_attacks,
    missing_codes,
    printed,
    record,
)

from defend.datasets.cifar10 import Cifar10
from defend.datasets.digits import Digits
from defend.datasets.digits_m import DigitsM, enlarge_digits
from defend.datasets.mnist import MNIST
from defend.protocols.evidence import is_from_same_purifier
from defend.results import table
from defend.results.claim_text import format_missing
from defend.results.footnotes import widening
from defend.results.report import write_report


def words(records):
    return " ".join(printed(records).split())


def report_of(folder, records):
    """Return the page and the summary."""
    write_report([folder], records=records)
    page = (folder / "report.html").read_text()
    return page, json.loads((folder / "summary.json").read_text())


def stochastic(draws):
    """Return the ladder of a stochastic purifier."""
    return change_all([*complete(), *eot_attacks()], stochastic=True, draws=draws)


# Draws.


@pytest.mark.parametrize(("draws", "codes"), [(1, ["draws"]), (19, ["draws"]), (20, []), (40, [])])
def test_a_claim_of_a_stochastic_purifier_needs_draws(draws, codes):
    assert missing_codes(stochastic(draws)) == codes


def test_fewer_draws_beside_the_ladder_take_nothing_away_and_lend_nothing():
    assert missing_codes([*stochastic(20), *stochastic(1)]) == []
    lent = [*stochastic(20)[1:], stochastic(1)[0]]
    assert missing_codes(lent) == ["oblivious_apgd_ce"]


# Transfer.


def test_transfer_by_one_step_alone_meets_no_claim():
    """FGSM from the right pipeline does not replace the two attacks that the protocol transfers."""
    fgsm = record(10, attack="fgsm", knowledge="transfer", surrogate="median+resnet20", **COMPLETE)
    not_transfer = [r for r in complete() if r.knowledge != "transfer"]
    assert missing_codes([*not_transfer, fgsm]) == ["transfer"]


JPEG, MEDIAN = {"quality": 60}, {"size": 3}
QUAD, AGAIN = {"weights": "quad", "grid": 2}, {"weights": "again", "grid": 1}

SIGMA_3 = {"weights": "quad", "sigma": 0.3}
SIGMA_3_AGAIN = {"weights": "again", "sigma": 0.3}
SIGMA_01_AGAIN = {"weights": "again", "sigma": 0.01}


def chain(*members):
    return {"members": list(members)}


# defense, its settings; the attacked defense, its settings; whether the transfer counts
TRANSFERS = {
    "the same": ("jpeg", JPEG, "jpeg", JPEG, True),
    "another field": ("jpeg", JPEG, "jpeg", {"quality": 90}, False),
    "another purifier": ("jpeg", JPEG, "median", JPEG, False),
    "no purifier": ("jpeg", JPEG, "none", {}, False),
    "trained anew": ("split-vqvae", QUAD, "split-vqvae", AGAIN, True),
    "a chain": ("jpeg+median", chain(JPEG, MEDIAN), "jpeg+median", chain(JPEG, MEDIAN), True),
    "another order": (
        "jpeg+median",
        chain(JPEG, MEDIAN),
        "median+jpeg",
        chain(MEDIAN, JPEG),
        False,
    ),
    "a shorter chain": ("jpeg+median", chain(JPEG, MEDIAN), "jpeg", JPEG, False),
    "nothing beside it": ("none+jpeg", chain({}, JPEG), "jpeg", JPEG, True),
    "one learned member": (
        *("jpeg+split-vqvae", chain(JPEG, QUAD)),
        *("jpeg+split-vqvae", chain(JPEG, AGAIN)),
        True,
    ),
    "one learned member behind another field": (
        *("jpeg+split-vqvae", chain(JPEG, QUAD)),
        *("jpeg+split-vqvae", chain({"quality": 90}, AGAIN)),
        False,
    ),
    "trained anew, at the same noise": ("own", SIGMA_3, "own", SIGMA_3_AGAIN, True),
    "trained anew, at less noise": ("own", SIGMA_3, "own", SIGMA_01_AGAIN, False),
    "less noise in a chain": (
        *("jpeg+own", chain(JPEG, SIGMA_3)),
        *("jpeg+own", chain(JPEG, SIGMA_01_AGAIN)),
        False,
    ),
    "weights that no file holds": ("own", {"weights": "a"}, "own", {"weights": "b"}, False),
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_a_transfer_counts_if_only_settings_of_learned_members_differ(name):
    defense, settings, attacked, attacked_settings, counts = TRANSFERS[name]
    transfer = record(
        10,
        defense=defense,
        knowledge="transfer",
        surrogate=f"{attacked}+resnet20",
        settings={"defense": settings, "attacked": {"defense": attacked_settings}},
        scored_weights={"defense": {"quad": "ab" * 32}},
        uses={"own": ("sigma",)},
    )
    assert is_from_same_purifier(transfer) is counts


# Few images.


def digits_of(n, **changes):
    """Return a ladder on digits."""
    records = []
    for r in complete():
        eps = r.eps if r.eps == 1 else 0.2
        records.append(change(r, **{"dataset": "digits", "n": n, "eps": eps} | changes))
    return records


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"images": 575}, "n >= 1,000 (digits has 575)"),
        ({"images": 1150}, "n >= 1,000"),
        ({"images": 1000}, "n >= 1,000"),
        (
            {"dataset": "digits:root=x", "claim_eps": 0.2, "images": 575},
            "n >= 1,000 (digits has 575)",
        ),
    ],
)
def test_a_requirement_that_no_run_can_meet_says_so(changes, title):
    (claim,) = table(digits_of(575, **changes)).claims
    assert claim.missing == ("images",) and format_missing(claim) == [title]


def test_only_the_size_of_the_test_split_counts():
    (claim,) = table(digits_of(575, split="val", images=575)).claims
    assert "n >= 1,000" in format_missing(claim)


# Images that are not independent.


@pytest.mark.parametrize("n", [1150, 1000, 600, 575, 200])
def test_images_that_repeat_are_told(tmp_path, n):
    page, summary = report_of(tmp_path, [record(n // 2, n=n)])
    line = (
        f"The first {n:,} test images of digits-m show 575 things, some again: each thing counts"
        " once, in accuracies and in their intervals and p-values."
    )
    for text in (words([record(n // 2, n=n)]), page, " ".join(summary["reading"])):
        assert (line in text) is (n > 575)
        assert "not independent" not in text


@pytest.mark.parametrize(
    ("n", "factor"), [(1150, 1.41), (1000, 1.36), (600, 1.04), (575, None), (200, None)]
)
def test_older_records_take_images_that_repeat_for_new_ones(tmp_path, n, factor):
    records = [record(n // 2, n=n, sample=None)]
    page, summary = report_of(tmp_path, records)
    line = (
        f"The first {n:,} test images of digits-m show 575 things, some again: they are not"
        " independent, and intervals and p-values of these older records, which take them for it,"
        f" are too narrow by up to {factor} times."
    )
    for text in (words(records), page, " ".join(summary["reading"])):
        assert (line in text) is (factor is not None)
        assert ("not independent" in text) is (factor is not None)


def test_images_that_do_not_repeat_are_not_told():
    for dataset in ("mnist", "digits", "no-longer-installed"):
        assert "not independent" not in words([record(500, n=2000, dataset=dataset)])


def test_by_how_much_an_interval_is_too_narrow():
    """Copies are right or wrong together: the spread of the mean over many draws of the distinct
    images.
    """
    rng = np.random.default_rng(0)
    right = rng.uniform(size=(20_000, 575)) < 0.5
    for n in (575, 1000, 1150):
        spread = np.tile(right, 2)[:, :n].mean(1).std()
        assert widening(n, 575) == pytest.approx(spread / np.sqrt(0.25 / n), rel=0.03)


def test_digits_m_has_as_many_digits_as_its_card_says():
    for split, count in DigitsM.card.distinct.items():
        assert len(enlarge_digits(split)[0]) == count


def test_made_runs_have_the_facts_of_the_cards():
    cards = {"digits-m": DigitsM, "digits": Digits, "mnist": MNIST, "cifar10": Cifar10}
    for (dataset, norm), eps in CLAIM_EPS.items():
        assert cards[dataset].card.claim[norm] == pytest.approx(eps)
    for (dataset, split), count in DISTINCT_IMAGES.items():
        assert cards[dataset].card.distinct[split] == count


# Surrogates.


def test_the_pipelines_that_transfer_attacks_attacked_stand_below_the_rows(tmp_path):
    records = []
    for surrogate in ("median+resnet20", "resnet20"):
        for attack in ("pgd", "fgsm"):
            names = {"surrogate": surrogate, "attack": attack}
            records.append(record(9, knowledge="transfer", **names))
    records.append(record(9, defense="jpeg", knowledge="transfer", surrogate="jpeg+resnet20"))
    oblivious = record(20)
    page, summary = report_of(tmp_path, [*records, oblivious])
    lines = [
        "median before convnet: median+resnet20",
        "median before convnet: resnet20",
        "jpeg before convnet: jpeg+resnet20",
    ]
    assert summary["surrogates"] == lines
    text = words([*records, oblivious])
    assert f"Transfer attacks were made on: {' '.join(lines)}" in text
    assert all(f"<li>{line}</li>" in page for line in lines)
    assert "were made on" not in words([oblivious])


# Width.


def test_names_have_rows_of_their_own_and_levels_come_before_attacks(tmp_path):
    """Beside the numbers, names and intervals pushed the levels off the page of a phone. A long
    attack breaks behind its fields, not in a word.
    """
    attack = "apgd:loss=dlr-targeted,steps=100"
    levels = (DECLARED, IDENTITY, LEARNED, {"knowledge": "transfer"})
    page, _ = report_of(tmp_path, [record(9, attack=attack, **level) for level in levels])
    by_level, by_attack = page.split("<summary>Each attack</summary>")
    assert '<th class="name" colspan="5">' in by_level  # eps, clean, all attacks, two levels
    assert "apgd" not in by_level.split("<h2>Results</h2>")[1].split("How to read this")[0]
    assert "apgd:<wbr>loss=dlr-targeted,<wbr>steps=100</th>" in by_attack


def test_each_number_of_images_has_its_own_clause():
    text = " ".join(
        printed([record(50, n=n, defense=d) for n, d in ((100, "jpeg"), (500, "median"))]).split()
    )
    assert "n = 100: a smoke test; n = 500: below the 1,000 images of a claim." in text
