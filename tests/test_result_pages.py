"""The scripts that write the tables of docs/: what they print of runs made by hand."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_runs import DECLARED, IDENTITY, cell, complete, keep

from defend.benchmarks.flags import unconverged

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def script(name):
    spec = importlib.util.spec_from_file_location(name, RESULTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_ladder_is_bold_where_it_may_be_claimed_and_says_that_images_come_again(tmp_path):
    page = script("ladder_page")
    (made,), _ = page.of(keep(tmp_path, complete()))
    assert (made["oblivious"], made["query"], made["adaptive"], made["worst"], made["clean"]) == (
        "<= 1.0",
        "1.0",
        "<= 1.0",
        "<= 1.0",
        "100.0",
    )
    text = "\n".join(page.lines([made]))
    assert (
        "n = 1,000 (575 distinct" in text
        and "**<= 1.0** (0.5 to 1.8)" in text
        and text.rstrip().endswith("| claim: ladder-1 |")
    )
    (lacking,), _ = page.of(keep(tmp_path, complete()[1:]))
    assert "**" not in page.line(lacking) and "no claim (missing: oblivious APGD-CE" in page.line(
        lacking
    )


def test_a_level_that_still_fell_is_at_most_that(tmp_path):
    page, still = (
        script("ladder_page"),
        {"knowledge": "query", "attack": "square", "flags": [unconverged(0.01)]},
    )
    (made,), _ = page.of(
        keep(
            tmp_path,
            [cell(tmp_path, [1, 1, 0], **still), cell(tmp_path, [1, 0, 0], knowledge="oblivious")],
        )
    )
    assert (made["query"], made["oblivious"]) == ("<= 66.7", "33.3")


def test_a_level_of_the_ladder_is_the_worst_of_each_image(tmp_path):
    """Two gradients that break different images leave less than either."""
    page, (a, b) = script("ladder_page"), ([1, 1, 0, 0], [0, 1, 1, 1])
    (made,), _ = page.of(
        keep(
            tmp_path,
            [
                cell(tmp_path, a, **DECLARED),
                cell(tmp_path, b, **IDENTITY),
                cell(tmp_path, b, knowledge="oblivious"),
            ],
        )
    )
    assert (made["oblivious"], made["transfer"], made["adaptive"], made["worst"]) == (
        "75.0",
        "",
        "25.0",
        "25.0",
    )


def test_a_part_that_is_measured_again_leaves_the_rest_of_the_table(tmp_path):
    page, table = script("audit_thresholds"), tmp_path / "table.json"
    now = [audited("caught", 0.4, 0.0, "unreliable"), audited("new", 0.1, 0.0, "unreliable")]
    assert page.merged(table, now) == now
    table.write_text(json.dumps(MEASURED))
    assert page.merged(table, now) == [now[0], *MEASURED[1:], now[1]]


def audited(name, declared, best, verdict, honest=False):
    check = {"name": "slope", "value": 0.5, "turns": verdict == "unreliable"}
    report = {"verdict": verdict, "n": 100, "eps": 0.1, "checks": [check]}
    gap = None if declared is None else declared - best
    measured = {
        "declared": declared,
        "best_known": best,
        "gap": gap,
        "cpu_seconds": 9.0,
        "report": report,
    }
    return {"name": name, "family": name, "half": 1, "honest": honest} | measured


MEASURED = [
    audited("caught", 0.5, 0.0, "unreliable"),
    audited("missed", 0.5, 0.0, "no sign of masking"),
    audited("no number", None, 0.0, "unreliable"),
    audited("little hidden", 0.04, 0.0, "no sign of masking"),
    audited("alarm", 0.5, 0.5, "unreliable", honest=True),
    audited("sound", 0.0, 0.0, "no sign of masking", honest=True),
]


def test_misses_and_false_alarms_are_counted_where_there_is_something_to_miss():
    page = script("audit_thresholds")
    assert [page.should_be(r) for r in MEASURED] == [True, True, True, None, False, False]
    text, families = page.rates(MEASURED)
    assert (
        "the half that judges: 1 of 3 (95 %: 6 to 79 %) misses" in text
        and "1 of 2 (95 %: 9 to 91 %) false alarms" in text
    )
    assert "something to win (the declared gradient leaves 2 % or more): 1 of 1" in text
    assert (
        "| missed | judges | 1 | 1 |" in families and "little hidden | judges | 0 | 0 |" in families
    )


@pytest.mark.parametrize("changed", ["classifier", "budget", "n", "robust", "soft_eps"])
def test_what_was_measured_otherwise_is_not_read(changed):
    page = script("audit_thresholds")
    options = {
        "classifier": "convnet",
        "budget": "standard",
        "n": None,
        "robust": None,
        "soft_eps": 0.1,
        "only": [],
    }
    keys = [
        page.key(SimpleNamespace(**(options | other)))
        for other in ({}, {"only": ["hash"]}, {changed: "other"})
    ]
    assert keys[0] == keys[1] != keys[2]
