"""A lab on a Swarm: its engines, its machines, and what an engine says of its Swarm."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.backends.docker import swarm as module
from testbed.backends.docker.swarm import LabMachine, SwarmLab
from testbed.backends.docker.swarming import Manager, Membership, SwarmNode, Task
from testbed.errors import EnvironmentUnfitError, InvalidValueError, LabError
from testbed.evidence.hoststate import HostState
from testbed.lab.wholeness import NOBODY

_COMPOSE = """
services:
  api: {image: i, networks: [lan], deploy: {replicas: 2}}
  db: {image: i, networks: [lan]}
networks:
  lan: {driver: overlay}
"""


class _Engine:
    """An engine of the Swarm ``s``, by the variables that lead to it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        name = (environment or {"DOCKER_HOST": "m:a"})["DOCKER_HOST"]
        kind, _, node = name.partition(":")
        if kind == "dead":
            raise EnvironmentUnfitError(f"no Docker engine answers at {name}")
        self.place = name
        self.membership = Membership(node="" if kind == "none" else node, manages=kind == "m")
        nodes = [SwarmNode(id=node, name=f"machine-{node}") for node in "ab"]
        nodes += [SwarmNode(id="c", name="machine-a", takes_tasks=False), SwarmNode(id="d", name="gone", ready=False)]
        self.manager = SimpleNamespace(nodes=lambda: nodes) if kind == "m" else None

    def describe(self) -> str:
        """As its place."""
        return self.place


@pytest.fixture
def lab(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> SwarmLab:
    """One that is not up."""
    (tmp_path / "compose.yaml").write_text(_COMPOSE)
    monkeypatch.setattr(module, "Engine", _Engine)
    made = SwarmLab(tmp_path / "compose.yaml")
    monkeypatch.setattr(type(made.stack), "engine", _Engine())
    return made


def connected(lab: SwarmLab, *others: str) -> None:
    """Have a lab find its engines, up to the removal of what killed runs left."""
    lab.images_from = [{"DOCKER_HOST": name} for name in others]

    class _FoundError(Exception): ...

    def found(*_: object) -> None:
        raise _FoundError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "clear_stale", found)
        with pytest.raises(_FoundError):
            lab.up()


def test_every_machine_that_may_have_tasks_needs_an_engine(lab: SwarmLab) -> None:
    connected(lab, "m:a", "w:b")
    with pytest.raises(EnvironmentUnfitError, match=r"no engine of machine-b \(b\) is named"):
        connected(lab)


def test_engines_of_another_swarm_are_told_with_all_else_that_is_wrong(lab: SwarmLab) -> None:
    with pytest.raises(EnvironmentUnfitError) as raised:
        connected(lab, "w:z", "none:", "dead:")
    assert [line.split(" is in another")[0] for line in str(raised.value).splitlines()[:3]] == [
        "--testbed-engines: no Docker engine answers at dead:",
        "--testbed-engines: w:z",
        "--testbed-engines: none:",
    ]
    assert "no engine of machine-b" in str(raised.value)


@pytest.mark.parametrize(("place", "state"), [("w:a", "manages no Swarm"), ("none:", "is in no Swarm")])
def test_the_first_engine_must_manage_the_swarm(
    lab: SwarmLab, monkeypatch: pytest.MonkeyPatch, place: str, state: str
) -> None:
    monkeypatch.setattr(type(lab.stack), "engine", _Engine({"DOCKER_HOST": place}))
    with pytest.raises(EnvironmentUnfitError, match=f"{place} {state}.*docker swarm init"):
        connected(lab)


def test_links_of_an_overlay_network_can_be_named(lab: SwarmLab) -> None:
    assert [str(ref) for ref in lab.topology.links("db -> api[*]")] == ["db -> api[1]", "db -> api[2]"]


def test_a_machine_is_known_by_its_name_if_that_is_its_alone_and_by_its_node(lab: SwarmLab) -> None:
    assert lab.machine("machine-b").node == "b"
    assert lab.machine("c").name == "machine-a"
    with pytest.raises(InvalidValueError, match=r"machine 'machine-a': 2 have this name: say which, a,? ?(and )?c"):
        lab.machine("machine-a")
    with pytest.raises(InvalidValueError, match=r"machine 'machine-x': .*machine-b"):
        lab.machine("machine-x")


def test_of_several_containers_of_a_task_the_one_that_runs_is_the_host_and_one_that_is_gone_is_nobody(
    lab: SwarmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(id_: str, state: str, created: int, service: str = "db", slot: int = 1) -> dict[str, Any]:
        name = f"{lab.composer.project}_{service}"
        labels = {"com.docker.swarm.service.name": name, "com.docker.swarm.task.name": f"{name}.{slot}.{id_}"}
        return {"Id": id_, "State": state, "Created": created, "Labels": labels}

    rows = {
        "a": [row("old", "exited", 1), row("runs", "running", 2), row("api", "running", 1, "api", 2)],
        "b": [row("never started", "created", 3), row("strange", "running", 1, "other")],
    }
    seen: dict[str, tuple[str, str]] = {}

    def host(name: str) -> Any:
        def state(row: Mapping[str, Any]) -> HostState:
            if name == "api[2]":
                raise LabError("container api is gone")
            seen[name] = where["node"], row["Id"]
            return HostState(status=row["State"])

        where = {"node": ""}
        return SimpleNamespace(move=lambda engine, _agents: where.update(node=engine.node), state=state)

    engines = {node: SimpleNamespace(node=node, listing=lambda node=node, **_labels: rows[node]) for node in ("a", "b")}
    monkeypatch.setattr(lab, "_engines", engines)
    monkeypatch.setattr(lab, "_agents_on", lambda engine: engine)
    monkeypatch.setattr(lab, "_hosts", {name: host(name) for name in lab.topology.hosts})
    assert lab.host_states() == {"api[1]": NOBODY, "api[2]": NOBODY, "db": HostState(status="running")}
    assert seen == {"db": ("a", "runs")}


def test_a_machine_without_hosts_is_parted_from_nothing(lab: SwarmLab) -> None:
    with pytest.raises(LabError, match="machine machine-b has no hosts"):
        lab.machine("machine-b").isolate()


def test_one_replica_of_several_is_not_started_alone(lab: SwarmLab) -> None:
    with pytest.raises(LabError, match=r"`api\[1\]`: a Swarm starts a replica anew only together with all 2"):
        lab.start_host(SimpleNamespace(name="api[1]", service_name="api"))  # type: ignore[arg-type]  # what it needs


def test_a_machine_that_takes_tasks_again_is_drained_no_more(lab: SwarmLab) -> None:
    done: list[tuple[str, str]] = []
    manager: Any = lab.stack.engine.manager
    manager.drain = lambda node, labels: done.append((node, labels["testbed.run"]))
    manager.rejoin = lambda node, labels: done.append((node, f"without {labels[0]}"))
    LabMachine(lab, "b", "machine-b").drain()
    assert done == [("b", lab.run_id)]
    with pytest.raises(LabError, match="machine machine-a takes no tasks as it is"):
        LabMachine(lab, "c", "machine-a").drain()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lab, "sweep", lambda: None)
        lab.await_healthy()
    assert done == [("b", lab.run_id), ("b", "without testbed.run")]


class _Handle:
    """A node as the engine's client has it."""

    def __init__(self) -> None:
        self.id = "n"
        spec = {"Availability": "active", "Role": "worker", "Labels": {"their": "own"}}
        self.attrs: dict[str, Any] = {"Spec": spec, "Description": {"Hostname": "b"}}

    def update(self, spec: Mapping[str, Any]) -> None:
        self.attrs["Spec"] = spec


def test_a_drained_node_has_the_labels_of_the_run_that_wants_it_so_that_the_next_run_undoes_it() -> None:
    handle = _Handle()
    none = SimpleNamespace(list=lambda filters: [])
    nodes = SimpleNamespace(get=lambda _id: handle, list=lambda: [handle])
    client = SimpleNamespace(nodes=nodes, services=none, secrets=none, configs=none)
    manager = Manager(client)  # type: ignore[arg-type]  # what it needs of one
    before = handle.attrs["Spec"]
    assert list(manager.labelled({"label": "testbed.run"})) == []
    manager.drain("n", {"testbed.run": "r", "testbed.owner": "o"})
    assert handle.attrs["Spec"]["Availability"] == "drain"
    for label in ("testbed.run", "testbed.run=r"):
        ((kind, name, labels, item),) = manager.labelled({"label": label})
        assert (kind, name, labels["testbed.owner"], item) == ("node", "b", "o", handle)
    assert list(manager.labelled({"label": "testbed.run=other"})) == []
    manager.rejoin("n", ("testbed.run", "testbed.owner"))
    assert handle.attrs["Spec"] == before


@pytest.mark.parametrize(
    ("info", "membership"),
    [
        ({}, Membership(node="", manages=False)),
        ({"Swarm": {"NodeID": "", "LocalNodeState": "inactive"}}, Membership(node="", manages=False)),
        ({"Swarm": {"NodeID": "n", "LocalNodeState": "locked"}}, Membership(node="", manages=False)),
        (
            {"Swarm": {"NodeID": "n", "LocalNodeState": "active", "ControlAvailable": True}},
            Membership(node="n", manages=True),
        ),
    ],
)
def test_an_engines_place_in_its_swarm(info: dict[str, Any], membership: Membership) -> None:
    assert Membership.of(info) == membership


def test_a_managers_nodes_and_tasks() -> None:
    node = {"ID": "n", "Description": {"Hostname": "b"}, "Status": {"State": "down"}, "Spec": {"Availability": "drain"}}
    failed = {"ID": "t", "ServiceID": "s", "Slot": 2, "Status": {"State": "rejected", "Err": "no such image"}}
    filters: list[Any] = []
    api = SimpleNamespace(nodes=lambda: [node], tasks=lambda filters=filters: [failed])
    manager = Manager(SimpleNamespace(api=api))  # type: ignore[arg-type]  # what it needs of one
    assert manager.nodes() == [SwarmNode(id="n", name="b", ready=False, takes_tasks=False)]
    assert manager.tasks("p") == [Task(state="rejected", words="rejected: no such image")]
