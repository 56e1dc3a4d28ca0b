"""Compile impairments to tc lines. Pure: values in, lines out; who runs them is not known here.

The shape of an impaired port. Only what a filter names reaches a netem; everything else, ARP and ND
included, takes HTB's direct queue untouched::

    1: htb (default: direct queue)
    ├── 1:10    class, one a source        <- flower filters: source address or MAC [, protocol [, port]]
    │   └── 10: netem                      the impairment, replaced in place or afresh
    │       └── 2010: tbf                  where a token bucket keeps the rate
    └── 1:4010  class, one a source cut    <- flower filter that is asked first, while the link is cut
        └── 4010: netem loss 100%

flower, because it looks all addresses up in one hash table, however many sources there are, finds ports behind IP
options and extension headers, and says in JSON, field by field, what it matches.

HTB as the root, not prio: prio has 15 bands for sources, HTB has 65,000 classes; and not drr, which stops at a
leaf that has packets but none due yet, as a netem often has. The classes' rate is far above any link, so HTB
shapes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from typing import Any

from testbed import units
from testbed.netem import indexed
from testbed.spec.features import FEATURES, Feature
from testbed.spec.impairment import Impairment
from testbed.spec.topology import ALL_TRAFFIC, MULTICAST_LISTENERS, NEIGHBOUR_DISCOVERY, Traffic
from testbed.spec.words import SHAPE, SIZE, TURNS, Kind, Slot

Read = dict[str, dict[str, Any]]
"""The read-back of one qdisc: ``read_qdisc``, with its ``device`` and ``parent``, the number that tc writes as 1:10."""
Line = str | Read
"""What the agent's ``tc`` runs: a line for tc, or the read-back of one qdisc."""

FIRST_MINOR = 0x10
"""Minor number of the first source's class."""
LAST_MINOR = 0x1FFF
"""Last minor number that has a spare handle (see `leaf`), a class for its cut (see `cut`) and a handle for its token
bucket beside its own."""

_SPARE = 0x8000
_CUT = 0x4000
_BUCKET = 0x2000
CUT = Impairment(loss_ratio=1.0, limit_packets=1)
"""What the netem of a cut link is."""

MOST_PARTS = 4000
"""So many parts of one sender's traffic are told apart at a port."""

# A filter with a smaller priority is asked first: a cut comes before whatever else the link is impaired with, and what
# no address of the sender's names is told by its interface. A priority belongs to one family; IPv6 has the next number,
# and what is neither the one behind it.
_ARP, _NEIGHBOURS = 1, 2
_CUT_PRIORITY, _PRIORITY, _BY_INTERFACE = 10_000, 30_000, 10_000
# Beyond these: a part of the traffic comes before all of it. Fragments of each part have a priority of their own:
# flower takes nothing twice at one, and fragments of a sender look alike whichever of its ports are meant.
_OF_PORTS, _OF_FRAGMENTS, _OF_PROTOCOLS, _OF_ALL = 0, 10, 9_000, 9_990
_OF_PROTOCOLS_FRAGMENTS = {"tcp": 9_010, "udp": 9_020, "icmp": 9_030}
_FAMILIES = ("ip", "ipv6")
DESTINATION_OPTIONS = "0x3c"
"""As an ``ip_proto``; tc reads numbers in base 16 there (RFC 8200, 4.6: 60)."""
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")

# One source may have many addresses and two filters for each; a filter's handle is the source's minor number with
# the filter's own number above it.
_FILTER = 0x10000

_CLASS_RATE = "100gbit"

# With a rate, netem never lets a packet leave before the one in front of it (sch_netem.c, netem_enqueue: the
# last packet is the reference point), so a rate beyond any link keeps order and adds 12 ns a packet.
_ORDERING_RATE_BPS = 1e12

# tc-netem(8) LIMITATIONS: the queue holds every packet under way. A veth passes fewer than a million packets a
# second; where a rate is asked, the smallest Ethernet frame bounds how many fit in the delay.
_MOST_PACKETS_PER_S = 1e6
_SMALLEST_FRAME_BITS = 64 * 8
_QUEUE_PACKETS = 1000

_LEAST_QUEUE_BYTES = 64 * 1514
_QUEUE_S = 0.1

# iproute2's tables are scaled so that no sample lies further out than four times the jitter.
_TABLE_REACH = 4


def sized_limit(impairment: Impairment) -> int:
    """The queue length in packets: as asked, or so long that nothing is dropped below the link's own rate.

    Rate × longest delay in the smallest packets, plus 1000 (netem's default) for what waits.
    """
    if impairment.limit_packets is not None:
        return impairment.limit_packets
    jitter_s = impairment.jitter_s or 0.0
    reach = 1 if impairment.distribution == "uniform" else _TABLE_REACH
    longest_s = (impairment.delay_s or 0.0) + reach * jitter_s
    packets_per_s = _MOST_PACKETS_PER_S
    if impairment.rate_bps is not None:
        packets_per_s = min(packets_per_s, impairment.rate_bps / _SMALLEST_FRAME_BITS)
    return min(_QUEUE_PACKETS + math.ceil(packets_per_s * longest_s), 2**32 - 1)


def sized_queue_bytes(impairment: Impairment) -> int:
    """How many bytes may wait for the token bucket: as asked, or 100 ms at the rate, at least 64 full packets."""
    if impairment.queue_bytes is not None:
        return impairment.queue_bytes
    return min(max(_LEAST_QUEUE_BYTES, math.ceil((impairment.rate_bps or 0) / 8 * _QUEUE_S)), 2**32 - 1)


def effective_rate_bps(impairment: Impairment) -> float | None:
    """The rate that netem is given: the asked one, or the one that keeps order under jitter, or none."""
    if impairment.rate_bps is not None and impairment.bucket_bytes is None:
        return impairment.rate_bps
    keeps_order = bool(impairment.jitter_s) and not impairment.reorder_by_jitter
    return _ORDERING_RATE_BPS if keeps_order else None


def reorder_gap_packets(impairment: Impairment) -> int:
    """Netem's ``gap``: as asked, or 1 where packets are reordered, or 0."""
    return impairment.reorder_gap_packets or (1 if impairment.reorder_ratio else 0)


_GIVEN: Mapping[str, Callable[[Impairment], Any]] = {
    "distribution": lambda impairment: impairment.distribution if impairment.distribution != "uniform" else None,
    "loss": lambda impairment: None if impairment.gilbert else impairment.loss_ratio,
    "gemodel": lambda impairment: impairment.gilbert,
    "gap": reorder_gap_packets,
    "rate": effective_rate_bps,
    "limit": sized_limit,
}
"""What netem is given of a feature where that is not what was asked: what follows from what was asked beside."""


def given(impairment: Impairment, feature: Feature) -> Any:
    """What netem is given of a feature; nothing: None, and zeros of what is not the kernel's own choice."""
    make = _GIVEN.get(feature.name)
    value = make(impairment) if make else getattr(impairment, feature.field)
    return value or (value if feature.kernels_own else None)


def _slot_clause(slot: Slot) -> str:
    shape = [] if slot.distribution is None else ["distribution", slot.distribution.removesuffix(".dist")]
    return " ".join([*shape, *(units.format_time(time_s or 0.0) for time_s in slot.times_s)])


_WRITTEN: Mapping[Kind, Callable[[Any], str]] = {
    SHAPE: lambda table: str(table).removesuffix(".dist"),
    SIZE: str,
    TURNS: _slot_clause,
}
"""How tc wants values that it does not take as users write them."""
_IN_TCS_ORDER = sorted(FEATURES, key=lambda feature: feature.name != "limit")
"""As tc shows them: the length of the queue first."""


def netem(impairment: Impairment) -> str:
    """What stands behind ``netem`` on the tc line; see tc-netem(8). Zeros are left out: tc refuses some."""
    return " ".join(
        feature.tc.format(_WRITTEN.get(feature.kind, feature.write)(value))
        for feature in _IN_TCS_ORDER if feature.tc and (value := given(impairment, feature)) is not None
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One flower filter of a port: what it matches, and the class that it leads to."""

    family: str
    """``ip``, ``ipv6``, or ``all`` for the rest: tc's word for the protocol."""
    priority: int
    handle: int
    keys: Mapping[str, str | int]
    """What it matches, in tc's words: ``src_ip``, ``ip_proto``, ``dst_port``, …"""
    flow: str
    """The class, such as ``1:10``."""
    chain: int | None = None
    """The chain that is asked in place of the class, and leads there what it does not drop."""

    def put(self, device: str) -> str:
        """The line that puts it there, or replaces the one with its handle."""
        words = " ".join(f"{key} {value}" for key, value in self.keys.items())
        target = f"classid {self.flow}" if self.chain is None else f"action goto chain {self.chain}"
        return f"filter replace {self._where(device)} flower {words} {target}"

    def get(self, device: str) -> str:
        """The line that reads it back."""
        return f"filter get {self._where(device)} flower"

    def delete(self, device: str) -> str:
        """The line that takes it off."""
        return f"filter delete {self._where(device)} flower"

    def _where(self, device: str) -> str:
        return f"dev {device} parent 1: protocol {self.family} prio {self.priority} handle {self.handle:#x}"


def root(device: str) -> list[str]:
    """The lines that give a port its classful root. ARP, and what every IPv6 link has, pass untouched.

    So do the agent's answers to rejected packets, by their priority 1:0 (sch_htb.c, htb_classify).
    """
    return [
        f"qdisc replace dev {device} root handle 1: htb default 0 direct_qlen {_QUEUE_PACKETS}",
        *(
            f"filter replace dev {device} parent 1: protocol ipv6 prio {_NEIGHBOURS} handle {number:#x} "
            f"flower ip_proto icmpv6 type {number} classid 1:0"
            for number in (*MULTICAST_LISTENERS, *NEIGHBOUR_DISCOVERY)
        ),
        f"filter replace dev {device} parent 1: protocol arp prio {_ARP} handle 0x1 flower classid 1:0",
    ]


def make_class(device: str, minor: int) -> str:
    """The line that gives a source a class of its own."""
    return f"class replace dev {device} parent 1: classid 1:{minor:x} htb rate {_CLASS_RATE} quantum 60000"


def filters(
    minor: int, addresses: Iterable[str], traffic: Traffic = ALL_TRAFFIC, *, part: int = 0, by_number: bool = False
) -> list[Filter]:
    """What leads packets from these addresses, of either family or of an interface (MAC), to the class of this source.

    Of an interface also what is not IP, or bears a VLAN's tag (802.1Q): no filter of IPv4 or IPv6 is asked of that.

    Fragments bear no ports: of a port's protocol all of them are led there (`netem.fragments` counts what they bring).

    ``part``: a number of its own for each part of its sender's traffic, from 0 and below `MOST_PARTS`; of what may be
    of several parts the first has it. ``by_number``: through the chain that counts them (`count`).
    """
    chain, flow = minor if by_number else None, f"1:{minor:x}"
    return [replace(each, chain=chain) for each in _filters(minor, flow, addresses, traffic, part, _PRIORITY)]


def count(device: str, minor: int, object_file: str) -> list[str]:
    """The lines that make a source's chain: count its packets, drop those of the given numbers, pass on the others.

    ``object_file`` holds `indexed.elf_object`. Counting begins anew, for tc loads the program anew.
    """
    chain = f"dev {device} parent 1: chain {minor}"
    return [
        f"filter replace {chain} protocol all prio 1 handle 1 bpf object-file {object_file} "
        f"section {indexed.SECTION} action gact drop",
        f"filter replace {chain} protocol all prio 2 handle 1 flower classid 1:{minor:x}",
    ]


def show_count(device: str, minor: int) -> str:
    """The read-back of what drops packets by their number."""
    return f"filter get dev {device} parent 1: chain {minor} protocol all prio 1 handle 1 bpf"


def stop_counting(device: str, minor: int) -> str:
    """The line that removes a source's chain."""
    return f"filter delete dev {device} parent 1: chain {minor}"


def cut_filters(
    minor: int, addresses: Iterable[str], traffic: Traffic = ALL_TRAFFIC, targets: Sequence[str] = (), *, part: int = 0
) -> list[Filter]:
    """What leads them to the class where all is lost, before any other filter is asked.

    ``targets``: only those that go to one of these addresses. ``part``: see `filters`.
    """
    flow = f"1:{cut_minor(minor):x}"
    whole = list(_filters(minor, flow, addresses, traffic, part, _CUT_PRIORITY))
    if not targets:
        return whole
    narrowed = [
        replace(each, keys={**each.keys, "dst_ip": target})
        for each in whole for target in targets if _FAMILIES[":" in target] == each.family
    ]  # fmt: skip
    return [replace(each, handle=minor + number * _FILTER) for number, each in enumerate(narrowed)]


def _filters(
    minor: int, flow: str, addresses: Iterable[str], traffic: Traffic, part: int, first_priority: int
) -> Iterator[Filter]:
    # The part of a traffic comes before the whole.
    own = _OF_PORTS if traffic.port else _OF_PROTOCOLS if traffic.protocol else _OF_ALL
    fragments = _OF_FRAGMENTS + 2 * part if traffic.port else _OF_PROTOCOLS_FRAGMENTS.get(traffic.protocol, 0)
    number = 0
    for key, address, old in _families(addresses):
        first = first_priority + (0 if old else 1) + (_BY_INTERFACE if key == "src_mac" else 0)
        for narrowed in _narrowed(traffic, old=old):
            yield Filter(
                family=_FAMILIES[0 if old else 1],
                priority=first + (fragments if "ip_flags" in narrowed else own),
                handle=minor + number * _FILTER, keys={key: address, **narrowed}, flow=flow,
            )  # fmt: skip
            number += 1
    for address in () if traffic.protocol else filter(is_mac, addresses):
        yield Filter(
            family="all", priority=first_priority + _BY_INTERFACE + _OF_ALL + len(_FAMILIES),
            handle=minor + number * _FILTER, keys={"src_mac": address}, flow=flow,
        )  # fmt: skip
        number += 1


def _narrowed(traffic: Traffic, *, old: bool) -> Iterator[dict[str, str | int]]:
    """What to match of a packet beside its source."""
    if not traffic.protocol:
        yield {}
        return
    protocol = "icmpv6" if traffic.protocol == "icmp" and not old else traffic.protocol
    fragments = {"ip_flags": "frag"}
    if traffic.port:
        yield {"ip_proto": protocol, "dst_port": traffic.port}
        yield {"ip_proto": protocol, "src_port": traffic.port}
        yield {"ip_proto": protocol, **fragments}
    else:
        yield {"ip_proto": protocol}
    if not old:  # what was fragmented may begin with options, and then no fragment names the protocol (RFC 8200 4.5)
        yield {"ip_proto": DESTINATION_OPTIONS, **fragments}


def is_mac(address: str) -> bool:
    """Whether this is an interface's address."""
    return _MAC.fullmatch(address) is not None


def _families(addresses: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """What to match of each source address, and whether among IPv4's packets; a MAC address is in both families'."""
    for address in addresses:
        if is_mac(address):
            yield from (("src_mac", address, old) for old in (True, False))
        else:
            yield "src_ip", address, isinstance(ip_address(address), IPv4Address)


def leaf(device: str, minor: int, impairment: Impairment, *, spare: bool = False) -> str:
    """The line that puts an impairment on a source's class.

    The same handle changes the netem in place and keeps its queue; the other one (``spare``) replaces it by a
    fresh one. Fresh is needed where a field vanishes: netem keeps what a change does not mention.
    """
    handle = minor | (_SPARE if spare else 0)
    return f"qdisc replace dev {device} parent 1:{minor:x} handle {handle:x}: netem {netem(impairment)}"


def bucket(device: str, minor: int, impairment: Impairment, *, spare: bool = False) -> list[str]:
    """The line that puts a token bucket behind a source's netem, if one is asked; tc-tbf(8)."""
    if impairment.bucket_bytes is None or impairment.rate_bps is None:
        return []
    handle = minor | (_SPARE if spare else 0)
    return [
        f"qdisc replace dev {device} parent {handle:x}:1 handle {handle | _BUCKET:x}: tbf "
        f"rate {units.format_rate(impairment.rate_bps)} burst {impairment.bucket_bytes} "
        f"limit {sized_queue_bytes(impairment)}"
    ]


def can_change_in_place(before: Impairment, after: Impairment) -> bool:
    """Whether every sticky field that ``before`` set is set again by ``after`` (tc-netem's change keeps the rest)."""
    return sticky(before) <= sticky(after)


def sticky(impairment: Impairment) -> set[str]:
    """The words of what netem_change leaves as it is where the request does not carry it (sch_netem.c)."""
    table = {"slot table"} if impairment.slot is not None and impairment.slot.distribution is not None else set()
    return {each.name for each in FEATURES if each.sticky and given(impairment, each) is not None} | table


def cut_minor(minor: int) -> int:
    """Minor number of the class where a source's packets are lost while its link is cut."""
    return minor | _CUT


def cut(device: str, minor: int, chosen: Iterable[Filter]) -> list[str]:
    """The lines that cut a link: all IP packets of the source are lost, silently, whatever else impairs them."""
    return [
        make_class(device, cut_minor(minor)),
        leaf(device, cut_minor(minor), CUT),
        *(each.put(device) for each in chosen),
    ]


def show_filters(device: str) -> str:
    """The read-back of everything that leads somewhere."""
    return f"filter show dev {device} parent 1:"


def clear(device: str, minor: int) -> str:
    """The line that heals a source: its class stays, with the plain queue that the kernel puts there."""
    return f"qdisc delete dev {device} parent 1:{minor:x}"


def show(device: str) -> str:
    """The read-back of all leaves."""
    return f"qdisc show dev {device}"


def get(device: str, minor: int) -> Read:
    """The read-back of one leaf, however many there are."""
    return read(device, 1, minor)


def get_bucket(device: str, minor: int, *, spare: bool = False) -> Read:
    """The read-back of what is behind a source's netem: a token bucket, or nothing."""
    return read(device, minor | (_SPARE if spare else 0), 1)


def read(device: str, major: int, minor: int) -> Read:
    """The read-back of the qdisc below one parent; no line of tc's, but an operation of the agent's."""
    return {"read_qdisc": {"device": device, "parent": major << 16 | minor}}


def describe(line: Line) -> str:
    """What a line does, for an error message."""
    if isinstance(line, str):
        return f"`tc {line}`"
    place = line["read_qdisc"]
    return f"reading the qdisc of {place['device']} below {place['parent'] >> 16:x}:{place['parent'] & 0xFFFF:x}"
