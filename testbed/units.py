"""Units: ``"40ms"``, ``"10mbit"``, ``"2%"`` to SI numbers and back; the only place that converts them.

The words are tc's where tc is unambiguous. ``mbps`` is refused: it means megabytes per second to tc, and megabits to
most others. Numbers without a unit are refused, too: ``delay=5`` means microseconds, milliseconds or seconds to
different tools.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation

from testbed.errors import InvalidValueError
from testbed.text import shortened, shown

_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\s\d]*)\s*", re.ASCII)
# Larger powers of ten are typing errors, and Decimal cannot multiply very large ones.
_LARGEST_POWER = 100
_LONGEST_NUMBER = 20
"""The longest number without a unit that a message repeats with one."""

_TIME = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),  # the micro sign; the Greek letter, which looks the same, is replaced by it
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
}
_RATE = {
    **{f"{prefix}bit": Decimal(1000) ** power for power, prefix in enumerate(("", "k", "m", "g", "t"))},
    **{f"{prefix}bit": Decimal(1024) ** power for power, prefix in enumerate(("ki", "mi", "gi", "ti"), start=1)},
}


# With a capital B, so that kb (1024 bytes to tc) and kbit are not confused.
_SIZE = {
    "B": Decimal(1),
    **{f"{prefix}B": Decimal(1000) ** power for power, prefix in enumerate(("k", "M", "G"), start=1)},
    **{f"{prefix}iB": Decimal(1024) ** power for power, prefix in enumerate(("K", "M", "G"), start=1)},
}


def _split(text: str) -> tuple[Decimal, str] | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    try:
        value = Decimal(match[1])
    except InvalidOperation:  # the exponent has too many digits
        return None
    if abs(value.adjusted()) > _LARGEST_POWER:
        return None
    return value, match[2].replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")


def parse_time(text: object, *, name: str = "time") -> float:
    """A duration in seconds from ``"40ms"``, ``"1.5s"``, ``"250us"``, ``"2min"``.

    Raises InvalidValueError if there is no unit, the unit is unknown, or the duration is negative.
    """
    value, unit = _parse(text, name, "duration", _example(text, name, "ms", "s", instead="40ms"), _TIME)
    if value < 0:
        raise InvalidValueError(f"{name}={shown(text)}: a duration cannot be negative")
    return float(value * unit)


def parse_rate(text: object, *, name: str = "rate") -> float:
    """A rate in bits per second from ``"10mbit"``, ``"1.5gbit"``, ``"64kbit"``, ``"512kibit"``.

    Raises InvalidValueError if there is no unit, the unit is unknown or ambiguous, or the rate is not positive.
    """
    if isinstance(text, str) and re.fullmatch(r"\s*[\d.]+\s*[kmgt]?i?bps\s*", text.lower()):
        raise InvalidValueError(
            f'{name}={shown(text)}: "bps" means bytes per second to tc and bits per second to most others; '
            f'write bits: "8mbit" is one megabyte per second'
        )
    example = _example(text, name, "mbit", "kbit", instead="10mbit")
    not_positive = f'{name}={shown(text)}: a rate must be above 0; to let nothing through, write loss="100%"'
    if _is_number(text) and _value(text) <= 0:
        raise InvalidValueError(not_positive)
    value, unit = _parse(text, name, "rate", example, _RATE)
    if value <= 0:
        raise InvalidValueError(not_positive)
    return float(value * unit)


def parse_ratio(text: object, *, name: str = "ratio") -> float:
    """A share from 0 to 1, from ``"2%"``.

    Raises InvalidValueError without a percent sign or outside 0 % to 100 %.
    """
    if _is_number(text):
        share = _value(text)
        of_one = f' or, if that is a share of 1, "{format_ratio(share)}"' if 0 < share < 1 else ""
        example = _example(text, name, "%", instead="2%")
        raise InvalidValueError(f"{name}={_plain(text)}: a percentage needs its sign; {example}{of_one}")
    value, unit = _parse(text, name, "percentage", f'write for example {name}="2%"', {"%": Decimal("0.01")})
    if not 0 <= value <= 100:
        raise InvalidValueError(f"{name}={shown(text)}: a percentage lies between 0% and 100%")
    return float(value * unit)


def parse_size(text: object, *, name: str = "size") -> int:
    """A size in bytes from ``"1600B"``, ``"16kB"``, ``"64KiB"``.

    Raises InvalidValueError if there is no unit, the unit is unknown, or the size is no whole number of bytes.
    """
    value, scale = _parse(text, name, "size", _example(text, name, "kB", "B", instead="16kB"), _SIZE)
    size = value * scale
    if size < 0 or size != int(size):
        raise InvalidValueError(f"{name}={shown(text)}: must be a whole number of bytes")
    return int(size)


def _example(text: object, name: str, *units: str, instead: str) -> str:
    """What to write: the number with one of these units, or ``instead`` if it is no usable number."""
    if _is_number(text) and len(plain := _plain(text)) <= _LONGEST_NUMBER and math.isfinite(_value(text)):
        return f"write {name}=" + " or ".join(f'"{plain}{unit}"' for unit in units)
    return f'write for example {name}="{instead}"'


def _plain(number: object) -> str:
    """A number without a unit, as written."""
    return shortened(number) if isinstance(number, str) else shown(number)


def _value(number: object) -> float:
    """The value of a number; infinite if a float cannot hold it."""
    try:
        return float(number)  # type: ignore[arg-type]  # `_is_number` has checked it
    except OverflowError:
        return math.inf


def _is_number(text: object) -> bool:
    if isinstance(text, bool):
        return False
    if isinstance(text, int | float):
        return True
    split = _split(text) if isinstance(text, str) else None
    return split is not None and not split[1]


def _parse(text: object, name: str, kind: str, example: str, units: dict[str, Decimal]) -> tuple[Decimal, Decimal]:
    if _is_number(text):
        raise InvalidValueError(f"{name}={_plain(text)}: a {kind} needs a unit; {example}")
    split = _split(text) if isinstance(text, str) else None
    if split is None:
        raise InvalidValueError(f"{name}={shown(text)}: not a {kind}; {example}")
    value, unit = split
    word = unit if units is _SIZE else unit.lower()
    scale = units.get(word.removesuffix("/s") if units is _RATE else word)
    if scale is None:
        raise InvalidValueError(f"{name}={shown(text)}: unknown unit {shown(unit)}; known: {', '.join(units)}")
    return value, scale


def _trim(value: float) -> str:
    return format(Decimal(repr(value)).normalize(), "f")


def _scaled(value: float, scale: Decimal) -> float:
    return float(Decimal(repr(value)) / scale)


def format_time(seconds: float) -> str:
    """A time in the largest of tc's units that is exact to six digits, else in whole nanoseconds: 0.04 → ``40ms``."""
    if seconds == 0:
        return "0s"
    for unit in ("s", "ms", "us"):
        scaled = _scaled(seconds, _TIME[unit])
        if scaled >= 1 and scaled == round(scaled, 6):
            return f"{_trim(scaled)}{unit}"
    return f"{round(_scaled(seconds, _TIME['ns']))}ns"


def format_rate(bits_per_second: float) -> str:
    """A rate in the largest of tc's decimal units that is exact to three digits, else in whole bits: ``10mbit``."""
    for prefix in ("g", "m", "k"):
        scaled = _scaled(bits_per_second, _RATE[f"{prefix}bit"])
        if scaled >= 1 and scaled == round(scaled, 3):
            return f"{_trim(scaled)}{prefix}bit"
    return f"{round(bits_per_second)}bit"


def format_size(size_bytes: int) -> str:
    """A size in the largest decimal unit that is exact: 16000 → ``16kB``."""
    for prefix in ("G", "M", "k"):
        whole, rest = divmod(size_bytes, int(_SIZE[f"{prefix}B"]))
        if whole and not rest:
            return f"{whole}{prefix}B"
    return f"{size_bytes}B"


def format_ratio(ratio: float) -> str:
    """A share as a percentage: 0.02 → ``2%``."""
    return f"{_trim(round(ratio * 100, 10))}%"
