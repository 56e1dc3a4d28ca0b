"""Segmentation offloads of a network device, by ioctl: ``ethtool -K`` and ``-k`` without the program.

Formats: linux/ethtool.h (struct ethtool_value), netdevice(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .protocol import Refused

_SIOCETHTOOL = 0x8946
# The commands of each that get and set it.
_OFFLOADS = {"tso": (0x1E, 0x1F), "gso": (0x23, 0x24), "gro": (0x2B, 0x2C)}


def switch_off(interface: str) -> dict[str, bool]:
    """Switch TSO, GSO and GRO off; returns their former state. Raises Refused if one of them stays on."""
    before = _state(interface)
    state = put_back(interface, dict.fromkeys(_OFFLOADS, False))
    if any(state.values()):
        raise Refused(f"offloads of {interface} stay on: {', '.join(name for name, on in state.items() if on)}")
    return before


def put_back(interface: str, wanted: Mapping[str, bool]) -> dict[str, bool]:
    """Set offloads to this state; returns what is in force. Raises Refused."""
    with _control(interface) as control:
        for name, on in wanted.items():
            ethtool(control, interface, _OFFLOADS[name][1], int(on))
    return _state(interface)


def _state(interface: str) -> dict[str, bool]:
    with _control(interface) as control:
        return {name: bool(ethtool(control, interface, get)) for name, (get, _) in _OFFLOADS.items()}


@contextmanager
def _control(interface: str) -> Iterator[socket.socket]:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            yield control
    except OSError as error:
        raise Refused(f"offloads of {interface}: {error.strerror}") from None


def ethtool(control: socket.socket, interface: str, command: int, wanted: int = 0) -> int:
    """The answer to an ioctl SIOCETHTOOL. Raises OSError."""
    value = ctypes.create_string_buffer(struct.pack("=II", command, wanted))
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(value)))
    (result,) = struct.unpack_from("=I", value.raw, 4)
    return int(result)
