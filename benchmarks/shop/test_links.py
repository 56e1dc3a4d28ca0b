"""Six metrics on four links: what `benchmarks/power.py` runs on two versions of the programs beside this file."""

from __future__ import annotations

import pytest
from measuring import measured

from testbed import Lab


def record(lab: Lab) -> None:
    """Run the client and record what it measured."""
    metrics = measured(lab)
    lab.record("response", metrics["response"], unit="s", better="lower")
    lab.record("two writes", metrics["two writes"], unit="s", better="lower")
    lab.record("goodput", metrics["goodput"], unit="bit/s", better="higher")
    lab.record("bytes", metrics["bytes"], unit="B", better="lower", least_effect="2%")
    lab.record("acknowledged", metrics["acknowledged"], unit="share", better="higher")
    lab.record("received", metrics["received"], unit="share", better="higher")


@pytest.mark.impair("client <-> server", delay="2ms")
def test_delay(lab: Lab) -> None:
    """4 ms of round trip."""
    record(lab)


@pytest.mark.impair("client -> server", delay="4ms", loss="1%")
def test_loss(lab: Lab) -> None:
    """Also a hundredth of the packets lost."""
    record(lab)


@pytest.mark.impair("client -> server", delay="4ms", rate="50mbit")
def test_rate(lab: Lab) -> None:
    """Also a narrow link."""
    record(lab)


@pytest.mark.impair("client <-> server", delay="3ms", jitter="500us", distribution="normal")
def test_jitter(lab: Lab) -> None:
    """A delay that varies."""
    record(lab)
