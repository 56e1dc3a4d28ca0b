"""Find out what a local lab can do here by starting its agent, and what prevents it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed import kernel
from testbed.agent import search_path
from testbed.backends.local.child import ChildAgent
from testbed.errors import AgentError, EnvironmentUnfitError
from testbed.lab.channel import Channel

# What keeps ordinary users from namespaces of their own: the setting, the value that does, what to do as root.
_CLOSERS = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("user/max_net_namespaces", "0", "sysctl user.max_net_namespaces=10000"),
)


@dataclass(frozen=True, kw_only=True)
class LocalAbilities:
    """The results of trials; each is the reason of a failure, or None."""

    closed: str | None
    """Why no local lab can be had."""
    remedy: str = ""
    root: bool = False
    host_netem: str | None = None
    tun: str | None = None
    carried: str | None = None
    """Why no kernel can be carried; None too if the one to carry is not here yet, see ``fetched``."""
    fetched: bool = False
    """Whether the kernel to carry is here."""

    @property
    def impairs(self) -> bool:
        """Whether its links can be impaired."""
        return self.closed is None and (self.host_netem is None or self.carried is None)


def probe_local(say: Callable[[str], None]) -> LocalAbilities:
    """Start an agent, ask what it can do, and end it; boot a kernel if the one to carry is here."""
    root = os.geteuid() == 0
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool, path=search_path()) is None]
    if missing:
        return LocalAbilities(
            closed=f"{', '.join(missing)} not found", remedy="install iproute2 (apt-get install iproute2)", root=root
        )
    try:
        agent = ChildAgent(tag=secrets.token_hex(3))
    except OSError as error:
        return LocalAbilities(closed=f"the agent does not start: {error}", root=root)
    try:
        channel = Channel(agent, name="local agent")
        able = channel.call("capabilities")
        carried = able["tun"]
        if carried is None and able["host_netem"] is not None and kernel.present():
            say("booting a kernel to carry")
            carried = _boot(channel)
        return LocalAbilities(
            closed=None,
            root=root,
            host_netem=able["host_netem"],
            tun=able["tun"],
            carried=carried,
            fetched=kernel.present(),
        )
    except (EnvironmentUnfitError, AgentError) as error:
        return LocalAbilities(closed=str(error), remedy=closers(), root=root)
    finally:
        agent.close()


def _boot(channel: Channel) -> str | None:
    try:
        channel.call("carry_from", root=str(kernel.root_folder()))
        channel.call("boot", answer_within_s=60)
    except AgentError as error:
        return str(error)
    return None


def closers(proc_sys: Path = Path("/proc/sys")) -> str:
    """What to do as root so that an ordinary user gets namespaces."""
    settings = []
    for name, value, command in _CLOSERS:
        path = proc_sys / name
        if path.is_file() and path.read_text().strip() == value:
            settings.append(f"{command} ({name.replace('/', '.')} is {value})")
    return "; ".join(settings) or "run as root; in a container, with --security-opt seccomp=unconfined"


def main() -> int:
    """Say whether a local lab works here: exit status 0 or 1. For scripts/bootstrap."""
    able = probe_local(lambda _text: None)
    if able.closed is not None:
        print(f"no local lab: {able.closed}. {able.remedy}")  # noqa: T201  # that is what it is for
        return 1
    netem = "this kernel's" if able.host_netem is None else "carried" if able.carried is None else able.carried
    print(f"local lab ({'root' if able.root else 'no root'}), netem: {netem}")  # noqa: T201  # likewise
    return 0
