"""Seeds that follow from what they are for."""

from __future__ import annotations

import hashlib


def mixed(*numbers: int) -> int:
    """A 63-bit seed from several numbers; near inputs give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
