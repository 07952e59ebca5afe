"""Signs that no claim survives: each is found, printed, and takes the claim away."""

import pytest
from made_runs import (
    DECLARED,
    apgd,
    change,
    change_all,
    change_where,
    claim_line,
    complete,
    failed,
    missing_codes,
    printed,
    record,
    unbounded,
)

from defend.records import Flag, FlagCode
from defend.results import table
from defend.results.diagnostics import SignCode
from defend.results.masking_signs import find_signs, share_without_gradient

HALF = {"robust_accuracy": 0.5, "ci_low": 0.47, "ci_high": 0.53}


def is_at_eps_1(r):
    return r.eps == 1


def is_declared(r):
    return r.gradient == "declared"


def flag(code, value=None):
    return Flag(code=code, value=value)


def without_other_gradients():
    return [r for r in complete() if r.gradient in (None, "declared")]


def half_but_for(*levels):
    """Return the ladder with half of the images right, but for these levels and eps 1."""
    return change_where(complete(), lambda r: r.knowledge not in levels and r.eps < 1, **HALF)


def half_but_for_oblivious_pgd():
    def is_half(r):
        return (r.knowledge, r.attack) != ("oblivious", "pgd") and r.eps < 1

    return change_where(complete(), is_half, **HALF)


def surviving_eps_1(right):
    records = []
    for r in complete():
        records.append(unbounded(r.gradient, right=right) if is_at_eps_1(r) else r)
    return records


def surviving_eps_1_beside_a_smoke_run():
    one_step = {"settings": {"attack": {"steps": 1, "random_start": False}}}
    weaker_runs = ({"n": 5}, {"split": "val"}, one_step)
    beside = [change(unbounded("declared"), **changes) for changes in weaker_runs]
    return [*surviving_eps_1(500), *beside]


def with_useless_declared_gradient(code):
    return change_where(complete(), is_declared, flags=[flag(code, 11)])


SIGNS = {
    "declared alone": (
        without_other_gradients,
        SignCode.DECLARED_GRADIENT_ALONE,
        "the declared gradient alone was attacked",
    ),
    "no EOT": (
        lambda: change_all(complete(), stochastic=True, all_draws_correct=0.0),
        SignCode.NO_EOT,
        "randomised, and attacked without EOT",
    ),
    "black box": (
        lambda: half_but_for("query", "transfer"),
        SignCode.BLACK_BOX_BEATS_WHITE_BOX,
        "black box beats white box: pgd, transfer from median+resnet20",
    ),
    "oblivious": (
        lambda: half_but_for("oblivious"),
        SignCode.OBLIVIOUS_BEATS_ADAPTIVE,
        "oblivious beats adaptive: apgd",
    ),
    "oblivious by another attack": (
        half_but_for_oblivious_pgd,
        SignCode.OBLIVIOUS_BEATS_ADAPTIVE,
        "oblivious beats adaptive: pgd",
    ),
    "eps 1": (
        lambda: surviving_eps_1(11),
        SignCode.SURVIVES_EPS_1,
        "PGD at eps 1 from the clean image leaves 1.1 %",
    ),
    "eps 1, and a smoke run beside it": (
        surviving_eps_1_beside_a_smoke_run,
        SignCode.SURVIVES_EPS_1,
        "PGD at eps 1 from the clean image leaves 50.0 %",
    ),
    "undefined": (
        lambda: with_useless_declared_gradient(FlagCode.UNDEFINED_GRADIENT),
        SignCode.NO_GRADIENT,
        "the declared gradient vanishes or is undefined on 1.1 % of the images",
    ),
    "zero": (
        lambda: with_useless_declared_gradient(FlagCode.ZERO_GRADIENT),
        SignCode.NO_GRADIENT,
        "the declared gradient vanishes or is undefined on 1.1 % of the images",
    ),
    "not random": (
        lambda: change_all(complete(), flags=[flag(FlagCode.NO_DRAW_CHANGES_A_PIXEL)]),
        SignCode.NOTHING_DRAWN,
        "its card says stochastic=True, and nothing was drawn",
    ),
    "noise that decides nothing": (
        lambda: change_all(complete(), stochastic=True, eot=20),
        SignCode.NO_DRAW_DECIDES,
        "its card says stochastic=True, and no draw decides anything",
    ),
    "failed": (
        lambda: [*complete(), failed(n=1000, attack="fgsm")],
        SignCode.FAILED_CELLS,
        "1 cell failed",
    ),
}


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_is_printed_and_no_claim_survives_it(name):
    make_records, code, sentence = SIGNS[name]
    records = make_records()
    assert claim_line(complete()).startswith("claim: ladder-1, ")
    assert claim_line(records).startswith("no claim (") and sentence in claim_line(records)
    (claim,) = table(records).claims
    assert [sign.code for sign in claim.signs] == [code] and not claim.stands
    text = printed(records)
    assert f"median before convnet, digits-m, Linf: {sentence}." in " ".join(text.split())
    assert "no [a]" in text


def test_two_failed_cells_are_counted():
    two = [*complete(), failed(n=1000, attack="fgsm"), failed(n=1000, attack="fab")]
    assert "2 cells failed" in claim_line(two)


def test_without_a_purifier_there_is_one_gradient():
    bare = change_all(complete(), defense="none")
    not_learned = [r for r in bare if r.gradient != "learned"]
    assert missing_codes(not_learned) == [] and find_signs(not_learned) == []
    assert find_signs(change_all(without_other_gradients(), defense="none")) == []


def test_one_gradient_that_works_at_eps_1_is_enough():
    records = []
    for r in complete():
        right = 500 if is_declared(r) else 0
        records.append(unbounded(r.gradient, right=right) if is_at_eps_1(r) else r)
    assert find_signs(records) == []


def test_a_few_images_without_a_gradient_are_due_to_float32():
    few = change_all(complete(), flags=[flag(FlagCode.ZERO_GRADIENT, 10)])
    assert find_signs(few) == []


def test_the_share_without_a_gradient_is_read_from_values():
    zero, undefined = flag(FlagCode.ZERO_GRADIENT, 3), flag(FlagCode.UNDEFINED_GRADIENT, 5)
    other = flag(FlagCode.UNCONVERGED, 0.1)
    assert share_without_gradient(record(1, n=100, flags=[zero, undefined, other])) == 0.08
    assert share_without_gradient(record(1, n=4, flags=[zero, undefined])) == 1
    assert share_without_gradient(record(1, flags=[other], **DECLARED)) == 0


def test_a_relaxed_gradient_may_fade_at_a_small_temperature():
    """As the step itself does; through the other gradients the images were attacked."""
    faded = flag(FlagCode.ZERO_GRADIENT, 900)
    relaxed = apgd("adaptive", "relaxed:temperature=0.1", "ce", protocol=None, flags=[faded])
    assert not find_signs([*complete(), relaxed])
