"""Impairments compiled to tc lines: the lines word by word, and their sizes computed by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.netem import qdisc
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import Traffic

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
                delay_s=0.05,
                jitter_s=0.005,
                distribution="normal",
                loss_ratio=0.02,
                rate_bps=1.5e6,
                limit_packets=300,
                seed=7,
            ),
            "limit 300 delay 50ms 5ms distribution normal loss 2% rate 1.5mbit seed 7",
        ),
    ],
)
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
        (Impairment(delay_s=3600, jitter_s=2), 3_602_001_000),
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


def test_what_no_address_names_is_led_by_the_interface_behind_all_that_addresses_name() -> None:
    two = ["172.18.0.2", "02:00:00:00:00:01"]
    for chosen, first in ((qdisc.filters(0x1F, two), 30_000), (qdisc.cut_filters(0x1F, two), 10_000)):
        by_address, *by_interface = chosen
        assert by_address.priority == first + 9_990
        assert [(filter_.family, filter_.priority) for filter_ in by_interface] == [
            ("ip", first + 19_990),
            ("ipv6", first + 19_991),
            ("all", first + 19_992),  # what is neither, or bears a VLAN's tag
        ]
        assert all(filter_.keys == {"src_mac": "02:00:00:00:00:01"} for filter_ in by_interface)
    assert {filter_.family for filter_ in qdisc.filters(0x1F, two, Traffic("udp"))} == {"ip", "ipv6"}
    # Whatever is cut is cut before it is impaired, and a part of the traffic before the whole of it.
    every = ["172.18.0.2", "fd00::2", "02:00:00:00:00:01"]
    cuts = {cut_filter.priority for traffic in ALL for cut_filter in qdisc.cut_filters(0x1F, every, traffic)}
    assert max(cuts) < min(filter_.priority for traffic in ALL for filter_ in qdisc.filters(0x1F, every, traffic))
    parts = [{filter_.priority for filter_ in qdisc.filters(0x10, every[2:], traffic)} for traffic in ALL]
    assert [max(earlier) < min(later) for earlier, later in pairwise(parts)] == [True, True]


def test_the_root_passes_what_no_filter_names_and_neighbour_discovery_whatever_they_name() -> None:
    tree, *neighbours, arp = qdisc.root("veth1")
    assert arp == "filter replace dev veth1 parent 1: protocol arp prio 1 handle 0x1 flower classid 1:0"
    assert tree == "qdisc replace dev veth1 root handle 1: htb default 0 direct_qlen 1000"
    # RFC 2710 and 3810: multicast listeners' query, report, done, report of version 2. RFC 4861: router solicitation
    # and advertisement, neighbour solicitation and advertisement, redirect.
    assert [line.partition("flower ")[2] for line in neighbours] == [
        f"ip_proto icmpv6 type {number} classid 1:0" for number in (130, 131, 132, 143, 133, 134, 135, 136, 137)
    ]
    cut = qdisc.cut_filters(qdisc.FIRST_MINOR, ["fd00::2"], Traffic("icmp"))
    assert all(f" prio {ref.priority} " not in line for ref in cut for line in neighbours)
    assert min(ref.priority for ref in cut) > 4


ALL = (Traffic("udp", 53), Traffic("udp"), Traffic())


def lines_of(filters: list[qdisc.Filter]) -> list[str]:
    return [filter_.put("veth1") for filter_ in filters]


def test_a_source_is_led_to_its_class_by_each_of_its_addresses() -> None:
    assert qdisc.make_class("veth1", 0x1F) == (
        "class replace dev veth1 parent 1: classid 1:1f htb rate 100gbit quantum 60000"
    )
    assert lines_of(qdisc.filters(0x1F, ["172.18.0.2", "fd00::2"])) == [
        "filter replace dev veth1 parent 1: protocol ip prio 39990 handle 0x1f flower src_ip 172.18.0.2 classid 1:1f",
        "filter replace dev veth1 parent 1: protocol ipv6 prio 39991 handle 0x1001f flower src_ip fd00::2 classid 1:1f",
    ]


def test_a_filter_is_read_and_taken_off_by_its_place() -> None:
    (one,) = qdisc.filters(0x1F, ["172.18.0.2"])
    assert one.get("veth1") == "filter get dev veth1 parent 1: protocol ip prio 39990 handle 0x1f flower"
    assert one.delete("veth1") == "filter delete dev veth1 parent 1: protocol ip prio 39990 handle 0x1f flower"


def test_a_port_is_matched_at_either_end_before_the_protocol_and_that_before_all() -> None:
    assert lines_of(qdisc.filters(0x10, ["172.18.0.2"], Traffic("tcp", 8888))) == [
        "filter replace dev veth1 parent 1: protocol ip prio 30000 handle 0x10 "
        "flower src_ip 172.18.0.2 ip_proto tcp dst_port 8888 classid 1:10",
        "filter replace dev veth1 parent 1: protocol ip prio 30000 handle 0x10010 "
        "flower src_ip 172.18.0.2 ip_proto tcp src_port 8888 classid 1:10",
        "filter replace dev veth1 parent 1: protocol ip prio 30010 handle 0x20010 "
        "flower src_ip 172.18.0.2 ip_proto tcp ip_flags frag classid 1:10",  # they bear no ports
    ]
    priorities = [
        {filter_.priority for filter_ in qdisc.filters(0x10, ["172.18.0.2", "fd00::2"], traffic)} for traffic in ALL
    ]
    assert [max(earlier) < min(later) for earlier, later in pairwise(priorities)] == [True, True]


def test_icmp_is_icmpv6_among_ipv6() -> None:
    protocols = [
        filter_.keys["ip_proto"] for filter_ in qdisc.filters(0x10, ["172.18.0.2", "fd00::2"], Traffic("icmp"))
    ]
    # 60: what was fragmented may begin with destination options (RFC 8200, 4.5), and then no fragment says more.
    assert protocols == ["icmp", "icmpv6", "0x3c"]


def test_a_source_without_addresses_has_no_filter() -> None:
    assert qdisc.filters(16, []) == []


def test_what_is_no_address_never_reaches_tc() -> None:
    with pytest.raises(ValueError, match=r"172\.18\.0\.2/16"):
        qdisc.filters(16, ["172.18.0.2/16"])


@pytest.mark.parametrize(
    ("minor", "spare", "parent", "handle"),
    [
        (qdisc.FIRST_MINOR, False, "1:10", "10:"),
        (qdisc.FIRST_MINOR, True, "1:10", "8010:"),
        (qdisc.LAST_MINOR, False, "1:1fff", "1fff:"),
        (qdisc.LAST_MINOR, True, "1:1fff", "9fff:"),
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


ADDRESSES = ("172.18.0.2", "fd00::2")


def test_a_cut_is_a_class_of_its_own_where_all_is_lost() -> None:
    assert qdisc.cut("veth1", 0x10, qdisc.cut_filters(0x10, ADDRESSES)) == [
        "class replace dev veth1 parent 1: classid 1:4010 htb rate 100gbit quantum 60000",
        "qdisc replace dev veth1 parent 1:4010 handle 4010: netem limit 1 loss 100%",
        "filter replace dev veth1 parent 1: protocol ip prio 19990 handle 0x10 flower src_ip 172.18.0.2 classid 1:4010",
        "filter replace dev veth1 parent 1: protocol ipv6 prio 19991 handle 0x10010 flower src_ip fd00::2 "
        "classid 1:4010",
    ]


def test_a_cut_of_what_goes_to_some_addresses_matches_both_ends_in_each_family() -> None:
    chosen = qdisc.cut_filters(0x10, ADDRESSES, Traffic("udp", 53), ["10.0.0.9", "10.0.0.8", "fd00::9"])
    assert [(filter_.family, filter_.keys["src_ip"], filter_.keys["dst_ip"]) for filter_ in chosen] == [
        *[("ip", "172.18.0.2", "10.0.0.9"), ("ip", "172.18.0.2", "10.0.0.8")] * 3,
        *[("ipv6", "fd00::2", "fd00::9")] * 4,
    ]
    assert len({filter_.handle for filter_ in chosen}) == len(chosen)


@pytest.mark.parametrize("cut", [Traffic(), Traffic("tcp"), Traffic("tcp", 8888)])
@pytest.mark.parametrize("impaired", [Traffic(), Traffic("tcp"), Traffic("tcp", 8888)])
def test_a_cut_of_any_traffic_is_asked_before_an_impairment_of_any(cut: Traffic, impaired: Traffic) -> None:
    before = {cut_filter.priority for cut_filter in qdisc.cut_filters(qdisc.LAST_MINOR, ADDRESSES, cut)}
    after = {filter_.priority for filter_ in qdisc.filters(qdisc.FIRST_MINOR, ADDRESSES, impaired)}
    assert max(before) < min(after)


@given(st.sets(st.integers(min_value=qdisc.FIRST_MINOR, max_value=qdisc.LAST_MINOR), max_size=20))
def test_no_two_filters_of_a_port_share_a_place_or_say_the_same_at_one_priority(minors: set[int]) -> None:
    traffics = [*(Traffic(name) for name in ("", "tcp", "udp", "icmp")), *(Traffic("tcp", n) for n in range(80, 100))]
    every = [
        filter_
        for part, (minor, traffic) in enumerate(zip(sorted(minors), traffics, strict=False))  # all of one sender
        for filter_ in (
            *qdisc.filters(minor, ADDRESSES, traffic, part=part),
            *qdisc.cut_filters(minor, ADDRESSES, traffic, part=part),
        )
    ]
    assert len({(filter_.family, filter_.priority, filter_.handle) for filter_ in every}) == len(every)
    assert len({(filter_.priority, *sorted(filter_.keys.items())) for filter_ in every}) == len(every), (
        "flower: File exists"
    )
    families: dict[int, set[str]] = {}
    for filter_ in every:
        families.setdefault(filter_.priority, set()).add(filter_.family)
    assert all(len(family) == 1 for family in families.values()), "tc binds a priority to one protocol"


def test_the_read_back_of_one_qdisc_is_data_with_the_kernels_number_of_its_parent() -> None:
    assert qdisc.get("vec0", 0x1F) == {"read_qdisc": {"device": "vec0", "parent": 0x1001F}}
    assert qdisc.get_bucket("vec0", 0x10) == {"read_qdisc": {"device": "vec0", "parent": 0x100001}}
    assert qdisc.describe(qdisc.get("vec0", 0x1F)) == "reading the qdisc of vec0 below 1:1f"
    assert qdisc.describe(qdisc.show("vec0")) == "`tc qdisc show dev vec0`"
