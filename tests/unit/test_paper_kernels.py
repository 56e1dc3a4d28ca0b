"""`testbed paper --virtual-time`: a kernel per claim, which is no kernel here, and one report of them all."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from testbed import paper
from testbed.commands import virtual as again
from testbed.commands.cli import cli
from testbed.errors import EnvironmentUnfitError
from testbed.evidence.verdict import Verdict
from testbed.kernel import virtual
from testbed.paper.outcomes import ClaimOutcome

WITHIN_S = 60.0
INPUTS = {"quick": False, "lab": "local", "netem": "host", "kernel": "7.2.12", "experiments": "0123"}


class Kernels:
    """Take the place of kernels: write what a session inside writes. C12 ends before C1 does."""

    def __init__(self) -> None:
        self.only: list[str] = []
        self.stopped = False
        self.later_is_there = threading.Event()
        self.later_is_over = threading.Event()
        self.status = dict.fromkeys(paper.CLAIMS, 0)

    def run(self, argv: Sequence[str], *, outputs: virtual.Outputs, stop: threading.Event, **_: object) -> int:
        assert argv[-2] == "--only"
        self.only.append(argv[-1])
        claims = argv[-1].split(",")
        if claims == ["C12"]:
            self.later_is_there.set()
        if self.status["C2"]:
            assert self.later_is_there.wait(WITHIN_S)
            self.stopped = claims == ["C12"] and stop.wait(WITHIN_S)
        if "C1" in claims:
            assert self.later_is_over.wait(WITHIN_S), "both run at once"
        folder = outputs.place(outputs.folders[0])
        outcomes = {}
        for name in claims:
            outcomes[name] = ClaimOutcome(finding=Verdict.HOLDS, sentence=f"So is {name}.", evidence=(f"{name}.txt",))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.txt").write_text(f"seen for {name}")
        paper.keep(folder, outcomes, INPUTS)
        if "C12" in claims:
            self.later_is_over.set()
        return self.status[claims[0]]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    stand_ins = Kernels()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(virtual, "prepare", lambda _say: None)
    monkeypatch.setattr(virtual, "run", stand_ins.run)
    monkeypatch.setattr(again, "images_of", lambda *_arguments, **_options: {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    return stand_ins


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    command = ["paper", "--virtual-time", "--report", "here", *words]
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "testbed.commands.cli", *command])
    return CliRunner().invoke(cli, command, standalone_mode=False)


def test_each_claim_has_a_kernel_and_the_report_is_as_of_one(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "--only", "C1,C2,C8,C12").return_value == 0
    assert sorted(kernels.only) == ["C1", "C12", "C2,C8"], "C8 is judged by C2's experiment"
    inputs, outcomes = paper.read(tmp_path / "here")
    assert list(outcomes) == ["C1", "C2", "C8", "C12"], "in their order, whichever ends first"
    assert inputs == INPUTS
    assert (tmp_path / "here" / "C12.txt").read_text() == "seen for C12"
    assert "7.2.12" in (tmp_path / "here" / "index.html").read_text()
    assert (tmp_path / "here" / "C8.html").is_file()


def test_outcomes_are_the_same_on_one_processor(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--only", "C2,C12")
    both = json.loads((tmp_path / "here" / "claims.json").read_text())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    run(monkeypatch, "--only", "C2,C12")
    assert json.loads((tmp_path / "here" / "claims.json").read_text()) == both
    assert len(kernels.only) == 4


def test_a_kernel_that_fails_ends_the_others(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.status["C2"] = 3
    done = run(monkeypatch, "--only", "C2,C12")
    assert isinstance(done.exception, EnvironmentUnfitError)
    assert "--only C2: ended with status 3 in virtual time" in str(done.exception)
    assert kernels.stopped


def test_claims_that_share_an_experiment_share_a_kernel_and_the_longest_come_first() -> None:
    shares = paper.shares(paper.CLAIMS.values())
    assert shares[0] == ["C9"]
    assert ["C2", "C8"] in shares
    assert sorted(name for share in shares for name in share) == sorted(paper.CLAIMS)
    assert paper.shares(paper.chosen(["C8"])) == [["C8"]]
