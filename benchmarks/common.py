"""What the benchmarks share: options, checks, and how results are printed.

Exit status: 0 every bound holds, 1 one does not or could not be measured, 2 wrong use or nothing to measure on.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from testbed.errors import EnvironmentUnfitError, TestbedError, UserError
from testbed.kernel import machine

ROOT = Path(__file__).resolve().parent.parent
STACK = ROOT / "compose.yaml"
"""The paper's stack."""
HOST_ENGINE = "--host-engine"
"""Given to a benchmark on the machine of a carried kernel: what to measure there, told as JSON."""


class BenchmarkError(TestbedError):
    """A measurement failed, or did not measure what it should."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure and its bound."""

    name: str
    value: float | None
    """None: it could not be measured, and so does not hold."""
    bound: float
    unit: str
    at_least: bool = False
    """Whether the bound is the least that the value may be; else it is the most."""
    undecided: bool = False
    """Whether the bound is within what the measurement leaves open: neither held nor failed."""
    bound_words: str = ""
    """How the bound came about, if it is not a constant."""
    rivals: Mapping[str, str] = field(default_factory=dict)
    """What others did for the same, in words, by who they are."""

    @property
    def ok(self) -> bool:
        """Whether the bound holds."""
        if self.undecided or self.value is None or math.isnan(self.value):
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(kw_only=True)
class Report:
    """The options and the results of a benchmark."""

    quick: bool
    as_json: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    """The values of a benchmark's own options."""
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, check: Check) -> None:
        """Add a figure."""
        self.checks.append(check)

    def note(self, text: str) -> None:
        """Add a note, such as what could not be measured here and why."""
        self.notes.append(text)

    def say(self, text: str) -> None:
        """Print progress to stderr."""
        click.echo(f"… {text}", err=True)

    @property
    def ok(self) -> bool:
        """Whether something was measured and every bound holds."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def tell(self, title: str, console: Console) -> None:
        """Print the result: JSON alone, or a table and the notes."""
        if self.as_json:
            checks = [
                {
                    "name": check.name,
                    "value": check.value,
                    "bound": check.bound,
                    "ok": check.ok,
                    "undecided": check.undecided,
                }
                for check in self.checks
            ]
            print(json.dumps({"checks": checks}, indent=2))
        else:
            console.print(_table(title, self.checks))
        for note in self.notes:
            if self.as_json:
                click.echo(note, err=True)
            else:
                console.print(f"· {note}", markup=False, highlight=False)


def _table(title: str, checks: Sequence[Check]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("bound", justify="right")
    table.add_column("rivals, the same run")
    table.add_column("holds")
    for check in checks:
        bound = f"{'≥' if check.at_least else '≤'} {_figure(check.bound)} {check.unit}"
        table.add_row(
            check.name,
            "not measured" if check.value is None else f"{_figure(check.value)} {check.unit}",
            f"{bound}\n({check.bound_words})" if check.bound_words else bound,
            "\n".join(f"{name}: {words}" for name, words in check.rivals.items()),
            "[green]yes[/]" if check.ok else "undecided" if check.undecided else "[bold red]NO[/]",
        )
    return table


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def timed(step: Callable[[], object]) -> float:
    """How long a step takes; seconds."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Turn the first fatal signal into an exception, so that cleanup runs; ignore later ones."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> None:
        for process in ending:
            signal.signal(process, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_carried(report: Report, program: str, *words: str) -> Any:
    """The JSON that a benchmark prints on the machine of a carried kernel, where the host engine has its netem."""
    with os.fdopen(os.memfd_create("json"), "r+b") as output:
        argv = [sys.executable, program, *words]
        status = machine.run(argv, cwd=ROOT, writable=[], say=report.say, stdout=output.fileno())
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status:
        raise BenchmarkError(f"the host engine in a carried kernel: exit status {status}: {text[-2000:]}")
    return json.loads(text)


def run(title: str, measure: Callable[[Report], None], *, options: Sequence[click.Option] = ()) -> None:
    """The command line of a benchmark, with options of its own; does not return."""

    @click.command(help=f"{title}. Exit status: 0 every bound holds, 1 not, 2 wrong use or no engine.")
    @click.option("--quick", is_flag=True, help="Fewer rounds: at most 50 s in all.")
    @click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON, and nothing else on stdout.")
    def command(quick: bool, as_json: bool, **own: Any) -> None:
        report = Report(quick=quick, as_json=as_json, options=own)
        try:
            with _ended_politely():
                measure(report)
        except (EnvironmentUnfitError, UserError) as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except TestbedError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        # A pipe has no width: the table takes what it needs.
        report.tell(title, Console() if sys.stdout.isatty() else Console(width=140))
        sys.exit(0 if report.ok else 1)

    command.params.extend(options)
    command()
