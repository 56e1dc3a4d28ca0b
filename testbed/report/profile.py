"""A profile explained: its impairments, the distribution of its delays, its course over time. Text, and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from testbed import units
from testbed.netem import qdisc
from testbed.netem.delays import histogram, is_known, quantiles_s
from testbed.netem.schedule import compile_timeline
from testbed.spec.bottleneck import Bottleneck
from testbed.spec.impairment import Impairment
from testbed.spec.profile import Profile
from testbed.spec.timeline import Timeline, between

_COLUMNS = 60
_SAMPLES = 8
_PHASES_SHOWN = 4
_BAR = 40
_LEVELS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_SILENT, _HELD = "╳", "‖"


def print_profile(console: Console, profile: Profile) -> None:
    """Explain a profile in the terminal."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    say(f"{profile.name}: {profile.description}")
    forward, reverse = (profile.forward, profile.forward_shape), (profile.reverse, profile.reverse_shape)
    halves = {"both ways": forward} if forward == reverse else {"forward": forward, "reverse": reverse}
    for name, (side, shape) in halves.items():
        say(f"\n{name}: {side.describe()}")
        for line in timeline_lines(side) if isinstance(side, Timeline) else impairment_lines(side):
            say(f"  {line}")
        if shape is not None:
            say(f"  all its links share {shape.describe()}")


def impairment_lines(impairment: Impairment) -> Iterator[str]:
    """A constant impairment."""
    yield f"tc … netem {qdisc.netem(impairment)}"
    if impairment.jitter_s and is_known(impairment):
        yield from delay_lines(impairment)
    elif impairment.jitter_s:
        yield f"delay by your own table {impairment.distribution}, which is not drawn"


def delay_lines(impairment: Impairment) -> Iterator[str]:
    """The distribution of the delay, a bar per range."""
    quantiles = "  ".join(f"{share * 100:g}% {_time(value_s)}" for share, value_s in quantiles_s(impairment).items())
    yield f"delay, computed from netem's {impairment.distribution} table: {quantiles}"
    bins = histogram(impairment)
    most = max(range_.share for range_ in bins)
    for number, range_ in enumerate(bins):
        end = _time(range_.to_s) if number < len(bins) - 1 else "more"
        yield f"{_time(range_.from_s):>8} – {end:<8} {bar(range_.share / most, _BAR)} {range_.share * 100:.1f} %"


def bar(share: float, width: int) -> str:
    """A bar of a share of the width, padded; any share above 0 is visible."""
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def timeline_lines(timeline: Timeline) -> Iterator[str]:
    """The fields that change, drawn over time."""
    length_s = timeline.length_s or 1.0
    drawn = 0
    for name, field, write in _DRAWN:
        values = [_values(timeline, field, column, length_s) for column in range(_COLUMNS)]
        known = [value for value in values if value is not None]
        if not known or max(known) == min(known):
            continue
        drawn += 1
        most = max((value for value in known if value < math.inf), default=0.0)
        marks = "".join(
            _silence(timeline, column, length_s) or _level(value, most) for column, value in enumerate(values)
        )
        yield f"{name:<6}{marks}  {write(min(known))} … {write(max(known))}"
    if not drawn:
        yield " " * 6 + "".join(_silence(timeline, column, length_s) or _LEVELS[0] for column in range(_COLUMNS))
    again = ", then again" if timeline.repeat_s is not None else ", and stays so"
    yield f"{'':6}{'0 s':<{_COLUMNS - 8}}{units.format_time(round(length_s, 3)):>8}{again}"
    yield f"{'':6}{_SILENT} everything is lost   {_HELD} packets wait (no rate)"
    for phase in timeline.phases[:_PHASES_SHOWN]:
        ramp = f" -> {phase.toward.describe()} over {units.format_time(phase.over_s)}" if phase.toward else ""
        held = " (held)" if phase.hold_s is not None else ""
        yield f"at {units.format_time(phase.at_s)}: {phase.impairment.describe()}{ramp}{held}"
    if (more := len(timeline.phases) - _PHASES_SHOWN) > 0:
        yield f"… {more} more"
    for outage in timeline.outages:
        yield f"at {units.format_time(outage.at_s)}: outage of {units.format_time(outage.for_s)}"
    yield f"{len(compile_timeline(timeline).moments)} steps in the kernel"


_DRAWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("delay", "delay_s", lambda value: _time(value)),
    ("rate", "rate_bps", lambda value: _rate(value)),
    ("loss", "loss_ratio", lambda value: f"{value * 100:.2g} %"),
)


def _values(timeline: Timeline, field: str, column: int, length_s: float) -> float | None:
    """The mean of a field over a column, infinite for no rate; None if no packet passes in it."""
    values: list[float] = []
    for sample in range(_SAMPLES):
        time_s = (column + (sample + 0.5) / _SAMPLES) * length_s / _COLUMNS
        phase = next(phase for phase in reversed(timeline.phases) if phase.at_s <= time_s)
        if timeline.at(time_s) is None or phase.hold_s is not None or phase.impairment.loss_ratio == 1:
            continue
        impairment = phase.impairment
        if phase.toward is not None:
            impairment = between(impairment, phase.toward, min((time_s - phase.at_s) / phase.over_s, 1.0))
        default = math.inf if field == "rate_bps" else 0.0
        values.append(float(getattr(impairment, field) or default))
    return sum(values) / len(values) if values else None


def _silence(timeline: Timeline, column: int, length_s: float) -> str | None:
    """The mark of a column in which packets are all lost for any time, or held for more than half of it."""
    begin_s, end_s = column * length_s / _COLUMNS, (column + 1) * length_s / _COLUMNS

    def overlaps(from_s: float, to_s: float) -> bool:
        return from_s < end_s and to_s > begin_s

    if any(overlaps(outage.at_s, outage.ends_s) for outage in timeline.outages):
        return _SILENT
    held_s = 0.0
    ends_s = [*(phase.at_s for phase in timeline.phases[1:]), length_s]
    for phase, phase_end_s in zip(timeline.phases, ends_s, strict=True):
        if not overlaps(phase.at_s, phase_end_s):
            continue
        if phase.toward is None and phase.impairment.loss_ratio == 1:
            return _SILENT
        if phase.hold_s is not None:
            held_s += min(phase_end_s, end_s) - max(phase.at_s, begin_s)
    return _HELD if held_s > (end_s - begin_s) / 2 else None


def _level(value: float | None, most: float) -> str:
    if value is None:
        return " "
    return _LEVELS[min(round(min(value / most, 1.0) * (len(_LEVELS) - 1)), len(_LEVELS) - 1)] if most else _LEVELS[0]


def _time(value_s: float) -> str:
    return units.format_time(float(f"{value_s:.3g}"))


def _rate(value_bps: float) -> str:
    return "no limit" if value_bps == math.inf else units.format_rate(float(f"{value_bps:.3g}"))


def profile_json(profile: Profile) -> dict[str, Any]:
    """A profile as JSON: its words, tc's words, the quantiles of the delay, the moments of a timeline."""
    return {
        "name": profile.name,
        "description": profile.description,
        "forward": {**_side_json(profile.forward), "shape": _shape_json(profile.forward_shape)},
        "reverse": {**_side_json(profile.reverse), "shape": _shape_json(profile.reverse_shape)},
    }


def _shape_json(shape: Bottleneck | None) -> dict[str, Any] | None:
    return None if shape is None else shape.words()


def _side_json(side: Impairment | Timeline) -> dict[str, Any]:
    if isinstance(side, Impairment):
        quantiles = {str(share): value_s for share, value_s in quantiles_s(side).items()} if is_known(side) else None
        return {**_impairment_json(side), "delay_quantiles_s": quantiles}
    return {
        "trace": side.trace,
        "length_s": side.length_s,
        "repeat_s": side.repeat_s,
        "outages": [{"at_s": outage.at_s, "for_s": outage.for_s} for outage in side.outages],
        "moments": [
            {"at_s": round(moment.at_s, 6), **_impairment_json(moment.impairment)}
            for moment in compile_timeline(side).moments
        ],
    }


def _impairment_json(impairment: Impairment) -> dict[str, Any]:
    return {"words": impairment.words(), "netem": qdisc.netem(impairment)}
