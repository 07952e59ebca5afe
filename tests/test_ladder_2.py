"""ladder-2 asks for all that ladder-1 asks for, and for the search that goes on."""

import pytest
from made_runs import complete, persist, table

from defend.protocols import LADDER_1, LADDER_2, PROTOCOLS, STRONGEST
from defend.protocols.protocol import ORDER, RUN_AS_PROTOCOL
from defend.records import Flag, FlagCode
from defend.results.claim_text import format_claim


def claim_of(records):
    return table(records).rows[0].claim


def test_it_runs_and_requires_all_of_ladder_1():
    assert LADDER_2.attacks[: len(LADDER_1.attacks)] == LADDER_1.attacks
    codes = [{r.code for r in ladder.requirements} for ladder in (LADDER_1, LADDER_2)]
    assert codes[0] < codes[1]
    assert tuple(PROTOCOLS) == ORDER == ("ladder-1", "ladder-2") and STRONGEST is LADDER_2


@pytest.mark.parametrize("name", [*ORDER, "ladder-0", None])
def test_a_record_counts_whichever_ladder_asked_for_it(name):
    records = [r.replace(protocol=name) for r in [*complete(), persist()]]
    for ladder in PROTOCOLS.values():
        codes = [requirement.code for requirement in ladder.missing(records)]
        assert codes == ([] if name in ORDER else [RUN_AS_PROTOCOL])


def test_with_the_search_the_claim_is_of_ladder_2():
    claim = claim_of([*complete(), persist(8)])
    assert (claim.protocol, claim.stands, claim.accuracy) == ("ladder-2", True, 0.008)
    assert "attacks further" not in format_claim(claim)


WEAKER = {
    "fewer steps": {"steps": 99},
    "fewer targets": {"targets": 8},
    "fewer queries": {"queries": 499},
    "fewer rounds": {"rounds": 19},
    "one idle round": {"idle_rounds": 1},
    "one gradient": {"gradients": "declared"},
    "a larger gain": {"gain": 0.01},
}


@pytest.mark.parametrize("fields", WEAKER.values(), ids=WEAKER)
def test_a_weaker_search_leaves_the_claim_at_ladder_1(fields):
    search = persist()
    attack = {**search.settings.attack, **fields}
    weaker = persist(settings={"attack": attack})
    claim = claim_of([*complete(), weaker])
    assert (claim.protocol, claim.stands) == ("ladder-1", True)
    assert format_claim(claim).endswith("; ladder-2 attacks further")


@pytest.mark.parametrize("gradient", ["identity", "learned", "relaxed:temperature=0.3"])
def test_a_search_through_a_chosen_gradient_leaves_the_claim_at_ladder_1(gradient):
    claim = claim_of([*complete(), persist(gradient=gradient)])
    assert (claim.protocol, claim.stands) == ("ladder-1", True)


def test_a_search_that_was_still_winning_claims_no_more_than_a_bound():
    flags = [Flag(code=FlagCode.UNCONVERGED, value=0.02)]
    claim = claim_of([*complete(), persist(8, flags=flags)])
    assert (claim.protocol, claim.stands, claim.unconverged) == ("ladder-2", True, True)
    assert not claim_of([*complete(), persist(8)]).unconverged


def test_what_is_missing_is_said_of_the_protocol_that_was_run():
    records = [r for r in complete() if r.attack_name != "square"]
    assert claim_of(records).missing == ("square",)
    claim = claim_of([*records, persist()])
    assert (claim.protocol, claim.missing) == ("ladder-2", ("square",))


def test_what_nobody_asked_for_lacks_the_strongest_protocol():
    records = [r.replace(protocol=None) for r in complete()]
    claim = claim_of(records)
    assert claim.protocol == "ladder-2"
    assert {"persist", RUN_AS_PROTOCOL} <= set(claim.missing)
