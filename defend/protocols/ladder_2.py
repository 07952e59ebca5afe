"""The protocol ladder-2: ladder-1, and a search that goes on until nothing more falls."""

from __future__ import annotations

from defend.protocols.ladder_1 import (
    EOT,
    LADDER_1,
    RUN_AS_PROTOCOL,
    Protocol,
    ProtocolAttack,
    Requirement,
    run_as,
)

NAME = "ladder-2"
_UNTIL_IDLE = {"gradients": "every", "idle_rounds": 2, "gain": 0.005}
_OWN_GRADIENTS = ("declared",)  # the search changes the gradient by itself

PERSIST = ProtocolAttack(
    name="persist",
    level="adaptive",
    settings=_UNTIL_IDLE,
    amounts={"steps": 100, "targets": 9, "queries": 500, "rounds": 20},
    gradients=_OWN_GRADIENTS,
    stochastic=False,
)
PERSIST_EOT = ProtocolAttack(
    name="persist",
    level="adaptive",
    settings=_UNTIL_IDLE,
    amounts={"steps": 50, "targets": 3, "queries": 100, "rounds": 10},
    gradients=_OWN_GRADIENTS,
    stochastic=True,
    eot=EOT,
)

LADDER_2 = Protocol(
    name=NAME,
    attacks=(*LADDER_1.attacks, PERSIST, PERSIST_EOT),
    requirements=(
        *(r for r in LADDER_1.requirements if r.code != RUN_AS_PROTOCOL),
        Requirement(
            code="persist",
            title="persist until two rounds break less than .5 %",
            is_met=lambda o: PERSIST.was_run(o.evidence),
            stochastic=False,
        ),
        Requirement(
            code="persist_eot",
            title=f"persist x {EOT} until two rounds break less than .5 %",
            is_met=lambda o: PERSIST_EOT.was_run(o.evidence),
            stochastic=True,
        ),
        run_as(NAME, LADDER_1.name),  # what ladder-1 asked for counts here, too
    ),
    eot=EOT,
    min_draws=LADDER_1.min_draws,
)
