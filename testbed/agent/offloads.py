"""Segmentation offloads of a network device, by ioctl: ``ethtool -K`` and ``-k`` without the program.

Formats: linux/ethtool.h (struct ethtool_value), netdevice(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

from .protocol import Refused

_SIOCETHTOOL = 0x8946
# Name: the command that asks, the command that sets.
_OFFLOADS = {"tso": (0x1E, 0x1F), "gso": (0x23, 0x24), "gro": (0x2B, 0x2C)}


def switch_off(interface: str) -> dict[str, bool]:
    """Switch TSO, GSO and GRO off; returns what is in force. Raises Refused if one of them stays on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            for _, set_command in _OFFLOADS.values():
                _ethtool(control, interface, set_command)
            state = {name: bool(_ethtool(control, interface, ask)) for name, (ask, _) in _OFFLOADS.items()}
        except OSError as error:
            raise Refused(f"offloads of {interface}: {error.strerror}") from None
    if any(state.values()):
        raise Refused(f"offloads of {interface} stay on: {', '.join(name for name, on in state.items() if on)}")
    return state


def _ethtool(control: socket.socket, interface: str, command: int) -> int:
    value = ctypes.create_string_buffer(struct.pack("=II", command, 0))
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(value)))
    (result,) = struct.unpack_from("=I", value.raw, 4)
    return int(result)
