"""The verdict follows from the checks: Holm over the attacks, points, and required checks."""

import json
from dataclasses import fields

import pytest
from click.testing import CliRunner

from defend.auditing.budget import BUDGETS, budget_for
from defend.auditing.cost import count_evaluations
from defend.auditing.grounds import Grounds
from defend.auditing.page import write_page
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import (
    Accuracies,
    AuditReport,
    Check,
    CheckResult,
    CheckRow,
    CurvePoint,
    NotApplicable,
    NotTried,
    Subject,
    apply_holm,
    decide_verdict,
    make_row,
    name_strongest,
)
from defend.errors import BadParameter
from defend.trained_on import TrainedOn


def make_check(weight, name="a check"):
    return Check(
        name=name,
        question="?",
        weight=weight,
        threshold="less",
        source="a paper",
        advice="Do something",
        run=lambda _: None,
    )


def make_rows(*outcomes):
    """Return the rows of (weight, outcome) pairs, named by their numbers."""
    rows = [
        make_row(make_check(weight, str(i)), outcome)
        for i, (weight, outcome) in enumerate(outcomes)
    ]
    return apply_holm(rows)


def attack(gap, p, measured="broken"):
    return CheckResult(measured=measured, gap=gap, p=p)


STRONG = attack(0.10, 1e-6)
FAILED = CheckResult(measured="bad", passed=False)
CASES = {
    "nothing": (
        [("attack", attack(0.0, 1.0)), ("required", CheckResult(measured="fine"))],
        "no sign of masking",
    ),
    "an attack that breaks more": ([("attack", STRONG)], "unreliable"),
    "by less than 2 points": ([("attack", attack(0.019, 1e-6))], "no sign of masking"),
    "by 2 points": ([("attack", attack(0.02, 1e-6))], "unreliable"),
    "not significantly": ([("attack", attack(0.049, 0.06))], "no sign of masking"),
    "much, and not significantly": ([("attack", attack(0.05, 0.06))], "not judged"),
    "significantly, but not among so many": ([("attack", attack(0.1, 0.02))] * 3, "not judged"),
    "a required check that fails": ([("required", FAILED)], "unreliable"),
    "a sign": ([("sign", FAILED)], "no sign of masking"),
    "a required check that could not run": ([("required", RuntimeError("no"))], "unreliable"),
    "an attack that could not run": ([("attack", RuntimeError("no"))], "unreliable"),
    "a sign that could not run": ([("sign", RuntimeError("no"))], "no sign of masking"),
    "a required check of which only a control is not significant": (
        [("required", CheckResult(measured="few", passed=False, advisory=True))],
        "no sign of masking",
    ),
    "a check left out": (
        [("attack", NotApplicable("the purifier is deterministic"))],
        "no sign of masking",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict(case):
    outcomes, expected = CASES[case]
    assert decide_verdict(make_rows(*outcomes))[0] == expected


GROUNDS = {
    "something": (Grounds(["Square"], ["learned gradient: it imitates badly"]), "nothing"),
    "nothing": (Grounds([], ["Square: 300 queries say little"]), "nothing"),
    "nothing, and it is masked": (Grounds([], ["Square"]), "an attack that breaks more"),
}


@pytest.mark.parametrize(
    ("grounds", "verdict", "reasons"),
    [
        ("something", "no sign of masking", []),
        ("nothing", "not judged", ["Square: 300 queries say little"]),
        ("nothing, and it is masked", "unreliable", None),
    ],
)
def test_a_verdict_needs_an_attack_that_could_have_told(grounds, verdict, reasons):
    given, case = GROUNDS[grounds]
    decided = decide_verdict(make_rows(*CASES[case][0]), given)
    assert decided[0] == verdict
    assert reasons is None or decided[1] == reasons


def test_an_attack_that_could_not_have_told_does_not_pass():
    outcome = CheckResult(measured="breaks none", gap=0.0, p=1.0, inconclusive="few queries")
    (row,) = make_rows(("attack", outcome))
    assert (row.verdict, row.measured) == ("not judged", "breaks none; few queries")
    assert make_report(rows=[row]).headline == "no sign of masking (not judged: 0)"
    flagged = CheckResult(measured="breaks", gap=0.1, p=1e-6, inconclusive="few queries")
    assert make_rows(("attack", flagged))[0].verdict == "flag"


def leaves(accuracy, gap, move=""):
    return CheckResult(measured="broken", gap=gap, p=1e-6, accuracy=accuracy, move=move)


@pytest.mark.parametrize(
    ("outcomes", "named"),
    [
        ([leaves(0.5, 0.1), leaves(0.3, 0.3)], "1, 30.0 points more than the declared"),
        # The second one is compared with a better attack, so that its gap is the smaller one.
        ([leaves(0.5, 0.1), leaves(0.29, 0.01)], "1, 31.0 points more than the declared"),
        ([leaves(0.2, 0.4, "cross entropy"), leaves(0.5, 0.1)], "0, 40.0 points more"),
        ([leaves(0.6, 0.0), leaves(0.7, -0.1)], "the declared gradient's attacks"),
        ([NotApplicable("no")], "the declared gradient's attacks"),
    ],
)
def test_the_attack_that_left_least_is_named(outcomes, named):
    rows = make_rows(*(("attack", outcome) for outcome in outcomes))
    text = name_strongest(rows, 0.6)
    assert text.startswith(named)
    assert text.endswith(", most by cross entropy") == ("40.0" in named)
    assert name_strongest(rows, None) == "the declared gradient's attacks"


def test_holm_is_over_the_attacks_that_ran():
    rows = make_rows(
        ("attack", attack(0.1, 0.02)),
        ("attack", NotApplicable("no")),
        ("attack", attack(0.0, 1.0)),
    )
    assert [row.p_holm for row in rows] == [0.04, None, 1.0]


@pytest.mark.parametrize("untested", [0, 1, 12])
def test_attacks_that_were_not_tested_cost_no_power(untested):
    rest = [("attack", CheckResult(measured="breaks none", gap=0.0))] * untested
    rows = make_rows(("attack", attack(0.1, 0.02)), *rest)
    assert rows[0].turns
    assert [row.p_holm for row in rows] == [0.02, *[None] * untested]
    assert {row.verdict for row in rows[1:]} <= {"pass"}


def make_report(text="fine", rows=None, accuracies=None):
    """Return a report in which a plugin's texts say `text`."""
    if rows is None:
        rows = apply_holm(
            [
                make_row(make_check("attack", text), STRONG),
                make_row(make_check("sign"), ValueError(text)),
            ]
        )
    verdict, reasons = decide_verdict(rows)
    return AuditReport(
        verdict=verdict,
        reasons=reasons,
        checks=rows,
        subject=make_subject(text),
        accuracies=accuracies
        or Accuracies(clean_accuracy=1.0, declared="1.0 %", lowest_accuracy=0.0),
        seconds=1.0,
    )


def make_subject(defense):
    return Subject(
        defense=defense,
        dataset="d",
        classifier="c",
        surrogates=[],
        split="val",
        n=1,
        norm="Linf",
        eps=0.1,
        budget="quick",
        seed=0,
        device="cpu",
        stochastic=False,
        declared_gradient="exact",
        eot=1,
        draws=1,
        trained_on=(),
        classifier_trained_on=(TrainedOn(kind="clean"),),
        versions={},
    )


def test_the_page_escapes_what_a_plugin_says(tmp_path):
    file = tmp_path / "audit.html"
    write_page(make_report("<script>alert(1)</script>"), file)
    text = file.read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4
    assert "unreliable" in text
    assert not list(tmp_path.glob("*.part"))


def test_a_page_that_cannot_be_written_is_the_users_error(tmp_path):
    with pytest.raises(BadParameter, match="--out"):
        write_page(make_report(), tmp_path / "nowhere" / "audit.html")


def test_a_report_is_json():
    report = json.loads(json.dumps(make_report().as_dict(), allow_nan=False))
    assert report["verdict"] == "unreliable"
    assert len(report["checks"]) == 2
    assert report["checks"][0]["turns"]


def test_the_keys_of_the_json_report_stay():
    """Scripts read them."""
    report = make_report().as_dict()
    assert list(report) == [
        "verdict",
        "reasons",
        "rests_on",
        "grounds",
        "broke_most",
        "defense",
        "dataset",
        "classifier",
        "surrogates",
        "split",
        "n",
        "norm",
        "eps",
        "budget",
        "seed",
        "device",
        "stochastic",
        "declared_gradient",
        "eot",
        "draws",
        "trained_on",
        "classifier_trained_on",
        "versions",
        "clean_accuracy",
        "declared_accuracy",
        "declared",
        "lowest_accuracy",
        "imitation_error",
        "curve",
        "copies",
        "seconds",
        "checks",
        "not_finite",
    ]
    assert list(report["checks"][0]) == [
        "name",
        "question",
        "weight",
        "verdict",
        "measured",
        "value",
        "threshold",
        "source",
        "advice",
        "gap",
        "p",
        "p_holm",
        "turns",
        "untried",
        "accuracy",
        "move",
    ]


def test_a_number_that_is_not_finite_is_null_with_a_reason():
    rows = make_rows(("sign", CheckResult(measured="nan", value=float("nan"))))
    accuracies = Accuracies(imitation_error=float("inf"), curve=[CurvePoint(10, float("nan"))])
    report = make_report(rows=rows, accuracies=accuracies).as_dict()
    parsed = json.loads(json.dumps(report, allow_nan=False))
    assert parsed["imitation_error"] is None
    assert parsed["checks"][0]["value"] is None
    assert parsed["not_finite"] == {
        "imitation_error": "inf",
        "curve[0][1]": "nan",
        "checks[0].value": "nan",
    }


@pytest.mark.parametrize(
    ("outcome", "headline"),
    [
        (NotTried("in quick"), "no sign of masking (not tried: 0)"),
        (NotApplicable("nothing to do"), "no sign of masking"),
    ],
)
def test_an_attack_that_was_not_tried_is_named_beside_the_verdict(outcome, headline):
    assert make_report(rows=make_rows(("attack", outcome))).headline == headline


def test_one_exception_in_many_checks_is_one_reason_without_their_advice():
    rows = make_rows(
        ("required", RuntimeError("not\nnow")),
        ("required", RuntimeError("not\nnow")),
        ("required", RuntimeError("not\nnow")),
        ("sign", RuntimeError("not now")),
    )
    assert decide_verdict(rows) == (
        "unreliable",
        ["3 checks (0, 1, 2): could not run: RuntimeError: not now"],
    )


def test_a_check_names_what_raised():
    error = RuntimeError("adversarial images are\nnot to my taste")
    row = make_row(make_check("required"), error)
    assert isinstance(row, CheckRow)
    assert row.measured == "could not run: RuntimeError: adversarial images are not to my taste"


def test_every_threshold_names_its_source():
    for field in fields(THRESHOLDS):
        threshold = getattr(THRESHOLDS, field.name)
        assert isinstance(threshold.value, float)
        assert len(threshold.source) > 10


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_budget_fits_the_images(budget, stochastic):
    few = budget_for(budget, stochastic, 16)
    assert few.n == few.probe_images == 16
    assert few.active_images <= 16
    cost = count_evaluations(few).total
    larger = count_evaluations(budget_for(budget, stochastic, 32)).total
    assert larger.gradients > cost.gradients > 0
    assert larger.forwards > cost.forwards > 0
    assert count_evaluations(few, gradients=3).total.gradients > cost.gradients


@pytest.mark.parametrize(("budget", "n"), [("standrad", None), ("quick", 3), ("quick", 20.5)])
def test_a_wrong_budget_is_the_users_error(budget, n):
    with pytest.raises(BadParameter):
        budget_for(budget, False, n)


ON_DIGITS = ("--dataset", "digits", "--classifier")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["bitdepht", *ON_DIGITS, "convnet"], "bitdepth"),
        (["bitdepth", *ON_DIGITS, "convnet", "--budget", "fast"], "quick"),
        (["bitdepth", *ON_DIGITS, "convnet", "--eps", "8"], "8/255"),
        (["bitdepth", *ON_DIGITS, "convnet", "--split", "tset"], "test"),
        (["bitdepth", *ON_DIGITS, "convnet", "-n", "100000"], "575"),
        (["bitdepth", *ON_DIGITS, "convnet:weights=untrained"], "untrained"),
        (["bitdepth", *ON_DIGITS, "convnet", "--out", "/nowhere/at/all.html"], "--out"),
        (["split-vqvae:weights=split-vqvae-mnist-quad", *ON_DIGITS, "convnet"], "28x28"),
        (["split-vqvae:weights=nothing", *ON_DIGITS, "convnet"], "nothing"),
    ],
)
def test_an_error_of_the_user_is_one_line(words, named):
    from defend.cli import main

    done = CliRunner().invoke(main, ["audit", *words])
    assert done.exit_code == 2
    assert named in done.stderr
    assert done.stdout == ""
