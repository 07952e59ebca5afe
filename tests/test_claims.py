"""What may be claimed: its value, what lowers it, what takes it away, and what it is of."""

from itertools import chain

import numpy as np
import pytest
from made_runs import (
    DECLARED,
    IDENTITY,
    cell,
    change,
    change_all,
    change_where,
    claim_line,
    complete,
    failed,
    missing_codes,
    printed,
    record,
)

from defend.records import Flag, FlagCode
from defend.results import table
from defend.results.claim_text import format_claim
from defend.results.diagnostics import RemarkCode, SignCode
from defend.stats import per_cluster, wilson

FALLS = {"flags": [Flag(code=FlagCode.UNCONVERGED, value=0.1)]}
FORTY = {"robust_accuracy": 0.4, "ci_low": 0.37, "ci_high": 0.43}
MADE = {"pipeline": {"classifier": "c1", "defense": "d1"}}


def is_below_eps_1(r):
    return r.eps < 1


def is_at_eps_1(r):
    return r.eps == 1


def ladder_of_forty(**changes):
    """Return a ladder whose claim is 40 %."""
    return change_where(change_all(complete(), **changes), is_below_eps_1, **FORTY)


def lines(*groups):
    records = chain.from_iterable(groups)
    return [format_claim(claim) for claim in table(list(records)).claims]


def beside_ladder(right, n=1000, **changes):
    """Return an attack that is no part of the protocol."""
    return record(right, n=n, **{"attack": "other", "eps": 16 / 255} | IDENTITY | changes)


# Attacks beside the protocol.


def test_null_attacks_beside_the_protocol_change_no_claim():
    null = []
    for i in range(10):
        query = {"knowledge": "query", "access": "labels"}
        null.append(record(990, attack=f"null:draw={i}", n=1000, **query))
        null.append(record(990, attack=f"nil:draw={i}", n=1000, eot=1, **DECLARED))
    assert claim_line([*complete(), *null]) == claim_line(complete())


def test_attacks_beside_the_protocol_lower_its_value():
    assert "claim: ladder-1, <= 0.2 % right" in claim_line([*complete(), beside_ladder(2)])


NO_PART_OF_A_CLAIM = (
    {"n": 900},
    {"split": "val"},
    {"draws": 1, "n": 900},
    {"eps": 8 / 255, "eps_text": "8/255"},
)


@pytest.mark.parametrize("changes", NO_PART_OF_A_CLAIM)
def test_a_stronger_attack_that_is_no_part_of_a_claim_takes_it_away(changes):
    """It has fewer images, another split, fewer draws, or a smaller ball, which lies in the
    claim's.
    """
    fixed = {"attack": "autoattack"} | DECLARED | changes
    stronger = beside_ladder(10, **fixed)
    assert claim_line(ladder_of_forty()).startswith("claim: ladder-1, <= 40.0 %")
    assert claim_line([*ladder_of_forty(), stronger]) == (
        f"no claim (a stronger attack: autoattack, adaptive declared, eps {stronger.eps_text},"
        f" n = {stronger.n:,} of {stronger.split},"
        f" leaves {100 * stronger.robust_accuracy:.1f} %)"
    )


@pytest.mark.parametrize("changes", NO_PART_OF_A_CLAIM)
def test_a_weaker_attack_or_one_in_a_larger_ball_takes_nothing_away(changes):
    fixed = {"attack": "autoattack"} | DECLARED | changes
    weaker = beside_ladder(380, **fixed)
    larger = beside_ladder(10, **fixed | {"eps": 32 / 255})
    assert claim_line([*ladder_of_forty(), weaker, larger]) == claim_line(ladder_of_forty())


@pytest.mark.parametrize(
    "computed", [{"seed": 1}, {"layout": "channels_last"}, {"precision": "bfloat16"}]
)
def test_a_stronger_attack_from_another_seed_or_another_layout_takes_a_claim_away(computed):
    """Otherwise one could try seeds, and choose among claims."""
    ((name, value),) = computed.items()
    ladder = ladder_of_forty(**MADE)
    stronger = beside_ladder(10, **{"attack": "autoattack"} | DECLARED | MADE | computed)
    claims = lines(ladder, [stronger])
    expected = f"n = 1,000 of test, {name} {value}, leaves 1.0 %"
    assert any(
        line.startswith("no claim (a stronger attack: ") and expected in line for line in claims
    )
    assert not any(line.startswith("claim") for line in claims)
    # Another model of the same name says nothing.
    foreign = change(stronger, pipeline={"classifier": "c2", "defense": "d2"})
    claims = lines(ladder, [foreign])
    assert any(line.startswith("claim: ladder-1, <= 40.0 %") for line in claims)


def test_earlier_cells_of_the_folder_refute_a_claim():
    lower = beside_ladder(2)
    line = format_claim(table(complete(), beside=[lower]).claims[0])
    assert "claim: ladder-1, <= 0.2 % right" in line
    ladder, stronger = ladder_of_forty(), beside_ladder(0, n=500)
    refuted = table(ladder, beside=[*ladder, stronger])
    assert [sign.code for sign in refuted.claims[0].signs] == [SignCode.STRONGER_ATTACK]
    assert format_claim(refuted.claims[0]).startswith("no claim (a stronger attack: other")
    assert "a stronger attack" in refuted.signs[0]
    assert len(refuted.rows) == len(table(ladder).rows)


def test_earlier_cells_of_the_folder_make_no_claim():
    incomplete = complete()[1:]
    assert table(incomplete, beside=complete()).claims == table(incomplete).claims


# Values.


def test_a_bound_under_zero_says_nothing():
    at_most = []
    for right in (0, 1):
        r = record(right, attack="square", knowledge="query", **FALLS)
        at_most.append(table([r]).rows[0].numbers["query"].at_most)
    assert at_most == [False, True]


def ladder_on_disk(folder, wrong):
    """Return a ladder with units; wrong(k): how many of the 1,000 images attack k breaks."""
    records = []
    for k, r in enumerate(complete()):
        score = np.r_[np.zeros(wrong(k)), np.ones(1000 - wrong(k))]
        fields = {name: getattr(r, name) for name in type(r).model_fields}
        for name in ("units", "n", "error", "schema_version", "claim_eps", "distinct_images"):
            del fields[name]
        measured = ("clean_accuracy", "robust_accuracy", "ci_low", "ci_high")
        for name in (*measured, "all_draws_correct", "majority", "score", "clean_score"):
            del fields[name]
        records.append(cell(folder, score, shard=500, **fields))
    return records


def test_the_value_of_an_attack_that_still_falls_is_a_bound(tmp_path):
    """It is a bound with the units at hand, and without.

    The ten images that are right show digits that earlier images show, which are wrong.
    """
    records = ladder_on_disk(tmp_path, wrong=lambda _: 990)
    records = change_where(records, is_at_eps_1, robust_accuracy=0.0)
    falling = change_where(records, lambda r: r.knowledge == "query", **FALLS)
    line = claim_line(records, [tmp_path])
    assert line.startswith("claim: ladder-1, 0.9 % right (0.4 to 2.0)")
    for line in (claim_line(falling, [tmp_path]), claim_line(falling)):
        assert line.startswith("claim: ladder-1, <= 0.9 % right (unconverged) (0.4 to 2.0)")
    text = printed(falling, [tmp_path])
    assert "median: <= 0.9 (0.4-2.0, unconverged) of 100.0 clean" in text
    assert "unconverged)" not in printed(records, [tmp_path])


def test_the_value_of_a_claim_is_the_worst_case_image_by_image(tmp_path):
    records = ladder_on_disk(tmp_path, wrong=lambda k: k)
    right = 1000 - max(k for k, r in enumerate(records) if r.eps < 1)
    outcomes = np.repeat([0.0, 1.0], [1000 - right, right])
    of_things = per_cluster(outcomes, records[0].clusters)
    low, high = wilson(of_things.sum(), 575)
    assert claim_line(records, [tmp_path]).startswith("no claim")  # eps 1 leaves 99 %
    records = change_where(records, is_at_eps_1, robust_accuracy=0.0)
    expected = (
        f"claim: ladder-1, {100 * of_things.mean():.1f} % right"
        f" ({100 * low:.1f} to {100 * high:.1f})"
        " in the worst case at Linf eps 16/255, over 575"
    )
    assert claim_line(records, [tmp_path]).startswith(expected)


def test_a_claim_holds_its_value_and_its_interval():
    (claim,) = table(complete()).claims
    assert claim.stands and claim.missing == () and claim.signs == ()
    assert (claim.protocol, claim.norm, claim.eps_text) == ("ladder-1", "Linf", "16/255")
    assert (claim.accuracy, claim.eps, claim.n) == (0.01, 16 / 255, 1000)
    assert (claim.low, claim.high) == wilson(5.75, 575)
    assert claim.bound and not claim.unconverged


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (0.9, ""),
        (1.3, "its error is 1.30, the identity's is 1"),
        (None, "its error is no number"),
    ],
)
def test_a_learned_gradient_that_is_no_better_than_the_identity_is_told(error, sentence):
    records = change_where(complete(), lambda r: r.gradient == "learned", gradient_error=error)
    line = claim_line(records)
    assert line.startswith("claim: ladder-1, ") and sentence in line
    assert ("the learned gradient says little" in line) is bool(sentence)
    codes = [remark.code for remark in table(records).claims[0].remarks]
    assert codes == ([RemarkCode.WEAK_LEARNED_GRADIENT] if sentence else [])


def test_a_precision_other_than_float32_is_always_told():
    suffix = "; of precision bfloat16"
    usual = claim_line(change_all(complete(), **MADE))
    unusual = claim_line(change_all(complete(), precision="bfloat16", **MADE))
    assert usual.startswith("claim: ladder-1, ") and not usual.endswith(suffix)
    assert unusual.startswith("claim: ladder-1, ") and unusual.endswith(suffix)


# What a claim is of.

OTHER_PIPELINES = {
    "purifier d2": {"pipeline": {"classifier": "c1", "defense": "d2"}},
    "classifier c2": {"pipeline": {"classifier": "c2", "defense": "d1"}},
    "precision bfloat16": {"precision": "bfloat16"},
    "layout channels_last": {"layout": "channels_last"},
    "seed 7": {"seed": 7},
}


@pytest.mark.parametrize("name", OTHER_PIPELINES)
def test_no_claim_is_made_of_two_pipelines(name):
    """Half of the ladder of one and half of another are two tables, and no claim of either."""
    first = change_all(complete(), **MADE)
    second = change_all(first, **OTHER_PIPELINES[name])
    claims = lines(first[::2], second[1::2])
    assert len(claims) == 2 and all(line.startswith("no claim (missing") for line in claims)
    assert sum(line.endswith(f"; of {name}") for line in claims) == 1
    assert sum(line.startswith("claim: ladder-1, ") for line in lines(first, second)) == 2


@pytest.mark.parametrize(
    "spelling", [{"defense": "median:size=3"}, {"classifier": "convnet:weights=convnet-digits-m"}]
)
def test_two_spellings_of_one_pipeline_are_one(spelling):
    """A stronger attack counts however its purifier was typed; without hashes nobody knows."""
    lower = beside_ladder(2, **spelling)
    records = change_all([*complete(), lower], **MADE)
    assert "claim: ladder-1, <= 0.2 % right" in claim_line(records)
    assert [w.defense for w in table(records).sections[0].worst] == ["median"]
    assert len(table([*complete(), lower]).claims) == 2


def test_two_purifiers_of_one_name_have_each_a_worst_case(tmp_path):
    scores = {"d1": [1, 1, 0, 0], "d2": [0, 0, 0, 1]}
    records = []
    for purifier, score in scores.items():
        pipeline = {"classifier": "c1", "defense": purifier}
        for level in ("oblivious", "transfer"):
            fields = {"knowledge": level, "pipeline": pipeline}
            records.append(cell(tmp_path, score, x_adv=purifier, shard=4, **fields))
    (section,) = table(records, [tmp_path]).sections
    accuracies = {w.purifier: w.number.value for w in section.worst}
    assert accuracies == {"d1": 0.5, "d2": 0.25}


# Evidence.


def test_a_failed_cell_does_not_hide_what_was_run():
    """A failed cell was run at the claim eps, whatever became of it."""
    codes = missing_codes([failed(attack="apgd", n=1000, eps=16 / 255, protocol="ladder-1")])
    assert not {"claim_eps", "test_split", "images"} & set(codes)


@pytest.mark.parametrize(
    "changes", [{"n": 100}, {"settings": {"attack": {"steps": 40, "random_start": True}}}]
)
def test_an_eps_1_that_is_unlike_the_protocols_is_no_evidence(changes):
    assert missing_codes(change_where(complete(), is_at_eps_1, **changes)) == ["unbounded_pgd"]


def test_the_eps_1_of_linf_counts_for_l2():
    cifar = change_all(complete(), dataset="cifar10")
    linf = change_where(cifar, is_below_eps_1, eps=8 / 255)
    l2 = [change(r, norm="L2", eps=0.5) for r in cifar if is_below_eps_1(r)]
    assert missing_codes(l2, linf) == []
    assert missing_codes(l2) == ["unbounded_pgd"]
    assert sum(line.startswith("claim: ladder-1, ") for line in lines(linf, l2)) == 2


def test_below_four_classes_targeted_dlr_is_not_needed():
    attacks = [r for r in complete() if r.settings.attack.get("loss") != "dlr-targeted"]
    assert missing_codes(change_all(attacks, classes=3)) == []
    assert missing_codes(change_all(attacks, classes=4)) == ["adaptive_apgd_dlr_targeted"]


def test_a_classifier_by_another_spelling_is_no_pipeline():
    records = change_where(
        complete(), lambda r: r.knowledge == "transfer", surrogate="none+resnet20"
    )
    assert missing_codes(records) == ["transfer"]
    assert missing_codes(change_all(records, defense="none")) == []
