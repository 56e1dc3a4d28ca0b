"""Ownership of objects on an engine: our labels, forged labels, and owners that may be dead."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.backends.docker import runs as module
from testbed.backends.docker.engine import Labelled
from testbed.backends.docker.runs import DETACHED, clear_stale, flaw, is_orphaned, owner, remove_run, sort
from testbed.errors import LabError

# --- owners ----------------------------------------------------------------------------------------

MACHINE, BOOT, NAMESPACE, PID, START = owner().split(":")


def _label(
    machine: str = MACHINE, boot: str = BOOT, namespace: str = NAMESPACE, pid: str = PID, start: str = START
) -> str:
    return ":".join((machine, boot, namespace, pid, start))


needs_machine_id = pytest.mark.usefixtures("machine_id")


@pytest.fixture
def machine_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has an id and a boot, whether or not this one does."""
    monkeypatch.setattr("testbed.backends.docker.runs.this_place", lambda: ("0123456789ab", "01234567", "4026531836"))


HERE = {"machine": "0123456789ab", "boot": "01234567", "namespace": "4026531836"}


def test_an_owner_is_this_process() -> None:
    assert int(PID) == os.getpid()
    assert int(START) > 0


def test_we_are_alive() -> None:
    assert not is_orphaned(owner())


@needs_machine_id
def test_a_process_that_ended_is_dead_and_its_number_alone_does_not_revive_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with open(f"/proc/{child.pid}/stat") as stat:
            start = stat.read().rpartition(")")[2].split()[19]
        label = _label(**HERE, pid=str(child.pid), start=start)
        assert not is_orphaned(label)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_orphaned(label), "a zombie owns nothing"
    finally:
        child.kill()
        child.communicate()
    assert is_orphaned(label)
    assert is_orphaned(_label(**HERE, start="1")), "another process that was given our number"


@needs_machine_id
@pytest.mark.parametrize(
    ("label", "orphaned"),
    [
        (_label(**HERE), False),
        (_label(**{**HERE, "boot": "fffffff0"}), True),
        (_label(**{**HERE, "machine": "ba9876543210"}, start="1"), False),
        (_label(**{**HERE, "machine": "ba9876543210", "boot": "fffffff0"}), False),
        (_label(**{**HERE, "namespace": "4026539999"}, start="1"), False),
        # What either side could not read about itself proves nothing.
        (_label(**{**HERE, "machine": "-"}, start="1"), False),
        (_label(**{**HERE, "boot": "-"}, start="1"), False),
        (_label(**{**HERE, "namespace": "-"}, start="1"), False),
        (_label(**HERE, pid="x"), False),
        ("", False),
        ("detached", False),
        ("a:b", False),
        (_label(**HERE) + ":more", False),
    ],
    ids=["ours", "before a boot", "elsewhere", "elsewhere, a boot", "a namespace", "no machine", "no boot",
         "no namespace", "no number", "nothing", "detached", "two parts", "six parts"],
)  # fmt: skip
def test_only_what_is_surely_dead_is_orphaned(label: str, orphaned: bool) -> None:
    assert is_orphaned(label) is orphaned


@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_a_place_that_knows_nothing_of_itself_judges_nobody(monkeypatch: pytest.MonkeyPatch, unknown: int) -> None:
    here = ["0123456789ab", "01234567", "4026531836"]
    here[unknown] = "-"
    monkeypatch.setattr("testbed.backends.docker.runs.this_place", lambda: tuple(here))
    assert not is_orphaned(_label(**HERE, start="1"))
    assert not is_orphaned(":".join((*here, PID, "1")))
    assert not is_orphaned(_label(**{**HERE, "boot": "fffffff0"}))


# --- records ---------------------------------------------------------------------------------------

DEAD = "0123456789ab:01234567:4026531836:17:1"
RUN = "0123abcd"


def labelled(
    kind: str = "container", name: str = "it", of_image: Mapping[str, str] | None = None, **labels: str
) -> Labelled:
    prefixed = {f"testbed.{key}": value for key, value in labels.items()}
    return Labelled(kind=kind, name=name, labels=prefixed, of_image=of_image or {})


@pytest.mark.parametrize(
    ("record", "flaw_of_it"),
    [
        (labelled(run="", owner=DEAD), "its label testbed.run='' names no run"),
        (labelled(run="0123abcd ", owner=DEAD), "its label testbed.run='0123abcd ' names no run"),
        (labelled(run="0123ABCD", owner=DEAD), "its label testbed.run='0123ABCD' names no run"),
        (labelled(run="mine", owner=DEAD), "its label testbed.run='mine' names no run"),
        (labelled(run="0123abcd\n", owner=DEAD), "its label testbed.run='0123abcd\\n' names no run"),
        (labelled(run="x" * 5000, owner=DEAD), f"its label testbed.run='{'x' * 60}…' names no run"),
        (labelled(run=RUN), "it has no label testbed.owner"),
        (labelled(run=RUN, owner=""), "its label testbed.owner='' names no process"),
        (labelled(run=RUN, owner="me"), "its label testbed.owner='me' names no process"),
        (labelled(run=RUN, owner=DEAD + ":more"), f"its label testbed.owner='{DEAD}:more' names no process"),
        (labelled(run=RUN, owner=DEAD, of_image={"testbed.run": RUN}), "its label testbed.run=0123abcd is its image's"),
        (labelled(run=RUN, owner=DEAD, of_image={"testbed.run": "fedcba98"}), None),
        (labelled(run=RUN, owner=DEAD), None),
        (labelled(run=RUN, owner=DETACHED), None),
        (labelled(run=RUN, owner="-:-:-:17:0"), None),
    ],
)
def test_a_record_is_whole_or_the_object_is_nobodys(record: Labelled, flaw_of_it: str | None) -> None:
    assert flaw(record) == flaw_of_it


def test_what_names_a_run_and_another_owner_is_not_of_the_run() -> None:
    known, foreign = sort([labelled(run=RUN, owner=DEAD), labelled(name="odd", run=RUN, owner=DETACHED)])
    assert [(run.owner, [labelled.name for labelled in run.objects]) for run in known] == [
        (DEAD, ["it"]),
        (DETACHED, ["odd"]),
    ]
    assert foreign == []


@needs_machine_id
@pytest.mark.parametrize(
    ("starter", "up", "stays", "is_stale"),
    [("dead", True, True, False), ("dead", False, False, True), ("alive", False, False, False)],
)
def test_a_stack_that_is_to_stay_is_stale_if_whoever_brought_it_up_died_before_it_was_up(
    starter: str, up: bool, stays: bool, is_stale: bool
) -> None:
    by = _label(**HERE, start="1") if starter == "dead" else _label(**HERE)
    objects = [labelled(run=RUN, owner=DETACHED, starter=by)]
    objects += [labelled(kind="volume", run=RUN, owner=DETACHED, starter=by, up="")] if up else []
    ((run,), _) = sort(objects)
    assert (run.stays, run.is_stale) == (stays, is_stale)


class _Engine:
    """An engine with these objects, which filters as Docker's does."""

    def __init__(self, *objects: Labelled) -> None:
        self.objects = list(objects)
        self.late: list[Labelled] = []
        """What is there only once all else is removed."""

    def labelled(self, label: str, value: str | None = None) -> list[Labelled]:
        return [
            labelled
            for labelled in self.objects
            if label in labelled.labels and value in (None, labelled.labels[label])
        ]

    def discard(self, labelled: Labelled) -> None:
        if labelled.name == "stuck":
            raise LabError("network stuck has active endpoints")
        self.objects.remove(labelled)
        if not self.objects and self.late:
            self.objects.append(self.late.pop())

    @property
    def names(self) -> set[str]:
        return {labelled.name for labelled in self.objects}


@pytest.fixture
def downed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The projects that Compose was told to take down."""
    projects: list[str] = []

    def composer(_file: object, *, project: str) -> Any:
        return SimpleNamespace(down=lambda *, timeout_s: projects.append(project) if timeout_s else None)

    monkeypatch.setattr(module, "Composer", composer)
    return projects


@needs_machine_id
def test_an_empty_label_beside_a_dead_owner_is_not_taken_for_every_run(downed: list[str]) -> None:
    dead = _label(**HERE, start="1")
    engine = _Engine(
        labelled(name="alive", run=RUN, owner=_label(**HERE)),
        labelled(name="net", kind="network", run=RUN, owner=_label(**HERE)),
        labelled(name="empty", run="", owner=dead),
        labelled(name="inherited", run="fedcba98", owner=dead, of_image={"testbed.run": "fedcba98"}),
        labelled(name="unowned", kind="volume", run="89abcdef"),
        labelled(name="dead", run="00000000", owner=dead),
        labelled(name="dead net", kind="network", run="00000000", owner=dead),
        labelled(name="of the dead, it says", run="00000000", owner=DETACHED),
    )
    messages: list[str] = []
    assert clear_stale(engine, messages.append) == (["00000000"], [])  # type: ignore[arg-type]  # what it needs of one
    assert engine.names == {"alive", "net", "empty", "inherited", "unowned", "of the dead, it says"}
    assert downed == [], "Compose would remove by the project's name, whoever bears it"


def test_a_run_is_removed_with_its_project(downed: list[str]) -> None:
    engine = _Engine(labelled(run=RUN, owner=DEAD), labelled(name="other", run="fedcba98", owner=DEAD))
    remove_run(engine, RUN, DEAD)  # type: ignore[arg-type]  # what it needs of one
    assert engine.names == {"other"}
    assert downed == [f"testbed-{RUN}"]


def test_a_swarms_services_go_before_its_tasks_and_networks_once_no_task_is_left(downed: list[str]) -> None:
    kinds = ["network", "container", "service", "volume"]
    order: list[str] = []
    left = [["task"], ["task"], []]

    def tasks(project: str) -> list[str]:
        assert (project, order) == (f"testbed-{RUN}", ["service"])
        return left.pop(0)

    class _Noting(_Engine):
        manager = SimpleNamespace(tasks=tasks)

        def discard(self, labelled: Labelled) -> None:
            order.append(labelled.name)
            super().discard(labelled)

    engine = _Noting(*(labelled(name=kind, kind=kind, run=RUN, owner=DEAD) for kind in kinds))
    remove_run(engine, RUN, DEAD)  # type: ignore[arg-type]  # what it needs of one
    assert left == []
    assert order == ["service", "container", "network", "volume"]
    assert downed == [], "Compose knows nothing of a Swarm's stack"


@pytest.mark.parametrize("run_id", ["", "mine", "0123ABCD"])
def test_what_is_no_runs_id_removes_nothing(run_id: str, downed: list[str]) -> None:
    engine = _Engine(labelled(run=run_id, owner=DEAD))
    remove_run(engine, run_id, DEAD)  # type: ignore[arg-type]  # what it needs of one
    assert engine.names == {"it"}
    assert downed == []


@needs_machine_id
def test_what_the_engine_does_not_let_go_of_keeps_nobody_from_starting(downed: list[str]) -> None:
    dead = _label(**HERE, start="1")
    engine = _Engine(
        labelled(name="stuck", kind="network", run="00000000", owner=dead),
        labelled(name="volume", kind="volume", run="00000000", owner=dead),
        labelled(name="dead", run="11111111", owner=dead),
    )
    messages: list[str] = []
    removed, problems = clear_stale(engine, messages.append)  # type: ignore[arg-type]  # what it needs of one
    assert removed == ["11111111"]
    assert problems == ["run 00000000: could not remove stuck: network stuck has active endpoints"]
    assert engine.names == {"stuck"}
    assert problems[0] in messages
    assert downed == ["testbed-00000000", "testbed-11111111"]


@needs_machine_id
def test_what_the_engine_still_does_for_a_killed_client_is_removed_as_well(downed: list[str]) -> None:
    dead = _label(**HERE, start="1")
    engine = _Engine(labelled(name="made", run="00000000", owner=dead))
    engine.late = [labelled(name=name, run="00000000", owner=dead) for name in ("later", "late")]
    messages: list[str] = []
    assert clear_stale(engine, messages.append) == (["00000000"], [])  # type: ignore[arg-type]  # what it needs of one
    assert engine.names == set()
    assert messages == ["clearing up after run 00000000, whose owner is gone"]
    assert set(downed) == {"testbed-00000000"}
