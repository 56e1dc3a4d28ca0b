"""Is an impairment in force? Compare what was asked with what the kernel says. Pure.

Read-back: every field of the netem on the link's class, from ``tc -j qdisc show``, within the kernel's own
rounding. A table of delays (``distribution``) is the one thing that the kernel does not report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from testbed import units
from testbed.netem import indexed, qdisc
from testbed.spec.features import FEATURES, Feature
from testbed.spec.impairment import Impairment
from testbed.spec.words import RATE, SHARE, TIME, TRUTH, WHOLE, Kind

# netem counts time in 64 ns ticks where it has no 64-bit attributes (PSCHED_SHIFT 6), loss in 2^-32; tc
# prints both with six significant digits. A rate is whole bytes a second; from 1 kbit on tc multiplies what we
# write, and the product may fall just below the whole byte. All else is whole numbers.
_TICK_S = 1e-7
_STEPS = {TIME: _TICK_S, SHARE: 1e-9}
_SCALED_FROM_BPS = 1000
_DIGITS = 1e-5

_NEVER_ASKED = {
    ("loss", "correlation"): (SHARE, "loss-random/correlation"),
    ("duplicate", "correlation"): (SHARE, "duplicate/correlation"),
    ("reorder", "correlation"): (SHARE, "reorder/correlation"),
    ("corrupt", "correlation"): (SHARE, "corrupt/correlation"),
    ("rate", "cell size"): (WHOLE, "rate/cellsize"),
    ("rate", "cell overhead"): (WHOLE, "rate/celloverhead"),
}
"""What netem knows and no word asks for: it must be nothing."""


@dataclass(frozen=True)
class Difference:
    """A field whose value in the kernel is not the asked one."""

    word: str
    """The user's word, or what else was compared."""
    asked: str
    found: str
    part: str = ""
    """Which value of several that belong to the word."""

    @property
    def field(self) -> str:
        """Word and part."""
        return f"{self.word} {self.part}".rstrip()

    def __str__(self) -> str:
        return f"asked {self.field} {self.asked}, the kernel reports {self.found}"


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What the netem of one link has seen since it was put there."""

    sent_packets: int
    """Packets that left the queue toward the receiver."""
    dropped_packets: int
    """Packets lost, by injected loss and by a full queue together: netem counts both alike."""
    queued_packets: int
    """Packets in the queue now."""

    @property
    def arrived_packets(self) -> int:
        """Packets that came to it, its own duplicates included."""
        return self.sent_packets + self.dropped_packets + self.queued_packets


def find_netem(qdiscs: Iterable[Mapping[str, Any]], minor: int) -> Mapping[str, Any] | None:
    """The netem on a class, or None if there is none or another kind of qdisc."""
    parent = f"1:{minor:x}"
    return next((each for each in qdiscs if each.get("parent") == parent and each.get("kind") == "netem"), None)


def counters(netem: Mapping[str, Any]) -> Counters:
    """The counters of a netem from ``tc -s -j qdisc show``."""
    return Counters(sent_packets=netem["packets"], dropped_packets=netem["drops"], queued_packets=netem["qlen"])


def differences(asked: Impairment, netem: Mapping[str, Any] | None) -> list[Difference]:
    """Every field in which the kernel's netem is not what was asked; empty if it is in force."""
    if netem is None:
        return [Difference("netem", asked.describe(), "none on this link")]
    options = netem.get("options", {})
    found = [each for feature in FEATURES if feature.key for each in _of_feature(asked, feature, options)]
    keys = {feature.key for feature in FEATURES}
    for (word, part), (kind, key) in _NEVER_ASKED.items():
        if key not in keys:
            found += _compared(word, kind, None, _reported(options, key), part=part)
    return found + _slot_differences(asked, options.get("slot"))


def _of_feature(asked: Impairment, feature: Feature, options: Mapping[str, Any]) -> Iterator[Difference]:
    want = qdisc.given(asked, feature)
    if want is None and feature.kernels_own:
        return
    if not feature.kind.parts:
        none = f"none (needs Linux and tc {feature.since})" if feature.since else "none"
        yield from _compared(feature.name, feature.kind, want, _reported(options, feature.key), none=none)
    for number, part in enumerate(feature.kind.parts):
        share = None if want is None else want[number]
        yield from _compared(feature.name, SHARE, share, _reported(options, f"{feature.key}/{part}"), part=part)


def _reported(options: Mapping[str, Any], key: str) -> Any:
    """What the kernel reports under GROUP/KEY; None if nothing."""
    value: Any = options
    for name in key.split("/"):
        value = None if value is None else value.get(name)
    return value


def _compared(
    word: str, kind: Kind, want: Any, have: Any, *, part: str = "", none: str = "none"
) -> Iterator[Difference]:
    """The difference of a value, if there is one; None is no more than nothing."""
    if kind is RATE:
        whole_bytes, reported = round(want or 0) // 8, have or 0
        same = math.isclose(whole_bytes, reported, rel_tol=_DIGITS, abs_tol=(want or 0) >= _SCALED_FROM_BPS)
        have = reported * 8
    elif kind in _STEPS:
        same = math.isclose(want or 0, have or 0, rel_tol=_DIGITS, abs_tol=_STEPS[kind])
    else:
        same = (want or 0) == (have or 0)
    if not same:
        asked, found = (none if kind is WHOLE and value is None else _in_words(kind, value) for value in (want, have))
        yield Difference(word, asked, found, part)


def _in_words(kind: Kind, value: Any) -> str:
    return str(bool(value)).lower() if kind is TRUTH else str(kind.write(value or 0))


def _slot_differences(asked: Impairment, kernel: Mapping[str, Any] | None) -> list[Difference]:
    if asked.slot is None or kernel is None:
        want = "none" if asked.slot is None else asked.slot.words()
        return [] if asked.slot is None and kernel is None else [Difference("slot", want, str(kernel or "none"))]
    slot = asked.slot
    names = ("min-delay", "max-delay") if slot.distribution is None else ("distribution", "jitter")
    wanted = {**dict(zip(names, slot.times_s, strict=True)), "packets": asked.slot_packets, "bytes": asked.slot_bytes}
    if set(kernel) == set(wanted) and all(
        math.isclose(value or 0, kernel[name], rel_tol=0 if name in ("packets", "bytes") else _DIGITS, abs_tol=_TICK_S)
        for name, value in wanted.items()
    ):
        return []
    return [Difference("slot", f"{slot.words()} {asked.slot_packets or 0} packets {asked.slot_bytes or 0} bytes",
                       str(dict(kernel)))]  # fmt: skip


def bucket_differences(
    asked: Impairment, qdiscs: Iterable[Mapping[str, Any]], netem: Mapping[str, Any] | None
) -> list[Difference]:
    """Whether the token bucket behind a netem is as asked, or none is there if none is.

    tc reports the queue as the time that a full one takes beyond the bucket: limit = latency × rate + bucket
    (iproute2, q_tbf.c). So of a queue that is smaller than the bucket tc says no more than that it is; what we read by
    netlink ourselves has a time below 0 there.
    """
    parent = f"{str((netem or {}).get('handle', '?')).rstrip(':')}:1"
    child = next((each for each in qdiscs if each.get("parent") == parent), None)
    options = (child or {}).get("options", {})
    if asked.bucket_bytes is None or asked.rate_bps is None:
        return [] if child is None else [Difference("bucket", "none", f"{child.get('kind')} {options}")]
    if child is None or child.get("kind") != "tbf":
        return [Difference("bucket", units.format_size(asked.bucket_bytes), str((child or {}).get("kind", "none")))]
    rate, burst = options.get("rate", 0), options.get("burst", 0)
    queue = options.get("lat", 0) / 1e6 * rate + burst
    found = []
    if not math.isclose(round(asked.rate_bps) // 8, rate, rel_tol=_DIGITS, abs_tol=1):
        found.append(Difference("rate", units.format_rate(asked.rate_bps), units.format_rate(rate * 8)))
    # tbf keeps the bucket as the time that it takes at the rate, in 64 ns ticks.
    if not math.isclose(asked.bucket_bytes, burst, rel_tol=_DIGITS, abs_tol=1 + rate * _TICK_S):
        found.append(Difference("bucket", units.format_size(asked.bucket_bytes), units.format_size(int(burst))))
    wanted = qdisc.sized_queue_bytes(asked)
    untold = wanted <= burst and options.get("lat", 0) == 0
    if not untold and not math.isclose(wanted, queue, rel_tol=1e-3, abs_tol=2 + rate * 2e-6):
        found.append(Difference("queue", units.format_size(int(wanted)), units.format_size(int(queue))))
    return found


def count_differences(asked: Impairment, shown: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """Whether the program that drops packets by their number is the one that was compiled, and what it matches is lost.

    The kernel tells a program by the SHA-1 of its instructions (`indexed.tag`).
    """
    want = indexed.tag(asked.drop_packets, asked.drop_every)
    for each in shown:
        options = each.get("options", {})
        if each.get("kind") == "bpf" and "prog" in options:
            fates = [action.get("control_action", {}).get("type") for action in options.get("actions", ())]
            tag, fate = options["prog"].get("tag"), fates[0] if fates else "kept"
            if (tag, fate) == (want, "drop"):
                return []
            return [Difference("drop_packets", f"program {want}, drop", f"program {tag}, {fate}")]
    return [Difference("drop_packets", f"program {want}", "none")]


def dropped_by_number(shown: Iterable[Mapping[str, Any]]) -> int:
    """How many packets were dropped by their number, from the same."""
    return sum(
        int(action.get("stats", {}).get("drops", 0))
        for each in shown if each.get("kind") == "bpf"
        for action in each.get("options", {}).get("actions", [])
    )  # fmt: skip


def filter_differences(shown: Iterable[Mapping[str, Any]], wanted: Iterable[qdisc.Filter]) -> list[Difference]:
    """Whether each filter is there, matches what it is to match and leads where it is to lead.

    From ``tc -j filter show`` or ``get``. Two filters of one priority and handle do not exist.
    """
    found = _flowers(shown)
    differences = []
    for each in wanted:
        options = found.get((each.priority, each.handle))
        if options is None:
            differences.append(Difference("filter", _described(each.keys, each.flow), "none"))
            continue
        kernel = {name: _written(value) for name, value in options.get("keys", {}).items() if name != "eth_type"}
        asked = {name: str(value) for name, value in each.keys.items()}
        target = each.flow if each.chain is None else f"chain {each.chain}"
        if asked != kernel or _target(options) != target:
            seen = _described(kernel, _target(options))
            differences.append(Difference("filter", _described(each.keys, target), seen))
    return differences


def _written(value: object) -> str:
    """A key's value as it is written: newer tc tells flags one by one, older tc numbers without 0x."""
    if isinstance(value, Mapping):
        return "/".join(name if on else f"no{name}" for name, on in value.items())
    return f"0x{value}" if value == qdisc.DESTINATION_OPTIONS[2:] else str(value)


def missing(shown: Iterable[Mapping[str, Any]], one: qdisc.Filter) -> bool:
    """Whether a filter is not there."""
    return (one.priority, one.handle) not in _flowers(shown)


def _flowers(shown: Iterable[Mapping[str, Any]]) -> dict[tuple[int | None, int], Mapping[str, Any]]:
    return {
        (each.get("pref"), options["handle"]): options
        for each in shown
        if each.get("kind") == "flower" and "handle" in (options := each.get("options", {}))
    }


def _target(options: Mapping[str, Any]) -> str:
    for action in options.get("actions", []):
        control = action.get("control_action", {})
        return f"chain {control.get('chain')}" if control.get("type") == "goto" else str(control.get("type"))
    return str(options.get("classid", "nowhere"))


def _described(keys: Mapping[str, Any], flow: str) -> str:
    return f"{' '.join(f'{name} {value}' for name, value in keys.items())} led to {flow}"
