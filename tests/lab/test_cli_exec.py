"""`testbed exec` and what it impairs first, as its user types it; on both labs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.conftest import ROOT, cli

_CONNECT_S = """
import socket, time
begun = time.monotonic()
socket.create_connection(("server", 8888), timeout=20)
print(time.monotonic() - begun)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a Compose file of its own: no stack of it is up."""
    (tmp_path / "images").symlink_to(ROOT / "images")
    (tmp_path / "compose.yaml").write_text((ROOT / "compose.yaml").read_text())
    return tmp_path


def test_all_that_is_wrong_is_told_before_anything_is_started(kind: str, project: Path) -> None:
    impaired = [
        "client -> server=lossy", "client <-> server=delay=5ms", "server -> srver=losy",
        "server -> client=delay=5 lss=1%", "client -> server", "=lossy", "client -> server=",
    ]  # fmt: skip
    options = [word for each in impaired for word in ("--impair", each)]
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


@pytest.mark.parametrize(
    ("said", "least_s"),
    [
        (["client <-> server=delay=60ms drop_packets=[50, 60-70] limit=100"], 0.12),
        (["client -> server=latency", "server -> client=[{delay: 70ms}, {at: 60s, outage: 2s}]"], 0.12),
    ],
)
def test_links_are_impaired_first_by_profiles_words_and_steps(
    kind: str, project: Path, said: list[str], least_s: float
) -> None:
    options = [word for each in said for word in ("--impair", each)]
    argv = ["client", "--", "python3", "-c", _CONNECT_S]
    done = cli("exec", "--lab", kind, "--netem", "carried", *options, *argv, cwd=project)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) >= least_s
