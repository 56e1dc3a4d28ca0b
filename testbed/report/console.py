"""Tables for the terminal; plain lines where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.evidence.findings import Finding
from testbed.spec.profile import Profile
from testbed.text import shortened


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """What `testbed doctor` found."""
    table = Table("", "what", "found", "what that costs", "how to get it")
    marks = {"ok": Text("✓", "green"), "missing": Text("✗", "red"), "limited": Text("!", "yellow")}
    for finding in findings:
        table.add_row(
            marks[finding.state], finding.name, Text(finding.found), Text(finding.costs), Text(finding.remedy)
        )
    console.print(table)


def print_profiles(console: Console, profiles: Mapping[str, Profile]) -> None:
    """Profiles, one per line."""
    table = Table("profile", "forward", "reverse", "description")
    for name, profile in sorted(profiles.items()):
        same = profile.forward == profile.reverse
        table.add_row(
            name, profile.forward.describe(), "the same" if same else profile.reverse.describe(), profile.description
        )
    console.print(table)


def print_stack(
    console: Console,
    *,
    run_id: str,
    engine: str,
    hosts: Mapping[str, list[str]],
    links: Sequence[Mapping[str, Any]],
    cuts: int,
) -> None:
    """A running stack: its hosts, its impaired links as asked and as the kernel holds them, the number of cuts."""
    console.print(f"run {run_id}, netem by the {engine} engine", markup=False)
    table = Table("host", "addresses")
    for name, addresses in hosts.items():
        table.add_row(Text(name), ", ".join(addresses))
    console.print(table)
    if not links:
        console.print("no link is impaired" if not cuts else f"{cuts} links are cut, none is impaired")
        return
    table = Table("link", "asked", "kernel", "passed", "dropped", "as asked")
    warnings = []
    for link in links:
        name, kernel = f"{link['link']} on {link['network']}", link["kernel"] or {}
        words = " ".join(f"{word}={value}" for word, value in link["asked"].items()) or "clean"
        verdict = Text("; ".join(link["differences"]), "red") if link["differences"] else Text("yes", "green")
        counts = (str(kernel.get(counter, "—")) for counter in ("packets", "drops"))
        table.add_row(Text(name), Text(shortened(words)), Text(_kernel_words(kernel)), *counts, verdict)
        warnings += [f"{name}: warning: {line}" for line in link["realised"]]
    console.print(table)
    for line in warnings:
        console.print(line, markup=False, soft_wrap=True)


def _kernel_words(netem: Mapping[str, Any]) -> str:
    """The kernel's options that are not zero, by its own names."""
    options: list[tuple[str, Any]] = []
    for name, value in netem.get("options", {}).items():
        options += value.items() if isinstance(value, dict) else [(name, value)]
    words = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in options if value)
    return " ".join(words) or "nothing"
