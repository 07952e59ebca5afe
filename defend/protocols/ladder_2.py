"""The protocol ladder-2: ladder-1, and a search that goes on until nothing more falls."""

from __future__ import annotations

from typing import Any

from defend.protocols.ladder_1 import (
    EOT,
    LADDER_1,
    RUN_AS_PROTOCOL,
    Protocol,
    ProtocolAttack,
    run_as,
    was_attacked_by,
)

NAME = "ladder-2"
_PERSIST: dict[str, Any] = {
    "name": "persist",
    "level": "adaptive",
    "settings": {"gradients": "every", "idle_rounds": 2, "gain": 0.005},
    "gradients": ("declared",),  # the search changes the gradient by itself
}

PERSIST = ProtocolAttack(
    amounts={"steps": 100, "targets": 9, "queries": 500, "rounds": 20},
    stochastic=False,
    **_PERSIST,
)
PERSIST_EOT = ProtocolAttack(
    amounts={"steps": 50, "targets": 3, "queries": 100, "rounds": 10},
    stochastic=True,
    eot=EOT,
    **_PERSIST,
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
        run_as(NAME, LADDER_1.name),  # what ladder-1 asked for counts here, too
    ),
    eot=EOT,
    min_draws=LADDER_1.min_draws,
)
