"""Differences of the kernel's counters."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.agent import inside
from testbed.observe.counters import Counters

_READINGS = st.dictionaries(
    st.sampled_from(["Tcp", "TcpExt", "Udp", "sockets TCP"]),
    st.dictionaries(st.sampled_from(["RetransSegs", "CurrEstab", "inuse", "New"]), st.integers(0, 2**64), max_size=4),
)


def test_what_happened_is_the_difference_and_a_level_is_what_it_is_now() -> None:
    before = {"Tcp": {"RetransSegs": 3, "CurrEstab": 9}, "sockets TCP": {"inuse": 4}}
    after = {"Tcp": {"RetransSegs": 5, "CurrEstab": 1}, "sockets TCP": {"inuse": 2}, "TcpExt": {"TCPTimeouts": 1}}
    counters = Counters.between(before, after)
    assert counters.retransmitted_segments == 2
    assert counters.timeouts == 1, "a counter that was not there before began at zero"
    assert counters.changes == {"Tcp": {"RetransSegs": 2}, "TcpExt": {"TCPTimeouts": 1}}
    assert counters.levels == {"Tcp": {"CurrEstab": 1}, "sockets TCP": {"inuse": 2}}


def test_a_counter_that_went_backwards_is_another_kernels() -> None:
    with pytest.raises(ValueError, match=r"^Tcp RetransSegs went from 5 to 4: the host was started again"):
        Counters.between({"Tcp": {"RetransSegs": 5}}, {"Tcp": {"RetransSegs": 4}})


def test_a_counter_that_the_kernel_does_not_know_is_zero_and_told_from_one_that_did_not_count() -> None:
    counters = Counters.between({}, {"TcpExt": {"TCPTimeouts": 0}})
    assert (counters.timeouts, "TCPTimeouts" in counters.changes["TcpExt"]) == (0, True)
    assert (counters.loss_probes, "TCPLossProbes" in counters.changes["TcpExt"]) == (0, False)


@given(_READINGS, _READINGS)
def test_two_changes_add_up(first: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    names = {(group, name) for readings in (first, more) for group, named in readings.items() for name in named}
    middle: dict[str, dict[str, int]] = {}
    last: dict[str, dict[str, int]] = {}
    for group, name in names:
        value = first.get(group, {}).get(name, 0)
        middle.setdefault(group, {})[name] = value
        last.setdefault(group, {})[name] = value + more.get(group, {}).get(name, 0)
    whole = Counters.between({}, last)
    parts = Counters.between({}, middle), Counters.between(middle, last)
    for key in names:
        assert whole[key] == sum(part[key] for part in parts)


def test_every_named_counter_is_one_that_this_machines_kernel_has() -> None:
    """A name mistyped would be zero for ever."""
    here = Counters.between({}, inside.counters())
    results: list[tuple[str, str]] = []

    class Listening(Counters):
        def __getitem__(self, key: tuple[str, str]) -> int:
            results.append(key)
            return 0

    listening = Listening(changes={}, levels={})
    for name, _property in inspect.getmembers(Counters, lambda member: isinstance(member, property)):
        getattr(listening, name)
    assert len(results) > 25
    assert [key for key in results if key[1] not in here.changes.get(key[0], {}) and key[0] != "Udp6"] == []
