"""The Compose lab: a stack of containers, the agent beside its network, and nothing left of either.

Every run has a project name of its own and a label, ``testbed.run=<id>``, on everything it owns; its owner's
process is in a second label, so that the next run can clear up after one that was killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker.errors
from docker.models.containers import Container

from testbed import reading
from testbed.backends import hostfiles, onlyone
from testbed.backends.docker import images
from testbed.backends.docker.agents import ROLES, TUN
from testbed.backends.docker.engine import (
    INPUTS_LABEL,
    OWNER_LABEL,
    ROLE_LABEL,
    RUN_LABEL,
    Demultiplexed,
    Engine,
    Exec,
    RefusedError,
    refusals_told,
)
from testbed.backends.docker.runs import (
    DETACHED,
    STACK_LABEL,
    STARTER_LABEL,
    UP_LABEL,
    Run,
    clear_stale,
    owner,
    remove_run,
    runs,
)
from testbed.backends.starting import Progress, Unwell, allowed_s, last_check, unwell_in_words
from testbed.compose import composefile
from testbed.compose.composer import Composer
from testbed.compose.options import NETEM_CHOICES, UP_DEADLINE, files_of
from testbed.errors import (
    AgentError,
    CommandTimeoutError,
    EnvironmentUnfitError,
    ImageBuildError,
    InvalidComposeError,
    InvalidValueError,
    LabError,
    ServiceFailedError,
)
from testbed.evidence.hoststate import EXITED, GONE, PAUSED, RUNNING, HostState, meant_to_end
from testbed.lab.backend import Attached, Spot
from testbed.lab.channel import Channel
from testbed.lab.host import Host, Program, Result, seconds
from testbed.lab.lab import Lab
from testbed.lab.observer import spots_of_port
from testbed.lab.perpacket import PerPacket
from testbed.lab.succession import CAPTURE, PORTS, beside
from testbed.lab.suspensions import Suspended
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.lab.wholeness import LAST_LINES, NOBODY
from testbed.netem.profiles import Profiles, Tables, load_profiles, load_tables, read_trace
from testbed.observe.connections import Table
from testbed.spec import topologies
from testbed.spec.impairment import unknown
from testbed.spec.topology import LinkRef, Topology

_BUILD_DEADLINE_S = 900.0
_LAST_LINES = 20
_END_WITHIN_S = 20
"""How long the engine may take to tell that what it killed has ended."""


def start_ports_agent(
    engine: Engine, image: str, *, tag: str, outlives_us: bool = False, **identity: Any
) -> tuple[Container, Demultiplexed]:
    """Start the agent beside the network, with the least that it needs: host network, NET_ADMIN, /dev/net/tun."""
    command = ["ports", "--tag", tag]
    options = {**ROLES["ports"].options(), "outlives_us": outlives_us, **identity}
    try:
        return engine.attached(image, command, **options)
    except RefusedError as error:
        if TUN not in str(error):
            raise
        # The host engine needs no tap; `capabilities` says what is missing if the carried one is wanted.
        return engine.attached(image, command, **{**options, "devices": []})


class ComposeLab(Lab):
    """A Compose file, brought up as a stack of its own.

    ::

        with ComposeLab("compose.yaml") as lab:
            lab.impair("client <-> server", "lossy")
            assert lab.host("client").run(["python3", "paper_client.py", "server"]).ok
    """

    def __init__(
        self,
        compose_file: str | Path | Sequence[str | Path] | None = None,
        *,
        netem: str = "auto",
        compose_profiles: Sequence[str] = (),
        up_deadline: str = UP_DEADLINE,
        outlives_us: bool = False,
        say: Callable[[str], None] = lambda _text: None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is read or started yet.

        ``compose_file``: one, or several that add to the first, as with ``docker compose -f a -f b``. ``netem``:
        ``host`` (this kernel's), ``carried`` (a kernel that we bring) or ``auto`` (the host's where it has one).
        ``say`` hears one line for each step that may take longer than a second, ``warn`` what Compose warns of in its
        file (by itself ``say``). ``outlives_us``: the stack and its
        impairments stay when this process ends, until `down`; `take_up` finds them again.
        """
        super().__init__()
        if netem not in NETEM_CHOICES:
            raise EnvironmentUnfitError(f"netem={netem!r}: must be one of {', '.join(NETEM_CHOICES)}")
        self.run_id = secrets.token_hex(4)
        self._asked_netem = netem
        self._say = say
        self._warn = warn or say
        self._outlives_us = outlives_us
        self._up_deadline_s = allowed_s(up_deadline)
        self.composer = Composer(files_of(compose_file), project=f"testbed-{self.run_id}", profiles=compose_profiles)
        self._config: dict[str, Any] | None = None
        self._topology: Topology | None = None
        self._warned: set[str] = set()
        self._profiles: Profiles | None = None
        self._tables: Tables | None = None
        self._hosts: dict[str, ComposeHost] = {}
        self._engine: Engine | None = None
        self._undo = ExitStack()
        self._netem_image = ""
        self._agent: Channel | None = None
        self._capture_agent: Channel | None = None
        self._found: dict[int, Any] = {}
        """How agents have found each port that they attached: of one that was forgotten, too, to put it right."""
        self._config_up: dict[str, Any] | None = None
        """What Compose was given, to make a container anew; None of a stack that another process brought up."""
        self._seen: dict[str, tuple[Any, HostState]] = {}
        """The state of each host, and what the engine's short form of it was then."""
        self.failed_logs: dict[str, str] = {}
        """The logs of services that failed while the stack came up, by host."""

    # --- what is known before anything runs ------------------------------------------------------

    @property
    def topology(self) -> Topology:  # type: ignore[override]  # read lazily: collection must not need an engine
        """Hosts and networks of the Compose file. Raises InvalidComposeError."""
        if self._topology is None:
            files = list(self.composer.files) or composefile.found_by_compose(os.environ)
            profiles = composefile.look_through(
                filter(reading.exists, files), environment=os.environ, asked=self.composer.profiles
            )
            self._config = self.composer.config()
            for warning in self.composer.warnings:
                if warning not in self._warned:
                    self._warned.add(warning)
                    self._warn(warning)
            if asked := list(topologies.asked_of_compose(self._config)):
                raise InvalidComposeError(f"{each}: a local lab alone does this: --lab local" for each in asked)
            self._topology = Topology.from_compose(self._config, inactive=profiles)
        return self._topology

    @property
    def only_one(self) -> tuple[str, ...]:  # type: ignore[override]  # likewise
        """Published ports, names and subnets that an engine has once. Raises InvalidComposeError."""
        self.topology  # noqa: B018  # reads the file
        config = self._config or {}
        return (*onlyone.ports(config), *onlyone.names_and_subnets(config))

    @property
    def profiles(self) -> Mapping[str, Any]:  # type: ignore[override]  # likewise
        """Every profile, the ones in ``netem/`` beside the Compose file first. Raises InvalidValueError."""
        if self._profiles is None:
            self._profiles = load_profiles(self.composer.directory / "netem")
        return self._profiles

    def read_trace(self, name: str) -> str:
        """The text of a trace in ``netem/`` beside the Compose file, or of our own. Raises InvalidValueError."""
        return read_trace(name, self.composer.directory / "netem")

    @property
    def tables(self) -> Mapping[str, Path]:  # type: ignore[override]  # likewise
        """Tables of delays in ``netem/`` beside the Compose file. Raises InvalidValueError."""
        if self._tables is None:
            self._tables = load_tables(self.composer.directory / "netem")
        return self._tables

    @property
    def hosts(self) -> Mapping[str, ComposeHost]:
        """Every host of the running stack, by name."""
        return self._hosts

    @property
    def engine(self) -> Engine:
        """The Docker engine, connected on first use. Raises EnvironmentUnfitError."""
        if self._engine is None:
            self._engine = Engine()
        return self._engine

    # --- up and down -----------------------------------------------------------------------------

    @refusals_told()
    def up(self) -> None:
        """Bring the stack and its agent up, at the same time, and wait until every service is well.

        Raises InvalidComposeError, EnvironmentUnfitError, ServiceFailedError; on failure nothing stays.
        """
        topology = self.topology
        engine = self.engine
        with self._step("looking for what killed runs left"):
            clear_stale(engine, self._say)
        self._netem_image = images.ensure_netem(engine, self._say)
        config = self._labelled(self._build_services(topology))
        with contextlib.ExitStack() as undo, ThreadPoolExecutor(1, "testbed-agent") as pool:
            undo.callback(self._remove_stack)
            agent = pool.submit(self._start_agent)
            undo.callback(self._stop_agent, agent)
            if self._asked_netem == "host":
                agent.result()  # quick, with no kernel to boot; and no stack is started for nothing
            with self._step("starting the stack"):
                self._compose_up(config)
            with self._step("waiting for the agent"):
                self._agent, self.netem_engine = agent.result()
            self._look_again()
            self._config_up = config
            self.whole.up()
            self._undo = undo.pop_all()

    @refusals_told()
    def take_up(self) -> bool:
        """Find the stack that another process brought up from the same Compose file and left; False if none is up.

        From then on this lab owns it: `leave` it, or take it `down`.
        """
        for agent in self.engine.containers(testbed_stack=self._stack_name(), testbed_role="ports"):
            if not any(run.stays and run.id == agent.labels.get(RUN_LABEL) for run in self._left()):
                continue  # somebody is in it, or it was never wholly up
            self.run_id = agent.labels[RUN_LABEL]
            self.composer.project = f"testbed-{self.run_id}"
            self._topology = None  # if it was read before, then with the engine's names of another run
            self._outlives_us = True
            self._netem_image = str(agent.attrs["Config"]["Image"])
            self._agent_container = agent
            kill = partial(self.engine.remove, agent)
            self._agent = channel = Channel(self.engine.attach(agent), name="agent", kill=kill)
            self._undo.callback(self._remove_stack)
            self._undo.callback(self._end_agent, channel)
            self._undo.callback(self._stay_no_more)
            kept = channel.call("recall") or {"engine": "", "seedable": False, "ports": [], "per_packet": {}}
            self.netem_engine, self.seedable = kept["engine"], kept["seedable"]
            self.ports.per_packet = PerPacket(kept["per_packet"])
            self._name_hosts(self.engine.containers(com_docker_compose_project=self.composer.project))
            self.whole.up()
            self.suspensions.links = {
                LinkRef.from_state(each["link"]): Suspended.from_state(each["kept"])
                for each in kept.get("suspended", ())
            }
            self.ports.take_up(kept["ports"], channel)
            return True
        return False

    @refusals_told()
    def remove_left(self) -> list[str]:
        """Remove what is left of stacks of this Compose file whose agent is gone, and the links healed with it.

        Returns their ids; a run that a living process owns is none of them.
        """
        ids = sorted(run.id for run in self._left() if run.stays or run.is_stale)
        for run_id in ids:
            remove_run(self.engine, run_id, DETACHED)
        return ids

    def _left(self) -> list[Run]:
        """The runs of this Compose file that are to stay though no process owns them."""
        return [run for run in runs(self.engine) if run.owner == DETACHED and run.stack == self._stack_name()]

    def _stay_no_more(self) -> None:
        """Begin to take it down: if we are killed meanwhile, the rest is stale."""
        for each in self.engine.labelled(RUN_LABEL, self.run_id):
            if UP_LABEL in each.labels:
                self.engine.discard(each)

    def leave(self) -> None:
        """Let go of a lab that outlives us: it stays as it is, impairments included."""
        if self._agent is None:
            return
        suspended = [{"link": ref.state(), "kept": kept.state()} for ref, kept in self.suspensions.links.items()]
        self._agent.call("keep", state={
            "engine": self.netem_engine, "seedable": self.seedable, "ports": self.ports.state(), "suspended": suspended,
            "per_packet": self.ports.per_packet.state(),
        })  # fmt: skip
        self._agent.close()
        if self._config_up is not None:
            self.engine.make_volume(f"{self.composer.project}-up", {**self._labels(), UP_LABEL: ""})
        if self._capture_agent is not None:
            self._capture_agent.close()
        for host in self._hosts.values():
            host.close()
        self._undo.pop_all()
        self._agent = None

    def end(self) -> None:
        """End a test; see `Lab.end`."""
        with contextlib.ExitStack() as each:
            for host in self._hosts.values():
                each.callback(host.end_test)
            each.callback(super().end)

    @refusals_told()
    def down(self) -> None:
        """Heal, stop the agent, remove the stack. What can be removed is removed even if something fails."""
        self.ports.clear()
        self.elsewhere.watched.clear()
        with self._step("taking the stack down"):
            self._undo.close()
        self._hosts.clear()
        self._agent = None
        self._capture_agent = None

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Say what is going on if it takes longer than a second."""
        timer = threading.Timer(1.0, self._say, [what])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _build_services(self, topology: Topology) -> dict[str, Any]:
        """The Compose configuration with an image for each service that is built, building those that changed."""
        config = dict(self._config or {})
        services = {name: dict(body) for name, body in config["services"].items()}
        config["services"] = services
        missing: list[str] = []
        for name, service in topology.services.items():
            if service.build is None:
                continue
            repository, digest = images.service_image(service.build, name)
            if service.image is None:
                services[name]["image"] = f"{repository}:{digest or 'latest'}"
            if digest is None:
                missing.append(name)
                continue
            built = self.engine.image_labels(services[name]["image"])
            if built is None or built.get(INPUTS_LABEL) != digest:
                missing.append(name)
            services[name]["build"] = {
                **service.build,
                "labels": {**_as_mapping(service.build.get("labels")), INPUTS_LABEL: digest},
            }
        if missing:
            if any(images.starts_from_base(topology.services[name].build or {}) for name in missing):
                images.ensure_base(self.engine, self._say)
            self._say(f"building {', '.join(missing)}")
            failed = self.composer.build(config, missing, timeout_s=_BUILD_DEADLINE_S)
            if failed is not None:
                raise ImageBuildError(f"`docker compose build {' '.join(missing)}` failed:\n{failed}")
            for name in missing:
                if topology.services[name].image is None:
                    tag = services[name]["image"]
                    self.engine.remove_images(tag.partition(":")[0], but=tag)
        return config

    def _labelled(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with our labels on all that it creates."""
        ours = self._labels()
        for body in config["services"].values():
            body["labels"] = {**_as_mapping(body.get("labels")), **ours}
            body.pop("profiles", None)  # what is here was chosen already
        for kind in ("networks", "volumes"):
            for name, body in (config.get(kind) or {}).items():
                body = dict(body or {})
                if not body.get("external"):
                    body["labels"] = {**_as_mapping(body.get("labels")), **ours}
                config[kind] = {**config[kind], name: body}
        return config

    def _labels(self) -> dict[str, str]:
        """What everything of this run carries."""
        return {
            RUN_LABEL: self.run_id,
            **({OWNER_LABEL: DETACHED, STARTER_LABEL: owner()} if self._outlives_us else {OWNER_LABEL: owner()}),
            STACK_LABEL: self._stack_name(),
        }

    def _stack_name(self) -> str:
        """By the files that Compose reads, whether they were named or it finds them."""
        files = self.composer.files or composefile.found_by_compose(os.environ)
        return os.pathsep.join(str(file.resolve()) for file in files) or str(self.composer.directory)

    def _compose_up(self, config: dict[str, Any]) -> None:
        progress = Progress(self._say, allowed_s=self._up_deadline_s)
        with progress.meanwhile(self._not_well_yet):
            failed = self.composer.up(config, timeout_s=self._up_deadline_s)
            containers = self._containers_of_run()
            if failed is not None and progress.left_s <= 0:
                self._raise_unwell(containers, f"not well after {self._up_deadline_s:g} s (the up-deadline): {failed}")
            if failed is not None:
                self._raise_unwell(containers, f"`docker compose up` failed: {failed}")
            self._await_well(containers, progress.left_s, self._up_deadline_s)
        self._name_hosts(containers)

    def _containers_of_run(self) -> list[Container]:
        return self.engine.containers(testbed_run=self.run_id, com_docker_compose_project=self.composer.project)

    def _not_well_yet(self) -> Mapping[str, str]:
        """Each container that is not well, and its state in words; asked while the stack starts. Raises LabError."""
        try:
            found = [(each.name or "", self.engine.state(each)) for each in self._containers_of_run()]
        except (docker.errors.APIError, OSError) as error:
            raise LabError(str(error)) from None
        prefix = f"{self.composer.project}-"
        return {name.removeprefix(prefix): _describe(state) for name, state in found if _wellness(state) != "well"}

    def _name_hosts(self, containers: Sequence[Container]) -> None:
        for container in containers:
            if name := self._host_name(container.labels):
                self._hosts[name] = ComposeHost(self, name, container)

    def _host_name(self, labels: Mapping[str, str]) -> str:
        """Which host a container is, by the labels that Compose gives it; empty if it is none."""
        service = self.topology.services.get(labels.get("com.docker.compose.service", ""))
        if service is None:
            return ""
        number = int(labels["com.docker.compose.container-number"])
        return service.name if service.replicas == 1 else f"{service.name}[{number}]"

    def _await_well(self, containers: Sequence[Container], deadline_s: float, allowed_s: float = 0.0) -> None:
        """Wait until every container runs, and is healthy where it can say so, or has ended with status 0."""
        states: dict[str, str] = {}

        def look() -> list[str]:
            for container in containers:
                states[container.name or container.id or ""] = _wellness(self.engine.state(container))
            return list(states.values())

        def settled(seen: list[str]) -> bool:
            return "waiting" not in seen

        try:
            await_condition(look, settled, deadline_s=max(deadline_s, 0.1))
        except NotSeenError:
            self._raise_unwell(containers, f"not well after {allowed_s or deadline_s:g} s")
        if "failed" in states.values():
            self._raise_unwell(containers, "")

    # --- what becomes of hosts: `wholeness.Backend` ----------------------------------------------

    def host_states(self) -> Mapping[str, HostState]:
        """Every host as the engine tells it now. One whose container was made anew is that container from here on."""
        found: dict[str, dict[str, Any]] = {}
        for each in self.engine.listing(com_docker_compose_project=self.composer.project):
            name = self._host_name(each["Labels"])
            # While Compose makes one anew there are both.
            if name in self._hosts and (name not in found or each["Created"] >= found[name]["Created"]):
                found[name] = each
        return {name: self._state_of(host, found.get(name)) for name, host in self._hosts.items()}

    def _state_of(self, host: ComposeHost, listed: dict[str, Any] | None) -> HostState:
        if listed is None:
            return NOBODY
        if listed["Id"] != host.container.id:
            host.container = self.engine.container(listed["Id"])
        settings = listed["NetworkSettings"]["Networks"] or {}
        ends = {name: str(each.get("EndpointID") or "") for name, each in settings.items()}
        brief = (listed["Id"], listed["State"], ends)
        known, state = self._seen.get(host.name, (None, NOBODY))
        if brief != known or not any(ends.values()):  # each start gives it other endpoints, if it has any
            inspected = self.engine.state(host.container)
            told = inspected.get("State", {})
            networks = {network.engine_name: name for name, network in self.topology.networks.items()}
            state = HostState(
                status=str(listed["State"]), id=listed["Id"][:12], started=str(told.get("StartedAt", "")),
                restarts=int(inspected.get("RestartCount", 0)),
                exit_code=told.get("ExitCode") if listed["State"] == EXITED else None,
                endpoints={networks.get(name, name): end[:12] for name, end in ends.items()},
            )  # fmt: skip
            self._seen[host.name] = brief, state
        return state

    def may_end(self, host: str) -> bool:
        """Whether its program is meant to end: see `hoststate.meant_to_end`."""
        service = self.topology.service_of(host)
        return service is not None and service.name in meant_to_end((self._config or {}).get("services", {}))

    def last_lines(self, host: str) -> tuple[str, ...]:
        """Of a container's log; none if it is gone."""
        try:
            return tuple(self.engine.logs(self._hosts[host].container, last=LAST_LINES).splitlines())
        except docker.errors.APIError:  # it has gone since: the next look says so
            return ()

    def halt(self, host: str, grace: str | None) -> None:
        """Stop a container."""
        container = self._hosts[host].container
        with self.engine.asked_to("stop", container):
            container.stop(**({} if grace is None else {"timeout": math.ceil(seconds(grace))}))
        self._hosts[host].close()

    def kill_host(self, host: str, signal: str) -> None:
        """Signal a container's first process."""
        container = self._hosts[host].container
        with self.engine.asked_to(f"send {signal} to", container):
            container.kill(signal)
            if signal == "SIGKILL":
                container.wait(timeout=_END_WITHIN_S)
                self._hosts[host].close()

    def revive(self, host: str, timeout: str | None) -> None:
        """Start a container, and return once it is well."""
        place = self._hosts[host]
        service = self.topology.service_of(host)
        depends_on = (self._config or {}).get("services", {}).get(service.name if service else "", {}).get("depends_on")
        for name, how in (depends_on or {}).items():
            needed = self.topology.services.get(name)
            waits = (how or {}).get("condition") != "service_completed_successfully"
            stopped = [each for each in (needed.hosts if needed else ()) if not self.whole.running(each)]
            if waits and stopped:
                raise LabError(f"`{host}` depends on `{stopped[0]}`, which does not run; start that first")
        with self.engine.asked_to("start", place.container):
            place.container.start()
        self._sweep()
        self._await_well([place.container], self._up_deadline_s if timeout is None else seconds(timeout))

    def freeze(self, host: str) -> None:
        """Pause a container."""
        with self.engine.asked_to("pause", self._hosts[host].container):
            self._hosts[host].container.pause()

    def thaw(self, host: str) -> None:
        """Have a paused container go on."""
        with self.engine.asked_to("resume", self._hosts[host].container):
            self._hosts[host].container.unpause()

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """Have these hosts run again, in the order in which the stack came up. Raises LabError."""
        for host in sorted(wrong, key=self._depth):
            place, state = self._hosts[host], wrong[host]
            whole = set(self.topology.networks_of(host)) <= set(state.endpoints)
            if state.status == PAUSED:
                self.thaw(host)
            if state.status in (RUNNING, PAUSED, EXITED) and whole:
                with self.engine.asked_to("start", place.container):
                    place.container.start()
                self._sweep()
            else:
                self._make_anew(host, place, state)
            self.host_states()  # by which the host is the container that there is now
            self._await_well([place.container], self._up_deadline_s)

    def _make_anew(self, host: str, place: ComposeHost, state: HostState) -> None:
        service = self.topology.service_of(host)
        if self._config_up is None or service is None:
            raise LabError(f"`{host}` {_describe(self.engine.state(place.container))}, and another process "
                           f"brought this stack up: take it down and bring it up again")  # fmt: skip
        if state.status != GONE:
            self.engine.remove(place.container)
        if failed := self.composer.up_again(self._config_up, [service.name], timeout_s=self._up_deadline_s):
            raise LabError(f"`{host}` could not be made anew: {failed}")
        self._sweep()

    def _sweep(self) -> None:
        if self._agent is not None:
            self.sweep(self._agent)

    def _depth(self, host: str) -> int:
        """How many services one after the other a host's own waits for."""
        services = (self._config or {}).get("services", {})

        def depth(name: str) -> int:
            return 1 + max(map(depth, services.get(name, {}).get("depends_on") or ()), default=0)

        service = self.topology.service_of(host)
        return depth(service.name) if service else 0

    def await_healthy(self) -> None:
        """Wait until no running service's health check fails. Raises ServiceFailedError."""
        self._sweep()

        def look() -> list[str]:
            known = {host.container.id: name for name, host in self._hosts.items()}
            ids = self.engine.not_healthy(com_docker_compose_project=self.composer.project)
            return [known[each] for each in ids if each in known]

        try:
            await_condition(look, lambda names: not names, deadline_s=self._up_deadline_s)
        except NotSeenError:
            unwell = [self._hosts[name].container for name in look()]
            self._raise_unwell(unwell, f"not healthy after {self._up_deadline_s:g} s")

    def _look_again(self) -> None:
        """Once all is up: a service may have started well, and ended while the agent was awaited."""
        containers = [host.container for host in self._hosts.values()]
        if any(_wellness(self.engine.state(container)) == "failed" for container in containers):
            self._raise_unwell(containers, "")

    def _raise_unwell(self, containers: Sequence[Container], context: str) -> None:
        """Raise ServiceFailedError naming each service that is not well, with its last lines."""
        found: list[Unwell] = []
        for container in containers:
            state = self.engine.state(container)
            if _wellness(state) == "well":
                continue
            name = str(container.labels.get("com.docker.compose.service", container.name))
            self.failed_logs[name] = log = self.engine.logs(container)
            refused = bool(state.get("State", {}).get("Error"))
            found.append(Unwell(
                service=name, state=_describe(state), failed=refused or _wellness(state) == "failed",
                began=state.get("State", {}).get("Status") != "created", last_lines=log.splitlines()[-_LAST_LINES:],
            ))  # fmt: skip
        raise ServiceFailedError("\n".join([*unwell_in_words(found), *([context] if context else [])]))

    def _remove_stack(self) -> None:
        """Remove all that carries our run's label; anything still there afterwards is an error."""
        with contextlib.ExitStack() as each:
            each.callback(remove_run, self.engine, self.run_id, self._labels()[OWNER_LABEL])
            for host in self._hosts.values():
                each.callback(host.close)
            if self._capture_agent is not None:
                each.callback(self._capture_agent.close)

    # --- the agent -------------------------------------------------------------------------------

    def _start_agent(self) -> tuple[Channel, str]:
        """Start the agent's container and, where netem must be carried, its kernel."""
        container, stream = start_ports_agent(
            self.engine, self._netem_image, tag=self.run_id[:6], outlives_us=self._outlives_us,
            **self._identity("ports"),
        )  # fmt: skip
        channel = Channel(stream, name="agent", kill=partial(self.engine.remove, container))
        self._agent_container = container
        try:
            return channel, self._choose_engine(channel)
        except BaseException:
            channel.close()
            self.engine.await_removed(container, 10)
            raise

    def _choose_engine(self, channel: Channel) -> str:
        able = channel.call("capabilities")
        if self._asked_netem == "host" and able["host_netem"]:
            raise EnvironmentUnfitError(
                f"--netem host: this kernel ({able['kernel']}) has no usable netem: {able['host_netem'].rstrip('.')}. "
                f"Load it (modprobe sch_netem) or use --netem carried."
            )
        if self._asked_netem == "host" or (self._asked_netem == "auto" and not able["host_netem"]):
            self.seedable = able["host_seed"]
            return "host"
        if able["tun"]:
            raise EnvironmentUnfitError(
                f"netem must be carried here ({able['host_netem'] or '--netem carried'}), and a carried kernel needs "
                f"taps, which the engine's machine does not give: {able['tun']}. Load the module: modprobe tun"
            )
        try:
            channel.call("boot", answer_within_s=60)
        except AgentError as error:
            raise EnvironmentUnfitError(f"the carried kernel did not start: {error}") from None
        self.seedable = True
        return "carried"

    def _stop_agent(self, agent: Future[tuple[Channel, str]]) -> None:
        """Have the agent put everything back, and wait until its container is gone."""
        if agent.exception() is not None:
            return  # it has put itself away
        self._end_agent(agent.result()[0])

    def _end_agent(self, channel: Channel) -> None:
        channel = self._agent or channel  # another may have taken its place
        try:
            channel.call("stop")
        except AgentError as error:
            self._say(f"the agent did not stop when asked: {error}")
        finally:
            channel.close()
        if not self.engine.await_removed(self._agent_container, 10):
            self.engine.remove(self._agent_container)

    def _identity(self, role: str) -> dict[str, Any]:
        """Labels and name of a container of the agent's image."""
        return {
            "labels": {**self._labels(), ROLE_LABEL: role},
            "name": f"{self.composer.project}-{role}-{secrets.token_hex(3)}",
        }

    def beside(self, container: Container, role: str) -> Channel:
        """An agent in a container's network or process namespace."""
        users = container.attrs.get("HostConfig", {}).get("UsernsMode", "")
        return self._attached(role, ROLES[role].options(beside=container.id or "", users=users))

    def _attached(self, role: str, options: Mapping[str, Any]) -> Channel:
        container, stream = self.engine.attached(self._netem_image, [role], **options, **self._identity(role))
        kill = partial(self.engine.remove, container)
        return Channel(stream, name=f"agent {role} of {container.name}", kill=kill)

    # --- agents that died: `succession` ----------------------------------------------------------

    def agents(self) -> Mapping[str, Channel]:
        """See `Lab.agents`."""
        known = {PORTS: self._agent, CAPTURE: self._capture_agent}
        for name, host in self._hosts.items():
            known |= {beside(role, name): agent for role, agent in host.agents().items()}
        return {role: agent for role, agent in known.items() if agent is not None}

    def replace_agent(self, left: Sequence[Mapping[str, Any]]) -> None:
        """Start another container of the agent's, and have it put the dead one's ports right."""
        self._say("the agent has died: starting another")
        if self._agent is not None:
            self._agent.close()
        self.engine.remove(self._agent_container)
        self.engine.await_removed(self._agent_container, 10)
        self._asked_netem = self.netem_engine
        self._agent, self.netem_engine = self._start_agent()
        found = {**self._found, **{each["ifindex"]: each for each in left}}
        self._agent.call("put_right", veths=list(found.values()))

    def forget_agent(self, role: str) -> None:
        """See `Lab.forget_agent`. Another is started at once in a host's network: it is to tell of the connections."""
        if role == CAPTURE and self._capture_agent is not None:
            self._capture_agent.close()
            self._capture_agent = None
        for name, host in self._hosts.items():
            for each in host.agents():
                if role == beside(each, name):
                    host.forget_agent(each)
                    if each == "inside" and self.whole.running(name):
                        host.inside()

    # --- ports -----------------------------------------------------------------------------------

    def attach(self, host: str, network: str) -> Attached:
        """See `Backend`."""
        return self._attach(f"{host}@{network}", host, network, self.netem_engine)

    def attach_to_count(self, host: str, network: str) -> Attached:
        """See `Backend`."""
        return self._attach(f"{host}@{network} watched", host, network, "host")

    def _attach(self, name: str, host: str, network: str, engine: str) -> Attached:
        if self._agent is None:
            raise LabError("the lab is not up")
        ifindex = self.port_of_sender(host, network)
        port = self._agent.call("attach", port=name, ifindex=ifindex, engine=engine)
        self._found.setdefault(ifindex, port["found"])
        return Attached(name=name, channel=self._agent, port=port, ifindex=ifindex)

    def port_of_sender(self, host: str, network: str) -> int:
        """See `Backend`."""
        return int(self._hosts[host].interface(network)["peer_ifindex"])

    # --- connections -----------------------------------------------------------------------------

    @property
    def tcp_hosts(self) -> Sequence[str]:
        """Those with an agent inside: each at an end of a link that is, or was, impaired."""
        return [name for name, host in self._hosts.items() if host.known_inside is not None]

    def tcp_tables(self) -> dict[str, Table]:
        """See `Lab.tcp_tables`."""
        found = {}
        for name in self.tcp_hosts:
            if (inside := self._hosts[name].known_inside) is not None:
                with contextlib.suppress(AgentError):  # its container has ended, and with it its connections
                    found[name] = Table.read(name, inside.call("tcp_connections"))
        return found

    def destroy_tcp(self, host: str, ids: Sequence[str]) -> str | None:
        """See `Lab.destroy_tcp`."""
        refused: str | None = self._hosts[host].inside().call("destroy_tcp", ids=list(ids))["refused"]
        return refused

    # --- packets ---------------------------------------------------------------------------------

    def capture_agent(self) -> Channel:
        """The agent that captures: beside the network too, with NET_RAW where that of the ports has NET_ADMIN.

        A container of its own, so that what reads packets cannot change the network, and started when a capture is
        asked first.
        """
        if self._agent is None:
            raise LabError("the lab is not up")
        if self._capture_agent is None:
            try:
                self._capture_agent = self._attached("capture", ROLES["capture"].options())
            except RefusedError as error:
                raise LabError(f"the agent that captures cannot be started: {error}") from None
        return self._capture_agent

    def spots(self, host: str, network: str, src: str | None) -> list[Spot]:
        """Where the packets of a port pass; see `Lab.spots`."""
        if self._agent is None:
            raise LabError("the lab is not up")
        members = [name for name in self._hosts if network in self._hosts[name]._networks()]

        def end(name: str) -> int:
            return int(self._hosts[name].interface(network)["peer_ifindex"])

        return spots_of_port(
            self,
            self._agent,
            host=host,
            network=network,
            src=src,
            members=members,
            end=end,
            attached=self.ports.at(host, network) is not None,
        )

    def mac(self, host: str, network: str) -> str | None:
        """The MAC address of a container's interface."""
        return str(self._hosts[host].interface(network)["mac"])

    def source_addresses(self, host: str, network: str) -> tuple[str, ...]:
        """What packets of a host bear as their source; see `Lab`."""
        link_local = self._hosts[host].interface(network)["link_local"]
        return (*self._hosts[host].addresses(network), *link_local)


class ComposeHost(Host):
    """A container of the stack."""

    _lab: ComposeLab

    def __init__(self, lab: ComposeLab, name: str, container: Container) -> None:
        self.name = name
        self._lab = lab
        self._whole = lab.whole
        self.container = container
        self._agents: dict[str, tuple[Channel, str]] = {}
        """Those in its namespaces, by role, and the start of the container that each was started for."""

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    def launch(
        self, argv: Sequence[str], *, ready: int | str | Callable[[Program], bool] | None, timeout: str,
        env: Mapping[str, str] | None, workdir: str | None, user: str,
    ) -> ComposeProgram:  # fmt: skip
        """Start a program in the container; see `Host.start`."""
        if isinstance(argv, str) or not argv or not all(isinstance(word, str) for word in argv):
            raise TypeError(f"argv must be a list of strings such as ['ping', '-c1', 'server'], not {argv!r}")
        port = ready if isinstance(ready, int) else None
        if port is not None and self._listener(port, 0.0)["listening"]:
            raise LabError(
                f"`{self.name}`: {' '.join(argv)}: tcp/{port} is listened on already, so it cannot tell when this "
                f"program is ready; stop the other one first"
            )
        program = ComposeProgram(self, argv, env=env or {}, workdir=workdir, user=user)
        self._lab.ledger.programs.append(program)
        if ready is not None:
            try:
                self._await_ready(program, ready, timeout)
            except BaseException:
                program.stop("SIGKILL")
                raise
        return program

    def _await_ready(self, program: ComposeProgram, ready: int | str | Callable[[Program], bool], timeout: str) -> None:
        deadline_s = seconds(timeout)
        if isinstance(ready, int):
            self._await_listener(program, ready, timeout)
            return
        check = ready if callable(ready) else (lambda running: ready in running.output)
        try:
            await_condition(lambda: check(program) or program.ended, bool, deadline_s=deadline_s, every_s=0.01)
        except NotSeenError:
            wanted = "not ready" if callable(ready) else f"did not print {ready!r}"
            self._not_ready(program, f"{wanted} after {timeout} (it runs)")
        if not check(program):
            self._not_ready(program, _ended_early(program))

    def _await_listener(self, program: ComposeProgram, port: int, timeout: str) -> None:
        """Wait for a listener on the port; not for that of a program that failed."""
        deadline = time.monotonic() + seconds(timeout)
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            seen = self._listener(port, min(left_s, 0.2))
            if seen["listening"]:
                return
            if program.ended and program.wait().exit_code:
                self._not_ready(program, _ended_early(program))
            if not left_s:
                others = ", ".join(map(str, seen["ports"])) or "nothing"
                self._not_ready(program, f"not listening on tcp/{port} after {timeout} (listening: {others})")

    def _listener(self, port: int, deadline_s: float) -> dict[str, Any]:
        seen: dict[str, Any] = self.inside().call("await_listener", port=port, deadline_s=deadline_s)
        return seen

    def _not_ready(self, program: ComposeProgram, what: str) -> None:
        raise CommandTimeoutError(f"`{self.name}`: {' '.join(program.argv)}: {what}; {program.last_output()}")

    def logs(self) -> str:
        """What the container's main program has printed."""
        return self._lab.engine.logs(self.container)

    def follow(self) -> FollowedLog:
        """The same as it grows, each line with the engine's time stamp; a context manager."""
        return FollowedLog(self._lab.engine, self.container)

    def put(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the container; see `Host.put`."""
        if self._runs():
            hostfiles.put(self._files(), self.name, path, content, mode)
            return
        data = content.encode() if isinstance(content, str) else content
        try:
            self._lab.engine.put(self.container, path, data, mode)
        except docker.errors.APIError as error:
            raise LabError(f"`{self.name}`: cannot write {path}: {error.explanation or error}") from None

    def get(self, path: str) -> bytes:
        """Read a file of the container; see `Host.get`."""
        try:
            if not self._lab.engine.shows(self.container, path) and self._runs():
                return hostfiles.get(self._files(), self.name, path)
            return self._lab.engine.get(self.container, path)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise type(error)(f"`{self.name}`: {path}") from None
        except docker.errors.APIError as error:
            raise LabError(f"`{self.name}`: cannot read {path}: {error.explanation or error}") from None

    def _runs(self) -> bool:
        return bool(self._state().get("State", {}).get("Running"))

    def _state(self) -> dict[str, Any]:
        return self._lab.engine.state(self.container)

    def addresses(self, network: str | None = None) -> tuple[str, ...]:
        """Its addresses, IPv4 before IPv6."""
        service = self._lab.topology.service_of(self.name)
        known = service.networks if service else ()
        if network is not None and network not in known:
            raise InvalidValueError(f"`{self.name}`: network {network!r}: {unknown(network, known)}")
        found: list[str] = []
        for name, settings in self._networks().items():
            if network is None or name == network:
                found += [settings[key] for key in ("IPAddress", "GlobalIPv6Address") if settings.get(key)]
        return tuple(found)

    def counters(self) -> dict[str, dict[str, int]]:
        """The kernel's counters of the container's network namespace."""
        counted: dict[str, dict[str, int]] = self.inside().call("counters")
        return counted

    def connections(self) -> list[dict[str, Any]]:
        """The TCP connections that its kernel still works on, also those whose program has ended."""
        known: list[dict[str, Any]] = self.inside().call("connections")
        return known

    # --- its place in the network ----------------------------------------------------------------

    def _networks(self) -> dict[str, dict[str, Any]]:
        """The engine's settings of each network that the container is on, by the Compose file's name."""
        state = self._lab.engine.state(self.container)
        settings = state.get("NetworkSettings", {}).get("Networks", {})
        names = {network.engine_name: name for name, network in self._lab.topology.networks.items()}
        return {names[name]: each for name, each in settings.items() if name in names}

    def interface(self, network: str) -> dict[str, Any]:
        """The container's interface on a network. Raises LabError if it has none now."""
        mac = self._networks().get(network, {}).get("MacAddress")
        if not mac:
            state = _describe(self._lab.engine.state(self.container))
            raise LabError(f"`{self.name}` is not on network `{network}` now: the container {state}")
        seen: list[dict[str, Any]] = self.inside().call("interfaces")
        for interface in seen:
            if interface["mac"] == mac:
                return interface
        raise LabError(f"`{self.name}` has no interface with address {mac}; it has {seen}")

    def send_per_packet(self, network: str) -> dict[str, bool]:
        """Switch segmentation offloads off on its interface; returns what they were."""
        name = self.interface(network)["name"]
        before: dict[str, bool] = self.inside().call("per_packet", interface=name)
        return before

    def send_as_before(self, network: str, offloads: Mapping[str, bool]) -> None:
        """Set them to what they were."""
        name = self.interface(network)["name"]
        self.inside().call("put_back", interface=name, offloads_were=dict(offloads))

    def inside(self) -> Channel:
        """The agent in this host's network namespace; a new one after the container was restarted."""
        return self._agent("inside")

    def _files(self) -> Channel:
        """An agent that sees the container's files; its programs see it among them, at the most until a test's end."""
        return self._agent("files")

    def _agent(self, role: str) -> Channel:
        """An agent in a namespace of the container's: the one that is there, unless the container was restarted."""
        started_at = f"{self.container.id} {self._state().get('State', {}).get('StartedAt', '')}"
        known, its_start = self._agents.get(role, (None, ""))
        if known is not None and its_start == started_at:
            if known.answers:
                return known
            self._lab.succession.look()
        self.forget_agent(role)
        channel = self._lab.beside(self.container, role)
        self._agents[role] = channel, started_at
        return channel

    def end_test(self) -> None:
        """Let go of what a test alone needed."""
        self.forget_agent("files")

    def agents(self) -> dict[str, Channel]:
        """Those in its namespaces, by role."""
        return {role: channel for role, (channel, _) in list(self._agents.items())}

    def forget_agent(self, role: str) -> None:
        """Let one go."""
        channel, _ = self._agents.pop(role, (None, ""))
        if channel is not None:
            channel.close()

    @property
    def known_inside(self) -> Channel | None:
        """The agent in this host's network namespace if there is one; none is started."""
        channel, _ = self._agents.get("inside", (None, ""))
        return channel if channel is not None and channel.answers else None

    def signal(self, pid: int, name: str) -> None:
        """Signal the program with this number on the engine's machine, and all it started."""
        channel = self._lab.beside(self.container, "signal")

        def reached() -> bool:
            leaders = self._lab.engine.leaders(self.container)
            args = dict(leaders).get(pid)
            if args is None:
                return True  # it has ended
            alike = [each for each, its_args in leaders if its_args == args]
            answer = channel.call("signal", args=args, rank=alike.index(pid), of=len(alike), name=name)
            return answer["signalled"] is not None

        try:
            await_condition(reached, bool, deadline_s=5)
        except NotSeenError:
            raise LabError(f"`{self.name}`: {name} did not reach process {pid}: too much begins and ends") from None
        finally:
            channel.close()

    def close(self) -> None:
        """Let its agents go."""
        for role in list(self._agents):
            self.forget_agent(role)


class FollowedLog:
    """What a container's main program prints, while it does; a thread of ours reads it."""

    def __init__(self, engine: Engine, container: Container) -> None:
        self._chunks = engine.follow(container)
        self._seen: dict[str, int] = {}
        self._ended = False
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="testbed-log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._chunks.close()
        self._thread.join(5.0)

    def _read(self) -> None:
        try:
            self._read_lines()
        finally:
            with self._grown:
                self._ended = True
                self._grown.notify_all()

    def _read_lines(self) -> None:
        pending = b""
        for chunk in self._chunks:
            *lines, pending = (pending + chunk).split(b"\n")
            with self._grown:
                for line in lines:
                    stamp, _, text = line.decode(errors="replace").partition(" ")
                    self._seen.setdefault(text, _nanoseconds(stamp))
                self._grown.notify_all()

    def when(self, line: str, deadline_s: float) -> int | None:
        """Wait for a line; when it was first printed, in nanoseconds since the epoch. None if it was not in time."""
        with self._grown:
            self._grown.wait_for(lambda: line in self._seen or self._ended, timeout=deadline_s)
            return self._seen.get(line)


class ComposeProgram(Program):
    """A program that the engine runs in a container; a thread of ours reads what it prints."""

    def __init__(
        self,
        host: ComposeHost,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        workdir: str | None,
        user: str,
    ) -> None:
        self.argv = tuple(argv)
        self._host = host
        self._engine = host._lab.engine
        self._chunks: list[tuple[int, bytes]] = []
        self._lost = ""
        """What broke its output off; empty if that came whole."""
        self._done = threading.Event()
        self._started = time.perf_counter()
        self._duration_s = 0.0
        try:
            self._exec: Exec = self._engine.exec(host.container, argv, env=env, workdir=workdir, user=user)
        except docker.errors.APIError as error:
            raise LabError(f"`{host.name}`: cannot start {' '.join(argv)}: {error.explanation or error}") from None
        threading.Thread(target=self._read, name=f"testbed-{host.name}", daemon=True).start()

    def _read(self) -> None:
        try:
            while (frame := self._exec.stream.frame(86400.0)) is not None:
                self._chunks.append(frame)
        except OSError as error:
            self._lost = str(error)
        finally:
            self._duration_s = time.perf_counter() - self._started
            self._exec.stream.close()
            self._done.set()

    @property
    def ended(self) -> bool:
        """Whether its output has ended."""
        return self._done.is_set()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return b"".join(data for _, data in self._chunks).decode(errors="replace")

    def last_output(self) -> str:
        """Its last lines, for an error message."""
        lines = self.output.splitlines()[-_LAST_LINES:]
        return "last output:\n" + "\n".join(f"    {line}" for line in lines) if lines else "it printed nothing"

    def wait(self, timeout: str = "30s") -> Result:
        """Wait for its end; see `Program.wait`."""
        deadline_s = seconds(timeout)
        started = time.monotonic()
        if not self._done.wait(deadline_s):
            raise CommandTimeoutError(
                f"`{self._host.name}`: {' '.join(self.argv)}: no end after {timeout}; {self.last_output()}"
            )
        # A program may close its output a moment before it ends.
        try:
            status, _ = await_condition(
                lambda: self._engine.exec_state(self._exec), lambda state: state[0] is not None,
                deadline_s=max(1.0, deadline_s - (time.monotonic() - started)), every_s=0.002,
            )  # fmt: skip
        except NotSeenError:
            raise CommandTimeoutError(
                f"`{self._host.name}`: {' '.join(self.argv)}: closed its output but did not end within {timeout}"
            ) from None
        if self._lost:
            raise LabError(
                f"`{self._host.name}`: {' '.join(self.argv)}: exit status {status}, and of its output something is "
                f"missing: {self._lost}; {self.last_output()}"
            )
        stdout, stderr = self._stream(1), self._stream(2)
        if status in (126, 127) and stdout.startswith("OCI runtime exec failed"):
            stdout, stderr = (
                "",
                stderr + stdout,
            )  # the engine's words on a program that is not there are no output of it
        return Result(
            argv=self.argv, exit_code=-1 if status is None else status,
            stdout=stdout, stderr=stderr, duration_s=self._duration_s,
        )  # fmt: skip

    def stop(self, signal: str = "SIGTERM", timeout: str = "10s") -> Result:
        """Signal it, wait, and kill it if need be; see `Program.stop`."""
        if not self.ended:
            self._signal(signal)
            if not self._done.wait(seconds(timeout)) and signal != "SIGKILL":
                self._signal("SIGKILL")
        return self.wait("10s")

    def _signal(self, name: str) -> None:
        # The engine answers a request to start a program before it knows its number.
        status, pid = await_condition(
            lambda: self._engine.exec_state(self._exec),
            lambda state: state[0] is not None or state[1] > 0,
            deadline_s=5,
            every_s=0.01,
        )
        if status is None:
            self._host.signal(pid, name)

    def _stream(self, number: int) -> str:
        return b"".join(data for stream, data in self._chunks if stream == number).decode(errors="replace")


def _ended_early(program: ComposeProgram) -> str:
    return f"ended before it was ready (exit status {program.wait().exit_code})"


# --- the engine's words ----------------------------------------------------------------------------


def _wellness(inspected: Mapping[str, Any]) -> str:
    """``well``, ``waiting`` or ``failed``, from the engine's inspection of a container."""
    state = inspected.get("State", {})
    health = (state.get("Health") or {}).get("Status", "none")
    match state.get("Status"):
        case "running":
            return {"starting": "waiting", "unhealthy": "failed"}.get(health, "well")
        case "exited":
            return "well" if state.get("ExitCode") == 0 else "failed"
        case "created" | "restarting":
            return "waiting"
        case _:
            return "failed"


def _describe(inspected: Mapping[str, Any]) -> str:
    state = inspected.get("State", {})
    health = (state.get("Health") or {}).get("Status")
    match state.get("Status"):
        case None:
            return "is gone"
        case "exited":
            return f"exited with status {state.get('ExitCode')}"
        case "running" if health not in (None, "none"):
            checks = (state.get("Health") or {}).get("Log") or []
            return f"is running and {health}; {last_check(str(checks[-1].get('Output', '')) if checks else None)}"
        case "created":
            return ": ".join(filter(None, ["was created and not started", state.get("Error")]))
        case status:
            return f"is {status}"


def _as_mapping(labels: Any) -> dict[str, str]:
    """Labels as a mapping; Compose's own output has them so, a user's file may have a list."""
    if isinstance(labels, list):
        return dict(label.partition("=")[::2] for label in labels)
    return dict(labels or {})


def _nanoseconds(stamp: str) -> int:
    """An RFC 3339 time stamp with nanoseconds, as the engine writes it in UTC, since the epoch."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return int(_epoch_s(whole)) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])


def _epoch_s(whole: str) -> float:
    return datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
