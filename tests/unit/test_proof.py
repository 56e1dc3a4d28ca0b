"""Is it in force? What a faithful kernel reports is accepted, and every single departure from it is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.links import proof, qdisc
from testbed.links.proof import Counters, Difference
from testbed.model.impairment import CLEAN, Impairment

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
    tokens = iter(words.split())
    following = ""
    while token := following or next(tokens, ""):
        following = ""
        argument = next(tokens)
        match token:
            case "limit":
                options["limit"] = int(argument)
            case "delay":
                times = {"delay": argument, "jitter": "0s", "correlation": "0s"}
                following = next(tokens, "")
                if following[:1].isdigit():
                    times["jitter"], following = following, ""
                options["delay"] = {
                    name: _printed(int(_scaled(time, _NANOSECONDS)) // tick_ns * tick_ns / 1e9)
                    for name, time in times.items()
                }
            case "distribution":
                pass  # the table goes in and never comes out
            case "loss":
                share = round(float(argument.removesuffix("%")) / 100 * (2**32 - 1))
                if share:
                    options["loss-random"] = {"loss": _printed(share / (2**32 - 1)), "correlation": 0}
            case "rate":
                options["rate"] = {"rate": int(_scaled(argument, _BITS) / 8), "packetoverhead": 0, "cellsize": 0}
            case "seed":
                options["seed"] = int(argument)
            case _:
                raise AssertionError(f"tc would not know {token!r}")
    return {"kind": "netem", "handle": "10:", "parent": "1:10", "options": options}


# --- in force --------------------------------------------------------------------------------------


@given(impairments(), st.sampled_from([1, 64]))
def test_whatever_a_faithful_kernel_reports_is_in_force(asked: Impairment, tick_ns: int) -> None:
    assert proof.differences(asked, faithful(qdisc.netem(asked), tick_ns=tick_ns)) == []


def test_a_seed_that_was_not_asked_for_is_the_kernels_own() -> None:
    assert proof.differences(CLEAN, {"options": {"limit": 1000, "seed": 5}}) == []


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
    "duplicate": lambda options: options.update(duplicate={"duplicate": 0.01, "correlation": 0}),
    "reorder": lambda options: options.update(reorder={"reorder": 0.01, "correlation": 0}),
    "corrupt": lambda options: options.update(corrupt={"corrupt": 0.01, "correlation": 0}),
    "slot": lambda options: options.update(slot={"min-delay": 0.01}),
    "loss-state": lambda options: options.update({"loss-state": {"p13": 0.01}}),
    "loss-gemodel": lambda options: options.update({"loss-gemodel": {"p": 0.01}}),
}


@pytest.mark.parametrize("field", PERTURBED)
@given(asked=impairments())
def test_a_single_departure_is_named_and_nothing_else(field: str, asked: Impairment) -> None:
    kernel = faithful(qdisc.netem(asked), tick_ns=1)
    PERTURBED[field](kernel["options"])
    assert [each.field for each in proof.differences(asked, kernel)] == [field]


@given(impairments(), st.integers(min_value=0, max_value=2**64 - 1))
def test_another_seed_than_the_asked_one_is_named(asked: Impairment, seed: int) -> None:
    kernel = faithful(qdisc.netem(asked), tick_ns=1)
    kernel["options"]["seed"] = seed
    wrong = asked.seed is not None and asked.seed != seed
    assert [each.field for each in proof.differences(asked, kernel)] == ["seed"] * wrong


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
    assert proof.differences(FULL, kernel) == []
    forget(kernel["options"])
    assert [str(each) for each in proof.differences(FULL, kernel)] == differences


@pytest.mark.parametrize("rate_bps", [8, 15, 15.6, 16])
def test_the_smallest_rates_are_seen_to_be_missing(rate_bps: float) -> None:
    asked = Impairment(rate_bps=rate_bps)
    kernel = faithful(qdisc.netem(asked), tick_ns=1)
    assert proof.differences(asked, kernel) == []
    del kernel["options"]["rate"]
    assert [each.field for each in proof.differences(asked, kernel)] == ["rate"]


@pytest.mark.parametrize(("rate_bps", "found_bytes"), [(8, 2), (9, 2), (15, 0), (15, 2), (16, 1), (16, 3)])
def test_the_smallest_rates_are_compared_to_the_byte(rate_bps: float, found_bytes: int) -> None:
    kernel = {"options": {"limit": 1000, "rate": {"rate": found_bytes}}}
    assert [each.field for each in proof.differences(Impairment(rate_bps=rate_bps), kernel)] == ["rate"]


def test_a_long_limit_is_compared_to_the_last_packet() -> None:
    kernel = {"options": {"limit": 4_000_000_001}}
    assert proof.differences(Impairment(limit_packets=4_000_000_000), kernel) == [
        Difference("limit", "4000000000", "4000000001")
    ]


def test_no_netem_is_one_difference_that_says_what_was_asked() -> None:
    assert [str(each) for each in proof.differences(Impairment(delay_s=0.04, loss_ratio=0.02), None)] == [
        "asked netem delay=40ms loss=2%, the kernel reports none on this link"
    ]


def test_a_netem_without_options_is_not_in_force() -> None:
    assert [each.field for each in proof.differences(Impairment(delay_s=0.04), {"kind": "netem"})] == ["delay", "limit"]


def test_comparing_changes_nothing() -> None:
    kernel = faithful(qdisc.netem(FULL), tick_ns=1)
    before = copy.deepcopy(kernel)
    proof.differences(CLEAN, kernel)
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
    netem = proof.find_netem(SHOWN, minor)
    assert netem is not None
    assert netem["options"]["limit"] == limit


@pytest.mark.parametrize("minor", [0x20, 0x1, 0x11, 10])
def test_another_qdisc_or_none_on_a_class_is_no_netem(minor: int) -> None:
    assert proof.find_netem(SHOWN, minor) is None


def test_a_netem_at_the_root_is_not_ours() -> None:
    assert proof.find_netem([{"kind": "netem", "handle": "1:", "root": True}], 1) is None


def test_counters_are_netems_own() -> None:
    netem = {"kind": "netem", "bytes": 980, "packets": 10, "drops": 2, "overlimits": 0, "requeues": 0, "qlen": 3}
    assert proof.counters(netem) == Counters(sent_packets=10, dropped_packets=2, queued_packets=3)


# --- filters ---------------------------------------------------------------------------------------


def _filter(flow: str | None) -> dict[str, Any]:
    match = {"value": "ac120002", "mask": "ffffffff", "offmask": "", "off": 12}  # 172.18.0.2
    used = {"fh": "800::800", "order": 2048, "flowid": flow, "match": match}
    options = used if flow else {"fh": "800:", "ht_divisor": 1}
    return {"protocol": "ip", "pref": 1, "kind": "u32", "chain": 0, "options": options}


SHOWN_FILTERS = [
    {"protocol": "ip", "pref": 1, "kind": "u32", "chain": 0},
    _filter(None),
    _filter("1:10"),
    _filter("1:1"),
]


def test_an_address_that_is_led_to_its_class_is_no_difference() -> None:
    assert proof.filter_differences(SHOWN_FILTERS, 0x10, ["172.18.0.2"]) == []


@pytest.mark.parametrize(
    ("minor", "addresses", "difference"),
    [
        (
            0x10,
            ["172.18.0.2", "fd00::2"],
            "asked filter fd00::2 led to 1:10, the kernel reports filters for ac120002",
        ),
        (0x11, ["172.18.0.2"], "asked filter 172.18.0.2 led to 1:11, the kernel reports filters for none"),
    ],
)
def test_an_address_that_no_filter_leads_is_named(minor: int, addresses: list[str], difference: str) -> None:
    assert [str(each) for each in proof.filter_differences(SHOWN_FILTERS, minor, addresses)] == [difference]
