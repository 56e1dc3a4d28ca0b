"""Large amounts of bytes over the protocol: compressed, in pieces that fit a line."""

from __future__ import annotations

import base64
import zlib
from typing import Any

PIECE_BYTES = 1 << 20


def piece(data: bytes, offset: int) -> dict[str, Any]:
    """The piece of data at an offset, compressed and in base 64; ``next``: the offset of the next piece, or None."""
    end = offset + PIECE_BYTES
    packed = base64.b64encode(zlib.compress(data[offset:end], 1)).decode()
    return {"data": packed, "next": end if end < len(data) else None}
