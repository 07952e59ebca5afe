"""Versioned protocols: what is run for a claim, and what a claim needs."""

from defend.protocols.ladder_1 import LADDER_1 as LADDER_1
from defend.protocols.ladder_2 import LADDER_2 as LADDER_2
from defend.protocols.protocol import ORDER
from defend.protocols.protocol import Protocol as Protocol

_BY_NAME = {protocol.name: protocol for protocol in (LADDER_1, LADDER_2)}
PROTOCOLS: dict[str, Protocol] = {name: _BY_NAME[name] for name in ORDER}
STRONGEST = PROTOCOLS[ORDER[-1]]
