"""Command line of the agent."""

from __future__ import annotations

import argparse
import os
import sys

from . import (
    connections,
    echoes,
    files,
    inside,
    machine,
    namespaces,
    payload,
    ports,
    probes,
    processes,
    protocol,
    search_path,
    sockets,
    subordinate,
    virtual,
)


def main() -> int:
    """Serve until stdin closes."""
    parser = argparse.ArgumentParser(prog="agent", description="testbed's agent; speaks JSON lines on stdin and stdout")
    parser.add_argument(
        "role",
        choices=(
            "ports",
            "within",
            "capture",
            "inside",
            "signal",
            "files",
            "local",
            "owners",
            "machine",
            "first",
            "virtual",
            "simulated",
        ),
    )
    parser.add_argument("--tag", default="0", help="a few letters that keep this agent's devices apart")
    parser.add_argument("--passing", type=int, help="local: descriptor of the socket where descriptors arrive")
    parser.add_argument("--owner", type=int, help="local: pidfd of the process to end with")
    parser.add_argument("--machine", help="first, simulated: the file that describes the machine")
    parser.add_argument("--log", type=int, help="machine: descriptor for its kernel's console")
    parser.add_argument("--status", type=int, help="machine: descriptor for the program's exit status")
    parser.add_argument("words", nargs="*", help="first: words that the kernel appends; ignored")
    role = parser.parse_args()
    os.environ["PATH"] = search_path()
    if role.role == "local":
        return namespaces.serve(tag=role.tag, passing=role.passing, owner=role.owner)
    if role.role == "owners":
        return subordinate.give_owners()
    if role.role == "machine":
        return machine.outside(log=role.log, status=role.status)
    if role.role == "first":
        machine.first(role.machine)
    if role.role == "virtual":
        return virtual.outside()
    if role.role == "simulated":
        virtual.first(role.machine)
    if role.role in ("ports", "within"):
        with ports.AttachedPorts(tag=role.tag, within=role.role == "within") as beside:
            operations = {**beside.operations(), **probes.Probes().operations()}
            protocol.serve(operations, sys.stdin.buffer, sys.stdout.buffer)
    elif role.role == "capture":
        from . import capture  # see `Helpers.capturing`

        with capture.Captures() as captures:
            operations = {**captures.operations(), **echoes.Echoes().operations()}
            protocol.serve(operations, sys.stdin.buffer, sys.stdout.buffer)
    elif role.role == "inside":
        watched = sockets.Sockets()
        received = payload.Payloads()
        operations = {
            **inside.operations(),
            **connections.operations(),
            **watched.operations(),
            **received.operations(),
        }
        protocol.serve(operations, sys.stdin.buffer, sys.stdout.buffer)
    elif role.role == "files":
        protocol.serve(files.operations(), sys.stdin.buffer, sys.stdout.buffer)
    else:
        protocol.serve(processes.operations(), sys.stdin.buffer, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
