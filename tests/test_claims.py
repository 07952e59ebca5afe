"""What is printed of an evaluation as a whole: signs that no claim survives, worst cases over everything, the control, pairs, queries."""

import numpy as np
import pytest
import torch
from made_runs import (
    DECLARED,
    IDENTITY,
    TRANSFER,
    cell,
    complete,
    failed,
    printed,
    record,
    unbounded,
)

import defend
from defend.attacks.control import Control
from defend.benchmarks.flags import (
    NOTHING_DRAWN,
    is_unconverged,
    unconverged,
    undefined_gradient,
    zero_gradient,
)
from defend.benchmarks.query_curve import accuracy_after, still_falls
from defend.benchmarks.units import Unit
from defend.noise import Noise
from defend.results import table
from defend.results.claims import missing
from defend.results.masking_signs import doubts
from defend.results.outcomes import read_outcomes, worst
from defend.stats import interval, wilson

# what no claim survives


def claim_of(records):
    (line,) = {row.claim for row in table(records).rows}
    return line


HALF = {"robust_accuracy": 0.5, "ci_low": 0.47, "ci_high": 0.53}
SIGNS = {
    "declared alone": (
        lambda: [r for r in complete() if r["gradient"] in (None, "declared")],
        "the declared gradient alone was attacked",
    ),
    "no EOT": (
        lambda: [r | {"stochastic": True, "all_draws_correct": 0.0} for r in complete()],
        "randomised, and attacked without EOT",
    ),
    "black box": (
        lambda: [
            r | HALF if r["knowledge"] in ("adaptive", "oblivious") and r["eps"] < 1 else r
            for r in complete()
        ],
        "black box beats white box: pgd, transfer from median+resnet20",
    ),
    "oblivious": (
        lambda: [
            r | HALF if r["knowledge"] != "oblivious" and r["eps"] < 1 else r for r in complete()
        ],
        "oblivious beats adaptive: apgd",
    ),
    "eps 1": (
        lambda: [unbounded(r["gradient"], right=11) if r["eps"] == 1 else r for r in complete()],
        "PGD at eps 1 from the clean image leaves 1.1 %",
    ),
    "eps 1, and a smoke run beside it": (
        lambda: (
            [unbounded(r["gradient"], right=500) if r["eps"] == 1 else r for r in complete()]
            + [
                unbounded("declared") | other
                for other in (
                    {"n": 5},
                    {"split": "val"},
                    {"settings": {"attack": {"steps": 1, "random_start": False}}},
                )
            ]
        ),
        "PGD at eps 1 from the clean image leaves 50.0 %",
    ),
    "oblivious by another attack": (
        lambda: [
            r | HALF
            if (r["knowledge"], r["attack"]) != ("oblivious", "pgd") and r["eps"] < 1
            else r
            for r in complete()
        ],
        "oblivious beats adaptive: pgd",
    ),
    "undefined": (
        lambda: [
            r | {"flags": [undefined_gradient(11, 1000)]} if r["gradient"] == "declared" else r
            for r in complete()
        ],
        "the declared gradient vanishes or is undefined on 1.1 % of the images",
    ),
    "not random": (
        lambda: [r | {"flags": [NOTHING_DRAWN]} for r in complete()],
        "its card says stochastic=True, and nothing was drawn",
    ),
    "noise that decides nothing": (
        lambda: [r | {"stochastic": True, "eot": 20} for r in complete()],
        "its card says stochastic=True, and no draw decides anything",
    ),
    "dead": (
        lambda: [
            r | {"flags": [zero_gradient(11, 1000)]} if r["gradient"] == "declared" else r
            for r in complete()
        ],
        "the declared gradient vanishes or is undefined on 1.1 % of the images",
    ),
    "failed": (lambda: [*complete(), failed(n=1000, attack="fgsm")], "1 cell failed"),
}


@pytest.mark.parametrize("what", SIGNS)
def test_each_sign_is_printed_and_no_claim_survives_it(what):
    make, said = SIGNS[what]
    records = make()
    assert claim_of(complete()).startswith("claim: ladder-1, ")
    assert said in claim_of(records) and claim_of(records).startswith("no claim (")
    assert f"median before convnet, digits-m, Linf: {said}." in " ".join(printed(records).split())
    assert "no [a]" in printed(records)


def test_what_is_no_sign():
    """Behind no purifier there is one gradient; one that works is enough at eps 1; a few dead images are float32's."""
    alone = [
        r | {"defense": "none"}
        for r in complete()
        if r["gradient"] in (None, "declared", "identity")
    ]
    assert missing(alone) == [] and doubts(alone) == []
    assert doubts([r | {"defense": "none"} for r in SIGNS["declared alone"][0]()]) == []
    one_works = [
        unbounded(r["gradient"], right=500 if r["gradient"] == "declared" else 0)
        if r["eps"] == 1
        else r
        for r in complete()
    ]
    assert doubts(one_works) == []
    few = [r | {"flags": [zero_gradient(10, 1000)]} for r in complete()]
    assert doubts(few) == []


def test_null_attacks_beside_the_protocol_change_no_claim():
    null = [
        record(990, attack=f"null:draw={i}", n=1000, knowledge="query", access="labels")
        for i in range(10)
    ]
    null += [record(990, attack=f"nil:draw={i}", n=1000, eot=1, **DECLARED) for i in range(10)]
    assert claim_of([*complete(), *null]) == claim_of(complete())


def test_attacks_beside_the_protocol_lower_its_value():
    lower = record(2, attack="other", n=1000, eps=16 / 255, **IDENTITY)
    assert "claim: ladder-1, <= 0.2 % right" in claim_of([*complete(), lower])


@pytest.mark.parametrize(
    "over",
    [{"n": 900}, {"split": "val"}, {"draws": 1, "n": 900}, {"eps": 8 / 255, "eps_text": "8/255"}],
)
def test_a_stronger_attack_that_is_no_part_of_a_claim_takes_it_away(over):
    """Of fewer images, another split, fewer draws, or a smaller ball, which lies in the claim's. A weaker one, or one in a larger ball, says nothing."""
    ladder = [
        r | {"robust_accuracy": 0.4, "ci_low": 0.37, "ci_high": 0.43} if r["eps"] != 1 else r
        for r in complete()
    ]
    beside = {"attack": "autoattack", "n": 1000, "eps": 16 / 255, **DECLARED}
    stronger, weaker, larger = (
        record(k, **beside | over | e) for k, e in ((10, {}), (380, {}), (10, {"eps": 32 / 255}))
    )
    assert claim_of(ladder).startswith("claim: ladder-1, <= 40.0 %")
    said = (
        f"a stronger attack: autoattack, adaptive declared, eps {stronger['eps_text']}, n = {stronger['n']:,} of {stronger['split']},"
        f" leaves {100 * stronger['robust_accuracy']:.1f} %"
    )
    assert claim_of([*ladder, stronger]) == f"no claim ({said})"
    assert claim_of([*ladder, weaker, larger]) == claim_of(ladder)


@pytest.mark.parametrize(
    "how", [{"seed": 1}, {"layout": "channels_last"}, {"precision": "bfloat16"}]
)
def test_a_stronger_attack_from_another_seed_or_another_layout_takes_a_claim_away(how):
    """Else whoever tries seeds would choose among claims. One of another model of the same name says nothing."""
    ladder = [
        r | MADE | {"robust_accuracy": 0.4, "ci_low": 0.37, "ci_high": 0.43}
        if r["eps"] != 1
        else r | MADE
        for r in complete()
    ]
    stronger = record(10, attack="autoattack", n=1000, eps=16 / 255, **DECLARED) | MADE | how
    ((name, value),) = how.items()
    lines = table([*ladder, stronger]).claims
    assert any(
        line.startswith("no claim (a stronger attack: ")
        and f"n = 1,000 of test, {name} {value}, leaves 1.0 %" in line
        for line in lines
    )
    assert not any(line.startswith("claim") for line in lines)
    foreign = stronger | {"pipeline": {"classifier": "c2", "defense": "d2"}}
    assert any(
        line.startswith("claim: ladder-1, <= 40.0 %") for line in table([*ladder, foreign]).claims
    )


def test_what_an_earlier_command_left_in_the_folder_refutes_a_claim_and_makes_none():
    lower = record(2, attack="other", n=1000, eps=16 / 255, **IDENTITY)
    assert "claim: ladder-1, <= 0.2 % right" in table(complete(), beside=[lower]).claims[0]
    stronger = record(0, attack="other", n=500, eps=16 / 255, **IDENTITY)
    ladder = [
        r | {"robust_accuracy": 0.4, "ci_low": 0.37, "ci_high": 0.43} if r["eps"] != 1 else r
        for r in complete()
    ]
    made = table(ladder, beside=[*ladder, stronger])
    assert (
        made.claims[0].startswith("no claim (a stronger attack: other")
        and "a stronger attack" in made.signs[0]
    )
    assert len(made.rows) == len(table(ladder).rows)
    assert table(complete()[1:], beside=complete()).claims == table(complete()[1:]).claims


def test_a_bound_under_zero_says_nothing():
    falls = {"flags": [unconverged(0.1)]}
    numbers = [
        table([record(k, attack="square", knowledge="query", **falls)]).rows[0].numbers["query"]
        for k in (0, 1)
    ]
    assert [n.at_most for n in numbers] == ["", "<= "]


def test_a_precision_other_than_float32_is_always_said():
    for precision, said in (("float32", False), ("bfloat16", True)):
        (line,) = table([r | MADE | {"precision": precision} for r in complete()]).claims
        assert (
            line.startswith("claim: ladder-1, ")
            and line.endswith("; of precision bfloat16") is said
        )


def test_the_value_of_an_attack_that_still_falls_is_a_bound(tmp_path):
    """With the units at hand, and without."""
    made = [
        cell(tmp_path, np.r_[np.zeros(990), np.ones(10)], shard=500, **r | {"units": []})
        for r in complete()
    ]
    made = [r | {"robust_accuracy": 0.0} if r["eps"] == 1 else r for r in made]
    falls = [r | {"flags": [unconverged(0.1)]} if r["knowledge"] == "query" else r for r in made]
    assert claim_of_units(made, tmp_path).startswith("claim: ladder-1, 1.0 % right (0.5 to 1.8)")
    for line in (claim_of_units(falls, tmp_path), claim_of(falls)):
        assert line.startswith("claim: ladder-1, <= 1.0 % right (unconverged) (0.5 to 1.8)")
    assert "median: <= 1.0 (0.5-1.8, unconverged) of 100.0 clean" in printed(falls, [tmp_path])
    assert "unconverged)" not in printed(made, [tmp_path])


@pytest.mark.parametrize(
    ("error", "said"),
    [(0.9, ""), (1.3, "its error is 1.30, the identity's is 1"), (None, "its error is no number")],
)
def test_beside_a_claim_stands_that_the_learned_gradient_is_no_better_than_the_identity(
    error, said
):
    line = claim_of(
        [r | {"gradient_error": error if r["gradient"] == "learned" else None} for r in complete()]
    )
    assert (
        line.startswith("claim: ladder-1, ")
        and ("the learned gradient says little" in line) is bool(said)
        and said in line
    )


MADE = {
    "pipeline": {"classifier": "c1", "defense": "d1"},
    "precision": "float32",
    "layout": "contiguous",
    "seed": 0,
}
OTHERWISE = {
    "purifier d2": {"pipeline": {"classifier": "c1", "defense": "d2"}},
    "classifier c2": {"pipeline": {"classifier": "c2", "defense": "d1"}},
    "precision bfloat16": {"precision": "bfloat16"},
    "layout channels_last": {"layout": "channels_last"},
    "seed 7": {"seed": 7},
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_no_claim_is_made_of_two_pipelines(what):
    """Half of the ladder of one, half of the other: two tables, and a claim of neither."""
    records = [r | MADE | (OTHERWISE[what] if k % 2 else {}) for k, r in enumerate(complete())]
    lines = {row.claim for row in table(records).rows}
    assert len(lines) == 2 and all(line.startswith("no claim (missing") for line in lines)
    assert sum(line.endswith(f"; of {what}") for line in lines) == 1
    whole = [*(r | MADE for r in complete()), *(r | MADE | OTHERWISE[what] for r in complete())]
    assert sum(line.startswith("claim: ladder-1, ") for line in table(whole).claims) == 2


@pytest.mark.parametrize(
    "spelling", [{"defense": "median:size=3"}, {"classifier": "convnet:weights=convnet-digits-m"}]
)
def test_two_spellings_of_one_pipeline_are_one(spelling):
    """A stronger attack counts, however its purifier was typed; without hashes nobody knows."""
    lower = record(2, attack="other", n=1000, eps=16 / 255, **IDENTITY) | spelling
    made = [r | MADE for r in (*complete(), lower)]
    assert "claim: ladder-1, <= 0.2 % right" in claim_of(made)
    assert [w.defense for w in table(made).sections[0].worst] == ["median"]
    assert len(table([*complete(), lower]).claims) == 2


def test_two_purifiers_of_one_name_have_each_a_worst_case(tmp_path):
    score = {"d1": [1, 1, 0, 0], "d2": [0, 0, 0, 1]}
    made = [
        cell(
            tmp_path,
            s,
            x_adv=d,
            shard=4,
            knowledge=k,
            **MADE | {"pipeline": {"classifier": "c1", "defense": d}},
        )
        for d, s in score.items()
        for k in ("oblivious", "transfer")
    ]
    found = {w.purifier: w.number.accuracy for w in table(made, [tmp_path]).sections[0].worst}
    assert found == {"d1": 0.5, "d2": 0.25}


def test_the_value_of_a_claim_is_the_worst_case_image_by_image(tmp_path):
    made = [
        cell(tmp_path, np.r_[np.zeros(k), np.ones(1000 - k)], shard=500, **r | {"units": []})
        for k, r in enumerate(complete())
    ]
    line = claim_of_units(made, tmp_path)
    worst_of = 1000 - max(k for k, r in enumerate(complete()) if r["eps"] < 1)
    low, high = wilson(worst_of, 1000)
    assert line.startswith("no claim")  # eps 1 leaves 99 %
    made = [r | {"robust_accuracy": 0.0} if r["eps"] == 1 else r for r in made]
    said = f"claim: ladder-1, {worst_of / 10:.1f} % right ({100 * low:.1f} to {100 * high:.1f}) in the worst case at Linf eps 16/255, of 575"
    assert claim_of_units(made, tmp_path).startswith(said)


def claim_of_units(records, folder):
    (line,) = {row.claim for row in table(records, [folder]).rows}
    return line


def test_a_failed_cell_does_not_hide_what_was_run():
    """Its eps is the claim's, whatever became of it."""
    lacking = missing([failed(attack="apgd", n=1000, eps=16 / 255, protocol="ladder-1")])
    assert not {"claim eps", "test split", "n >= 1,000"} & set(lacking)


def test_an_eps_1_that_is_unlike_the_protocols_is_no_evidence():
    few = [r | {"n": 100} if r["eps"] == 1 else r for r in complete()]
    started = [
        r | {"settings": {"attack": {"steps": 40, "random_start": True}}} if r["eps"] == 1 else r
        for r in complete()
    ]
    lacking = ["PGD at eps 1 from the clean image, through every gradient"]
    assert missing(few) == missing(started) == lacking


def test_the_eps_1_of_linf_speaks_for_l2():
    l2 = [r | {"norm": "L2", "dataset": "cifar10", "eps": 0.5} for r in complete() if r["eps"] < 1]
    linf = [
        r | {"dataset": "cifar10", "eps": r["eps"] if r["eps"] == 1 else 8 / 255}
        for r in complete()
    ]
    assert missing(l2, linf) == []
    assert missing(l2) == ["PGD at eps 1 from the clean image, through every gradient"]
    assert len([c for c in table([*linf, *l2]).claims if c.startswith("claim: ladder-1, ")]) == 2


def test_below_four_classes_targeted_dlr_is_not_owed():
    few = [
        r | {"settings": r["settings"] | {"classifier": {"classes": 3}}}
        for r in complete()
        if r["settings"]["attack"].get("loss") != "dlr-targeted"
    ]
    assert missing(few) == []
    assert missing(
        [r | {"settings": r["settings"] | {"classifier": {"classes": 4}}} for r in few]
    ) == ["adaptive targeted APGD-DLR through every gradient"]


def test_a_bare_classifier_by_another_spelling_is_no_pipeline():
    records = [
        r | {"surrogate": "none+resnet20"} if r["knowledge"] == "transfer" else r
        for r in complete()
    ]
    assert missing(records) == [TRANSFER]
    assert missing([r | {"defense": "none"} for r in records]) == []


# queries


def units(wrong_after, clean):
    half = len(clean) // 2
    tensors = [
        {
            "clean_score": torch.tensor(clean)[s, None],
            "note_wrong_after": torch.tensor(wrong_after)[s],
        }
        for s in (slice(half), slice(half, None))
    ]
    return [Unit(t, {}) for t in tensors]


def test_accuracy_after_queries_is_over_all_images():
    some = units([-1, 100, 101, 1, 4001, 5000, -1, 3], [1, 1, 1, 1, 1, 1, 0, 1])
    assert accuracy_after(some, 5000) == {"100": 5 / 8 - 1 / 8, "1000": 3 / 8, "5000": 1 / 8}
    assert accuracy_after(some, 1000) == {"100": 4 / 8, "1000": 3 / 8, "5000": None}
    assert still_falls(some, 5000) == 2 / 8  # at 4,001 and 5,000
    assert still_falls(some, 100_000) == 0
    assert accuracy_after([Unit({"clean_score": torch.ones(2, 1)}, {})], 5000) is None


def test_half_a_point_in_the_last_fifth_is_unconverged():
    def fell(late):
        return still_falls(units([4500] * late + [-1] * (1000 - late), [1] * 1000), 5000)

    assert fell(4) == 0 and fell(5) == pytest.approx(0.005)


# real runs, tiny

REAL = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "eps": "0.2",
    "n": 48,
    "shard": 24,
    "draws": 5,
}


def test_queries_are_noted_and_printed(tmp_path):
    (r,) = defend.bench(
        REAL | {"defenses": ["none"], "attacks": ["square:queries=100"]}, out=tmp_path, workers=1
    )
    assert r["accuracy_after"] == {"100": r["robust_accuracy"], "1000": None, "5000": None}
    assert (
        f"none, square:queries=100, query, eps 0.2: {100 * r['robust_accuracy']:.1f}, not run, not run"
        in printed([r], [tmp_path])
    )
    assert is_unconverged(r["flags"])  # a hundred queries are too few


WITHOUT_EOT = {
    "adaptive": {"attacks": ["fgsm"], "gradients": ["declared"]},
    "query": {"attacks": ["square:queries=3"]},
}


@pytest.mark.parametrize("knowledge", WITHOUT_EOT)
def test_a_randomised_purifier_without_eot_is_flagged(tmp_path, knowledge):
    suite = REAL | {"defenses": ["gaussian"], "knowledge": knowledge} | WITHOUT_EOT[knowledge]
    (one,) = defend.bench(suite | {"eot": 1}, out=tmp_path, workers=1)
    (two,) = defend.bench(suite | {"eot": 2}, out=tmp_path, workers=1)
    assert any(f.startswith("no EOT") for f in one["flags"]) and not any(
        f.startswith("no EOT") for f in two["flags"]
    )
    assert ("randomised, and attacked without EOT" in claim_of([one])) == (
        knowledge == "adaptive"
    ) and "without EOT" not in claim_of([two])


def test_what_is_no_number_is_null_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("defend.records._gradient_error", lambda *_: float("nan"))
    (r,) = defend.bench(
        REAL | {"defenses": ["none"], "attacks": ["fgsm"], "knowledge": "oblivious", "n": 8},
        out=tmp_path,
        workers=1,
    )
    assert (r["error"], r["gradient_error"]) == (
        None,
        None,
    ) and "gradient_error is no number: nan" in r["flags"]


@pytest.mark.parametrize(("knowledge", "noted"), [("query", True), ("oblivious", False)])
def test_queries_are_told_of_the_pipeline_that_is_scored(tmp_path, knowledge, noted):
    suite = REAL | {
        "defenses": ["median"],
        "attacks": ["square:queries=30"],
        "knowledge": knowledge,
    }
    (r,) = defend.bench(suite, out=tmp_path, workers=1)
    assert (r["accuracy_after"] is not None) is noted


@pytest.mark.usefixtures("plugin")
def test_a_masked_purifier_is_told_by_the_protocols_signs(tmp_path):
    """A purifier that claims an exact gradient and has none: declared alone, dead, unbroken at eps 1, and worse off under a black box."""
    suite = REAL | {"defenses": ["detached"], "gradients": ["declared"], "eps": None}
    attacks = ["pgd", "pgd:eps=1,random_start=false,steps=20", "square:queries=300"]
    records = defend.bench(
        suite | {"attacks": attacks, "knowledge": ["adaptive", "query"]}, out=tmp_path, workers=1
    )
    assert all(r["error"] is None for r in records)
    (line,) = {row.claim for row in table(records, [tmp_path]).rows}
    for said in (
        "declared gradient alone",
        "vanishes or is undefined on 100.0 %",
        "PGD at eps 1 from the clean image leaves",
        "black box beats white box: square",
    ):
        assert said in line


def test_real_null_attacks_leave_a_real_worst_case_where_it_was(tmp_path):
    suite = REAL | {"defenses": ["gaussian:sigma=0.2"], "eot": 2, "gradients": ["identity"]}
    null = ["control:draw=0,kind=clean", *(f"control:draw={i}" for i in range(9))]
    records = defend.bench(
        suite | {"attacks": ["pgd:steps=5", *null], "eps": "0.05"}, out=tmp_path, workers=1
    )
    outcomes = [read_outcomes(r, [tmp_path]) for r in records if r["knowledge"] != "oblivious"]
    alone, beside = worst(outcomes[:1]), worst(outcomes)
    low, high = interval(alone)
    assert len(outcomes) == 11
    assert abs(beside.mean() - alone.mean()) <= (high - low) / 2


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_control_spends_its_budget_on_random_signs(norm):
    x = torch.full((6, 1, 8, 8), 0.5)
    noise = Noise.of(0, torch.arange(6))
    one, two = (
        Control(norm=norm, draw=k).run(None, x, None, 0.3, noise.again()) - x for k in (0, 1)
    )
    size = 0.3 if norm == "Linf" else 0.3 / 8
    assert torch.allclose(one.abs(), torch.full_like(x, size), atol=1e-6)
    agreement = (one.sign() == two.sign()).double().mean().item()
    assert abs(agreement - 0.5) < 0.1  # 384 signs
    assert torch.equal(Control(kind="clean").run(None, x, None, 0.3, noise), x)
