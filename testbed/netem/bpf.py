"""Classic BPF: one program that matches packets, for tc in kernels without flower, and without capabilities. Pure.

Linux, networking/filter.rst; tc-bpf(8).
"""

from __future__ import annotations

from ipaddress import ip_network

Instructions = tuple[tuple[int, int, int, int], ...]
"""Instructions: code, jumps if true and if false, operand."""

# linux/bpf_common.h, linux/filter.h
LD, LDH, LDB, LDH_X, LDB_X = 0x20, 0x28, 0x30, 0x48, 0x50
LDX, LDX_HEADER, LD_MEMORY, ST = 0x01, 0xB1, 0x60, 0x02
TAX, TXA, ADD, ADD_X, SUBTRACT_X, SHIFT, AND, LD_LENGTH = 0x07, 0x87, 0x04, 0x0C, 0x1C, 0x64, 0x54, 0x80
JUMP, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x05, 0x15, 0x35, 0x45, 0x06
# cls_bpf.c: -1 is "match, with the filter's own actions", 0 is "no match".
MATCH, MISS = 0xFFFFFFFF, 0

# Offsets from the frame's begin: Ethernet, then RFC 791 and RFC 8200.
TO_MAC, FROM_MAC, IP = 0, 6, 14
# SKF_AD_OFF and beyond, no bytes of the packet: SKF_AD_MARK, SKF_AD_PROTOCOL, SKF_AD_VLAN_TAG_PRESENT
MARK, ETHERTYPE, TAGGED = 0xFFFFF000 + 20, 0xFFFFF000, 0xFFFFF000 + 48
OTHERS_ETHERTYPES = (0x0800, 0x86DD, 0x0806)
"""IPv4 and IPv6, which have filters of their own, and ARP, which is never impaired."""
V4_FRAGMENT, V4_PROTOCOL, V4_SOURCE, V4_TARGET = IP + 6, IP + 9, IP + 12, IP + 16
V6_NEXT, V6_SOURCE, V6_TARGET, V6_BYTES = IP + 6, IP + 8, IP + 24, 40
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
FRAGMENT, HOP_BY_HOP, DESTINATION = 44, 0, 60
OPTIONS = (HOP_BY_HOP, 43, DESTINATION)
V4_PLACE, V4_MORE, V6_PLACE = 0x1FFF, 0x2000, 0xFFF8
"""Masks of a fragment's offset, and of IPv4's flag that more fragments follow."""
EXTENSION_HEADERS = 3
"""How many IPv6 extension headers a program skips to find the protocol."""


class Assembler:
    """Instructions whose jumps name labels; None stands for the next instruction."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | None, str | None, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self._labels[name] = len(self._code)

    def add(self, code: int, operand: int = 0, *, yes: str | None = None, no: str | None = None) -> None:
        """Add one instruction, and the labels that it jumps to."""
        self._code.append((code, yes, no, operand))

    def interface(self, mac: str, place: int = FROM_MAC) -> None:
        """Continue if the frame comes from this interface, or goes to it (`TO_MAC`), else jump to ``miss``."""
        packed = bytes.fromhex(mac.replace(":", ""))
        for code, at, part in ((LD, place, packed[:4]), (LDH, place + 4, packed[4:])):
            self.add(code, at)
            self.add(EQUAL, int.from_bytes(part), no="miss")

    def address(self, address: str, place: int, *, no: str = "miss") -> None:
        """Continue if this address, or one of this network, is at an offset."""
        network = ip_network(address)
        packed, mask = network.network_address.packed, network.netmask.packed
        for at in range(0, len(packed), 4):
            if not (own := int.from_bytes(mask[at : at + 4])):
                break
            self.add(LD, place + at)
            if own != MATCH:
                self.add(AND, own)
            self.add(EQUAL, int.from_bytes(packed[at : at + 4]), no=no)

    def option(self) -> None:
        """Skip an IPv6 extension header of the usual form: then A is the next header's type, and X its offset."""
        self.add(LDB_X, IP)
        self.add(ST, 0)
        self.add(LDB_X, IP + 1)
        self.add(ADD, 1)
        self.add(SHIFT, 3)
        self.add(ADD_X)
        self.add(TAX)
        self.add(LD_MEMORY, 0)

    def fragment(self) -> None:
        """Skip the fragment header likewise."""
        self.add(LDB_X, IP)
        self.add(ST, 0)
        self.add(TXA)
        self.add(ADD, 8)
        self.add(TAX)
        self.add(LD_MEMORY, 0)

    def end(self) -> Instructions:
        """Match whatever reaches this point, and assemble."""
        self.label("match")
        self.add(RETURN, MATCH)
        self.label("miss")
        self.add(RETURN, MISS)
        return self.assemble()

    def assemble(self) -> Instructions:
        """The instructions, with every label replaced by a distance."""
        program: list[tuple[int, int, int, int]] = []
        for place, (code, yes, no, operand) in enumerate(self._code):
            far = [0 if name is None else self._labels[name] - place - 1 for name in (yes, no)]
            program.append((code, 0, 0, far[0]) if code == JUMP else (code, far[0], far[1], operand))
        return tuple(program)


def bytecode(code: Instructions) -> str:
    """A program as tc's command line has it."""
    instructions = (" ".join(map(str, instruction)) for instruction in code)
    return f'bytecode "{",".join([str(len(code)), *instructions])}"'
