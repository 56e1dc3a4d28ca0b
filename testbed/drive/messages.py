"""Framed messages from one host to another: start the server and the client, collect journals and counters.

::

    run = messages(lab, "client -> server", structure="threads", count=200, replies=True)
    assert run.judge().passed, run.judge()

The hosts need Python 3 and a /tmp; the programs of images/ are put there.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from testbed.drive.programs import put_programs
from testbed.errors import CommandTimeoutError, InvalidValueError, LabError
from testbed.evidence.journal import Journal
from testbed.evidence.observed import Counters, Evidence, LinkCounts, difference
from testbed.judge import oracle
from testbed.judge.account import Account, Expectation
from testbed.lab.host import Program, Result
from testbed.lab.lab import Lab
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.spec.links import LinkRef
from testbed.spec.words import unknown

STRUCTURES = ("iterative", "threads", "fork", "selectors", "asyncio")
TRANSPORTS = ("tcp", "udp")

PORTS = {"tcp": 8901, "udp": 8902, "game": 8903}
"""Where the servers listen."""
_MARGIN_S = 20.0  # beyond a client's own deadline: it starts, ends, and is heard of
_QUIET_DEADLINE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of one exchange."""

    client: Result
    server: Result
    journals: dict[str, bytes]
    """By host."""
    evidence: Evidence

    def judge(self, *, expect: Expectation | None = None, stall_s: float = 0.1) -> Account:
        """The oracle's account of it. Raises InvalidValueError if a journal cannot be read."""
        read = [Journal.of(content, name=name) for name, content in self.journals.items()]
        return oracle.judge(read, self.evidence, expect=expect, stall_s=stall_s)


@dataclass(frozen=True, kw_only=True)
class _Counted:
    hosts: dict[str, Counters]
    links: dict[LinkRef, LinkCounts]


class Exchange:
    """A server and a client that run; a context manager that leaves neither behind.

    ``link`` is ``"client -> server"``. An argv begins with the name of a program of ours, without ``.py``, and gets
    ``--journal FILE`` at its end. While they run, the lab is yours to impair, cut and mend; `finish` waits for the
    client, for packets under way, and stops the server.
    """

    def __init__(
        self, lab: Lab, link: str, *, server_argv: Sequence[str], client_argv: Sequence[str], ready: int | str
    ) -> None:
        refs = lab.topology.links(link)
        if len(refs) != 1:
            raise InvalidValueError(f'link {link!r}: write the client first: "client -> server"')
        self._lab, self._ref = lab, refs[0]
        self._back = LinkRef(self._ref.dst, self._ref.src, self._ref.network)
        self._client_host, self._server_host = lab.host(self._ref.src), lab.host(self._ref.dst)
        token = secrets.token_hex(4)
        self._paths = {self._ref.src: f"/tmp/journal-{token}-client", self._ref.dst: f"/tmp/journal-{token}-server"}  # noqa: S108  # in a container of the lab's, under a name drawn by lot
        self._server_argv = [*server_argv, "--journal", self._paths[self._ref.dst]]
        self._client_argv = [*client_argv, "--journal", self._paths[self._ref.src]]
        self._ready = ready
        self._server: Program | None = None
        self._client: Program | None = None
        self._before: _Counted | None = None

    @property
    def server_address(self) -> str:
        """Where the client reaches the server on this link's network."""
        return self._server_host.addresses(self._ref.network)[0]

    def __enter__(self) -> Self:
        serve, ask = put_programs(self._server_host), put_programs(self._client_host)
        self._server = self._server_host.start([*serve, *self._server_argv], ready=self._ready)
        try:
            self._before = self._count()
            argv = [self.server_address if word == "{server}" else word for word in self._client_argv]
            self._client = self._client_host.start([*ask, *argv])
        except BaseException:
            self._server.stop("SIGKILL")
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for program in (self._client, self._server):
            if program is not None and not program.ended:
                program.stop("SIGKILL")

    def finish(self, timeout: str = "60s") -> Run:
        """Wait for the client, let the links run empty, stop the server, and collect everything.

        Raises CommandTimeoutError if the client does not end, LabError if a program was used wrongly.
        """
        if self._client is None or self._server is None or self._before is None:
            raise LabError("an exchange is finished inside its `with` block")
        client = self._client.wait(timeout)
        self._await_empty_links()
        return self._collect(client, self._server.stop("SIGTERM"))

    def stop_server_first(self, timeout: str = "60s") -> Run:
        """Ask the server to stop while the client still sends, then wait for the client and collect everything."""
        if self._client is None or self._server is None:
            raise LabError("an exchange is finished inside its `with` block")
        server = self._server.stop("SIGTERM", timeout)
        return self._collect(self._client.wait(timeout), server)

    def await_server_busy(self, segments: int = 50, deadline_s: float = 20.0) -> None:
        """Wait until the server's host has received so many TCP segments or UDP datagrams since the beginning."""
        if self._before is None:
            raise LabError("an exchange is waited for inside its `with` block")
        before = self._before.hosts[self._ref.dst]

        def received() -> int:
            grown = difference(before, self._server_host.counters())
            return grown["Tcp"]["InSegs"] + grown["Udp"]["InDatagrams"]

        try:
            await_condition(received, lambda count: count >= segments, deadline_s=deadline_s)
        except NotSeenError as error:
            raise CommandTimeoutError(
                f"`{self._ref.dst}` received {error.last} segments within {deadline_s:g} s, {segments} were awaited"
            ) from None

    def _collect(self, client: Result, server: Result) -> Run:
        if self._before is None:
            raise LabError("an exchange is finished inside its `with` block")
        for host, result in ((self._ref.src, client), (self._ref.dst, server)):
            if result.exit_code not in (0, 1):
                raise LabError(
                    f"`{host}`: {' '.join(result.argv)}: exit status {result.exit_code}: {result.stderr[-2000:]}"
                )
        after = self._count()
        evidence = Evidence(
            kernel={host: difference(self._before.hosts[host], counters) for host, counters in after.hosts.items()},
            links={(ref.src, ref.dst): _since(self._before.links.get(ref), seen) for ref, seen in after.links.items()},
        )
        journals = {host: self._lab.host(host).get(path) for host, path in self._paths.items()}
        return Run(client=client, server=server, journals=journals, evidence=evidence)

    def _await_empty_links(self) -> None:
        def queued() -> int:
            seen = (self._lab.ports.netem(ref) for ref in (self._ref, self._back))
            return sum(netem["qlen"] for netem in seen if netem is not None)

        try:
            await_condition(queued, lambda packets: not packets, deadline_s=_QUIET_DEADLINE_S)
        except NotSeenError:
            return  # they are counted as under way, and the judge says so

    def _count(self) -> _Counted:
        links = {}
        for ref in (self._ref, self._back):
            cut = self._lab.cutter.lost_packets(ref)
            seen = self._lab.ports.counters(ref) if self._lab.ports.netem(ref) is not None else None
            if seen is None and not cut:
                continue
            impairment = self._lab.impairer.impairments().get(ref)
            links[ref] = LinkCounts(
                sent_packets=seen.sent_packets if seen else 0,
                dropped_packets=cut + (seen.dropped_packets if seen else 0),
                queued_packets=seen.queued_packets if seen else 0,
                duplicates=bool(impairment and impairment.duplicate_ratio),
            )
        hosts = {self._ref.src: self._client_host.counters(), self._ref.dst: self._server_host.counters()}
        return _Counted(hosts=dict(hosts), links=links)


def _since(before: LinkCounts | None, after: LinkCounts) -> LinkCounts:
    if before is None:
        return after
    return LinkCounts(
        sent_packets=after.sent_packets - before.sent_packets,
        dropped_packets=after.dropped_packets - before.dropped_packets,
        queued_packets=after.queued_packets,
        duplicates=after.duplicates or before.duplicates,
    )


def exchange(
    lab: Lab,
    link: str = "client -> server",
    *,
    transport: str = "tcp",
    structure: str = "iterative",
    count: int = 100,
    size_bytes: int = 100,
    rate_per_s: float = 0.0,
    connections: int = 1,
    replies: bool = False,
    deadline_s: float = 30.0,
    server_options: Sequence[str] = (),
    client_options: Sequence[str] = (),
) -> Exchange:
    """An exchange of ``count`` messages on each of ``connections``, to be entered; `messages` does it in one call.

    ``server_options`` and ``client_options`` are further words for the programs: ``["--work", "0.01"]``. Raises
    InvalidValueError for an unknown transport, structure or link.
    """
    problems = [
        f"{name} {value!r}: {unknown(value, known)}"
        for name, value, known in (("transport", transport, TRANSPORTS), ("structure", structure, STRUCTURES))
        if value not in known
    ]
    if problems:
        raise InvalidValueError(problems)
    port = str(PORTS[transport])
    server = ["server", "--structure", structure] if transport == "tcp" else ["udp_server"]
    client = [
        "client" if transport == "tcp" else "udp_client", "{server}", port,
        "--messages", str(count), "--size", str(size_bytes), "--rate", str(rate_per_s),
        "--connections", str(connections), "--deadline", str(deadline_s), *(["--replies"] if replies else []),
    ]  # fmt: skip
    return Exchange(
        lab,
        link,
        server_argv=[*server, "--port", port, *server_options],
        client_argv=[*client, *client_options],
        ready=int(port) if transport == "tcp" else "ready",
    )


def messages(lab: Lab, link: str = "client -> server", *, deadline_s: float = 30.0, **options: object) -> Run:
    """Run an exchange to its end; the same options as `exchange`."""
    with exchange(lab, link, deadline_s=deadline_s, **options) as running:  # type: ignore[arg-type]  # exchange's own, checked there
        return running.finish(f"{deadline_s + _MARGIN_S:g}s")


def game(
    lab: Lab,
    link: str = "client -> server",
    *,
    transport: str = "udp",
    updates: int = 300,
    rate_per_s: float = 60.0,
    size_bytes: int = 200,
    deadline_s: float = 60.0,
) -> Run:
    """A player at the link's beginning gets state updates from a game's server at its end; so they go back.

    Judge with ``run.judge(stall_s=0.1)``: the direction server -> client has stalls (freezes) and delays.
    """
    if transport not in TRANSPORTS:
        raise InvalidValueError(f"transport {transport!r}: {unknown(transport, TRANSPORTS)}")
    port = str(PORTS["game"])
    running = Exchange(
        lab, link,
        server_argv=["game_server", "--transport", transport, "--port", port, "--updates", str(updates),
                     "--rate", str(rate_per_s), "--size", str(size_bytes)],
        client_argv=["game_client", "{server}", "--transport", transport, "--port", port,
                     "--deadline", str(deadline_s)],
        ready=int(port) if transport == "tcp" else "ready",
    )  # fmt: skip
    with running:
        return running.finish(f"{deadline_s + _MARGIN_S:g}s")
