"""Whether an impairment is in force: a faithful kernel's report is accepted, and every departure is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.netem import qdisc, readback
from testbed.netem.readback import Difference, NetemCounters
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import Traffic

from .strategies import impairments

# --- a faithful kernel -----------------------------------------------------------------------------

_NANOSECONDS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def _scaled(word: str, units: dict[str, float]) -> float:
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * units[word[len(number) :]]


def _printed(value: float) -> float:
    """As tc prints a JSON float: six significant digits."""
    return float(f"{value:g}")


def faithful(words: str, *, tick_ns: int) -> dict[str, Any]:
    """What ``tc -s -j qdisc show`` reports of a netem that was given these words.

    Written after sch_netem.c and iproute2's q_netem.c, not after testbed: times in ticks, loss in 2⁻³²,
    rates in bytes a second.
    """
    options: dict[str, Any] = {"ecn": False, "gap": 0}
    tokens = words.split()

    def is_number() -> bool:
        return bool(tokens) and tokens[0].lstrip("-")[:1].isdigit()

    def ratio() -> float:
        share = round(float(tokens.pop(0).removesuffix("%")) / 100 * (2**32 - 1))
        return _printed(share / (2**32 - 1))

    def time() -> float:
        return _printed(int(_scaled(tokens.pop(0), _NANOSECONDS)) // tick_ns * tick_ns / 1e9)

    def exact_time() -> float:
        return _printed(int(_scaled(tokens.pop(0), _NANOSECONDS)) / 1e9)

    def chances(*names: str) -> dict[str, float]:
        return {name: ratio() for name in names}

    while tokens:
        match token := tokens.pop(0):
            case "limit":
                options["limit"] = int(tokens.pop(0))
            case "delay":
                jitter = correlation = 0.0
                delay = time()
                if is_number():
                    jitter = time()
                if is_number():
                    correlation = ratio()
                options["delay"] = {"delay": delay, "jitter": jitter, "correlation": correlation}
            case "distribution":
                tokens.pop(0)  # the table goes in and never comes out
            case "loss" if tokens[0] == "gemodel":
                tokens.pop(0)
                options["loss-gemodel"] = chances("p", "r", "1-h", "1-k")
            case "loss" if tokens[0] == "state":
                tokens.pop(0)
                options["loss-state"] = chances("p13", "p31", "p32", "p23", "p14")
            case "loss":
                if share := ratio():
                    options["loss-random"] = {"loss": share, "correlation": 0}
            case "duplicate" | "reorder" | "corrupt":
                if share := ratio():
                    options[token] = {token: share, "correlation": 0}
            case "gap":
                options["gap"] = int(tokens.pop(0))
            case "ecn":
                options["ecn"] = True
            case "rate":
                rate = int(_scaled(tokens.pop(0), _BITS) / 8)
                overhead = int(tokens.pop(0)) if is_number() else 0
                options["rate"] = {"rate": rate, "packetoverhead": overhead, "cellsize": 0, "celloverhead": 0}
            case "slot":
                names = ("min-delay", "max-delay")
                if tokens[0] == "distribution":
                    names = ("distribution", "jitter")
                    del tokens[:2]
                options["slot"] = {name: exact_time() for name in names} | {"packets": 0, "bytes": 0}
            case "packets" | "bytes":
                options["slot"][token] = int(tokens.pop(0))
            case "seed":
                options["seed"] = int(tokens.pop(0))
            case _:
                raise AssertionError(f"tc would not know {token!r}")
    return {"kind": "netem", "handle": "10:", "parent": "1:10", "options": options}


# --- in force --------------------------------------------------------------------------------------


@given(impairments(), st.sampled_from([1, 64]))
def test_whatever_a_faithful_kernel_reports_is_in_force(impairment: Impairment, tick_ns: int) -> None:
    assert readback.differences(impairment, faithful(qdisc.netem(impairment), tick_ns=tick_ns)) == []


def test_a_seed_that_was_not_asked_for_is_the_kernels_own() -> None:
    assert readback.differences(CLEAN, {"options": {"limit": 1000, "seed": 5}}) == []


def _more(options: dict[str, Any], group: str, key: str, least: float) -> None:
    before = options.setdefault(group, {}).get(key, 0)
    options[group][key] = before + max(before / 100, least)


def _drop(group: str) -> Callable[[dict[str, Any]], None]:
    def drop(options: dict[str, Any]) -> None:
        options.pop(group, None)

    return drop


PERTURBED: dict[str, Callable[[dict[str, Any]], None]] = {
    "delay": lambda options: _more(options, "delay", "delay", 2e-7),
    "jitter": lambda options: _more(options, "delay", "jitter", 2e-7),
    "loss": lambda options: _more(options, "loss-random", "loss", 2e-9),
    "rate": lambda options: _more(options, "rate", "rate", 2),
    "limit": lambda options: options.update(limit=options["limit"] + 1),
    "correlation": lambda options: _more(options, "delay", "correlation", 2e-9),
    "loss correlation": lambda options: _more(options, "loss-random", "correlation", 2e-9),
    "gemodel p": lambda options: _more(options, "loss-gemodel", "p", 2e-9),
    "gemodel 1-k": lambda options: _more(options, "loss-gemodel", "1-k", 2e-9),
    "loss_state p13": lambda options: _more(options, "loss-state", "p13", 2e-9),
    "loss_state p14": lambda options: _more(options, "loss-state", "p14", 2e-9),
    "duplicate": lambda options: _more(options, "duplicate", "duplicate", 2e-9),
    "duplicate correlation": lambda options: _more(options, "duplicate", "correlation", 2e-9),
    "reorder": lambda options: _more(options, "reorder", "reorder", 2e-9),
    "corrupt": lambda options: _more(options, "corrupt", "corrupt", 2e-9),
    "ecn": lambda options: options.update(ecn=not options["ecn"]),
    "gap": lambda options: options.update(gap=options["gap"] + 1),
    "overhead": lambda options: options.setdefault("rate", {}).update(
        packetoverhead=options.get("rate", {}).get("packetoverhead", 0) + 1
    ),
    "slot": lambda options: options.update(slot={**options.get("slot", {"min-delay": 0.01}), "packets": 2**31}),
}


@pytest.mark.parametrize("field", PERTURBED)
@settings(max_examples=25)  # of each field
@given(impairment=impairments())
def test_a_single_departure_is_named_and_nothing_else(field: str, impairment: Impairment) -> None:
    kernel = faithful(qdisc.netem(impairment), tick_ns=1)
    PERTURBED[field](kernel["options"])
    assert [difference.field for difference in readback.differences(impairment, kernel)] == [field]


@given(impairments(), st.integers(min_value=0, max_value=2**64 - 1))
def test_another_seed_than_the_asked_one_is_named(impairment: Impairment, seed: int) -> None:
    kernel = faithful(qdisc.netem(impairment), tick_ns=1)
    kernel["options"]["seed"] = seed
    wrong = impairment.seed is not None and impairment.seed != seed
    assert [difference.field for difference in readback.differences(impairment, kernel)] == ["seed"] * wrong


FULL = Impairment(delay_s=0.05, jitter_s=0.005, loss_ratio=0.02, rate_bps=1e6, limit_packets=300, seed=7)


@pytest.mark.parametrize(
    ("forget", "differences"),
    [
        (_drop("delay"), ["asked delay 50ms, the kernel reports 0s", "asked jitter 5ms, the kernel reports 0s"]),
        (_drop("loss-random"), ["asked loss 2%, the kernel reports 0%"]),
        (_drop("rate"), ["asked rate 1mbit, the kernel reports 0bit"]),
        (_drop("limit"), ["asked limit 300, the kernel reports none"]),
        (_drop("seed"), ["asked seed 7, the kernel reports none (needs Linux and tc 6.6)"]),
    ],
)
def test_what_the_kernel_forgot_is_said_in_the_users_units(
    forget: Callable[[dict[str, Any]], None], differences: list[str]
) -> None:
    kernel = faithful(qdisc.netem(FULL), tick_ns=1)
    assert readback.differences(FULL, kernel) == []
    forget(kernel["options"])
    assert [str(difference) for difference in readback.differences(FULL, kernel)] == differences


@pytest.mark.parametrize("rate_bps", [8, 15, 15.6, 16])
def test_the_smallest_rates_are_seen_to_be_missing(rate_bps: float) -> None:
    impairment = Impairment(rate_bps=rate_bps)
    kernel = faithful(qdisc.netem(impairment), tick_ns=1)
    assert readback.differences(impairment, kernel) == []
    del kernel["options"]["rate"]
    assert [difference.field for difference in readback.differences(impairment, kernel)] == ["rate"]


@pytest.mark.parametrize(("rate_bps", "found_bytes"), [(8, 2), (9, 2), (15, 0), (15, 2), (16, 1), (16, 3)])
def test_the_smallest_rates_are_compared_to_the_byte(rate_bps: float, found_bytes: int) -> None:
    kernel = {"options": {"limit": 1000, "rate": {"rate": found_bytes}}}
    assert [difference.field for difference in readback.differences(Impairment(rate_bps=rate_bps), kernel)] == ["rate"]


def test_a_long_limit_is_compared_to_the_last_packet() -> None:
    kernel = {"options": {"limit": 4_000_000_001}}
    assert readback.differences(Impairment(limit_packets=4_000_000_000), kernel) == [
        Difference("limit", "4000000000", "4000000001")
    ]


def test_no_netem_is_one_difference_that_says_what_was_asked() -> None:
    assert [
        str(difference) for difference in readback.differences(Impairment(delay_s=0.04, loss_ratio=0.02), None)
    ] == ["asked netem delay=40ms loss=2%, the kernel reports none on this link"]


def test_a_netem_without_options_is_not_in_force() -> None:
    assert [difference.field for difference in readback.differences(Impairment(delay_s=0.04), {"kind": "netem"})] == [
        "delay",
        "limit",
    ]


def test_comparing_changes_nothing() -> None:
    kernel = faithful(qdisc.netem(FULL), tick_ns=1)
    before = copy.deepcopy(kernel)
    readback.differences(CLEAN, kernel)
    assert kernel == before


# --- finding it ------------------------------------------------------------------------------------

SHOWN: list[dict[str, Any]] = [
    {"kind": "htb", "handle": "1:", "root": True, "options": {}},
    {"kind": "netem", "handle": "10:", "parent": "1:10", "options": {"limit": 1}},
    {"kind": "netem", "handle": "801f:", "parent": "1:1f", "options": {"limit": 2}},
    {"kind": "pfifo", "handle": "0:", "parent": "1:20", "options": {"limit": 3}},
]


@pytest.mark.parametrize(("minor", "limit"), [(0x10, 1), (0x1F, 2)])
def test_a_netem_is_found_on_its_class_whatever_its_handle(minor: int, limit: int) -> None:
    netem = readback.find_netem(SHOWN, minor)
    assert netem is not None
    assert netem["options"]["limit"] == limit


@pytest.mark.parametrize("minor", [0x20, 0x1, 0x11, 10])
def test_another_qdisc_or_none_on_a_class_is_no_netem(minor: int) -> None:
    assert readback.find_netem(SHOWN, minor) is None


def test_a_netem_at_the_root_is_not_ours() -> None:
    assert readback.find_netem([{"kind": "netem", "handle": "1:", "root": True}], 1) is None


def test_counters_are_netems_own() -> None:
    netem = {"kind": "netem", "bytes": 980, "packets": 10, "drops": 2, "overlimits": 0, "requeues": 0, "qlen": 3}
    assert readback.counters(netem) == NetemCounters(sent_packets=10, dropped_packets=2, queued_packets=3)


# --- behind it -------------------------------------------------------------------------------------

BUCKET = Impairment(rate_bps=5e6, bucket_bytes=16384, queue_bytes=65536)
# As tc 6.15 printed it in a kernel 6.12: (65536 - 16384) bytes at 625000 bytes a second are 78643 µs.
TBF = {"kind": "tbf", "handle": "2010:", "parent": "10:1", "options": {"rate": 625000, "burst": 16384, "lat": 78643}}
NETEM = {"kind": "netem", "handle": "10:", "parent": "1:10"}


def test_a_token_bucket_as_the_kernel_prints_it_is_in_force() -> None:
    assert readback.bucket_differences(BUCKET, [NETEM, TBF], NETEM) == []
    assert readback.bucket_differences(CLEAN, [NETEM], NETEM) == []


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"rate": 626000}, "asked rate 5mbit, the kernel reports 5.008mbit"),
        ({"burst": 16500}, "asked bucket 16384B, the kernel reports 16500B"),
        ({"lat": 80000}, "asked queue 65536B, the kernel reports 66384B"),
    ],
)
def test_another_token_bucket_is_named(options: dict[str, int], difference: str) -> None:
    changed = {**TBF, "options": {**TBF["options"], **options}}  # type: ignore[dict-item]  # a dict, as it stands above
    assert difference in [
        str(difference) for difference in readback.bucket_differences(BUCKET, [NETEM, changed], NETEM)
    ]


def test_of_a_queue_smaller_than_its_bucket_tc_says_that_it_is_and_no_more() -> None:
    small = replace(BUCKET, queue_bytes=2000)
    smaller = {**TBF, "options": {**TBF["options"], "lat": 0}}  # type: ignore[dict-item]  # likewise
    assert readback.bucket_differences(small, [NETEM, smaller], NETEM) == []
    assert [difference.field for difference in readback.bucket_differences(small, [NETEM, TBF], NETEM)] == ["queue"]


@pytest.mark.parametrize(("queue_bytes", "fields"), [(2000, []), (9000, ["queue"])])
def test_what_we_read_by_netlink_says_how_much_smaller(queue_bytes: int, fields: list[str]) -> None:
    small = replace(BUCKET, queue_bytes=2000)
    lat_us = (queue_bytes - 16384) / 625000 * 1e6
    smaller = {**TBF, "options": {**TBF["options"], "lat": lat_us}}  # type: ignore[dict-item]  # likewise
    assert [difference.field for difference in readback.bucket_differences(small, [NETEM, smaller], NETEM)] == fields


def test_a_token_bucket_that_is_not_there_or_not_asked_is_named() -> None:
    assert [difference.field for difference in readback.bucket_differences(BUCKET, [NETEM], NETEM)] == ["bucket"]
    assert [difference.field for difference in readback.bucket_differences(CLEAN, [NETEM, TBF], NETEM)] == ["bucket"]
    assert [difference.field for difference in readback.bucket_differences(BUCKET, [TBF], None)] == ["bucket"]


BY_NUMBER = Impairment(drop_packets=((3, 3), (17, 20)), drop_every=50)
# The tag that a kernel 6.12 gave the program.
COUNT: dict[str, Any] = {
    "kind": "bpf",
    "chain": 16,
    "options": {
        "prog": {"id": 5, "name": "drop", "tag": "ed51d9022ed501e5"},
        "actions": [{"kind": "gact", "control_action": {"type": "drop"}, "stats": {"packets": 7, "drops": 7}}],
    },
}


def test_the_program_is_known_by_the_kernels_own_tag() -> None:
    assert readback.count_differences(BY_NUMBER, [COUNT]) == []
    assert readback.dropped_by_number([COUNT]) == 7
    (another,) = readback.count_differences(Impairment(drop_every=50), [COUNT])
    assert another.reported == "program ed51d9022ed501e5, drop"


def test_a_program_that_drops_nothing_or_is_not_there_is_named() -> None:
    kept = copy.deepcopy(COUNT)
    kept["options"]["actions"][0]["control_action"]["type"] = "pass"
    assert [difference.reported for difference in readback.count_differences(BY_NUMBER, [kept])] == [
        "program ed51d9022ed501e5, pass"
    ]
    assert [difference.reported for difference in readback.count_differences(BY_NUMBER, [])] == ["none"]


# --- filters ---------------------------------------------------------------------------------------


WANTED = qdisc.filters(0x10, ["172.18.0.2"], Traffic("tcp", 8888))


def _shown(handle: int, *, pref: int = 30_000, flow: str = "1:10", **keys: object) -> dict[str, Any]:
    named = {"eth_type": "ipv4", "ip_proto": "tcp", "src_ip": "172.18.0.2", **keys}
    options = {"handle": handle, "classid": flow, "keys": named, "not_in_hw": True}
    return {"parent": "1:", "protocol": "ip", "pref": pref, "kind": "flower", "chain": 0, "options": options}


SHOWN_FILTERS: list[dict[str, Any]] = [
    {"protocol": "ip", "pref": 30_000, "kind": "flower", "chain": 0},
    _shown(0x10, dst_port=8888),
    _shown(0x10010, src_port=8888),
    _shown(0x20010, pref=30_010, ip_flags={"frag": True}),
]


def test_a_filter_that_matches_and_leads_as_asked_is_no_difference() -> None:
    assert readback.filter_differences(SHOWN_FILTERS, WANTED) == []


def test_flags_and_numbers_are_read_as_each_tc_writes_them() -> None:
    *_, (options) = (filter_ for filter_ in qdisc.filters(0x10, ["fd00::2"], Traffic("udp")))
    for flags, number in (({"frag": True}, "0x3c"), ("frag", "3c")):
        keys = {"src_ip": "fd00::2", "ip_proto": number, "ip_flags": flags}
        shown = {
            "pref": options.priority,
            "kind": "flower",
            "options": {"handle": options.handle, "classid": "1:10", "keys": keys},
        }
        assert readback.filter_differences([shown], [options]) == []
    shown["options"]["keys"]["ip_flags"] = {"frag": False}  # type: ignore[index]  # written by hand above
    assert [difference.reported for difference in readback.filter_differences([shown], [options])] == [
        "src_ip fd00::2 ip_proto 0x3c ip_flags nofrag led to 1:10"
    ]


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        (_shown(0x10, dst_port=8889), "ip_proto tcp src_ip 172.18.0.2 dst_port 8889 led to 1:10"),
        (_shown(0x10, dst_port=8888, flow="1:11"), "ip_proto tcp src_ip 172.18.0.2 dst_port 8888 led to 1:11"),
        (
            _shown(0x10, dst_port=8888, dst_ip="1.2.3.4"),
            "ip_proto tcp src_ip 172.18.0.2 dst_port 8888 dst_ip 1.2.3.4 led to 1:10",
        ),
        (_shown(0x11, dst_port=8888), "none"),
        (_shown(0x10, pref=39_990, dst_port=8888), "none"),
    ],
)
def test_a_filter_that_is_missing_or_another_is_named(changed: dict[str, Any], seen: str) -> None:
    shown = [SHOWN_FILTERS[0], changed, *SHOWN_FILTERS[2:]]
    assert [str(difference) for difference in readback.filter_differences(shown, WANTED)] == [
        f"asked filter src_ip 172.18.0.2 ip_proto tcp dst_port 8888 led to 1:10, the kernel reports {seen}"
    ]
