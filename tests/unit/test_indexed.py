"""The program that drops packets by their number, run by a small interpreter."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.netem import indexed
from testbed.strategies import packet_numbers as numbers


def matched(code: bytes, count: int) -> list[int]:
    """Which of ``count`` packets the program matches; its counter lives as long as this call (RFC 9669)."""
    instructions = list(struct.iter_unpack("<BBhi", code))
    counter, numbers = 0, []
    for number in range(1, count + 1):
        registers, place = [0] * 11, 0
        while True:
            opcode, both, offset, immediate = instructions[place]
            target, source = both & 15, both >> 4
            place += 1
            match opcode:
                case 0x18:
                    place += 1  # the address of the counter, in two instructions
                case 0x79:
                    registers[target] = counter
                case 0x07:
                    registers[target] += immediate
                case 0x7B:
                    counter = registers[source]
                case 0xB7:
                    registers[target] = immediate
                case 0xBF:
                    registers[target] = registers[source]
                case 0x97:
                    registers[target] %= immediate
                case 0xA5:
                    place += offset if registers[target] < immediate else 0
                case 0xB5:
                    place += offset if registers[target] <= immediate else 0
                case 0x15:
                    place += offset if registers[target] == immediate else 0
                case 0x95:
                    break
                case _:
                    raise AssertionError(f"opcode {opcode:#x}")
        if registers[0] == -1:
            numbers.append(number)
    return numbers


def test_packets_are_matched_by_number_and_by_multiple() -> None:
    assert matched(indexed.program([(3, 3), (17, 20)], 50), 120) == [3, 17, 18, 19, 20, 50, 100]
    assert matched(indexed.program([], 2), 6) == [2, 4, 6]
    assert matched(indexed.program([(1, 2)], None), 6) == [1, 2]


@given(numbers(), st.none() | st.integers(min_value=2, max_value=40))
def test_exactly_the_asked_packets_are_matched(ranges: tuple[tuple[int, int], ...], every: int | None) -> None:
    count = 60
    wanted = [
        number
        for number in range(1, count + 1)
        if any(first <= number <= last for first, last in ranges) or (every is not None and number % every == 0)
    ]
    assert matched(indexed.program(ranges, every), count) == wanted


@pytest.mark.parametrize("ranges", [[(1, 1)], [(number, number) for number in range(1, 1000, 2)]])
def test_the_object_is_an_elf_with_the_program_in_its_section(ranges: list[tuple[int, int]]) -> None:
    code, whole = indexed.program(ranges, None), indexed.elf_object(ranges, None)
    assert whole[:4] == b"\x7fELF"
    headers_at, count = struct.unpack_from("<Q", whole, 40)[0], struct.unpack_from("<H", whole, 60)[0]
    sections = [struct.unpack_from("<IIQQQQ", whole, headers_at + 64 * number) for number in range(count)]
    strings_at = sections[-1][4]
    named = {
        whole[strings_at + section[0] :].split(b"\0")[0].decode(): whole[section[4] : section[4] + section[5]]
        for section in sections
    }
    assert named[indexed.SECTION] == code
    assert named["license"] == b"GPL\0"
    assert struct.unpack("<QQ", named[f".rel{indexed.SECTION}"]) == (0, 1 << 32 | 1)


def test_another_program_has_another_tag() -> None:
    assert len({*indexed.tags([(3, 3)], None), *indexed.tags([(4, 4)], None), *indexed.tags([(4, 4)], 5)}) == 6
