"""What the audit says follows from its checks: Holm over the attacks, points and significance, required checks, and nothing else."""

import json

import pytest
from click.testing import CliRunner

from defend.audit.budget import BUDGETS, budget_for
from defend.audit.page import write_page
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import (
    AuditReport,
    Check,
    CheckResult,
    CheckRow,
    NotApplicable,
    NotTried,
    apply_holm,
    checked,
    verdict_of,
)
from defend.errors import BadParameter


def rule(weight, name="a check"):
    return Check(
        name=name,
        question="?",
        weight=weight,
        threshold="less",
        source="a paper",
        advice="Do something",
        run=lambda _: None,
    )


def verdict(*pairs):
    return verdict_of(
        apply_holm([checked(rule(weight, str(i)), seen) for i, (weight, seen) in enumerate(pairs)])
    )[0]


STRONG = CheckResult(measured="much", gap=0.10, p=1e-6)
CASES = {
    "nothing": (
        [
            ("attack", CheckResult(measured="none", gap=0.0, p=1.0)),
            ("required", CheckResult(measured="fine")),
        ],
        "no sign of masking",
    ),
    "an attack that breaks more": ([("attack", STRONG)], "unreliable"),
    "by less than 2 points": (
        [("attack", CheckResult(measured="little", gap=0.019, p=1e-6))],
        "no sign of masking",
    ),
    "by 2 points": ([("attack", CheckResult(measured="enough", gap=0.02, p=1e-6))], "unreliable"),
    "not significantly": (
        [("attack", CheckResult(measured="by chance", gap=0.1, p=0.06))],
        "no sign of masking",
    ),
    "significantly, but not among so many": (
        [("attack", CheckResult(measured="by chance", gap=0.1, p=0.02))] * 3,
        "no sign of masking",
    ),
    "a required check that fails": (
        [("required", CheckResult(measured="bad", ok=False))],
        "unreliable",
    ),
    "a sign": ([("sign", CheckResult(measured="bad", ok=False))], "no sign of masking"),
    "a required check that could not run": ([("required", RuntimeError("no"))], "unreliable"),
    "an attack that could not run": ([("attack", RuntimeError("no"))], "unreliable"),
    "a sign that could not run": ([("sign", RuntimeError("no"))], "no sign of masking"),
    "a required check of which only a control is not significant": (
        [("required", CheckResult(measured="few", ok=False, minor=True))],
        "no sign of masking",
    ),
    "a check left out": (
        [("attack", NotApplicable("the purifier is deterministic"))],
        "no sign of masking",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict(case):
    checks, expected = CASES[case]
    assert verdict(*checks) == expected


def test_holm_is_over_the_attacks_that_ran():
    ran = [
        CheckResult(measured="", gap=0.1, p=0.02),
        NotApplicable("no"),
        CheckResult(measured="", gap=0.0, p=1.0),
    ]
    checks = apply_holm([checked(rule("attack", str(i)), s) for i, s in enumerate(ran)])
    assert [c.p_holm for c in checks] == [0.04, None, 1.0]


def report(text="fine"):
    checks = apply_holm(
        [checked(rule("attack", text), STRONG), checked(rule("sign"), ValueError(text))]
    )
    about = {
        "defense": text,
        "classifier": "c",
        "dataset": "d",
        "split": "val",
        "n": 1,
        "norm": "Linf",
        "eps": 0.1,
        "declared": "1.0 %",
        "clean_accuracy": 1.0,
        "lowest_accuracy": 0.0,
    }
    return AuditReport(
        verdict=verdict_of(checks)[0], reasons=verdict_of(checks)[1], checks=checks, about=about
    )


def test_the_page_escapes_what_a_plugin_says(tmp_path):
    file = tmp_path / "audit.html"
    write_page(report("<script>alert(1)</script>"), file)
    text = file.read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") >= 4
    assert "unreliable" in text and not list(tmp_path.glob("*.part"))


def test_a_page_that_cannot_be_written_is_the_users_error(tmp_path):
    with pytest.raises(BadParameter, match="Give another file"):
        write_page(report(), tmp_path / "nowhere" / "audit.html")


def test_a_report_is_json():
    told = json.loads(json.dumps(report().as_dict(), allow_nan=False))
    assert (
        told["verdict"] == "unreliable" and len(told["checks"]) == 2 and told["checks"][0]["turns"]
    )


def test_a_number_that_is_none_is_null_with_a_reason():
    checks = apply_holm([checked(rule("sign"), CheckResult(measured="nan", value=float("nan")))])
    told = AuditReport(
        verdict="",
        reasons=[],
        checks=checks,
        about={"imitation_error": float("inf"), "curve": [(10, float("nan"))]},
    ).as_dict()
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again["imitation_error"] is None and again["checks"][0]["value"] is None
    assert again["not_finite"] == {
        "imitation_error": "inf",
        "curve[0][1]": "nan",
        "checks[0].value": "nan",
    }


@pytest.mark.parametrize(
    ("left_out", "beside"),
    [
        (NotTried("in quick"), "no sign of masking (not tried: 0)"),
        (NotApplicable("nothing to do"), "no sign of masking"),
    ],
)
def test_an_attack_that_was_not_tried_is_said_beside_the_verdict(left_out, beside):
    checks = apply_holm([checked(rule("attack", "0"), left_out)])
    assert (
        AuditReport(verdict=verdict_of(checks)[0], reasons=[], checks=checks, about={}).headline
        == beside
    )


def test_what_stops_many_checks_is_said_once_and_without_their_advice():
    checks = apply_holm(
        [checked(rule("required", name), RuntimeError("not\nnow")) for name in "abc"]
        + [checked(rule("sign", "d"), RuntimeError("not now"))]
    )
    verdict, reasons = verdict_of(checks)
    assert (verdict, reasons) == ("unreliable", ["a, b, c: could not run: RuntimeError: not now"])


def test_every_threshold_says_where_it_comes_from():
    assert all(isinstance(t.value, float) and len(t.source) > 10 for t in THRESHOLDS.values())


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_budget_fits_the_images(budget, stochastic):
    few = budget_for(budget, stochastic, 16)
    assert few.n == few.some == 16 and few.active <= 16
    dearer = budget_for(budget, stochastic, 32).cost()
    assert dearer[0] > few.cost()[0] > 0 and dearer[1] > few.cost()[1] > 0


@pytest.mark.parametrize(("budget", "n"), [("standrad", None), ("quick", 3), ("quick", 20.5)])
def test_a_wrong_budget_is_the_users_error(budget, n):
    with pytest.raises(BadParameter):
        budget_for(budget, False, n)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bitdepht", "--dataset", "digits", "--classifier", "convnet"], "bitdepth"),
        (
            ["bitdepth", "--dataset", "digits", "--classifier", "convnet", "--budget", "fast"],
            "quick",
        ),
        (["bitdepth", "--dataset", "digits", "--classifier", "convnet", "--eps", "8"], "8/255"),
        (["bitdepth", "--dataset", "digits", "--classifier", "convnet", "--split", "tset"], "test"),
        (["bitdepth", "--dataset", "digits", "--classifier", "convnet", "-n", "100000"], "575"),
        (
            ["bitdepth", "--dataset", "digits", "--classifier", "convnet:weights=untrained"],
            "untrained",
        ),
        (
            [
                "bitdepth",
                "--dataset",
                "digits",
                "--classifier",
                "convnet",
                "--out",
                "/nowhere/at/all.html",
            ],
            "--out",
        ),
        (
            [
                "split-vqvae:weights=split-vqvae-mnist-quad",
                "--dataset",
                "digits",
                "--classifier",
                "convnet",
            ],
            "28x28",
        ),
        (
            ["split-vqvae:weights=nothing", "--dataset", "digits", "--classifier", "convnet"],
            "nothing",
        ),
    ],
)
def test_what_the_user_got_wrong_is_one_line(words, says):
    from defend.cli import main

    done = CliRunner().invoke(main, ["audit", *words])
    assert done.exit_code == 2 and says in done.stderr and done.stdout == ""


def test_a_check_says_what_raised():
    seen = checked(rule("required"), RuntimeError("adversarial images are\nnot to my taste"))
    assert (
        isinstance(seen, CheckRow)
        and seen.measured == "could not run: RuntimeError: adversarial images are not to my taste"
    )
