"""Positions by hash, so that splits and orders are the same on every machine and file system."""

from __future__ import annotations

import hashlib


def hash_position(data: bytes) -> float:
    """Return 48 bits of the BLAKE2b hash of the data as a number in [0, 1)."""
    digest = hashlib.blake2b(data, digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
