"""Many bytes over the protocol: compressed, and taken in pieces that fit a line."""

from __future__ import annotations

import base64
import zlib
from typing import Any

PIECE_BYTES = 1 << 20


def piece(data: bytes, offset: int) -> dict[str, Any]:
    """The piece of data that begins at an offset, compressed and in base 64, and where the next one begins.

    ``next`` is None with the last piece.
    """
    end = offset + PIECE_BYTES
    packed = base64.b64encode(zlib.compress(data[offset:end], 1)).decode()
    return {"data": packed, "next": end if end < len(data) else None}
