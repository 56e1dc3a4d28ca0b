"""Forty hosts, each talking with eight others through impaired links: every message is accounted for."""

from __future__ import annotations

import pytest

from testbed import Impairment, LocalLab
from testbed.drive import gossip
from testbed.judge.oracle import Cause
from tests.lab.conftest import HERE

LABS = ("local",)


def test_what_became_of_every_message_of_a_gossip_is_explained(kind: str, pytestconfig: pytest.Config) -> None:
    assert kind == "local"
    drawn = gossip.drawing(40, HERE.parents[1] / "images" / "common")
    with LocalLab(drawn, netem=pytestconfig.getoption("--netem")) as lab:
        talked = gossip.talk(lab, impairment=Impairment(delay_s=0.01, loss_ratio=0.05), messages=10, rate_per_s=10)
    assert talked.unexplained == []
    assert talked.complete
    assert len(talked.accounts) == 160
    assert talked.sent == 3200
    # 3,200 at 5 %: 160 are expected to be lost, σ = 12.3; and nothing else may lose one.
    assert set(talked.causes) == {Cause.NETWORK}
    assert talked.causes[Cause.NETWORK] >= 160 - 4 * 12.4
