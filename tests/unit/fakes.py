"""A lab without an engine: hosts that run nothing, and agents that hold tc's settings as a kernel would."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from testbed import Lab, units
from testbed.backends.local.images import Images
from testbed.errors import AgentError
from testbed.evidence.hoststate import PAUSED, RUNNING, HostState
from testbed.images.found import FoundImage
from testbed.images.settings import Settings
from testbed.images.unpack import Lost
from testbed.lab.backend import Attached
from testbed.lab.channel import Channel
from testbed.lab.host import Host
from testbed.lab.succession import CAPTURE, PORTS
from testbed.netem import qdisc
from testbed.observe.connections import Connection, ConnectionTable, Received
from testbed.observe.counters import Readings
from testbed.spec.links import PortRef
from testbed.spec.topology import Topology

MACS = {"client": "02:00:00:00:00:01", "server": "02:00:00:00:00:02", "other": "02:00:00:00:00:03"}
_PLACE = re.compile(r"prio (\d+) handle (0x[0-9a-f]+)")
_PARENT = re.compile(r"parent ([0-9a-f]+:[0-9a-f]*)")


class FakeAgent:
    """An agent with one port; a test may change what it holds."""

    def __init__(self) -> None:
        self.lives, self.answers, self.silent_s = True, True, 0.0
        self.filters: dict[tuple[int, int], dict[str, Any]] = {}
        self.netems: dict[str, dict[str, Any]] = {}
        """By parent, as `tc -s -j qdisc show` has them."""
        self.calls: list[str] = []
        self.amiss: dict[str, list[str]] = {}
        """By port, what is wrong with its path."""
        self.carries = False
        """Whether the port's qdiscs are a carried kernel's, and stay when the port is given back."""
        self.beyond_repair: list[str] = []
        self.entry: list[dict[str, Any]] = []
        """What feeds the port, as `tc -s -j filter show` has it."""
        self.at_taps: dict[str, Any] = {}
        self.at_port = {"came_packets": 0, "refused_packets": 0}
        """By the port's own device, if no kernel carries it."""
        self.passages_ns: dict[str, list[int]] = {}
        """By carried kernel, how long frames took through it."""
        self.clocks: dict[str, Any] = {}
        """By carried kernel."""
        self.clocks_run: list[bool] = []
        """Whether they were to run, at each request."""
        self.clocks_watched: dict[str, Any] = {}

    def die(self) -> None:
        """Answer nothing any more."""
        self.lives = self.answers = False

    def give_up(self) -> None:
        """Nothing more is said to it."""

    def call(self, operation: str, **arguments: Any) -> Any:
        """What the real one answers, as far as a lab asks for it here."""
        if not self.lives:
            raise AgentError(f"{operation!r}: the agent has died")
        self.calls.append(operation)
        answer = getattr(self, f"_{operation}", None)
        return None if answer is None else answer(**arguments)

    def _tc(self, *, lines: list[qdisc.TcLine], **_: Any) -> dict[str, Any]:
        shown: list[list[dict[str, Any]]] = []
        complaints: list[dict[str, str]] = []
        for line in lines:
            if not isinstance(line, str):
                shown.append(self._qdisc(**line["read_qdisc"]))
                continue
            what, verb, *_rest = line.split()
            if line.endswith("ingress"):
                shown.append(self.entry)
            elif verb in ("get", "show"):
                shown.append(self._shown(what, line))
            elif verb == "delete" and not self._delete(what, line):
                complaints.append({"line": line, "text": "No such file or directory"})
            elif verb == "replace":
                self._replace(what, line)
        return {"shown": shown, "complaints": complaints, "notes": []}

    def _replace(self, what: str, line: str) -> None:
        if what == "filter" and " flower " in line:
            priority, number = _place(line)
            words = line.partition(" flower ")[2].split()
            keys = dict(zip(words[::2], words[1::2], strict=True))
            options = {"handle": number, "classid": keys.pop("classid"), "keys": keys}
            self.filters[priority, number] = {"kind": "flower", "pref": priority, "options": options}
        elif what == "qdisc" and "netem" in line:
            head, _, netem = line.partition(" netem ")
            parent, handle = _parent(line), head.split()[-1]
            old = self.netems.get(parent, {})
            kept = old if old.get("handle") == handle else {"packets": 0, "drops": 0, "qlen": 0}
            options = _options(netem.split())
            self.netems[parent] = {**kept, "kind": "netem", "parent": parent, "handle": handle, "options": options}

    def _delete(self, what: str, line: str) -> bool:
        if line.endswith(" root"):
            self.netems.clear()
            self.filters.clear()
            return True
        held: dict[Any, Any] = self.filters if what == "filter" else self.netems
        return held.pop(_place(line) if what == "filter" else _parent(line), None) is not None

    def _shown(self, what: str, line: str) -> list[dict[str, Any]]:
        if what == "filter":
            return [shown for place, shown in self.filters.items() if " show " in line or place == _place(line)]
        return list(self.netems.values())

    def _qdisc(self, *, device: str, parent: int) -> list[dict[str, Any]]:
        assert device == "veth1"
        netem = self.netems.get(f"{parent >> 16:x}:{parent & 0xFFFF:x}")
        return [] if netem is None else [netem]

    def _paths(self, *, ports: list[str]) -> dict[str, Any]:
        return {name: {"amiss": self.amiss.get(name, []), "gone": False} for name in ports}

    def _release(self, *, ports: list[str]) -> dict[str, Any]:
        if not self.carries:
            self._delete("qdisc", "qdisc delete dev veth1 root")
        return {"released": ports}

    def _heard(self, **_: Any) -> dict[str, float]:
        return {}

    def _repair(self, **_: Any) -> list[str]:
        return self.beyond_repair

    def _carried(self, *, ports: list[str]) -> dict[str, Any]:
        return dict.fromkeys(ports, self.at_taps)

    def _dropped(self, *, ports: list[str]) -> dict[str, Any]:
        return dict.fromkeys(ports, self.at_port)

    def _clocks(self, *, running: bool = True) -> dict[str, Any]:
        self.clocks_run.append(running)
        return self.clocks

    def _watch_passages(self, *, clocks: dict[str, Any], anew: bool = False) -> None:
        self.clocks_watched = clocks

    def _passages(self) -> dict[str, Any]:
        kernels = {name: {"passages_ns": times_ns, "missing_ns": []} for name, times_ns in self.passages_ns.items()}
        return {"kernels": kernels, "due_ns": 0, "overslept_ns": [0] * 50}


def _place(line: str) -> tuple[int, int]:
    match = _PLACE.search(line)
    assert match is not None, line
    return int(match[1]), int(match[2], 16)


def _parent(line: str) -> str:
    match = _PARENT.search(line)
    assert match is not None, line
    return match[1]


def _options(words: list[str]) -> dict[str, Any]:
    """Of delay, loss, limit and seed, as tc writes them."""
    words_left = dict(zip(words[::2], words[1::2], strict=True))
    options: dict[str, Any] = {"limit": int(words_left.pop("limit"))}
    if "delay" in words_left:
        options["delay"] = {"delay": units.parse_time(words_left.pop("delay"), name="delay"), "jitter": 0}
    if "loss" in words_left:
        options["loss-random"] = {"loss": units.parse_ratio(words_left.pop("loss"), name="loss"), "correlation": 0}
    if "seed" in words_left:
        options["seed"] = int(words_left.pop("seed"))
    assert not words_left, f"the fake knows nothing of {words_left}"
    return options


class FakeHost:
    """A host that has addresses, and in which nothing runs."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self._address = name, f"172.18.0.{number}"

    def addresses(self, _network: str | None = None) -> tuple[str, ...]:
        """Its own, on the only network."""
        return (self._address,)

    def mac(self, _network: str) -> str:
        """Its own."""
        return MACS[self.name]

    def source_addresses(self, network: str) -> tuple[str, ...]:
        """Its own address."""
        return self.addresses(network)

    def marks(self, network: str) -> tuple[str, ...]:
        """Both."""
        return (*self.addresses(network), self.mac(network))

    def end_test(self) -> None:
        """Nothing is held."""

    def send_per_packet(self, _network: str) -> dict[str, bool]:
        """As if offloads had been on."""
        return {"tso": True}

    def send_as_before(self, _network: str, _offloads: Mapping[str, bool]) -> None:
        """Nothing was changed."""


class FakeLab(Lab):
    """Client, server and other on one network."""

    run_id, netem_engine, seedable = "abc123", "host", True
    topology = Topology.from_compose(
        {
            "services": {name: {"image": "x", "networks": {"lan": None}} for name in MACS},
            "networks": {"lan": {"name": "p_lan"}},
        }
    )
    profiles: Mapping[str, Any] = {}
    tables: Mapping[str, Path] = {}

    def __init__(self) -> None:
        super().__init__()
        self.agent = FakeAgent()
        """The one with the server's port."""
        self.capturing = FakeAgent()
        self.forgotten: list[str] = []
        self.left: list[Mapping[str, Any]] = []
        """What another agent was given to put right."""
        self.states: dict[str, HostState] = {}
        self.tables_of: dict[str, list[Connection]] = {}
        """The TCP connections of hosts."""
        self.counted: dict[str, Readings] = {}
        self.counting: list[str] = []
        self.received: dict[str, list[Received]] = {}
        self.times: dict[str, tuple[object, float]] = {}
        """What their kernels have counted."""
        self._others = {name: FakeAgent() for name in MACS if name != "server"}
        self._fakes = {name: cast("Host", FakeHost(name, number)) for number, name in enumerate(MACS, start=2)}

    def up(self) -> None:
        """It is."""

    def down(self) -> None:
        """There is nothing to take down."""

    def agents(self) -> Mapping[str, Channel]:
        """The server's holds all ports, as far as deaths are concerned."""
        return {PORTS: cast("Channel", self.agent), CAPTURE: cast("Channel", self.capturing)}

    def forget_agent(self, role: str) -> None:
        """Note it."""
        self.forgotten.append(role)

    def replace_agent(self, left: Sequence[Mapping[str, Any]]) -> None:
        """Another takes its place, and is given what the dead one left."""
        self.agent, self.left = FakeAgent(), list(left)

    def host_states(self) -> Mapping[str, HostState]:
        """As a test says."""
        return self.states

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """Have them run."""
        self.states |= dict.fromkeys(wrong, HostState(status=RUNNING))

    def thaw(self, host: str) -> None:
        """Have it run."""
        self.states[host] = HostState(status=RUNNING)

    def freeze(self, host: str) -> None:
        """Have it stand still."""
        self.states[host] = HostState(status=PAUSED)

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """Those that have connections."""
        return list(self.tables_of)

    def tcp_tables(self) -> dict[str, ConnectionTable]:
        """As a test says."""
        return {host: ConnectionTable(connections=tuple(known)) for host, known in self.tables_of.items()}

    def tcp_counters(self, hosts: Sequence[str]) -> dict[str, Readings]:
        """As a test says."""
        return {host: self.counted[host] for host in hosts if host in self.counted}

    def count_payload(self, hosts: Sequence[str]) -> None:
        """Note whose."""
        self.counting = list(hosts)

    def payload(self) -> Mapping[str, Sequence[Received]]:
        """As a test says."""
        return self.received

    def processor_times(self) -> Mapping[str, tuple[object, float]]:
        """As a test says."""
        return self.times

    def destroy_tcp(self, host: str, ids: Sequence[str]) -> str | None:
        """At once."""
        self.tables_of[host] = [known for known in self.tables_of[host] if known.id not in ids]
        return None

    @property
    def hosts(self) -> Mapping[str, Host]:
        """The fakes."""
        return self._fakes

    def attach(self, host: str, network: str, *, to_count: bool = False) -> Attached:  # the same here
        """At an agent of its own."""
        port: dict[str, Any] = {
            "device": "veth1",
            "last": None,
            "entry": None,
            "kernel": None,
            "released": False,
            "mtu": 1500,
            "gateway": None,
            "found": {},
        }
        channel = cast("Channel", self._others.get(host, self.agent))
        ref = PortRef(host, network)
        return Attached(ref=ref, name=str(ref), channel=channel, port=port, ifindex=self._index(host))

    def port_of_sender(self, host: str, _network: str) -> int:
        """A number of its own."""
        return self._index(host)

    def capture_agent(self, _host: str = "") -> Channel:
        """The server's."""
        return cast("Channel", self.agent)

    @staticmethod
    def _index(host: str) -> int:
        return list(MACS).index(host) + 10


def _no_files(_folder: Path) -> Lost:
    raise AssertionError("a fake image has no files")


class FakeImages(Images):
    """Every image is there, and built, with the same settings; but those that it lacks."""

    def __init__(self, settings: Settings | None = None, *, lacks: Sequence[str] = ()) -> None:
        self.settings, self.lacks = settings or Settings(command=("python3",)), lacks

    def find(self, reference: str) -> FoundImage | None:
        """See `Images`."""
        if reference in self.lacks:
            return None
        return FoundImage(
            id=reference,
            content=reference,
            name=reference,
            source="a test",
            settings=self.settings,
            unpack=_no_files,
        )

    def built(self, service: str) -> FoundImage | None:
        """See `Images`."""
        return self.find(service)
