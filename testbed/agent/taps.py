"""Taps: virtual Ethernet devices whose frames a process reads and writes (Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from .protocol import Refused

TUN = Path("/dev/net/tun")

# linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


def no_tun() -> str | None:
    """Why this machine has no taps; None if it has."""
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"{TUN}: {error.strerror}"
    return None


def open_tap(name: str) -> int:
    """Create a tap that lives as long as its descriptor, which is returned. Raises Refused."""
    try:
        descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"{TUN}: {error.strerror}") from None
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        os.close(descriptor)
        raise Refused(f"tap {name}: {error.strerror}") from None
    return descriptor


def make_tap(name: str) -> None:
    """Create a tap that lives as long as its network namespace. Raises Refused."""
    descriptor = open_tap(name)
    try:
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)
