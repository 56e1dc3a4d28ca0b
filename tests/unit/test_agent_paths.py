"""Frames that wait at the taps of a carried kernel: counters in files, and a tc that shows qdiscs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from testbed.agent import devices, paths
from testbed.agent.batch import Batch, BatchOutput


class Tc(Batch):
    """Shows the qdiscs of each tap, the root with so many frames; fails for a tap that is gone."""

    def __init__(self, sent: dict[str, int]) -> None:
        self.sent = sent

    def run(self, lines: Sequence[str], output: BatchOutput | None = None, *, deadline_s: float = 5.0) -> BatchOutput:
        output = BatchOutput()
        for line in lines:
            if (count := self.sent.get(line.removeprefix("qdisc show dev "))) is None:
                output.complaints.append({"line": line, "text": "Cannot find device"})
            else:
                root = {"kind": "pfifo_fast", "root": True, "packets": count}
                output.shown.append([root, {"kind": "clsact", "packets": 99}])
        return output


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all devices' counters: five frames were read from either tap, and two did not fit."""
    for tap in ("tba", "tbb"):
        folder = tmp_path / tap / "statistics"
        folder.mkdir(parents=True)
        (folder / "tx_packets").write_text("5\n")
        (folder / "tx_dropped").write_text("2\n")
    monkeypatch.setattr(devices, "SYS_NET", tmp_path)
    return tmp_path


def test_frames_that_nobody_takes_are_counted(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "TAKES_WITHIN_S", 0.1)
    assert paths.standing(["tba", "gone", "tbb"], Tc({"tba": 7, "tbb": 10})) == {"tbb": 3}


def test_a_kernel_that_takes_one_more_goes_on(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = devices.statistic
    looks: list[str] = []

    def taken_late(tap: str, name: str) -> int:
        looks.append(name)
        return read(tap, name) + (len(looks) > 6 and name == "tx_packets")

    monkeypatch.setattr(devices, "statistic", taken_late)
    assert paths.standing(["tba"], Tc({"tba": 9})) == {}
    assert len(looks) > 6, "it was looked at again"


def test_frames_that_wait_are_counted_at_once(counters: Path) -> None:
    assert paths.untaken(["tba", "gone", "tbb"], Tc({"tba": 7, "tbb": 10})) == {"tbb": 3}
