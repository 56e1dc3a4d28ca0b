"""The client run in a lab, and what it printed."""

from __future__ import annotations

import pytest

from testbed import Lab

_PYTHON = ("python3", "-S", "-E")
"""Without what the machine's own site-packages would have it import, which takes longer than all else."""


def measured(lab: Lab, *words: str) -> dict[str, list[float]]:
    """What the client measured: values by metric."""
    done = lab.host("client").run([*_PYTHON, "client.py", "server", *words], timeout="60s")
    if not done.ok:
        pytest.fail(done.stderr)
    lines = (line.split(": ") for line in done.stdout.splitlines())
    return {name: [float(value) for value in values.split()] for name, values in lines}
