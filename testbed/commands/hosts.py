"""Commands on one host: run a program in it, stop, start, kill or pause it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from testbed.backends.docker.lab import ComposeLab
from testbed.commands.console import write
from testbed.commands.labs import OwnStack, own_stack_options, running, running_or_own
from testbed.commands.options import (
    command,
    compose_file_option,
    compose_profile_option,
    example,
    impair_option,
    running_lab_option,
)
from testbed.commands.words import link_requests
from testbed.lab.lab import Lab

_SHELL = ("/bin/sh", "-c", "exec $(command -v bash || echo sh)")


@command()
@own_stack_options
@compose_profile_option
@impair_option
@click.argument("host")
@example("""testbed shell client
             testbed shell --lab local --impair "client <-> server=lossy" client""")
def shell(stack: OwnStack, impaired: tuple[str, ...], host: str) -> int:
    """Open a shell in HOST: of the running stack, or of one that lasts as long as the shell."""
    return in_host(stack.lab(), impaired, host, _SHELL)


@command("exec")
@own_stack_options
@compose_profile_option
@impair_option
@click.argument("host")
@click.argument("argv", nargs=-1, required=True)
@example("""testbed exec client -- python3 paper_client.py server""")
def execute(stack: OwnStack, impaired: tuple[str, ...], host: str, argv: tuple[str, ...]) -> int:
    """Run ARGV in HOST, and exit with its status: of the running stack, or of one that lasts as long as it runs."""
    return in_host(stack.lab(), impaired, host, argv)


def in_host(lab: Lab, impaired: Sequence[str], host: str, argv: Sequence[str]) -> int:
    """Run a program in a host: of the stack that `testbed up` started, if one is up; else of one of its own."""
    requests = link_requests(lab, impaired, host)
    with running_or_own(lab):
        place = lab.host(host)
        with ExitStack() as undo:  # all links or none are impaired
            for request in requests:
                for applied in request.impair(lab):
                    undo.callback(lab.impairer.clear, applied.link)
            undo.pop_all()
        if isinstance(lab, ComposeLab) and lab.stack.outlives_us:
            lab.leave()  # other commands may use it meanwhile
        return place.interact(argv)


def _host_command(verb: str, done: str, help_text: str) -> click.Command:
    """A command that calls the method ``verb`` of a host of the running stack."""

    @command(verb, help=f"{help_text}\n\n\b\nExample:\n  testbed {verb} server")
    @compose_file_option
    @running_lab_option
    @click.argument("host")
    def act(compose_file: tuple[Path, ...], host: str) -> int:
        with running(compose_file) as lab:
            getattr(lab.host(host), verb)()
            write(f"{host}: {done}")
        return 0

    return act


COMMANDS = (
    shell,
    execute,
    _host_command("stop", "stopped", "Stop HOST of the running stack, until `testbed start`."),
    _host_command("start", "started", "Start HOST and wait until it is healthy; its links are impaired as before."),
    _host_command("restart", "restarted", "Stop HOST, start it again, and wait until it is healthy."),
    _host_command("kill", "killed", "End HOST with SIGKILL, as a crash does."),
    _host_command("pause", "paused", "Pause every process in HOST, until `testbed resume`."),
    _host_command("resume", "resumed", "Resume a paused HOST."),
)
