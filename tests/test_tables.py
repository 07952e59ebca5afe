"""The table's theory: worst cases image by image, what is said of one gradient, what a claim misses."""

from io import StringIO

import numpy as np
import pytest
from made_runs import DECLARED, IDENTITY, LEARNED, cell, failed, printed, record
from rich.console import Console

from defend.results import print_table, table
from defend.results.outcomes import Outcomes, distinct, read_outcomes, worst
from defend.stats import bootstrap, wilson


def bits(*rows):
    return np.array(rows, np.uint8)


def one_row(records, run_dirs=()):
    (row,) = table(records, run_dirs).rows
    return row


# worst cases


def test_worst_of_deterministic_is_right_only_where_right_under_all():
    clean = bits([1], [1], [1], [0])
    a = Outcomes(score=bits([1], [0], [1], [0]), clean_score=clean, x_adv=("a",))
    b = Outcomes(score=bits([1], [1], [0], [0]), clean_score=clean, x_adv=("b",))
    assert worst([a, b])[:, 0].tolist() == [1, 0, 0, 0]


def stochastic(score, select, name="x", clean_score=1, clean_select=1):
    score, select = np.array(score, np.uint8), np.array(select, np.uint8)
    return Outcomes(
        score=score,
        select=select,
        clean_score=np.full_like(score, clean_score),
        clean_select=np.full_like(select, clean_select),
        x_adv=(name,),
    )


def test_worst_of_stochastic_is_chosen_on_select_and_read_off_on_score():
    """Image 0: b is worse on select although a is worse on score. Image 1: the other way round."""
    a = stochastic(score=[[0, 0], [1, 0]], select=[[1, 1, 1], [0, 0, 1]], name="a")
    b = stochastic(score=[[1, 0], [0, 0]], select=[[0, 0, 1], [1, 1, 1]], name="b")
    assert worst([a, b]).tolist() == [[1, 0], [1, 0]]
    assert worst([b, a]).tolist() == [[1, 0], [1, 0]]


def test_the_clean_image_is_a_candidate():
    """Where the attack helped the purifier, the attacker hands in the clean image."""
    helped = stochastic(score=[[1, 1]], select=[[1, 1, 1]], clean_score=0, clean_select=0)
    assert worst([helped]).tolist() == [[0, 0]]


def test_ties_on_select_go_to_the_candidate_that_is_stronger_overall():
    weak = stochastic(score=[[1, 1], [1, 1], [1, 1]], select=[[1, 1], [0, 1], [1, 1]], name="weak")
    strong = stochastic(
        score=[[0, 1], [0, 0], [0, 0]], select=[[1, 1], [0, 0], [0, 0]], name="strong"
    )
    assert worst([weak, strong])[0].tolist() == worst([strong, weak])[0].tolist() == [0, 1]


def test_reading_off_on_other_draws_keeps_null_attacks_from_winning():
    """Ten attacks that do nothing: the worst case stays at the clean accuracy, the minimum over `score` would fall by itself."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.3, 0.9, (4000, 1))

    def draw(k):
        return (rng.uniform(size=(4000, k)) < p).astype(np.uint8)

    clean_score, clean_select = draw(20), draw(10)
    null = [
        Outcomes(
            score=draw(20),
            select=draw(10),
            clean_score=clean_score,
            clean_select=clean_select,
            x_adv=(str(i),),
        )
        for i in range(10)
    ]
    assert worst(null).mean() == pytest.approx(p.mean(), abs=0.01)
    naive = np.minimum.reduce([o.score.mean(1) for o in null]).mean()
    assert naive < p.mean() - 0.1


def test_identical_adversarial_images_count_once():
    a, same, other = (stochastic([[1, 0]], [[1]], name=n) for n in ("a", "a", "b"))
    assert len(distinct([a, same])) == 1
    assert len(distinct([a, same, other])) == 2


def test_outcomes_are_joined_in_the_order_of_the_images(tmp_path):
    score = [1, 0, 0, 1, 1, 0, 1]
    r = cell(tmp_path, score, shard=3, **DECLARED)
    r["units"] = r["units"][::-1]
    got = read_outcomes(r, [tmp_path])
    assert got.score[:, 0].tolist() == score
    assert len(got.x_adv) == 3


def test_a_missing_unit_is_no_outcome(tmp_path):
    r = cell(tmp_path, [1, 0, 0, 1], **DECLARED)
    assert read_outcomes(r | {"units": [*r["units"], "0" * 64]}, [tmp_path]) is None
    assert read_outcomes(r, [tmp_path / "elsewhere"]) is None


# rows and columns


def test_levels_stand_side_by_side(tmp_path):
    records = [
        cell(tmp_path, [1, 1, 1, 0], knowledge="oblivious"),
        cell(tmp_path, [1, 1, 0, 0], **IDENTITY),
        cell(tmp_path, [0, 1, 1, 0], **DECLARED),
        cell(tmp_path, [1, 1, 1, 1], **LEARNED),
        cell(tmp_path, [1, 0, 1, 1], knowledge="transfer", surrogate="jpeg+convnet"),
    ]
    numbers = one_row(records, [tmp_path]).numbers
    got = {c: n.accuracy for c, n in numbers.items()}
    assert got == {
        "clean": 1.0,
        "oblivious": 0.75,
        "identity": 0.5,
        "declared": 0.5,
        "learned": 1.0,
        "worst": 0.25,
        "transfer": 0.75,
    }
    assert (numbers["worst"].low, numbers["worst"].high) == wilson(1, 4)
    assert table(records).sections[0].columns == (
        "clean",
        "oblivious",
        "identity",
        "declared",
        "learned",
        "worst",
        "transfer",
    )


def test_worst_of_a_stochastic_row_has_a_bootstrap_interval(tmp_path):
    rng = np.random.default_rng(0)
    score, select = rng.integers(0, 2, (2, 30, 20)), rng.integers(0, 2, (2, 30, 10))
    records = [
        cell(tmp_path, score[i], select=select[i], **g) for i, g in enumerate((IDENTITY, DECLARED))
    ]
    number = one_row(records, [tmp_path]).numbers["worst"]
    expected = worst([read_outcomes(r, [tmp_path]) for r in records])
    assert number.accuracy == pytest.approx(expected.mean())
    assert (number.low, number.high) == bootstrap(expected.mean(1), seed=0)


def test_several_surrogates_give_their_worst_per_image(tmp_path):
    records = [
        cell(tmp_path, s, knowledge="transfer", surrogate=f"jpeg+{i}")
        for i, s in enumerate(([1, 0, 1], [0, 1, 1]))
    ]
    assert one_row(records, [tmp_path]).numbers["transfer"].accuracy == pytest.approx(1 / 3)


def test_without_units_the_worst_case_is_a_bound(tmp_path):
    records = [record(60, **IDENTITY), record(50, **DECLARED)]
    number = one_row(records).numbers["worst"]
    assert (number.accuracy, number.bound) == (0.25, True)
    assert "<= 25.0" in printed(records, width=200)
    real = [cell(tmp_path, [1, 0], **IDENTITY), cell(tmp_path, [0, 1], **DECLARED)]
    assert not one_row(real, [tmp_path]).numbers["worst"].bound


@pytest.mark.parametrize(
    ("gradient", "said"),
    [("declared", "declared only"), ("identity", "BPDA only"), ("learned", "learned only")],
)
def test_a_single_gradient_is_named(gradient, said):
    records = [record(50, knowledge="adaptive", gradient=gradient)]
    assert one_row(records).numbers["worst"].note == said
    assert all(said in printed(records, width=width) for width in (80, 200))


def test_two_gradients_with_the_same_images_are_one(tmp_path):
    same = [cell(tmp_path, [1, 0], x_adv="same", **g) for g in (IDENTITY, DECLARED)]
    apart = [cell(tmp_path, [1, 0], **g) for g in (IDENTITY, DECLARED)]
    assert one_row(same, [tmp_path]).numbers["worst"].note == "declared = BPDA"
    assert one_row(apart, [tmp_path]).numbers["worst"].note == ""


def test_at_eps_0_no_gradient_is_doubted(tmp_path):
    """Every gradient gives the clean image there, and "declared only" would stand beside a BPDA cell that was run."""
    clean = [
        cell(tmp_path, [1, 0], x_adv="clean", eps=0.0, eps_text="0", **g)
        for g in (IDENTITY, DECLARED)
    ]
    assert one_row(clean, [tmp_path]).numbers["worst"].note == ""
    assert one_row(clean[1:], [tmp_path]).numbers["worst"].note == ""


def test_without_a_purifier_there_is_no_gradient_to_doubt():
    assert one_row([record(50, defense="none", **DECLARED)]).numbers["worst"].note == ""
    assert (
        one_row([record(50, knowledge="adaptive", gradient=None, access="scores")])
        .numbers["worst"]
        .note
        == ""
    )


def test_eps_in_the_spec_and_eps_of_the_suite_make_one_series():
    records = [
        record(50, attack="pgd:eps=8/255", eps=8 / 255, eps_text="8/255"),
        record(20, attack="pgd"),
    ]
    assert [(row.attack, row.eps_text) for row in table(records[::-1]).rows] == [
        ("pgd", "8/255"),
        ("pgd", "16/255"),
    ]


def test_other_images_are_another_section():
    records = [
        record(50),
        record(50, seed=1),
        record(90, n=100),
        record(50, classifier="resnet20"),
        record(50, norm="L2"),
    ]
    model = table(records)
    assert [(s.classifier, s.norm, s.n, s.seed) for s in model.sections] == [
        ("convnet", "Linf", 200, 0),
        ("convnet", "Linf", 200, 1),
        ("convnet", "Linf", 100, 0),
        ("resnet20", "Linf", 200, 0),
        ("convnet", "L2", 200, 0),
    ]
    assert model.sections[0].title == "digits-m | convnet | Linf | n = 200 of test | seed 0"


def test_costs_are_those_of_the_dearest_cell():
    row = one_row(
        [
            record(50, forwards=20.0, backwards=20.0),
            record(9, forwards=400.0, backwards=400.0, **DECLARED),
        ]
    )
    assert (row.forwards, row.backwards) == (400.0, 400.0)
    assert "400+400" in printed([record(9, forwards=400.0, backwards=400.0)], width=200)
    assert "1.5k+12k" in printed([record(9, forwards=1500.0, backwards=12_000.0)], width=200)


# failures and flags


def test_a_failed_cell_says_so_and_the_rest_stands():
    records = [
        record(100),
        failed("RuntimeError: out of memory", **IDENTITY),
        record(50, **DECLARED),
    ]
    numbers = one_row(records).numbers
    assert numbers["identity"].accuracy is None
    assert numbers["identity"].failed == "RuntimeError: out of memory"
    assert (numbers["worst"].accuracy, numbers["worst"].note) == (0.25, "declared only")
    text = printed(records, width=200)
    assert "failed" in text
    assert "median, pgd, adaptive BPDA, eps 16/255: RuntimeError: out of memory" in text


def test_a_row_of_failures_alone_is_printed():
    records = [failed(knowledge="oblivious"), failed(**DECLARED)]
    assert {n.accuracy for n in one_row(records).numbers.values()} == {None}
    assert printed(records, width=80).count("failed") >= 3


def test_flags_mark_the_number_and_are_listed_once_for_a_series():
    flags = ["zero gradient: 3 of 200 images"]
    records = [
        record(50, eps=e / 255, eps_text=f"{e}/255", flags=flags, **DECLARED) for e in (4, 8)
    ]
    text = printed(records, width=200)
    assert text.count("!25.0") == 4  # declared and worst, two eps
    assert text.count("zero gradient") == 1
    assert "eps 4/255, 8/255: zero gradient" in text


# printing


def suite(eps=("8/255", "16/255")):
    levels = ({"knowledge": "oblivious"}, IDENTITY, DECLARED)
    return [
        record(150 - 5 * i - 30 * j, defense=d, attack=a, eps=i / 255, eps_text=e, **level)
        for d in ("none", "jpeg:quality=50", "split-vqvae:grid=2+split-vqvae:grid=1")
        for a in ("fgsm", "pgd")
        for i, e in enumerate(eps)
        for j, level in enumerate(levels)
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width):
    text = printed(suite(), width=width)
    assert max(map(len, text.splitlines())) <= width
    for number in {f"{100 * r['robust_accuracy']:.1f}" for r in suite()}:
        assert number in text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_eps_of_a_sweep_is_one_row(width):
    eps = [f"{i / 50:g}" for i in range(16)]
    lines = [line.split() for line in printed(suite(eps), width=width).splitlines()]
    for e in eps[1:]:
        assert sum(e in words[:3] for words in lines if words) == 6  # defenses x attacks


def test_every_row_says_no_claim_and_nothing_is_bold():
    out = StringIO()
    print_table(suite(), Console(file=out, width=200, force_terminal=True, color_system="standard"))
    assert "no claim (missing: oblivious APGD-CE, oblivious PGD-40, " in out.getvalue()
    assert all(row.claim.startswith("no claim (missing: ") for row in table(suite()).rows)
    assert out.getvalue().count("no [a]") == len(table(suite()).rows)
    assert "\x1b[1m" not in out.getvalue() and ";1m" not in out.getvalue()


def test_bpda_heads_the_identity_column():
    header = printed([record(50, **IDENTITY)], width=200).split("median")[0]
    assert "BPDA" in header
    assert "identity" not in header


def test_trained_on_has_a_column_when_any_row_has_it():
    records = [
        record(50),
        record(50, defense="split-vqvae", trained_on="adversarial(fgsm, 0.3, resnet20)"),
    ]
    assert "trained on" not in printed(records[:1], width=200)
    assert all(
        "trained on" in printed(records, width=w)
        and "adversarial(fgsm," in printed(records, width=w)
        for w in (80, 200)
    )


def test_markup_in_a_name_is_text():
    assert "art:name=[red]x[/red]" in printed(
        [record(50, defense="art:name=[red]x[/red]")], width=200
    )


def test_what_must_be_said_is_said():
    text = printed([record(50, stochastic=True, draws=20, **DECLARED)], width=200)
    for said in ("upper bound", "cover sampling alone", "mean over 20 draws", "a smoke test"):
        assert said in text
    assert "smoke" not in printed([record(500, n=1000)], width=200)
