"""The local lab's own side: capabilities, and descriptors where something fails."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from testbed import ComposeLab, LocalLab
from testbed.backends import terminal
from testbed.backends.choice import lab_type, origins_of
from testbed.backends.docker.swarm import SwarmLab
from testbed.backends.docker.within import WithinLab
from testbed.backends.local import lab
from testbed.backends.local.blueprint import ServicePlan
from testbed.backends.local.localagent import LocalAgent
from testbed.backends.local.settings import CAPABILITIES, DEFAULT_CAPABILITIES, capabilities
from testbed.compose.options import LAB_CHOICES
from testbed.errors import LabError
from tests.unit.fakes import FakeImages


@pytest.mark.parametrize(
    ("added", "dropped", "expected"),  # as moby's TweakCapabilities
    [
        ([], [], DEFAULT_CAPABILITIES),
        (["ALL"], [], CAPABILITIES),
        (["ALL"], ["NET_RAW"], CAPABILITIES - {"NET_RAW"}),
        (["ALL"], ["ALL"], CAPABILITIES),
        (["NET_ADMIN"], ["ALL"], {"NET_ADMIN"}),
        (["NET_RAW"], ["NET_RAW", "KILL"], DEFAULT_CAPABILITIES - {"KILL"}),
    ],
)
def test_capabilities_are_those_that_the_engine_would_give(
    added: list[str], dropped: list[str], expected: set[str]
) -> None:
    plan = ServicePlan(
        name="a",
        argv=(),
        environment={},
        workdir="/",
        capabilities_added=tuple(added),
        capabilities_dropped=tuple(dropped),
    )
    assert capabilities(plan) == expected


def fail(*_: object, **__: object) -> NoReturn:
    raise LabError("the agent is gone")


def open_now() -> list[str]:
    return os.listdir("/proc/self/fd")


@pytest.mark.parametrize("what", ["passed", "call"])
def test_a_program_that_is_not_attached_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    child = SimpleNamespace(passed=fail if what == "passed" else lambda _: "ticket")
    monkeypatch.setattr(LocalAgent, "child", child)
    monkeypatch.setattr(LocalAgent, "channel", SimpleNamespace(call=fail))
    before = open_now()
    with pytest.raises(LabError):
        LocalAgent().attached(["true"], (0, 1, 2), {}, tty=False)
    assert open_now() == before


def test_a_terminal_that_nobody_takes_is_closed() -> None:
    before = open_now()
    with pytest.raises(LabError):
        terminal.join(os.pipe(), fail)
    assert open_now() == before


def test_each_kind_of_lab_can_be_chosen_by_its_name() -> None:
    assert [lab_type(kind) for kind in LAB_CHOICES[1:]] == [ComposeLab, LocalLab, WithinLab, SwarmLab]


def test_where_the_programs_of_each_service_are_from_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = FakeImages(lacks=["gone"])
    monkeypatch.setattr(FakeImages, "builder", "a builder")
    monkeypatch.setattr(lab, "MachinesImages", lambda _say: images)
    path = tmp_path / "compose.yaml"
    path.write_text(
        "services:\n  a: {x-testbed: {local: {}}}\n  b: {image: redis}\n  c: {build: .}\n  d: {image: gone}\n"
        "  e: {image: x, x-testbed: {local: {image: e.tar}}}\n  f: {build: ., x-testbed: {local: {path: f}}}\n"
    )
    assert origins_of(LocalLab(path)) == (
        "a, f: this machine's programs; b: image redis (redis) from a test; c: built by a builder; "
        "d: image gone is nowhere; e: the archive e.tar"
    )
    path.write_text("services: [")
    assert origins_of(LocalLab(path)) == "", "what is wrong is said when the lab comes up"
