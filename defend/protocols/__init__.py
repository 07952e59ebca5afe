"""Versioned protocols: what is run for a claim, and what a claim needs."""

from defend.protocols.ladder_1 import LADDER_1 as LADDER_1
from defend.protocols.ladder_1 import Protocol as Protocol

PROTOCOLS: dict[str, Protocol] = {LADDER_1.name: LADDER_1}
