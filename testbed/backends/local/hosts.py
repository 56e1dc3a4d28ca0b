"""A host of a local lab: its network namespace, the program that the Compose file starts in it, and its health."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from testbed.backends import hostfiles, terminal
from testbed.backends.hosts import AgentHost
from testbed.backends.local import settings
from testbed.backends.local.blueprint import HostPlan, Interface, ServicePlan
from testbed.backends.local.localagent import LocalAgent
from testbed.backends.local.programs import LocalProgram
from testbed.backends.local.restarting import Restarter
from testbed.backends.starting import Wellness, last_check
from testbed.errors import LabError
from testbed.evidence.hoststate import EXITED, GONE, PAUSED, RESTARTING, RUNNING, HostState
from testbed.lab.channel import Channel
from testbed.lab.lab import Lab
from testbed.lab.output import Lines
from testbed.lab.waiting import NotSeenError, await_condition

_CHECK_AGAIN_S = 0.05


class LocalHost(AgentHost):
    """A network namespace, with a process and mount namespace of its own once a program runs in it."""

    def __init__(self, lab: Lab, agent: LocalAgent, plan: HostPlan, service: ServicePlan) -> None:
        super().__init__(lab, plan.name)
        self.plan = plan
        self.service_plan = service
        self.service: LocalProgram | None = None
        """The program that the Compose file starts here."""
        self.published_at: dict[tuple[int, str], tuple[str, int]] = {}
        """Its published ports: number and protocol, to address and number on this machine."""
        self._lab_agent = agent
        self._begun = False
        self._earlier = ""
        """What the service printed before it was started again by itself."""
        self.restarter = Restarter(service.restart, self._start_program)
        self.halted = False
        """Whether it was stopped: nothing runs in it."""
        self._healthy = service.health_check is None
        self._unhealthy = False
        self._check: LocalProgram | None = None
        self._check_began = 0.0
        self._check_at = 0.0
        self._check_said: str | None = None

    # --- programs --------------------------------------------------------------------------------

    def begin(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str = ""
    ) -> LocalProgram:
        """Start a program in the host."""
        program = self._lab_agent.program(argv, self._circumstances(env=env, workdir=workdir, user=user))
        self._lab_agent.launch([program])
        return program

    def listeners(self, port: int, deadline_s: float) -> dict[str, Any]:
        """See `AgentHost`."""

        def look() -> list[int]:
            ports: list[int] = self.ask("listeners")
            return ports

        try:
            ports = await_condition(look, lambda seen: port in seen, deadline_s=deadline_s, every_s=0.005)
        except NotSeenError as error:
            ports = error.last if isinstance(error.last, list) else []
        return {"listening": port in ports, "ports": ports}

    def logs(self) -> str:
        """What the service's program has printed."""
        return "" if self.service is None else self._earlier + self.service.output

    @property
    def restarts(self) -> int:
        """See `Host`."""
        return self.restarter.restarts

    def follow(self) -> Lines:
        """The same as it grows, each line with the time when it came; a context manager."""
        if self.service is None:
            raise LabError(f"`{self.name}` runs no service")
        return self.service.lines

    def interact(self, argv: Sequence[str]) -> int:
        """See `Host`."""
        agent, circumstances = self._lab_agent, self._circumstances()
        if not sys.stdin.isatty():
            return agent.attached(argv, (0, 1, 2), circumstances, tty=False).wait()
        return terminal.join(
            agent.terminal(self.name), lambda end: agent.attached(argv, (end, end, end), circumstances, tty=True)
        )

    def _circumstances(
        self, *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str = ""
    ) -> dict[str, Any]:
        """Host, environment, folder and user of a program, as the agent is told them."""
        service = self.service_plan
        return {
            "host": self.name,
            "env": settings.environment(self.plan, service, env or {}),
            "workdir": workdir or service.workdir,
            "user": user or service.user,
        }

    def publications(self) -> Mapping[tuple[int, str], tuple[str, int]]:
        """See `AgentHost`."""
        return self.published_at

    # --- the service -----------------------------------------------------------------------------

    def state(self, *, init: int, lives: bool, frozen: bool, endpoints: Mapping[str, int]) -> HostState:
        """Its state, by the agent's answer and its program here."""
        again = self.restarter.pending
        ended = self.service is not None and self.service.ended and not again
        status = (
            RESTARTING
            if again
            else EXITED
            if self.halted or ended
            else GONE
            if not lives
            else PAUSED
            if frozen
            else RUNNING
        )
        return HostState(
            status=status,
            id=str(init or ""),
            started="" if self.service is None else str(self.service.number),
            restarts=self.restarts,
            exit_code=self.service.wait().exit_code if self.service is not None and ended else None,
            endpoints={} if self.halted else {name: str(index) for name, index in endpoints.items()},
        )

    def start_again(self) -> None:
        """Start it after a halt, its health unknown."""
        self.halted = False
        self._healthy, self._unhealthy = self.service_plan.health_check is None, False
        self._check, self._check_said, self._check_began, self._check_at = None, None, 0.0, 0.0
        if (program := self.service_program()) is not None:
            self._lab_agent.launch([program])

    def service_program(self) -> LocalProgram | None:
        """What the Compose file says, if it says anything, for the agent to start now."""
        self._begun = True
        if not self.service_plan.argv:
            return None
        self.restarter.began()
        return self._next_program()

    def _start_program(self) -> None:
        self._lab_agent.launch([self._next_program()])

    def _next_program(self) -> LocalProgram:
        before = self.service
        if before is not None:
            self._lab_agent.channel.call("forget_tcp", host=self.name)
        self.service = self._lab_agent.program(
            self.service_plan.argv, self._circumstances(), on_end=self.restarter.ended
        )
        if before is not None:
            self._earlier += before.output
        return self.service

    def _starts_again(self) -> bool:
        """Whether the service, which had ended a moment ago, is started again soon, or has been since."""
        return self.restarter.pending or (self.service is not None and not self.service.ended)

    def wellness(self) -> Wellness:
        """By its program, and by its health check as far as `check_health` has taken it."""
        if self.service is None:
            words = "was not started: what it depends on is not well"
            return Wellness(state="well" if self._begun else "waiting", words=words, began=False)
        if self.service.refused:
            return Wellness(state="failed", words=f"cannot be started: {self.service.refused}", began=False)
        if self.service.ended:
            if self._starts_again():
                return Wellness(state="waiting", words="is restarting")
            code = self.service.wait().exit_code
            return Wellness(state="failed" if code else "well", words=f"exited with status {code}")
        state = "failed" if self._unhealthy else "well" if self._healthy else "waiting"
        health = "unhealthy" if self._unhealthy else "starting"
        return Wellness(state=state, words=f"is running and {health}; {last_check(self._check_said)}")

    def meets(self, condition: str) -> bool:
        """Whether a service that depends on this one by such a condition may start."""
        if self.service is None:
            return self._begun
        match condition:
            case "service_completed_successfully":
                return self.service.ended and self.service.wait().exit_code == 0
            case "service_healthy":
                return self._healthy and not self.service.ended
            case _:
                return not self.service.refused

    def check_health(self) -> None:
        """Take the health check one step on. It runs more often than Compose would run it, and gives up no sooner."""
        check = self.service_plan.health_check
        if check is None or self._healthy or self._unhealthy or self.service is None or self.service.ended:
            return
        now = time.monotonic()
        if self._check is None:
            if not self._check_began:
                self._check_began = now
            if now >= self._check_at:
                self._check = self.begin(check.test)
                self._check_at = now + check.timeout_s
        elif self._check.ended or now >= self._check_at:
            if not self._check.ended:
                self._check.stop("SIGKILL")
            self._healthy = self._check.wait().exit_code == 0
            self._check_said, self._check = self._check.output.strip(), None
            self._check_at = now + min(_CHECK_AGAIN_S, check.interval_s)
            allowed_s = check.start_period_s + check.retries * (check.interval_s + check.timeout_s)
            self._unhealthy = not self._healthy and now - self._check_began > allowed_s

    # --- files -----------------------------------------------------------------------------------

    def put(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file in the host; see `Host.put`."""
        hostfiles.put(self._lab_agent.channel, self.name, path, content, mode, host=self.name)

    def get(self, path: str) -> bytes:
        """Read a file of the host; see `Host.get`."""
        return hostfiles.get(self._lab_agent.channel, self.name, path, host=self.name)

    # --- the network -----------------------------------------------------------------------------

    @property
    def networks(self) -> Sequence[str]:
        """See `AgentHost`."""
        return [interface.network for interface in self.plan.interfaces]

    def addressed(self) -> Iterator[tuple[str, Sequence[str]]]:
        """See `AgentHost`."""
        for interface in self.plan.interfaces:
            yield interface.network, interface.plain

    def interface(self, network: str) -> Interface:
        """Its interface on a network."""
        return next(interface for interface in self.plan.interfaces if interface.network == network)

    def mac(self, network: str) -> str | None:
        """See `Host`."""
        return self.interface(network).mac

    def source_addresses(self, network: str) -> tuple[str, ...]:
        """See `Host`."""
        interface = self.interface(network)
        return (*interface.plain, *interface.link_local)

    def marks(self, network: str) -> tuple[str, ...]:
        """See `Host`. A router's packets are recognized by the interface alone."""
        marks = super().marks(network)
        return marks[-1:] if self.plan.router else marks

    def interface_name(self, network: str) -> str:
        """See `AgentHost`."""
        return self.interface(network).name

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Ask the lab's agent, which sees every host's namespace."""
        return self._lab_agent.channel.call(operation, host=self.name, **arguments)

    def start_agent(self, role: str) -> Channel:
        """See `AgentHost`."""
        return self._lab_agent.helper(f"agent {role} {self.name}", role, host=self.name)
