"""What the persistent search through the declared gradient breaks is the declared gradient's."""

from dataclasses import replace

import pytest
from audit_toys import context_of, find_check, run_or_error
from masked import Blur

from defend.auditing import run
from defend.auditing.comparison import AttackedImages
from defend.auditing.declared import DeclaredAttack
from defend.auditing.grounds import DECLARED
from defend.auditing.session import Session
from defend.auditing.verdict import CurvePoint, apply_holm, make_row

FLAT = [CurvePoint(10, 1.0), CurvePoint(40, 1.0)]
EPS = {"much": 0.12, "nothing": 1e-6}


@pytest.fixture(scope="module", params=EPS)
def searched(request):
    """Return whether the search breaks much, and a session whose attacks broke nothing before."""
    context = context_of(Blur(), eps=EPS[request.param], n=32)
    context.budget = replace(
        context.budget, search_rounds=1, alternative_steps=20, search_queries=10
    )
    session = Session(context)
    best = AttackedImages(context, context.all_rows)
    session.declared_or_error = DeclaredAttack(best, best.accuracy, FLAT)
    for name in ("persistent search", "all together"):
        session.outcomes[name] = run_or_error(find_check(name, context), session)
    return request.param == "much", session


def test_the_lowest_accuracy_counts_the_search(searched):
    breaks_much, session = searched
    accuracies = run._collect_accuracies(session)
    assert (accuracies.lowest_accuracy < accuracies.declared_accuracy - 0.2) == breaks_much
    assert accuracies.lowest_accuracy <= session.declared.worst.accuracy


def test_the_declared_accuracy_is_an_upper_bound(searched):
    breaks_much, session = searched
    text = run._collect_accuracies(session).declared
    assert text.startswith("<= ") == text.endswith("(unconverged)") == breaks_much
    measured = session.outcomes["persistent search"].measured
    assert ("more than its attacks before" in measured) == breaks_much


def test_no_verdict_rests_on_the_declared_gradient_alone(searched):
    breaks_much, session = searched
    grounds = run._grounds_of(session)
    rests = any(text.startswith(DECLARED) for text in grounds.rests_on)
    fallen = [text for text in grounds.missing if "a longer search through it" in text]
    assert (rests, len(fallen)) == (not breaks_much, int(breaks_much))


def test_it_is_no_attack_beside_the_declared_ones(searched):
    """Otherwise an honest purifier whose attacks had not converged would be called unreliable."""
    _, session = searched
    checks = [find_check(name, session.context) for name in session.outcomes]
    rows = apply_holm([make_row(check, session.outcomes[check.name]) for check in checks])
    assert [row.name for row in rows if row.turns] == []
