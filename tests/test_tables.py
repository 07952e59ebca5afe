"""The rows of a table: levels side by side, the worst case over gradients, failures and flags."""

import re
from io import StringIO

import numpy as np
import pytest
from made_runs import DECLARED, IDENTITY, LEARNED, RELAXED, cell, failed, printed, record
from rich.console import Console

from defend.records import Flag, FlagCode
from defend.results import print_table, table
from defend.results.candidates import worst_outcomes
from defend.results.claim_text import format_claim
from defend.results.outcomes import read_outcomes
from defend.stats import bootstrap, wilson


def one_row(records, run_dirs=()):
    (row,) = table(records, run_dirs).rows
    return row


# Outcomes on disk.


def test_outcomes_are_joined_in_the_order_of_the_images(tmp_path):
    score = [1, 0, 0, 1, 1, 0, 1]
    r = cell(tmp_path, score, shard=3, **DECLARED)
    outcomes = read_outcomes(r.replace(units=r.units[::-1]), [tmp_path])
    assert outcomes.score[:, 0].tolist() == score
    assert len(outcomes.x_adv) == 3


def test_without_one_of_its_units_a_cell_has_no_outcomes(tmp_path):
    r = cell(tmp_path, [1, 0, 0, 1], **DECLARED)
    assert read_outcomes(r.replace(units=(*r.units, "0" * 64)), [tmp_path]) is None
    assert read_outcomes(r, [tmp_path / "elsewhere"]) is None


# Rows and columns.


def test_levels_stand_side_by_side(tmp_path):
    records = [
        cell(tmp_path, [1, 1, 1, 0], knowledge="oblivious"),
        cell(tmp_path, [1, 1, 0, 0], **IDENTITY),
        cell(tmp_path, [0, 1, 1, 0], **DECLARED),
        cell(tmp_path, [1, 1, 1, 1], **LEARNED),
        cell(tmp_path, [1, 0, 1, 1], knowledge="transfer", surrogate="jpeg+convnet"),
    ]
    numbers = one_row(records, [tmp_path]).numbers
    expected = {
        "clean": 1.0,
        "oblivious": 0.75,
        "identity": 0.5,
        "declared": 0.5,
        "learned": 1.0,
        "worst": 0.25,
        "transfer": 0.75,
    }
    assert {column: number.value for column, number in numbers.items()} == expected
    assert (numbers["worst"].low, numbers["worst"].high) == wilson(1, 4)
    assert table(records).sections[0].columns == tuple(expected)


def test_worst_of_a_stochastic_row_has_a_bootstrap_interval(tmp_path):
    rng = np.random.default_rng(0)
    score, select = rng.integers(0, 2, (2, 30, 20)), rng.integers(0, 2, (2, 30, 10))
    records = [
        cell(tmp_path, score[i], select=select[i], **level)
        for i, level in enumerate((IDENTITY, DECLARED))
    ]
    number = one_row(records, [tmp_path]).numbers["worst"]
    expected = worst_outcomes([read_outcomes(r, [tmp_path]) for r in records])
    assert number.value == pytest.approx(expected.mean())
    assert (number.low, number.high) == bootstrap(expected.mean(1), seed=0)


def test_several_surrogates_give_their_worst_per_image(tmp_path):
    records = [
        cell(tmp_path, score, knowledge="transfer", surrogate=f"jpeg+{i}")
        for i, score in enumerate(([1, 0, 1], [0, 1, 1]))
    ]
    number = one_row(records, [tmp_path]).numbers["transfer"]
    assert number.value == pytest.approx(1 / 3)


def test_without_units_the_worst_case_is_a_bound(tmp_path):
    records = [record(60, **IDENTITY), record(50, **DECLARED)]
    number = one_row(records).numbers["worst"]
    assert (number.value, number.bound) == (0.25, True)
    assert "<= 25.0" in printed(records, width=200)
    on_disk = [cell(tmp_path, [1, 0], **IDENTITY), cell(tmp_path, [0, 1], **DECLARED)]
    assert not one_row(on_disk, [tmp_path]).numbers["worst"].bound


@pytest.mark.parametrize(
    ("gradient", "note"),
    [("declared", "declared only"), ("identity", "BPDA only"), ("learned", "learned only")],
)
def test_a_single_gradient_is_named(gradient, note):
    records = [record(50, knowledge="adaptive", gradient=gradient)]
    assert one_row(records).numbers["worst"].note == note
    assert all(note in printed(records, width=width) for width in (80, 200))


def test_all_temperatures_are_one_column_image_by_image(tmp_path):
    other = {**RELAXED, "gradient": "relaxed:temperature=1"}
    records = [
        cell(tmp_path, [1, 1, 1, 1], **DECLARED),
        cell(tmp_path, [0, 1, 1, 1], relaxation=True, **RELAXED),
        cell(tmp_path, [1, 0, 1, 1], relaxation=True, **other),
    ]
    (row,) = table(records, [tmp_path]).rows
    accuracies = {name: number.value for name, number in row.numbers.items()}
    assert accuracies == {"clean": 1, "declared": 1, "relaxed": 0.5, "worst": 0.5}
    assert "over its temperatures" in printed(records, [tmp_path], 200)


@pytest.mark.parametrize("changes", [DECLARED, IDENTITY, {"gradient": "declared"}])
@pytest.mark.parametrize("relaxation", [True, False, None])
def test_an_approximate_step_without_a_relaxation_is_told(changes, relaxation):
    text = printed([record(50, relaxation=relaxation, **changes)], width=400)
    is_told = relaxation is False and changes.get("knowledge") == "adaptive"
    assert ("No relaxation is declared by median" in text) is is_told


def test_two_gradients_with_the_same_images_are_one(tmp_path):
    equal = [cell(tmp_path, [1, 0], x_adv="equal", **level) for level in (IDENTITY, DECLARED)]
    different = [cell(tmp_path, [1, 0], **level) for level in (IDENTITY, DECLARED)]
    assert one_row(equal, [tmp_path]).numbers["worst"].note == "declared = BPDA"
    assert one_row(different, [tmp_path]).numbers["worst"].note == ""


def test_at_eps_0_no_gradient_is_named(tmp_path):
    """Every gradient gives the clean image, and "declared only" would stand beside a BPDA cell."""
    eps_0 = {"x_adv": "clean", "eps": 0.0, "eps_text": "0"}
    clean = [cell(tmp_path, [1, 0], **eps_0, **level) for level in (IDENTITY, DECLARED)]
    assert one_row(clean, [tmp_path]).numbers["worst"].note == ""
    assert one_row(clean[1:], [tmp_path]).numbers["worst"].note == ""


def test_without_a_purifier_or_a_gradient_no_gradient_is_named():
    bare = record(50, defense="none", **DECLARED)
    scores = record(50, knowledge="adaptive", gradient=None, access="scores")
    assert [one_row([r]).numbers["worst"].note for r in (bare, scores)] == ["", ""]


def test_eps_in_the_spec_and_eps_of_the_suite_make_one_series():
    records = [
        record(20, attack="pgd"),
        record(50, attack="pgd:eps=8/255", eps=8 / 255, eps_text="8/255"),
    ]
    rows = [(row.attack, row.eps_text) for row in table(records).rows]
    assert rows == [("pgd", "8/255"), ("pgd", "16/255")]


def test_other_images_are_another_section():
    records = [
        record(50),
        record(50, seed=1),
        record(90, n=100),
        record(50, classifier="resnet20"),
        record(50, norm="L2"),
    ]
    model = table(records)
    keys = [section.key for section in model.sections]
    assert [(key.classifier, key.norm, key.n, key.seed) for key in keys] == [
        ("convnet", "Linf", 200, 0),
        ("convnet", "Linf", 200, 1),
        ("convnet", "Linf", 100, 0),
        ("resnet20", "Linf", 200, 0),
        ("convnet", "L2", 200, 0),
    ]
    assert model.sections[0].title == "digits-m | convnet | Linf | n = 200 of test | seed 0"


def test_an_unusual_precision_and_layout_stand_in_the_title():
    (section,) = table([record(50, precision="bfloat16", layout="channels_last")]).sections
    assert section.title.endswith(" | seed 0 | bfloat16 | channels_last")


def test_costs_are_those_of_the_most_expensive_cell():
    cheap = record(50, forwards=20.0, backwards=20.0)
    expensive = record(9, forwards=400.0, backwards=400.0, **DECLARED)
    row = one_row([cheap, expensive])
    assert (row.forwards, row.backwards) == (400.0, 400.0)
    assert "400+400" in printed([record(9, forwards=400.0, backwards=400.0)], width=200)
    assert "1.5k+12k" in printed([record(9, forwards=1500.0, backwards=12_000.0)], width=200)


# Failures and flags.


def test_a_failed_cell_says_so_and_the_others_stand():
    records = [
        record(100),
        failed("RuntimeError: out of memory", **IDENTITY),
        record(50, **DECLARED),
    ]
    numbers = one_row(records).numbers
    assert numbers["identity"].value is None
    assert numbers["identity"].failed == "RuntimeError: out of memory"
    assert (numbers["worst"].value, numbers["worst"].note) == (0.25, "declared only")
    text = printed(records, width=200)
    assert "failed" in text
    assert "median, pgd, adaptive BPDA, eps 16/255: RuntimeError: out of memory" in text


def test_a_row_of_failures_alone_is_printed():
    records = [failed(knowledge="oblivious"), failed(**DECLARED)]
    assert {number.value for number in one_row(records).numbers.values()} == {None}
    assert printed(records, width=80).count("failed") >= 3


def test_flags_mark_the_number_and_are_listed_once_for_a_series():
    flags = [Flag(code=FlagCode.ZERO_GRADIENT, value=3)]
    records = [
        record(50, eps=eps / 255, eps_text=f"{eps}/255", flags=flags, **DECLARED) for eps in (4, 8)
    ]
    text = printed(records, width=200)
    # Two eps: all attacks and adaptive by level, declared and worst of the attack.
    assert text.count("!25.0") == 8
    assert text.count("zero gradient") == 1
    assert "eps 4/255, 8/255: zero gradient: 3 of 200 images" in text


# Printing.


def suite(eps=("8/255", "16/255")):
    """Return the records of three defenses, two attacks, three levels and these eps."""
    records = []
    for defense in ("none", "jpeg:quality=50", "split-vqvae:grid=2+split-vqvae:grid=1"):
        for attack in ("fgsm", "pgd"):
            for i, text in enumerate(eps):
                names = {"defense": defense, "attack": attack, "eps": i / 255, "eps_text": text}
                for j, level in enumerate(({"knowledge": "oblivious"}, IDENTITY, DECLARED)):
                    records.append(record(150 - 5 * i - 30 * j, **names, **level))
    return records


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width):
    text = printed(suite(), width=width)
    assert max(map(len, text.splitlines())) <= width
    for r in suite():
        assert f"{100 * r.robust_accuracy:.1f}" in text


def test_where_names_stand_on_lines_the_headings_are_printed_once():
    text = printed(suite(), width=80)
    assert "fwd+bwd" in text and "none | fgsm" in text
    assert len(re.findall("oblivious +BPDA", text)) == 1


def test_the_worst_case_by_level_comes_before_each_attack():
    text = printed(suite(), width=120)
    by_level, by_attack = text.split("Each attack:")
    assert by_level.splitlines()[1].split()[:5] == ["defense", "eps", "clean", "all", "attacks"]
    assert "pgd" not in by_level and "pgd" in by_attack


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_eps_of_a_sweep_is_one_row(width):
    eps = [f"{i / 50:g}" for i in range(16)]
    lines = [line.split() for line in printed(suite(eps), width=width).splitlines()]
    for text in eps[1:]:
        assert sum(text in words[:3] for words in lines if words) == 9  # defenses x (all + attacks)


def test_every_row_says_no_claim_and_nothing_is_bold():
    out = StringIO()
    print_table(suite(), Console(file=out, width=200, force_terminal=True, color_system="standard"))
    text = out.getvalue()
    assert text.count("no claim") == 1
    assert "[a] no claim: it needs --protocol ladder-2 -n 1000\n" in text
    (section,) = table(suite()).sections
    assert all(format_claim(row.claim).startswith("no claim (missing: ") for row in section.rows)
    assert text.count("no [a]") == len(section.levels)
    assert "\x1b[1m" not in text and ";1m" not in text


def test_claims_have_letters_in_the_order_of_the_rows():
    records = [record(50, defense=f"median:size={i}", seed=i) for i in range(28)]
    model = table(records)
    letters = [model.letter(row.claim) for row in model.rows]
    assert letters == ["a"] * 28  # the same line
    different = [record(50, layout=f"layout{i}") for i in range(28)]
    model = table(different)
    letters = [model.letter(row.claim) for row in model.rows]
    assert letters[:2] == ["a", "b"] and letters[25:] == ["z", "aa", "ab"]


def test_bpda_heads_the_identity_column():
    header = (
        printed([record(50, **IDENTITY)], width=200).split("Each attack:")[1].split("median")[0]
    )
    assert "BPDA" in header
    assert "identity" not in header


def test_trained_on_has_a_column_when_any_row_has_it():
    training = {"kind": "adversarial", "attack": "fgsm", "eps": 0.3}
    trained = record(50, defense="split-vqvae", trained_on=[training])
    assert "trained on" not in printed([record(50)], width=200)
    for width in (80, 200):
        text = printed([record(50), trained], width=width)
        assert "trained on" in text and "adversarial(fgsm, 0.3)" in text


def test_markup_in_a_name_is_text():
    name = "art:name=[red]x[/red]"
    assert name in printed([record(50, defense=name)], width=200)


def test_how_to_read_the_numbers_is_told():
    text = printed([record(50, stochastic=True, draws=20, **DECLARED)], width=200)
    for words in ("upper bound", "cover sampling alone", "mean over 20 draws", "a smoke test"):
        assert words in text
    assert "smoke" not in printed([record(500, n=1000)], width=200)
