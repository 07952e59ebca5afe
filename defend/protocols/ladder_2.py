"""The protocol ladder-2: ladder-1, and a search that goes on until nothing more falls."""

from __future__ import annotations

from dataclasses import replace

from defend.protocols.ladder_1 import EOT, LADDER_1
from defend.protocols.protocol import (
    RUN_AS_PROTOCOL,
    Protocol,
    ProtocolAttack,
    run_as,
    was_attacked_by,
)

NAME = "ladder-2"
PERSIST = ProtocolAttack(
    name="persist",
    level="adaptive",
    settings={"gradients": "every", "idle_rounds": 2, "gain": 0.005},
    amounts={"steps": 100, "targets": 9, "queries": 500, "rounds": 20},
    stochastic=False,
    gradients=("declared",),  # the search changes the gradient by itself
)
PERSIST_EOT = replace(
    PERSIST,
    amounts={"steps": 50, "targets": 3, "queries": 100, "rounds": 10},
    stochastic=True,
    eot=EOT,
)

LADDER_2 = Protocol(
    name=NAME,
    attacks=(*LADDER_1.attacks, PERSIST, PERSIST_EOT),
    requirements=(
        *(r for r in LADDER_1.requirements if r.code != RUN_AS_PROTOCOL),
        was_attacked_by(PERSIST, "persist", "persist until two rounds break less than .5 %"),
        was_attacked_by(
            PERSIST_EOT, "persist_eot", f"persist x {EOT} until two rounds break less than .5 %"
        ),
        run_as(NAME),
    ),
    eot=EOT,
    min_draws=LADDER_1.min_draws,
)
