"""Six metrics on four links: what `benchmarks/power.py` runs on two versions of the programs beside this file."""

from __future__ import annotations

import json

import pytest

from testbed import Lab


def measured(lab: Lab) -> None:
    """Run the client and record what it measured."""
    done = lab.host("client").run(["python3", "client.py", "server"], timeout="60s")
    assert done.ok, done.stderr
    document = json.loads(done.stdout)
    lab.record("response", document["response"], unit="s", better="lower")
    lab.record("two writes", document["two writes"], unit="s", better="lower")
    lab.record("goodput", document["goodput"], unit="bit/s", better="higher")
    lab.record("bytes", document["bytes"], unit="B", better="lower", least_effect="2%")
    lab.record("acknowledged", document["acknowledged"], unit="share", better="higher")
    lab.record("received", document["received"], unit="share", better="higher")


@pytest.mark.impair("client <-> server", delay="5ms")
def test_delay(lab: Lab) -> None:
    """10 ms of round trip."""
    measured(lab)


@pytest.mark.impair("client -> server", delay="10ms", loss="1%")
def test_loss(lab: Lab) -> None:
    """Also a hundredth of the packets lost."""
    measured(lab)


@pytest.mark.impair("client -> server", delay="10ms", rate="50mbit")
def test_rate(lab: Lab) -> None:
    """Also a narrow link."""
    measured(lab)


@pytest.mark.impair("client <-> server", delay="8ms", jitter="1ms", distribution="normal")
def test_jitter(lab: Lab) -> None:
    """A delay that varies."""
    measured(lab)
