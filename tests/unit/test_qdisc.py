"""Impairments compiled to tc lines: the lines word by word, and the sizes behind them by hand."""

from __future__ import annotations

import pytest
from hypothesis import given

from testbed.links import qdisc
from testbed.model.impairment import CLEAN, Impairment

from .strategies import impairments


@pytest.mark.parametrize(
    ("impairment", "words"),
    [
        (CLEAN, "limit 1000"),
        (Impairment(delay_s=0, jitter_s=0, loss_ratio=0), "limit 1000"),
        (Impairment(delay_s=0.05), "limit 51000 delay 50ms"),
        (Impairment(delay_s=0.05, jitter_s=0.005), "limit 56000 delay 50ms 5ms rate 1000gbit"),
        (
            Impairment(delay_s=0.05, jitter_s=0.005, distribution="pareto"),
            "limit 71000 delay 50ms 5ms distribution pareto rate 1000gbit",
        ),
        (Impairment(delay_s=0.05, jitter_s=0.005, reorder_by_jitter=True), "limit 56000 delay 50ms 5ms"),
        (Impairment(loss_ratio=0.05), "limit 1000 loss 5%"),
        (Impairment(loss_ratio=1), "limit 1000 loss 100%"),
        (Impairment(rate_bps=10e6), "limit 1000 rate 10mbit"),
        (Impairment(limit_packets=20, delay_s=0.05), "limit 20 delay 50ms"),
        (Impairment(seed=0), "limit 1000 seed 0"),
        (
            Impairment(
                delay_s=0.05, jitter_s=0.005, distribution="normal", loss_ratio=0.02, rate_bps=1.5e6,
                limit_packets=300, seed=7,
            ),
            "limit 300 delay 50ms 5ms distribution normal loss 2% rate 1.5mbit seed 7",
        ),
    ],
)  # fmt: skip
def test_an_impairment_is_compiled_word_by_word(impairment: Impairment, words: str) -> None:
    assert qdisc.netem(impairment) == words


@pytest.mark.parametrize(
    ("impairment", "packets"),
    [
        # A million packets a second for the longest delay, and 1000 that wait.
        (Impairment(delay_s=0.04), 41_000),
        (Impairment(delay_s=0.0000015), 1_002),
        # Uniform jitter reaches once its width, a table's four times.
        (Impairment(delay_s=0.25, jitter_s=0.125), 376_000),
        (Impairment(delay_s=0.25, jitter_s=0.125, distribution="normal"), 751_000),
        # 10 Mbit/s are 19531.25 smallest frames a second: 976.6 of them in 50 ms.
        (Impairment(delay_s=0.05, rate_bps=10e6), 1_977),
        # 1 Gbit/s are 1953125, more than a veth passes.
        (Impairment(delay_s=0.05, rate_bps=1e9), 51_000),
        # A packet of 512 bits needs 64 s at 8 bit/s: one is under way.
        (Impairment(delay_s=64, rate_bps=8), 1_001),
        (Impairment(delay_s=3600, jitter_s=3600), 2**32 - 1),
        (Impairment(limit_packets=1, delay_s=3600), 1),
        (Impairment(limit_packets=2**32 - 1), 2**32 - 1),
    ],
)
def test_the_queue_holds_all_that_is_under_way_unless_a_limit_is_asked(impairment: Impairment, packets: int) -> None:
    assert qdisc.sized_limit(impairment) == packets


@given(impairments())
def test_a_queue_is_never_shorter_than_netems_default_nor_beyond_its_type(impairment: Impairment) -> None:
    limit = qdisc.sized_limit(impairment)
    assert limit == (impairment.limit_packets or limit)
    assert impairment.limit_packets is not None or 1000 <= limit < 2**32


@pytest.mark.parametrize(
    ("impairment", "rate_bps"),
    [
        (CLEAN, None),
        (Impairment(delay_s=0.05), None),
        (Impairment(delay_s=0.05, jitter_s=0), None),
        (Impairment(delay_s=0.05, jitter_s=0.005), 1e12),
        (Impairment(delay_s=0.05, jitter_s=0.005, reorder_by_jitter=True), None),
        (Impairment(delay_s=0.05, jitter_s=0.005, rate_bps=1e6), 1e6),
        (Impairment(delay_s=0.05, jitter_s=0.005, rate_bps=1e6, reorder_by_jitter=True), 1e6),
    ],
)
def test_jitter_gets_a_rate_that_keeps_order_unless_it_may_reorder(
    impairment: Impairment, rate_bps: float | None
) -> None:
    assert qdisc.effective_rate_bps(impairment) == rate_bps


@given(impairments())
def test_no_line_holds_a_word_that_tc_could_not_read(impairment: Impairment) -> None:
    words = qdisc.netem(impairment).split()
    assert not [word for word in words if word[0].isdigit() and ("e" in word or "inf" in word or "nan" in word)]


def test_the_root_passes_what_no_filter_names() -> None:
    assert qdisc.root("veth1") == "qdisc replace dev veth1 root handle 1: htb default 0 direct_qlen 1000"


def test_a_source_gets_a_class_and_a_filter_for_each_address() -> None:
    assert qdisc.source("veth1", 0x1F, ["172.18.0.2", "fd00::2"]) == [
        "class replace dev veth1 parent 1: classid 1:1f htb rate 100gbit quantum 60000",
        "filter add dev veth1 parent 1: protocol ip prio 60001 u32 match ip src 172.18.0.2/32 flowid 1:1f",
        "filter add dev veth1 parent 1: protocol ipv6 prio 60002 u32 match ip6 src fd00::2/128 flowid 1:1f",
    ]


def test_a_source_without_addresses_gets_a_class_alone() -> None:
    assert len(qdisc.source("veth1", 16, [])) == 1


def test_what_is_no_address_never_reaches_tc() -> None:
    with pytest.raises(ValueError, match=r"172\.18\.0\.2/16"):
        qdisc.source("veth1", 16, ["172.18.0.2/16"])


@pytest.mark.parametrize(
    ("minor", "spare", "parent", "handle"),
    [
        (qdisc.FIRST_MINOR, False, "1:10", "10:"),
        (qdisc.FIRST_MINOR, True, "1:10", "8010:"),
        (qdisc.LAST_MINOR, False, "1:3fff", "3fff:"),
        (qdisc.LAST_MINOR, True, "1:3fff", "bfff:"),
    ],
)
def test_a_leaf_has_a_handle_of_its_own_and_a_spare_one(minor: int, spare: bool, parent: str, handle: str) -> None:
    assert qdisc.leaf("veth1", minor, Impairment(loss_ratio=0.5), spare=spare) == (
        f"qdisc replace dev veth1 parent {parent} handle {handle} netem limit 1000 loss 50%"
    )


def test_no_two_handles_of_a_port_are_the_same() -> None:
    minors = range(qdisc.FIRST_MINOR, qdisc.LAST_MINOR + 1)
    assert len({minor | spare for minor in minors for spare in (0, 0x8000)}) == 2 * len(minors)


def test_a_source_is_healed_by_taking_its_leaf() -> None:
    assert qdisc.clear("veth1", 0x10) == "qdisc delete dev veth1 parent 1:10"


def test_the_read_back_is_a_show() -> None:
    assert qdisc.show("veth1") == "qdisc show dev veth1"


DELAY = Impairment(delay_s=0.05)
JITTER = Impairment(delay_s=0.05, jitter_s=0.005)
REORDERED = Impairment(delay_s=0.05, jitter_s=0.005, reorder_by_jitter=True)
NORMAL = Impairment(delay_s=0.05, jitter_s=0.005, distribution="normal")
PARETO = Impairment(delay_s=0.05, jitter_s=0.005, distribution="pareto")
RATE = Impairment(rate_bps=1e6)


@pytest.mark.parametrize(
    ("before", "after", "in_place"),
    [
        (CLEAN, CLEAN, True),
        (CLEAN, RATE, True),
        (CLEAN, NORMAL, True),
        (DELAY, Impairment(loss_ratio=0.5), True),
        (RATE, Impairment(rate_bps=2e6), True),
        (RATE, JITTER, True),  # jitter has a rate too, to keep order
        (NORMAL, PARETO, True),
        (RATE, DELAY, False),
        (JITTER, DELAY, False),
        (JITTER, REORDERED, False),
        (NORMAL, JITTER, False),
        (NORMAL, CLEAN, False),
        (NORMAL, RATE, False),
    ],
)
def test_a_change_in_place_must_not_leave_a_rate_or_a_table_behind(
    before: Impairment, after: Impairment, in_place: bool
) -> None:
    assert qdisc.can_change_in_place(before, after) is in_place


# --- cuts ------------------------------------------------------------------------------------------


def test_a_cut_is_a_class_of_its_own_that_is_asked_first() -> None:
    assert qdisc.cut("veth1", 0x10, ["172.18.0.2", "fd00::2"]) == [
        "class replace dev veth1 parent 1: classid 1:4010 htb rate 100gbit quantum 60000",
        "qdisc replace dev veth1 parent 1:4010 handle 4010: netem limit 1 loss 100%",
        "filter add dev veth1 parent 1: protocol ip prio 1 u32 match ip src 172.18.0.2/32 flowid 1:4010",
        "filter add dev veth1 parent 1: protocol ipv6 prio 2 u32 match ip6 src fd00::2/128 flowid 1:4010",
    ]


def test_each_source_has_priorities_of_its_own_and_all_come_before_the_classes() -> None:
    lines = qdisc.cut("veth1", qdisc.LAST_MINOR, ["172.18.0.2", "fd00::2"])
    last = 2 * (0x3FFF - 0x10)
    assert f" prio {last + 1} " in lines[2]
    assert f" prio {last + 2} " in lines[3]
    assert last + 2 < 60001


def test_mending_takes_off_the_filters_of_the_families_that_are_there() -> None:
    assert qdisc.mend("veth1", 0x11, ["172.18.0.2"]) == ["filter delete dev veth1 parent 1: protocol ip prio 3"]
    assert qdisc.mend("veth1", 0x11, ["172.18.0.2", "fd00::2"]) == [
        "filter delete dev veth1 parent 1: protocol ip prio 3",
        "filter delete dev veth1 parent 1: protocol ipv6 prio 4",
    ]
