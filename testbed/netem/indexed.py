"""Drop packets by their number: compile the numbers to an eBPF program that tc loads. Pure: numbers in, bytes out.

netem cannot lose just the 3rd packet. A classifier that counts can: it returns "match" for the packets to drop, and an
action of its filter drops them. tc loads a relocatable ELF object, as a compiler would write it (the ELF specification;
RFC 9669 for the instructions). The counter is a global variable, so it starts at zero each time that tc loads the
object.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

SECTION = "classifier"
"""The section that tc loads."""

LAST_INDEX = 2**31 - 1
"""The largest packet number: comparisons have signed 32-bit immediates."""

_COUNTER = "packets"
_COUNTER_BYTES = 8

# RFC 9669, sections 4 and 5: class, size, mode and operation of each instruction used here.
_LD_IMM_DW = 0x18
_LDX_DW = 0x79
_STX_DW = 0x7B
_ADD_IMM = 0x07
_MOV_IMM = 0xB7
_MOV_REG = 0xBF
_MOD_IMM = 0x97
_JEQ_IMM = 0x15
_JLT_IMM = 0xA5
_JLE_IMM = 0xB5
_EXIT = 0x95

# cls_bpf.c: -1 is "match, with the filter's own class and actions", 0 is "no match".
_MATCH, _NO_MATCH = -1, 0

Ranges = Sequence[tuple[int, int]]


def program(ranges: Ranges, every: int | None) -> bytes:
    """The instructions: match packet number n, counted from 1, if it lies in a range or is a multiple of ``every``.

    ``ranges``: first and last number, inclusive, in rising order.
    """
    tests: list[tuple[int, int, int, str]] = []  # opcode, register, immediate, where to jump
    for first, last in ranges:
        tests.append((_JLT_IMM, 2, first, "next"))
        tests.append((_JLE_IMM, 2, last, "match"))
    body: list[bytes] = []
    count = len(tests) + (3 if every is not None else 0)
    for place, (opcode, register, immediate, target) in enumerate(tests):
        offset = 1 if target == "next" else count - place + 1
        body.append(_instruction(opcode, register, offset=offset, immediate=immediate))
    if every is not None:
        body += [
            _instruction(_MOV_REG, 3, source=2),
            _instruction(_MOD_IMM, 3, immediate=every),
            _instruction(_JEQ_IMM, 3, offset=2, immediate=0),
        ]
    return b"".join(
        [
            _instruction(_LD_IMM_DW, 1),  # r1 = &counter, by relocation; two slots long
            _instruction(0, 0),
            _instruction(_LDX_DW, 2, source=1),
            _instruction(_ADD_IMM, 2, immediate=1),
            _instruction(_STX_DW, 1, source=2),
            *body,
            _instruction(_MOV_IMM, 0, immediate=_NO_MATCH),
            _instruction(_EXIT, 0),
            _instruction(_MOV_IMM, 0, immediate=_MATCH),
            _instruction(_EXIT, 0),
        ]
    )


def tags(ranges: Ranges, every: int | None) -> tuple[str, str]:
    """The kernel's names of the program, by its instructions without the counter: until Linux 6.17, and later.

    The former is a SHA-1, the latter a SHA-256. See kernel/bpf/core.c, bpf_prog_calc_tag; libbpf turns the relocation
    into pseudo source 2, an offset in a map.
    """
    code = bytearray(program(ranges, every))
    code[1] |= 2 << 4
    digests = hashlib.sha1(code, usedforsecurity=False), hashlib.sha256(code)
    return digests[0].hexdigest()[:16], digests[1].hexdigest()[:16]


def _instruction(opcode: int, destination: int, *, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, destination | source << 4, offset, immediate)


# elf.h
_EM_BPF = 247
_PROGBITS, _SYMTAB, _STRTAB, _NOBITS, _REL = 1, 2, 3, 8, 9
_WRITE, _ALLOC, _EXECUTE, _INFO_LINK = 1, 2, 4, 0x40
_GLOBAL_OBJECT, _GLOBAL_FUNCTION = 0x11, 0x12
_R_BPF_64_64 = 1
_HEADER_BYTES, _SECTION_BYTES, _SYMBOL_BYTES = 64, 64, 24


def elf_object(ranges: Ranges, every: int | None) -> bytes:
    """The program as an object file for ``tc filter … bpf object-file … section classifier``."""
    code = program(ranges, every)
    names = _Strings()
    symbol_names = _Strings()
    symbols = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    symbols += struct.pack("<IBBHQQ", symbol_names.add(_COUNTER), _GLOBAL_OBJECT, 0, 3, 0, _COUNTER_BYTES)
    symbols += struct.pack("<IBBHQQ", symbol_names.add("drop"), _GLOBAL_FUNCTION, 0, 1, 0, len(code))
    relocation = struct.pack("<QQ", 0, 1 << 32 | _R_BPF_64_64)  # the first instruction, symbol 1
    # name, type, flags, content, size, link, info, alignment, entry size
    sections = [
        (SECTION, _PROGBITS, _ALLOC | _EXECUTE, code, len(code), 0, 0, 8, 0),
        (f".rel{SECTION}", _REL, _INFO_LINK, relocation, len(relocation), 5, 1, 8, 16),
        (".bss", _NOBITS, _WRITE | _ALLOC, b"", _COUNTER_BYTES, 0, 0, 8, 0),
        ("license", _PROGBITS, _WRITE | _ALLOC, b"GPL\0", 4, 0, 0, 1, 0),
        (".symtab", _SYMTAB, 0, symbols, len(symbols), 6, 1, 8, _SYMBOL_BYTES),
        (".strtab", _STRTAB, 0, symbol_names.content, len(symbol_names.content), 0, 0, 1, 0),
    ]
    name_offsets = [names.add(section[0]) for section in sections]
    name_offsets.append(names.add(".shstrtab"))
    sections.append((".shstrtab", _STRTAB, 0, names.content, len(names.content), 0, 0, 1, 0))
    headers = bytes(_SECTION_BYTES)
    contents = b""
    for name_offset, (_name, kind, flags, content, size, link, info, align, entry) in zip(
        name_offsets, sections, strict=True
    ):
        contents += bytes(-len(contents) % 8)
        place = _HEADER_BYTES + len(contents)
        headers += struct.pack("<IIQQQQIIQQ", name_offset, kind, flags, 0, place, size, link, info, align, entry)
        contents += content
    contents += bytes(-len(contents) % 8)
    sections_at = _HEADER_BYTES + len(contents)
    numbers = (
        1,
        _EM_BPF,
        1,
        0,
        0,
        sections_at,
        0,
        _HEADER_BYTES,
        0,
        0,
        _SECTION_BYTES,
        len(sections) + 1,
        len(sections),
    )
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *numbers)
    return header + contents + headers


class _Strings:
    """A string table: names one after the other, referred to by their offsets."""

    def __init__(self) -> None:
        self.content = b"\0"

    def add(self, name: str) -> int:
        place = len(self.content)
        self.content += name.encode() + b"\0"
        return place
