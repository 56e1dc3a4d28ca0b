"""The demonstration on a terminal: its table while it grows, and what became of messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from testbed.paper.demo import DemoRun, ProfileRun, median
from testbed.text import visible

_HEADINGS = (
    "profile",
    "deli-\nvered",
    "connect\nmedian",
    "connect\nworst",
    "delivery\nmedian",
    "delivery\nworst",
    "segments\nre-sent",
    "netem\ndropped",
)
"""Two lines per heading, so that the table fits into 80 columns."""
_SERVER_LINES = 12


def milliseconds(value: float | None) -> str:
    """A time for a table: three significant digits."""
    if value is None:
        return "—"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def demo_row(run: ProfileRun) -> tuple[str, ...]:
    """One line of the demonstration's table."""
    return (
        run.profile,
        f"{run.delivered}/{len(run.messages)}",
        milliseconds(median(run.connect_times_s)),
        milliseconds(max(run.connect_times_s, default=None)),
        milliseconds(median(run.delivery_times_s)),
        milliseconds(max(run.delivery_times_s, default=None)),
        str(run.retransmitted_segments),
        str(run.dropped_packets),
    )


class LiveDemo:
    """The demonstration's table while it grows."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._printed = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: Sequence[ProfileRun], current: str | None) -> None:
        """Show what is done and what runs."""
        if self._live:
            table = Table(
                title="the paper's client and server, both directions impaired", box=box.SIMPLE_HEAD, pad_edge=False
            )
            for index, heading in enumerate(_HEADINGS):
                table.add_column(heading, justify="left" if index == 0 else "right")
            for run in done:
                style = "red" if any(message.lost for message in run.messages) else ""
                table.add_row(*demo_row(run), style=style)
            if current:
                table.add_row(current, "…", style="dim")
            self._live.update(table, refresh=True)
            return
        if not done:
            for half in (0, 1):
                cells = [(*heading.split("\n"), "")[half] for heading in _HEADINGS]
                self._console.print(_line(cells), markup=False, soft_wrap=True)
        for run in done[self._printed :]:
            self._console.print(_line(demo_row(run)), markup=False, soft_wrap=True)
        self._printed = len(done)


def _line(cells: Iterable[str]) -> str:
    first, *rest = cells
    return f"{first:<15}" + "".join(f"{cell:>10}" for cell in rest)


def print_undelivered(console: Console, run: DemoRun) -> None:
    """Where each message that was not delivered was when we stopped waiting, or what became of it."""
    for profile in run.profiles:
        for message in profile.messages:
            if message.delivery_s is None:
                fate = (
                    f"under way: {message.under_way}" if message.under_way else f"LOST: {message.error or 'no trace'}"
                )
                console.print(f"{message.text}: {fate}", markup=False, soft_wrap=True)


def print_server_output(console: Console, run: DemoRun) -> None:
    """The server's own output, its middle left out where it is long."""
    lines = visible(run.server_output).splitlines()
    console.print(f"\nThe server's own output ({len(lines)} lines; netem by the {run.engine} engine):", markup=False)
    half = _SERVER_LINES // 2
    shown = lines if len(lines) <= _SERVER_LINES else [*lines[:half], "…", *lines[-half:]]
    for line in shown:
        console.print(f"  {line}", markup=False, soft_wrap=True)
