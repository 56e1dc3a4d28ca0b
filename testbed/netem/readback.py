"""Compare a requested impairment with the kernel's read-back. Pure.

Every field of the netem on the link's class is compared, from ``tc -j qdisc show``, within the kernel's own rounding.
Only a table of delays (``distribution``) cannot be: the kernel does not report it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed import units
from testbed.netem import indexed, qdisc
from testbed.spec.features import FEATURES, Feature
from testbed.spec.impairment import Impairment
from testbed.spec.words import RATE, SHARE, TIME, TRUTH, WHOLE, ValueKind

# netem counts time in 64 ns ticks where it has no 64-bit attributes (PSCHED_SHIFT 6), and loss in units of 2^-32; tc
# prints both with six significant digits. A rate is a whole number of bytes per second; from 1 kbit on, tc multiplies
# the number that we write, and the product may fall just below a whole byte. All other values are whole numbers.
_TICK_S = 1e-7
_STEPS = {TIME: _TICK_S, SHARE: 1e-9}
_SCALED_FROM_BPS = 1000
_DIGITS = 1e-5

_NEVER_REQUESTED = {
    ("loss", "correlation"): (SHARE, ("loss-random", "correlation")),
    ("duplicate", "correlation"): (SHARE, ("duplicate", "correlation")),
    ("reorder", "correlation"): (SHARE, ("reorder", "correlation")),
    ("corrupt", "correlation"): (SHARE, ("corrupt", "correlation")),
    ("rate", "cell size"): (WHOLE, ("rate", "cellsize")),
    ("rate", "cell overhead"): (WHOLE, ("rate", "celloverhead")),
}
"""Fields of netem that no word requests: they must be zero."""


@dataclass(frozen=True)
class Difference:
    """A field whose value in the kernel differs from the requested one."""

    word: str
    """The user's word, or what else was compared."""
    requested: str
    reported: str
    part: str = ""
    """Which value of several that belong to the word."""

    @property
    def field(self) -> str:
        """Word and part."""
        return f"{self.word} {self.part}".rstrip()

    def __str__(self) -> str:
        return f"asked {self.field} {self.requested}, the kernel reports {self.reported}"


@dataclass(frozen=True, kw_only=True)
class NetemCounters:
    """Packets of one link's netem since it was installed."""

    sent_packets: int
    """Left the queue toward the receiver."""
    dropped_packets: int
    """Lost by injected loss or a full queue: netem does not distinguish the two."""
    queued_packets: int
    """Are in the queue now."""

    @property
    def arrived_packets(self) -> int:
        """Came to it, its own duplicates included."""
        return self.sent_packets + self.dropped_packets + self.queued_packets


def find_netem(qdiscs: Iterable[Mapping[str, Any]], minor: int) -> Mapping[str, Any] | None:
    """The netem on a class; None if it has no qdisc, or one of another kind."""
    parent = f"1:{minor:x}"
    return next((row for row in qdiscs if row.get("parent") == parent and row.get("kind") == "netem"), None)


def counters(netem: Mapping[str, Any]) -> NetemCounters:
    """The counters of a netem, from ``tc -s -j qdisc show``."""
    return NetemCounters(sent_packets=netem["packets"], dropped_packets=netem["drops"], queued_packets=netem["qlen"])


def differences(requested: Impairment, netem: Mapping[str, Any] | None) -> list[Difference]:
    """Every field in which the kernel's netem differs from the request; empty if the impairment is in force."""
    if netem is None:
        return [Difference("netem", requested.describe(), "none on this link")]
    options = netem.get("options", {})
    differing: list[Difference] = []
    for feature in FEATURES:
        differing += _of_feature(requested, feature, options) if feature.key else ()
    keys = {feature.key for feature in FEATURES}
    for (word, part), (kind, key) in _NEVER_REQUESTED.items():
        if key not in keys:
            differing += _compared(word, kind, None, _reported(options, key), part=part)
    return differing + _slot_differences(requested, options.get("slot"))


def _of_feature(requested: Impairment, feature: Feature, options: Mapping[str, Any]) -> Iterator[Difference]:
    want = qdisc.given(requested, feature)
    if want is None and feature.kernels_own:
        return
    if not feature.kind.parts:
        none = f"none (needs Linux and tc {feature.since})" if feature.since else "none"
        yield from _compared(feature.name, feature.kind, want, _reported(options, feature.key), none=none)
    for number, part in enumerate(feature.kind.parts):
        share = None if want is None else want[number]
        yield from _compared(feature.name, SHARE, share, _reported(options, (*feature.key, part)), part=part)


def _reported(options: Mapping[str, Any], key: Sequence[str]) -> Any:
    """The kernel's value under these keys, one within the other; None if it reports none."""
    value: Any = options
    for name in key:
        value = None if value is None else value.get(name)
    return value


def _compared(
    word: str, kind: ValueKind, want: Any, have: Any, *, part: str = "", none: str = "none"
) -> Iterator[Difference]:
    """The difference between two values, if there is one; None counts as zero."""
    if kind is RATE:
        whole_bytes, reported = round(want or 0) // 8, have or 0
        same = math.isclose(whole_bytes, reported, rel_tol=_DIGITS, abs_tol=(want or 0) >= _SCALED_FROM_BPS)
        have = reported * 8
    elif kind in _STEPS:
        same = math.isclose(want or 0, have or 0, rel_tol=_DIGITS, abs_tol=_STEPS[kind])
    else:
        same = (want or 0) == (have or 0)
    if not same:
        requested, reported = (
            none if kind is WHOLE and value is None else _in_words(kind, value) for value in (want, have)
        )
        yield Difference(word, requested, reported, part)


def _in_words(kind: ValueKind, value: Any) -> str:
    return str(bool(value)).lower() if kind is TRUTH else str(kind.write(value or 0))


def _slot_differences(requested: Impairment, kernel: Mapping[str, Any] | None) -> list[Difference]:
    slot, packets, size_bytes = requested.slot, requested.slot_packets, requested.slot_bytes
    if slot is None or kernel is None:
        want = "none" if slot is None else slot.words()
        return [] if slot is None and kernel is None else [Difference("slot", want, str(kernel or "none"))]
    names = ("min-delay", "max-delay") if slot.distribution is None else ("distribution", "jitter")
    wanted = {**dict(zip(names, slot.times_s, strict=True)), "packets": packets, "bytes": size_bytes}
    if set(kernel) == set(wanted) and all(
        math.isclose(value or 0, kernel[name], rel_tol=0 if name in ("packets", "bytes") else _DIGITS, abs_tol=_TICK_S)
        for name, value in wanted.items()
    ):
        return []
    want = f"{slot.words()} {packets or 0} packets {size_bytes or 0} bytes"
    return [Difference("slot", want, str(dict(kernel)))]


def bucket_differences(
    requested: Impairment, qdiscs: Iterable[Mapping[str, Any]], netem: Mapping[str, Any] | None
) -> list[Difference]:
    """How the token bucket behind a netem differs from the request, which may be that there is none."""
    parent = f"{str((netem or {}).get('handle', '?')).rstrip(':')}:1"
    return tbf_differences(requested, next((row for row in qdiscs if row.get("parent") == parent), None))


def tbf_differences(requested: Impairment, child: Mapping[str, Any] | None) -> list[Difference]:
    """The same of the qdisc at the place of the token bucket, None if there is none.

    tc reports the queue's length as the time that a full queue takes beyond the bucket: limit = latency × rate + bucket
    (iproute2, q_tbf.c). If the queue is smaller than the bucket, tc reports 0; what we read by netlink ourselves is a
    negative time.
    """
    options = (child or {}).get("options", {})
    bucket_bytes, rate_bps = requested.bucket_bytes, requested.rate_bps
    if bucket_bytes is None or rate_bps is None:
        return [] if child is None else [Difference("bucket", "none", f"{child.get('kind')} {options}")]
    if child is None or child.get("kind") != "tbf":
        return [Difference("bucket", units.format_size(bucket_bytes), str((child or {}).get("kind", "none")))]
    rate, burst = options.get("rate", 0), options.get("burst", 0)
    queue = options.get("lat", 0) / 1e6 * rate + burst
    differing = []
    if not math.isclose(round(rate_bps) // 8, rate, rel_tol=_DIGITS, abs_tol=1):
        differing.append(Difference("rate", units.format_rate(rate_bps), units.format_rate(rate * 8)))
    # tbf stores the bucket as the time that it takes at the rate, in 64 ns ticks.
    if not math.isclose(bucket_bytes, burst, rel_tol=_DIGITS, abs_tol=1 + rate * _TICK_S):
        differing.append(Difference("bucket", units.format_size(bucket_bytes), units.format_size(int(burst))))
    wanted = qdisc.sized_queue_bytes(requested)
    unreported = wanted <= burst and options.get("lat", 0) == 0
    if not unreported and not math.isclose(wanted, queue, rel_tol=1e-3, abs_tol=2 + rate * 2e-6):
        differing.append(Difference("queue", units.format_size(int(wanted)), units.format_size(int(queue))))
    return differing


def count_differences(requested: Impairment, shown: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """Whether the program that drops packets by number is the compiled one, and its filter drops what it matches.

    The kernel identifies a program by a digest of its instructions (`indexed.tags`).
    """
    wanted = indexed.tags(requested.drop_packets, requested.drop_every)
    for row in shown:
        options = row.get("options", {})
        if row.get("kind") == "bpf" and "prog" in options:
            fates = [action.get("control_action", {}).get("type") for action in options.get("actions", ())]
            tag, fate = options["prog"].get("tag"), fates[0] if fates else "kept"
            if tag in wanted and fate == "drop":
                return []
            return [Difference("drop_packets", f"program {' or '.join(wanted)}, drop", f"program {tag}, {fate}")]
    return [Difference("drop_packets", f"program {' or '.join(wanted)}", "none")]


def dropped_by_number(shown: Iterable[Mapping[str, Any]]) -> int:
    """How many packets were dropped by their number, from ``tc -s -j filter show``."""
    programs = (row.get("options", {}) for row in shown if row.get("kind") == "bpf")
    return sum(
        int(action.get("stats", {}).get("drops", 0)) for options in programs for action in options.get("actions", ())
    )


def filter_differences(shown: Iterable[Mapping[str, Any]], wanted: Iterable[qdisc.Filter]) -> list[Difference]:
    """Whether each filter is installed, with its keys and its target, from ``tc -j filter show`` or ``get``.

    No two filters have the same priority and handle.
    """
    installed = _flowers(shown)
    differing = []
    for want in wanted:
        options = installed.get((want.priority, want.handle))
        if options is None:
            differing.append(Difference("filter", _described(want.keys, want.flow), "none"))
            continue
        kernel = {name: _written(value) for name, value in options.get("keys", {}).items() if name != "eth_type"}
        keys = {name: str(value) for name, value in want.keys.items()}
        target = want.flow if want.chain is None else f"chain {want.chain}"
        if keys != kernel or _target(options) != target:
            reported = _described(kernel, _target(options))
            differing.append(Difference("filter", _described(want.keys, target), reported))
    return differing


def _written(value: object) -> str:
    """A key's value as we write it: newer tc reports flags one by one, older tc numbers without 0x."""
    if isinstance(value, Mapping):
        return "/".join(name if on else f"no{name}" for name, on in value.items())
    return f"0x{value}" if value == qdisc.DESTINATION_OPTIONS[2:] else str(value)


def missing(shown: Iterable[Mapping[str, Any]], wanted: qdisc.Filter) -> bool:
    """Whether a filter is not installed."""
    return (wanted.priority, wanted.handle) not in _flowers(shown)


def _flowers(shown: Iterable[Mapping[str, Any]]) -> dict[tuple[int | None, int], Mapping[str, Any]]:
    return {
        (row.get("pref"), options["handle"]): options
        for row in shown
        if row.get("kind") == "flower" and "handle" in (options := row.get("options", {}))
    }


def _target(options: Mapping[str, Any]) -> str:
    for action in options.get("actions", []):
        control = action.get("control_action", {})
        return f"chain {control.get('chain')}" if control.get("type") == "goto" else str(control.get("type"))
    return str(options.get("classid", "nowhere"))


def _described(keys: Mapping[str, Any], flow: str) -> str:
    return f"{' '.join(f'{name} {value}' for name, value in keys.items())} led to {flow}"
