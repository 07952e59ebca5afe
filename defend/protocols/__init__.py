"""Versioned protocols: what is run for a claim, and what a claim needs."""

from defend.protocols.ladder_1 import LADDER_1 as LADDER_1
from defend.protocols.ladder_1 import Protocol as Protocol
from defend.protocols.ladder_2 import LADDER_2 as LADDER_2

# From the weakest to the strongest: each one asks for all that the one before it asks for.
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (LADDER_1, LADDER_2)}
STRONGEST = LADDER_2
