"""An attack without gradients that moved nothing says nothing."""

from dataclasses import replace

import pytest
import torch
from audit_toys import context_of, find_check

import defend
from defend.auditing.comparison import AttackedImages
from defend.auditing.declared import DeclaredAttack
from defend.auditing.margins import MarginsLowered
from defend.auditing.session import Session
from defend.auditing.verdict import apply_holm, make_row

SPECS = ["bitdepth:bits=4", "gaussian:sigma=0.1", "gaussian:sigma=0.000001"]


def judged(name, spec, eps):
    """Return the row of an attack on images on which the declared attacks have not run."""
    context = context_of(defend.load(spec), eps=eps, n=16)
    budget = replace(context.budget, square_queries=100, max_square_queries=200)
    context.budget = replace(budget, spsa_steps=8, eot=min(2, budget.eot))
    session = Session(context)
    best = AttackedImages(context, context.all_rows)
    session.declared_or_error = DeclaredAttack(best, best.accuracy)
    check = find_check(name, context)
    return apply_holm([make_row(check, check.run(session))])[0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["Square", "finite differences"])
def test_an_attack_that_moves_nothing_is_not_judged(name, spec):
    row = judged(name, spec, eps=1e-6)
    assert row.verdict == "not judged"
    assert "; it lowers the mean margin by " in row.measured


@pytest.mark.parametrize("spec", SPECS)
def test_an_attack_that_moves_enough_is_judged(spec):
    row = judged("finite differences", spec, eps=0.03)
    assert "lowers the mean margin" not in row.measured


@pytest.mark.parametrize(
    ("parts", "share"),
    [([], 0.0), ([(2, 1)], 0.5), ([(2, 1), (6, 6)], 0.125), ([(2, 3)], 0.0), ([(-2, -3)], 0.5)],
)
def test_margins_are_added_over_the_parts_of_an_attack(parts, share):
    """An attack runs on the images that stand, and then on the others: one part hides no other."""
    margins = MarginsLowered()
    for clean, attacked in parts:
        margins.add(torch.tensor([float(clean)]), torch.tensor([float(attacked)]))
    assert margins.share == share
    assert bool(margins.standstill) == (share < 0.05)
