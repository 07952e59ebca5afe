"""What stands beside the numbers of a table, so that a reader knows what they are of: draws, surrogates, images that are not independent."""

from io import StringIO

import pytest
from made_runs import cell, keep, record
from rich.console import Console
from test_tables import COMPLETE, DECLARED, IDENTITY, LEARNED, TRANSFER, apgd, complete

from defend.benchmarks.tables import print_table, table
from defend.benchmarks.tables.claims import missing


def printed(records, run_dirs=(), width=160):
    out = StringIO()
    print_table(records, Console(file=out, width=width, color_system=None), run_dirs)
    return " ".join(out.getvalue().split())


def stochastic(draws):
    """The ladder of a stochastic purifier."""
    more = [
        *(record(10, settings={"attack": {"steps": 200}}, eot=20, **g, **COMPLETE) for g in (DECLARED, IDENTITY, LEARNED)),
        *(apgd("adaptive", g, "ce", eot=20) for g in ("declared", "identity", "learned")),
        record(10, attack="square", knowledge="query", settings={"attack": {"queries": 1000}}, eot=20, **COMPLETE),
    ]
    return [r | {"stochastic": True, "draws": draws} for r in [*complete(), *more]]


# draws


@pytest.mark.parametrize(("draws", "lacking"), [(1, ["20 draws"]), (19, ["20 draws"]), (20, []), (40, [])])
def test_a_claim_of_a_stochastic_purifier_needs_draws(draws, lacking):
    assert missing(stochastic(draws)) == lacking


def test_fewer_draws_beside_the_ladder_take_nothing_away_and_lend_nothing():
    assert missing([*stochastic(20), *stochastic(1)]) == []
    assert missing([*stochastic(20)[1:], stochastic(1)[0]]) == ["oblivious APGD-CE"]


# transfer


def test_transfer_by_one_step_alone_meets_no_claim():
    """FGSM from the right pipeline, in place of the two attacks that the protocol transfers."""
    fgsm = record(10, attack="fgsm", knowledge="transfer", surrogate="median+resnet20", **COMPLETE)
    assert missing([*(r for r in complete() if r["knowledge"] != "transfer"), fgsm]) == [TRANSFER]
