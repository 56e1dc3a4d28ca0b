"""Compile impairments to tc lines. Pure: values in, lines out.

The qdiscs of an impaired port. Packets reach a netem only if a filter matches them; all others, ARP and ND included,
take HTB's direct queue unimpaired::

    1: htb (default: direct queue)
    ├── 1:10    class, one per source      <- flower filters: source address or MAC [, protocol [, port]]
    │   └── 10: netem                      the impairment, replaced in place or afresh
    │       └── 2010: tbf                  if a token bucket keeps the rate
    └── 1:4010  class, one per cut source  <- flower filter that comes first, while the link is cut
        └── 4010: netem loss 100%

flower, because it looks all addresses up in one hash table, however many sources there are, finds ports behind IP
options and extension headers, and reports in JSON, field by field, what it matches.

HTB as the root and not prio, which has 15 bands where HTB has 65,000 classes; and not drr, which stops at a leaf whose
packets are not due yet, as those of a netem often are. The classes' rate is far above that of any link, so HTB shapes
nothing.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

from testbed import units
from testbed.netem import indexed
from testbed.spec.features import FEATURES, Feature
from testbed.spec.impairment import Impairment
from testbed.spec.links import ALL_TRAFFIC, MULTICAST_LISTENERS, NEIGHBOUR_DISCOVERY, Traffic
from testbed.spec.words import SHAPE, SIZE, TURNS, Slot, ValueKind

ReadBack = dict[str, dict[str, Any]]
"""Read one qdisc back: ``read_qdisc``, with ``device`` and ``parent``, the number that tc writes as 1:10."""
TcLine = str | ReadBack
"""What the agent's operation ``tc`` runs: a line for tc, or the read-back of one qdisc."""

FIRST_MINOR = 0x10
"""Minor number of the first source's class."""
LAST_MINOR = 0x1FFF
"""Last minor number for a source: its spare handle (see `leaf`), its cut's class and its token bucket's handle are
derived from it."""

_SPARE = 0x8000
_CUT = 0x4000
_BUCKET = 0x2000
CUT = Impairment(loss_ratio=1.0, limit_packets=1)
"""The netem of a cut link."""

MOST_PARTS = 4000
"""How many parts of one sender's traffic a port can distinguish."""
MOST_LAST_PARTS = 1290
"""How many, if the filters come `last`."""

# Filters of a smaller priority come first: those of a cut before those of an impairment, and those that match a
# sender's addresses before those that match its interface. A priority belongs to one family: IPv6 has the number after
# IPv4's, and all other protocols the one after that.
_ARP, _NEIGHBOURS = 1, 2
_CUT_PRIORITY, _PRIORITY, _BY_INTERFACE = 10_000, 30_000, 10_000
# Added to these: a part of the traffic comes before all of it. The fragments of each part have their own priority:
# flower takes no key twice at one priority, and fragments look alike whichever port is meant.
_OF_PORTS, _OF_FRAGMENTS, _OF_PROTOCOLS, _OF_ALL = 0, 10, 9_000, 9_990
_OF_PROTOCOLS_FRAGMENTS = {"tcp": 9_010, "udp": 9_020, "icmp": 9_030}
_FAMILIES = ("ip", "ipv6")
# Filters that come last have less room: after those of the addresses that they must spare (`spared`).
_SPARED = 49_996
_LAST = {_CUT_PRIORITY: 50_000, _PRIORITY: 57_400}
_LAST_BY_INTERFACE, _LAST_IS_LESS = 3_700, 6_400
DESTINATION_OPTIONS = "0x3c"
"""Destination options (RFC 8200, 4.6: 60) as an ``ip_proto``, where tc reads numbers in base 16."""
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")

# A source may have many addresses, with two filters each. A filter's handle is the source's minor number plus the
# filter's own number in the upper bits.
_FILTER = 0x10000

_CLASS_RATE = "100gbit"

# With a rate, netem never lets a packet leave before the one in front of it (sch_netem.c, netem_enqueue: the last
# packet is the reference point). So a rate above that of any link keeps packets in order and adds 12 ns to each.
_ORDERING_RATE_BPS = 1e12

# tc-netem(8) LIMITATIONS: the queue holds every delayed packet. A veth passes fewer than a million packets per second;
# if a rate is requested, the smallest Ethernet frame bounds how many packets fit in the delay.
MOST_PACKETS_PER_S = 1e6
_SMALLEST_FRAME_BITS = 64 * 8
_QUEUE_PACKETS = 1000

_LEAST_QUEUE_BYTES = 64 * 1514
_QUEUE_S = 0.1

# In iproute2's tables no sample exceeds four times the jitter.
_TABLE_REACH = 4


def sized_limit(impairment: Impairment) -> int:
    """The queue length in packets: as requested, or long enough that nothing is dropped below the link's rate.

    That is rate × longest delay in the smallest packets, plus 1000 (netem's default) for packets that wait.
    """
    if impairment.limit_packets is not None:
        return impairment.limit_packets
    jitter_s = impairment.jitter_s or 0.0
    reach = 1 if impairment.distribution == "uniform" else _TABLE_REACH
    longest_s = (impairment.delay_s or 0.0) + reach * jitter_s
    packets_per_s = MOST_PACKETS_PER_S
    if impairment.rate_bps is not None:
        packets_per_s = min(packets_per_s, impairment.rate_bps / _SMALLEST_FRAME_BITS)
    return min(_QUEUE_PACKETS + math.ceil(packets_per_s * longest_s), 2**32 - 1)


def sized_queue_bytes(impairment: Impairment) -> int:
    """How many bytes may wait for the token bucket: as requested, or 100 ms at the rate, at least 64 full packets."""
    if impairment.queue_bytes is not None:
        return impairment.queue_bytes
    return min(max(_LEAST_QUEUE_BYTES, math.ceil((impairment.rate_bps or 0) / 8 * _QUEUE_S)), 2**32 - 1)


def effective_rate_bps(impairment: Impairment) -> float | None:
    """The rate that netem gets: the requested one, or one that keeps packets in order under jitter, or none."""
    if impairment.rate_bps is not None and impairment.bucket_bytes is None:
        return impairment.rate_bps
    keeps_order = bool(impairment.jitter_s) and not impairment.reorder_by_jitter
    return _ORDERING_RATE_BPS if keeps_order else None


def reorder_gap_packets(impairment: Impairment) -> int:
    """Netem's ``gap``: as requested, or 1 if packets are reordered, or 0."""
    return impairment.reorder_gap_packets or (1 if impairment.reorder_ratio else 0)


_GIVEN: Mapping[str, Callable[[Impairment], Any]] = {
    "distribution": lambda impairment: impairment.distribution if impairment.distribution != "uniform" else None,
    "loss": lambda impairment: None if impairment.gilbert else impairment.loss_ratio,
    "gemodel": lambda impairment: impairment.gilbert,
    "gap": reorder_gap_packets,
    "rate": effective_rate_bps,
    "limit": sized_limit,
}
"""What netem gets for features where that is not simply the requested value."""


def given(impairment: Impairment, feature: Feature) -> Any:
    """The value that netem gets for a feature; None if none, zeros only where the kernel has its own default."""
    make = _GIVEN.get(feature.name)
    value = make(impairment) if make else getattr(impairment, feature.field)
    return value or (value if feature.kernels_own else None)


def _slot_clause(slot: Slot) -> str:
    shape = [] if slot.distribution is None else ["distribution", slot.distribution.removesuffix(".dist")]
    return " ".join([*shape, *(units.format_time(time_s or 0.0) for time_s in slot.times_s)])


_WRITTEN: Mapping[ValueKind, Callable[[Any], str]] = {
    SHAPE: lambda table: str(table).removesuffix(".dist"),
    SIZE: str,
    TURNS: _slot_clause,
}
"""How to write values for tc, where users write them differently."""
_IN_TCS_ORDER = sorted((feature for feature in FEATURES if feature.tc), key=lambda feature: feature.name != "limit")
"""As tc shows them: the queue length first."""


def netem(impairment: Impairment) -> str:
    """The arguments of ``netem`` on a tc line; see tc-netem(8). Zeros are omitted: tc refuses some."""
    return " ".join(
        feature.tc.format(_WRITTEN.get(feature.kind, feature.write)(value))
        for feature in _IN_TCS_ORDER
        if (value := given(impairment, feature)) is not None
    )


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The bridge's own interface as the far end of a link; its packets go on to the machine, or beyond."""

    mac: str
    outward: bool
    """Whether packets go there; else they come from there."""
    last: bool
    """Whether the link's filters come after all others."""

    @property
    def side(self) -> str:
        """Which end of a packet it is, in tc's words."""
        return "dst" if self.outward else "src"


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One flower filter of a port: what it matches, and the class of the packets."""

    family: str
    """``ip``, ``ipv6``, or ``all`` for other protocols: tc's word for the protocol."""
    priority: int
    handle: int
    keys: Mapping[str, str | int]
    """What it matches, in tc's words: ``src_ip``, ``ip_proto``, ``dst_port``, …"""
    flow: str
    """The class, such as ``1:10``."""
    chain: int | None = None
    """The chain that packets enter first: it drops some and sends the others to the class."""

    def put(self, device: str) -> str:
        """The line that installs it, or replaces the one with its handle."""
        words = " ".join(f"{key} {value}" for key, value in self.keys.items())
        target = f"classid {self.flow}" if self.chain is None else f"action goto chain {self.chain}"
        return f"filter replace {self._where(device)} flower {words} {target}"

    def get(self, device: str) -> str:
        """The line that reads it back."""
        return f"filter get {self._where(device)} flower"

    def delete(self, device: str) -> str:
        """The line that removes it."""
        return f"filter delete {self._where(device)} flower"

    def _where(self, device: str) -> str:
        return f"dev {device} parent 1: protocol {self.family} prio {self.priority} handle {self.handle:#x}"


def root(device: str) -> list[str]:
    """The lines that give a port its classful root. ARP and what every IPv6 link needs stay unimpaired.

    So do the agent's replies to rejected packets, by their priority 1:0 (sch_htb.c, htb_classify).
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
    minor: int,
    addresses: Iterable[str],
    traffic: Traffic = ALL_TRAFFIC,
    *,
    part: int = 0,
    by_number: bool = False,
    gateway: Gateway | None = None,
) -> list[Filter]:
    """The filters that give packets from these addresses (IPv4, IPv6 or MAC) the class of this source.

    With a ``gateway``, packets from its interface and these addresses behind it, networks as well; or to them.

    Those of a MAC address also match frames that are not IP, or bear a VLAN's tag (802.1Q), which no filter of IPv4 or
    IPv6 matches. Fragments bear no ports, so all of a port's protocol match; see `netem.fragments`.

    ``part``: a number from 0 to `MOST_PARTS` - 1, different for each part of the sender's traffic; the first part gets
    packets that may be of several. ``by_number``: packets enter the chain that counts them (`count`).
    """
    chain, flow = minor if by_number else None, f"1:{minor:x}"
    own = _filters(minor, flow, addresses, traffic, part, _PRIORITY, gateway)
    return [replace(flower, chain=chain) for flower in own]


def spared(gateway: Gateway, addresses: Iterable[str]) -> list[Filter]:
    """The filters that keep packets from or to these addresses from the filters that come last.

    An address always has the same handle: a machine's addresses come and go, and a kernel refuses a filter that it has
    under another handle.
    """
    return [
        Filter(
            family=_FAMILIES[0 if is_v4 else 1],
            priority=_SPARED + (0 if is_v4 else 1),
            handle=zlib.crc32(address.encode()) >> 1 or 1,
            keys={f"{gateway.side}_ip": address, f"{gateway.side}_mac": gateway.mac},
            flow="1:",  # as tc shows 1:0
        )
        for _, address, is_v4 in _families(addresses)
    ]


def count(device: str, minor: int, object_file: str) -> list[str]:
    """The lines that make a source's chain: it counts packets, drops some by number, and passes the others on.

    ``object_file``: the file of `indexed.elf_object`. The count restarts, because tc loads the program again.
    """
    chain = f"dev {device} parent 1: chain {minor}"
    return [
        f"filter replace {chain} protocol all prio 1 handle 1 bpf object-file {object_file} "
        f"section {indexed.SECTION} action gact drop",
        f"filter replace {chain} protocol all prio 2 handle 1 flower classid 1:{minor:x}",
    ]


def show_count(device: str, minor: int) -> str:
    """The line that reads back the program that drops packets by number."""
    return f"filter get dev {device} parent 1: chain {minor} protocol all prio 1 handle 1 bpf"


def stop_counting(device: str, minor: int) -> str:
    """The line that removes a source's chain."""
    return f"filter delete dev {device} parent 1: chain {minor}"


def cut_filters(
    minor: int,
    addresses: Iterable[str],
    traffic: Traffic = ALL_TRAFFIC,
    targets: Sequence[str] = (),
    *,
    part: int = 0,
    gateway: Gateway | None = None,
) -> list[Filter]:
    """The filters of a cut, which come before all others.

    ``targets``: match only packets to one of these addresses. ``part`` and ``gateway``: see `filters`.
    """
    flow = f"1:{cut_minor(minor):x}"
    whole = list(_filters(minor, flow, addresses, traffic, part, _CUT_PRIORITY, gateway))
    if not targets:
        return whole
    pairs = ((flower, target) for flower in whole for target in targets if _FAMILIES[":" in target] == flower.family)
    return [
        replace(flower, keys={**flower.keys, "dst_ip": target}, handle=minor + number * _FILTER)
        for number, (flower, target) in enumerate(pairs)
    ]


def _filters(
    minor: int,
    flow: str,
    addresses: Iterable[str],
    traffic: Traffic,
    part: int,
    first_priority: int,
    gateway: Gateway | None,
) -> Iterator[Filter]:
    last = gateway is not None and gateway.last
    side, less = gateway.side if gateway else "src", _LAST_IS_LESS if last else 0
    first_priority = _LAST[first_priority] if last else first_priority
    by_interface = _LAST_BY_INTERFACE if last else _BY_INTERFACE
    # A part of the traffic comes before all of it.
    own = _OF_PORTS if traffic.port else (_OF_PROTOCOLS if traffic.protocol else _OF_ALL) - less
    fragments = _OF_FRAGMENTS + 2 * part if traffic.port else _OF_PROTOCOLS_FRAGMENTS.get(traffic.protocol, less) - less
    handles = itertools.count(minor, _FILTER)
    for kind, address, is_v4 in _families(addresses):
        ends: dict[str, str | int] = {} if gateway is None else {f"{side}_mac": gateway.mac}
        ends[f"{side}_{kind}"] = address
        first = first_priority + (0 if is_v4 else 1) + (by_interface if kind == "mac" else 0)
        for keys in _narrowing_keys(traffic, is_v4=is_v4):
            priority = first + (fragments if "ip_flags" in keys else own)
            family = _FAMILIES[0 if is_v4 else 1]
            yield Filter(family=family, priority=priority, handle=next(handles), keys={**ends, **keys}, flow=flow)
    priority = first_priority + by_interface + _OF_ALL - less + len(_FAMILIES)
    for address in () if traffic.protocol else filter(is_mac, addresses):
        yield Filter(family="all", priority=priority, handle=next(handles), keys={f"{side}_mac": address}, flow=flow)


def _narrowing_keys(traffic: Traffic, *, is_v4: bool) -> Iterator[dict[str, str | int]]:
    """What to match of a packet besides its source."""
    if not traffic.protocol:
        yield {}
        return
    protocol = "icmpv6" if traffic.protocol == "icmp" and not is_v4 else traffic.protocol
    fragments = {"ip_flags": "frag"}
    if traffic.port:
        yield {"ip_proto": protocol, "dst_port": traffic.port}
        yield {"ip_proto": protocol, "src_port": traffic.port}
        yield {"ip_proto": protocol, **fragments}
    else:
        yield {"ip_proto": protocol}
    if not is_v4:  # if the fragmented part begins with options, no fragment names the protocol (RFC 8200 4.5)
        yield {"ip_proto": DESTINATION_OPTIONS, **fragments}


def is_mac(address: str) -> bool:
    """Whether this is a MAC address."""
    return _MAC.fullmatch(address) is not None


def _families(addresses: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """The kind of each address, and whether it matches IPv4 packets; a MAC address is in both families'."""
    for address in addresses:
        if is_mac(address):
            yield from (("mac", address, is_v4) for is_v4 in (True, False))
        else:
            yield "ip", address, ip_network(address).version == 4


def leaf(device: str, minor: int, impairment: Impairment, *, spare: bool = False) -> str:
    """The line that puts an impairment on a source's class.

    The same handle changes the netem in place and keeps its queue; the other one (``spare``) replaces it by a new
    netem. A new one is needed if a field is removed, because netem keeps what a change does not mention.
    """
    handle = minor | (_SPARE if spare else 0)
    return f"qdisc replace dev {device} parent 1:{minor:x} handle {handle:x}: netem {netem(impairment)}"


def bucket(device: str, minor: int, impairment: Impairment, *, spare: bool = False) -> list[str]:
    """The line that puts a token bucket behind a source's netem, if one is requested; tc-tbf(8)."""
    if impairment.bucket_bytes is None or impairment.rate_bps is None:
        return []
    handle = minor | (_SPARE if spare else 0)
    return [
        f"qdisc replace dev {device} parent {handle:x}:1 handle {handle | _BUCKET:x}: tbf "
        f"rate {units.format_rate(impairment.rate_bps)} burst {impairment.bucket_bytes} "
        f"limit {sized_queue_bytes(impairment)}"
    ]


def can_change_in_place(before: Impairment, after: Impairment) -> bool:
    """Whether ``after`` sets every sticky field that ``before`` set; see `sticky`."""
    return sticky(before) <= sticky(after)


def sticky(impairment: Impairment) -> set[str]:
    """The fields that are set and that netem keeps if a later change does not mention them (sch_netem.c)."""
    table = {"slot table"} if impairment.slot is not None and impairment.slot.distribution is not None else set()
    features = (feature for feature in FEATURES if feature.sticky)
    return {feature.name for feature in features if given(impairment, feature) is not None} | table


def cut_minor(minor: int) -> int:
    """Minor number of the class in which a source's packets are lost while its link is cut."""
    return minor | _CUT


def cut(device: str, minor: int, flowers: Iterable[Filter]) -> list[str]:
    """The lines that cut a link: all IP packets of the source are lost silently, whatever else impairs them."""
    return [
        make_class(device, cut_minor(minor)),
        leaf(device, cut_minor(minor), CUT),
        *(flower.put(device) for flower in flowers),
    ]


def show_filters(device: str) -> str:
    """The line that reads back all filters."""
    return f"filter show dev {device} parent 1:"


def clear(device: str, minor: int) -> str:
    """The line that heals a source: its class stays, with the plain queue that the kernel puts there."""
    return f"qdisc delete dev {device} parent 1:{minor:x}"


def show(device: str) -> str:
    """The line that reads back all qdiscs."""
    return f"qdisc show dev {device}"


def get(device: str, minor: int) -> ReadBack:
    """The read-back of a source's netem, at a cost that does not depend on how many there are."""
    return read(device, 1, minor)


def get_bucket(device: str, minor: int, *, spare: bool = False) -> ReadBack:
    """The read-back of what is behind a source's netem: a token bucket, or nothing."""
    return read(device, minor | (_SPARE if spare else 0), 1)


def read(device: str, major: int, minor: int) -> ReadBack:
    """The read-back of the qdisc below one parent: an operation of the agent, not a line for tc."""
    return {"read_qdisc": {"device": device, "parent": major << 16 | minor}}


def describe(line: TcLine) -> str:
    """What a line does, for an error message."""
    if isinstance(line, str):
        return f"`tc {line}`"
    place = line["read_qdisc"]
    return f"reading the qdisc of {place['device']} below {place['parent'] >> 16:x}:{place['parent'] & 0xFFFF:x}"
