"""Framed messages from one host to another: start the server and the client, collect journals and counters.

::

    run = messages(lab, "client -> server", structure="threads", count=200, replies=True)
    assert run.judge().passed, run.judge()

The hosts need Python 3 and a /tmp; the programs of images/ are copied there.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from testbed.drive.archive import put_programs
from testbed.errors import CommandTimeoutError, InvalidValueError, LabError
from testbed.evidence.journal import Journal
from testbed.evidence.observed import CounterGroups, KernelEvidence, LinkCounts, difference
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
"""The servers' ports."""
_MARGIN_S = 20.0  # beyond a client's own deadline, for its start and end
_QUIET_DEADLINE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class ExchangeResult:
    """The result of one exchange."""

    client: Result
    server: Result
    journals: dict[str, bytes]
    """By host."""
    evidence: KernelEvidence

    def judge(self, *, expect: Expectation | None = None, stall_s: float = 0.1) -> Account:
        """The oracle's account. Raises InvalidValueError if a journal cannot be read."""
        journals = [Journal.of(content, name=name) for name, content in self.journals.items()]
        return oracle.judge(journals, self.evidence, expect=expect, stall_s=stall_s)


@dataclass(frozen=True, kw_only=True)
class _Counts:
    hosts: dict[str, CounterGroups]
    links: dict[LinkRef, LinkCounts]


class Exchange:
    """A running server and client; a context manager that ends both.

    ``link`` is ``"client -> server"``. An argv begins with the name of one of our programs, without ``.py``, and gets
    ``--journal FILE`` appended. While they run, links can be impaired, cut and mended. `finish` waits for the client
    and for packets under way, and stops the server.
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
        self._before: _Counts | None = None

    @property
    def server_address(self) -> str:
        """The server's address on this link's network."""
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

    def finish(self, timeout: str = "60s") -> ExchangeResult:
        """Wait for the client and for packets under way, stop the server, and collect journals and counters.

        Raises CommandTimeoutError if the client does not end, LabError if a program was used wrongly.
        """
        if self._client is None or self._server is None or self._before is None:
            raise LabError("an exchange is finished inside its `with` block")
        client = self._client.wait(timeout)
        self._await_empty_links()
        return self._collect(client, self._server.stop("SIGTERM"))

    def stop_server_first(self, timeout: str = "60s") -> ExchangeResult:
        """Stop the server while the client still sends, then wait for the client; the rest as `finish`."""
        if self._client is None or self._server is None:
            raise LabError("an exchange is finished inside its `with` block")
        server = self._server.stop("SIGTERM", timeout)
        return self._collect(self._client.wait(timeout), server)

    def await_server_busy(self, segments: int = 50, deadline_s: float = 20.0) -> None:
        """Wait until the server's host has received this number of TCP segments and UDP datagrams."""
        if self._before is None:
            raise LabError("an exchange is waited for inside its `with` block")
        before = self._before.hosts[self._ref.dst]

        def received() -> int:
            growth = difference(before, self._server_host.counters())
            return growth["Tcp"]["InSegs"] + growth["Udp"]["InDatagrams"]

        try:
            await_condition(received, lambda count: count >= segments, deadline_s=deadline_s)
        except NotSeenError as error:
            raise CommandTimeoutError(
                f"`{self._ref.dst}` received {error.last} segments within {deadline_s:g} s, {segments} were awaited"
            ) from None

    def _collect(self, client: Result, server: Result) -> ExchangeResult:
        if self._before is None:
            raise LabError("an exchange is finished inside its `with` block")
        for host, result in ((self._ref.src, client), (self._ref.dst, server)):
            if result.exit_code not in (0, 1):
                raise LabError(
                    f"`{host}`: {' '.join(result.argv)}: exit status {result.exit_code}: {result.stderr[-2000:]}"
                )
        after = self._count()
        evidence = KernelEvidence(
            kernel={host: difference(self._before.hosts[host], counters) for host, counters in after.hosts.items()},
            links={
                (ref.src, ref.dst): _growth(self._before.links.get(ref), counts) for ref, counts in after.links.items()
            },
        )
        journals = {host: self._lab.host(host).get(path) for host, path in self._paths.items()}
        return ExchangeResult(client=client, server=server, journals=journals, evidence=evidence)

    def _await_empty_links(self) -> None:
        def queued() -> int:
            netems = (self._lab.ports.netem(ref) for ref in (self._ref, self._back))
            return sum(netem["qlen"] for netem in netems if netem is not None)

        try:
            await_condition(queued, lambda packets: not packets, deadline_s=_QUIET_DEADLINE_S)
        except NotSeenError:
            return  # the account counts them as under way

    def _count(self) -> _Counts:
        links = {}
        for ref in (self._ref, self._back):
            cut = self._lab.cutter.lost_packets(ref)
            counters = self._lab.ports.counters(ref) if self._lab.ports.netem(ref) is not None else None
            if counters is None and not cut:
                continue
            impairment = self._lab.impairer.impairments().get(ref)
            links[ref] = LinkCounts(
                sent_packets=counters.sent_packets if counters else 0,
                dropped_packets=cut + (counters.dropped_packets if counters else 0),
                queued_packets=counters.queued_packets if counters else 0,
                duplicates=bool(impairment and impairment.duplicate_ratio),
            )
        hosts = {self._ref.src: self._client_host.counters(), self._ref.dst: self._server_host.counters()}
        return _Counts(hosts=dict(hosts), links=links)


def _growth(before: LinkCounts | None, after: LinkCounts) -> LinkCounts:
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
    """An exchange of ``count`` messages per connection, to be entered; `messages` runs one in a single call.

    ``server_options`` and ``client_options`` are further arguments of the programs: ``["--work", "0.01"]``. Raises
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
        "client" if transport == "tcp" else "udp_client",
        "{server}",
        port,
        *_options(messages=count, size=size_bytes, rate=rate_per_s, connections=connections, deadline=deadline_s),
        *(["--replies"] if replies else []),
    ]
    return Exchange(
        lab,
        link,
        server_argv=[*server, "--port", port, *server_options],
        client_argv=[*client, *client_options],
        ready=int(port) if transport == "tcp" else "ready",
    )


def _options(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def messages(
    lab: Lab, link: str = "client -> server", *, deadline_s: float = 30.0, **options: object
) -> ExchangeResult:
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
) -> ExchangeResult:
    """A game: the client of the link gets state updates from the server, so they travel in the reverse direction.

    Judge with ``run.judge(stall_s=0.1)``: the direction server -> client has stalls (freezes) and delays.
    """
    if transport not in TRANSPORTS:
        raise InvalidValueError(f"transport {transport!r}: {unknown(transport, TRANSPORTS)}")
    port = str(PORTS["game"])
    both = _options(transport=transport, port=port)
    server = ["game_server", *both, *_options(updates=updates, rate=rate_per_s, size=size_bytes)]
    client = ["game_client", "{server}", *both, *_options(deadline=deadline_s)]
    ready = int(port) if transport == "tcp" else "ready"
    running = Exchange(lab, link, server_argv=server, client_argv=client, ready=ready)
    with running:
        return running.finish(f"{deadline_s + _MARGIN_S:g}s")
