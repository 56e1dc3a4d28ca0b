"""Find out with an agent what the engine's machine can do."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from testbed.backends.docker.agents import ROLES, enters_network, start_ports_agent
from testbed.backends.docker.engine import Engine
from testbed.errors import AgentError
from testbed.judge.noise import Noise
from testbed.judge.noise import noise as measured_noise
from testbed.lab.channel import Channel


@dataclass(frozen=True, kw_only=True)
class NetemAbilities:
    """The results of trials on the engine's machine; each is the reason of a failure, or None."""

    kernel: str
    host_netem: str | None
    tun: str | None
    boot_s: float | None
    """How long the carried kernel took to boot; None if it did not."""
    carried_kernel: str = ""
    not_booted: str | None = None
    waits_its_turn: str = ""
    """Why the carried kernel has no priority over other processes; empty if it has."""
    host_marks: str | None = None
    """Cuts that reject need it where this kernel's own netem runs."""
    noise: Noise | None = None
    """The delays that the machine itself adds."""

    @property
    def version(self) -> tuple[int, ...]:
        """Of the host's kernel: (6, 12)."""
        return tuple(int(number) for number in re.findall(r"\d+", self.kernel)[:2])


def probe_netem(engine: Engine, image: str) -> NetemAbilities:
    """Start an agent, ask what it can do, boot its kernel, and end it. Raises AgentError."""
    # Where receivers are impaired from within, in a network as theirs.
    network = ROLES["ports"].network if enters_network(engine) else "none"
    container, stream = start_ports_agent(engine, image, tag=secrets.token_hex(3), network_mode=network)
    channel = Channel(stream, name="agent")
    try:
        able = channel.call("capabilities")
        noise = measured_noise(channel.call("noise"))
        boot_s, release, waits, reason = None, "", "", able["tun"]
        if reason is None:
            try:
                booted = channel.call("boot", answer_within_s=60)
                boot_s, release, waits = booted["boot_s"], booted["release"], booted["waits_its_turn"]
            except AgentError as error:
                reason = str(error)
        return NetemAbilities(
            kernel=able["kernel"],
            host_netem=able["host_netem"],
            tun=able["tun"],
            boot_s=boot_s,
            carried_kernel=release,
            not_booted=reason,
            waits_its_turn=waits,
            host_marks=able["host_marks"],
            noise=noise,
        )
    finally:
        channel.close()
        engine.await_removed(container, 10)
