"""A metric of a test: samples with their unit, and which way is better. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, SupportsFloat

from testbed.errors import InvalidValueError, Problems
from testbed.text import shortened, shown, visible
from testbed.units import parse_ratio

BETTER = ("lower", "higher")
RECORDED = "recorded"
"""The group of what a test records itself."""
TIMED = "timed"
AUTOMATIC = {
    "programs": "how long each program ran that the test started in a host",
    "cpu": "processor time of each host's programs",
    "wire": "packets that came to each impaired link, and bytes that it passed on",
    "goodput": "TCP payload that a host received from another, per second that the test's programs ran in either",
    "tcp": "segments that each host sent, and sent again",
    "netem": "packets that netem dropped on each impaired link",
    "queue": "packets that the queue of each bottleneck dropped, and marked (ECN)",
    "traffic": "payload of each flow of lab.traffic that arrived, per second",
}
"""The groups of metrics that come by themselves, and what is in them. Each such metric's name begins with its group."""
LEAST_EFFECT = 0.05
NAME_CHARACTERS = 200

_PREFIXES = {
    "s": ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")),
    "B": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "B/s": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "bit/s": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
}
"""Of units whose values are told with a prefix: from how much on, and which."""
_RESERVED = re.compile(rf"({'|'.join(AUTOMATIC)}): ")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one attempt of a test."""

    name: str
    """Unique within the attempt."""
    values: tuple[float, ...]
    """The samples, in the order in which they came; finite, at least one."""
    unit: str
    better: str | None = None
    """``lower`` or ``higher``; None of what is neither, such as losses that were asked for."""
    least_effect: float = LEAST_EFFECT
    """The smallest relative change that matters: 0.05 for 5 %."""
    group: str = RECORDED

    def as_json(self) -> dict[str, Any]:
        """As the results file has it."""
        return {**vars(self), "values": list(self.values)}

    @property
    def median(self) -> float:
        """The median of the samples."""
        return median(self.values)

    def text(self, value: float) -> str:
        """See `in_unit`."""
        return in_unit(value, self.unit)

    def describe(self) -> str:
        """Its median and, of several samples, their number and range, as text."""
        several = f" (median of {len(self.values)}, {self.text(min(self.values))} to {self.text(max(self.values))})"
        which = "" if self.better is None else f" ({self.better} is better)"
        return f"{self.text(self.median)}{several if len(self.values) > 1 else ''}{which}"

    def with_more(self, other: Metric) -> Metric:
        """With the samples of another of the same name behind its own. Raises InvalidValueError if they differ."""
        problems = [
            f"record({shown(self.name)}): {word}={shown(getattr(other, word))}, and before {shown(getattr(self, word))}"
            for word in ("unit", "better", "least_effect", "group")
            if getattr(self, word) != getattr(other, word)
        ]
        if problems:
            raise InvalidValueError(problems)
        return Metric(**{**vars(self), "values": self.values + other.values})


def in_unit(value: float, unit: str) -> str:
    """A value in its unit, to four significant digits: ``12.5 ms`` of seconds, ``1.2 MB`` of bytes."""
    prefixes = _PREFIXES.get(unit, ((1.0, ""),))
    scale, prefix = next((row for row in prefixes if abs(value) >= row[0]), prefixes[-1])
    scaled = value / scale
    digits = f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.4g}"
    return f"{digits} {prefix}{unit}".strip()


def recorded(
    name: object, values: object, *, unit: object, better: object, least_effect: object, group: str = RECORDED
) -> Metric:
    """A metric of what a user gave. Raises InvalidValueError with every problem."""
    problems = Problems()
    if not isinstance(name, str) or not name.strip():
        problems.append(f"name={shown(name)}: must be text")
    elif _one_line(name) != name or len(name) > NAME_CHARACTERS:
        problems.append(f"name={shown(name)}: must be one line of at most {NAME_CHARACTERS} printable characters")
    elif reserved := _RESERVED.match(name):
        problems.append(f"name={shown(name)}: {shown(reserved[0])} begins the names of metrics that come by themselves")
    if not isinstance(unit, str):
        problems.append(f"unit={shown(unit)}: must be text")
    if better not in BETTER:
        problems.append(f"better={shown(better)}: must be 'lower' or 'higher'")
    ratio = LEAST_EFFECT
    with problems.gathered():
        ratio = parse_ratio(least_effect, name="least_effect")
        if ratio <= 0:
            problems.append(f"least_effect={shown(least_effect)}: must be more than 0")
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)
    samples = list(values) if several else [values]  # type: ignore[call-overload]  # it is one
    if not samples:
        problems.append(f"record({shown(name)}, {shown(values)}): no value")
    wrong = [sample for sample in samples if not _is_number(sample)]
    if wrong:
        more = f" (and {len(wrong) - 1} more of {len(samples)})" if len(wrong) > 1 else ""
        problems.append(f"record({shown(name)}, {shown(wrong[0])}): must be a finite number{more}")
    problems.tell()
    return Metric(
        name=str(name),
        values=tuple(map(float, samples)),
        unit=str(unit),
        better=str(better),
        least_effect=ratio,
        group=group,
    )


def _one_line(text: str) -> str:
    """A text that names may be made of: in tables, in XML and on a terminal."""
    return " ".join(visible(text).split())


def automatic(group: str, what: str, values: Iterable[float], unit: str, better: str | None = "lower") -> Metric:
    """A metric that comes by itself."""
    name = shortened(_one_line(f"{group}: {what}"), NAME_CHARACTERS)
    return Metric(name=name, values=tuple(map(float, values)), unit=unit, better=better, group=group)


def _is_number(value: object) -> bool:
    return not isinstance(value, bool | str) and isinstance(value, SupportsFloat) and math.isfinite(float(value))
