"""Token buckets and the MTU of their network. Pure."""

from __future__ import annotations

from testbed import units
from testbed.errors import InvalidValueError
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef

_HEADER_BYTES = 14
"""Of Ethernet: tc-tbf(8) counts it."""


def refuse_small_bucket(ref: LinkRef, impairment: Impairment, *, mtu: int) -> None:
    """Refuse a bucket that never passes a full-size packet; ``mtu`` in bytes, 0 where it is not known.

    Raises InvalidValueError.
    """
    least_bytes = mtu + _HEADER_BYTES
    if mtu and impairment.bucket_bytes is not None and impairment.bucket_bytes < least_bytes:
        raise InvalidValueError(
            f"{ref}: bucket={units.format_size(impairment.bucket_bytes)!r}: `{ref.network}` has an MTU of {mtu} bytes, "
            f"and such a bucket never passes a packet of that size: ask for at least {least_bytes} bytes"
        )
