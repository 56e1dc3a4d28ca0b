"""What `testbed exec` refuses, as its user types it; on both labs."""

from __future__ import annotations

from pathlib import Path

from tests.lab.conftest import cli


def test_all_that_is_wrong_is_told_before_anything_is_started(kind: str, project: Path) -> None:
    impaired = [
        "client -> server=lossy",
        "client <-> server=delay=5ms",
        "server -> srver=losy",
        "server -> client=delay=5 lss=1%",
        "client -> server",
        "=lossy",
        "client -> server=",
    ]
    options = [word for ref in impaired for word in ("--impair", ref)]
    done = cli("exec", "--lab", kind, *options, "clint", "--", "true", cwd=project)
    assert done.returncode == 2
    for problem in (
        "host 'clint': unknown; did you mean 'client'?",
        "client -> server is impaired twice, by --impair 'client -> server=lossy' and by "
        "--impair 'client <-> server=delay=5ms'; a link has one impairment",
        "link 'server -> srver': host 'srver': unknown; did you mean 'server'?",
        "profile 'losy': unknown; did you mean 'lossy'?",
        "delay=5: a duration needs a unit",
        "lss: unknown; did you mean 'loss'?",
        "--impair 'client -> server': what is it impaired with? Write \"a -> b=lossy\", or words",
        "--impair '=lossy': which link?",
        "--impair 'client -> server=': what is it impaired with?",
    ):
        assert problem in done.stderr
    assert "starting the stack" not in done.stderr
    assert "taking the stack down" not in done.stderr
