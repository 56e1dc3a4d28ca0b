"""The tools of an experiment: a lab, small programs, a folder for evidence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

from testbed.errors import ImpairmentNotAppliedError, LabError
from testbed.lab.host import Program, Result
from testbed.lab.lab import Lab
from testbed.lab.waiting import await_condition
from testbed.observe import pcapng
from testbed.observe.capture import Capture
from testbed.observe.wire import Flow
from testbed.paper.outcomes import ClaimOutcome
from testbed.writing import write_whole

BOTH = "client <-> server"
THERE = "client -> server"
BACK = "server -> client"
PAPER_PORT = 8888
_PROGRAMS = Path(__file__).parent / "programs"


class NotAsMeantError(LabError):
    """The conditions of an experiment were not met: it says nothing about its claim."""


@dataclass
class ExperimentContext:
    """The tools of one experiment."""

    lab: Lab
    folder: Path
    """For evidence."""
    quick: bool = False
    say: Callable[[str], None] = lambda _text: None
    earlier: Mapping[str, ClaimOutcome] = field(default_factory=dict)
    """Outcomes of other claims in the same run, by id."""
    kept: list[str] = field(default_factory=list)
    """Names of the evidence files."""

    # --- links -----------------------------------------------------------------------------------

    def impair(self, link: str = BOTH, profile: str | None = None, **words: object) -> None:
        """Impair a link; other links stay impaired."""
        self.lab.impair(link, profile, prove=False, **words)

    def heal(self, *, met: str | None = None) -> None:
        """Read all impairments back, then heal them.

        Raises ImpairmentNotAppliedError if one is not in force, or no packet met it; ``met`` limits the latter to a
        link.
        """
        self.lab.verifier.verify()
        refs = self.lab.ports.impaired if met is None else self.lab.topology.links(met)
        counters = {ref: self.lab.ports.counters(ref) for ref in refs}
        idle = [str(ref) for ref, counts in counters.items() if not counts.sent_packets + counts.dropped_packets]
        if idle:
            raise ImpairmentNotAppliedError(f"no packet met the impairment of {', '.join(idle)}")
        self.lab.heal()

    # --- programs --------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The server's."""
        return self.lab.host("server").addresses("lan")[0]

    def serve(self, program: str, *words: object) -> Program:
        """Start a program of `testbed.paper.programs` on the server, and wait for its line ``ready``."""
        return self.lab.host("server").start(argv_of(program, *words), ready="ready")

    def call(self, program: str, *words: object, timeout: str = "60s") -> Result:
        """Run one on the client to its end, the server's address its first argument. Raises LabError if it fails."""
        result = self.lab.host("client").run(argv_of(program, self.address, *words), timeout=timeout)
        if not result.ok:
            raise LabError(f"{program} on the client: exit status {result.exit_code}: {result.stderr[-1000:]}")
        return result

    def begin(self, program: str, *words: object, ready: str | None = None) -> Program:
        """Start one on the client, with the same first argument."""
        return self.lab.host("client").start(argv_of(program, self.address, *words), ready=ready)

    def measure(self, host: str, program: str, *words: object) -> Result:
        """Run one in a host to its end, to measure it."""
        return self.lab.host(host).run(argv_of(program, *words))

    def flag(self, host: str) -> Flag:
        """A signal to a program in a host."""
        return Flag(self.lab, host)

    def begin_paper_client(self, message: str) -> Program:
        """Start the paper's client; `client_times` waits for it."""
        return self.lab.host("client").start(_paper_argv(message))

    def client_times(self, client: Program, timeout: str = "60s") -> dict[str, float]:
        """Wait for the paper's client; its times in nanoseconds, and ``error`` if it failed."""
        return _client_times(client.wait(timeout))[0]

    def paper_client(self, message: str, timeout: str = "60s") -> dict[str, float]:
        """Run the paper's client to its end; see `client_times`."""
        return self.paper_clients([message], timeout)[0]

    def paper_clients(self, messages: Sequence[str], timeout: str = "60s") -> list[dict[str, float]]:
        """Run it once per message, one after the other."""
        return _client_times(self.lab.host("client").run(_paper_argv(*messages), timeout=timeout))

    def printed(self) -> list[str]:
        """Lines printed by the paper's server."""
        return self.lab.host("server").logs().splitlines()

    def await_closed(self, port: int, deadline_s: float = 30.0) -> None:
        """Wait until neither kernel has a connection of the server's port on which it may still send or deliver data.

        FIN-WAIT-2 is no such state at the client: if its server still has to read or close, that is seen at the server.
        Otherwise the server's FIN was lost for good, perhaps in an earlier test; the client's kernel waits 60 s for it.
        """
        closed = {"server": ("TIME-WAIT", "LISTEN"), "client": ("TIME-WAIT", "LISTEN", "FIN-WAIT-2")}

        def open_still() -> list[object]:
            return [
                connection
                for name, end in (("server", "local_port"), ("client", "remote_port"))
                for connection in self.lab.host(name).connections()
                if connection[end] == port and connection["state"] not in closed[name]
            ]

        await_condition(open_still, lambda left: not left, deadline_s=deadline_s)

    # --- evidence --------------------------------------------------------------------------------

    def keep(self, name: str, content: bytes | str) -> None:
        """Keep a file of evidence."""
        write_whole(self.folder / name, content, below=Path.cwd())
        self.kept.append(name)

    def keep_json(self, name: str, content: object) -> None:
        """Keep measurements."""
        self.keep(name, json.dumps(content, indent=1))

    def keep_journals(self, name: str, journals: Mapping[str, bytes]) -> None:
        """Keep the journals of programs, a file per host."""
        for host, journal in journals.items():
            self.keep(f"{name}-{host}.jsonl", journal)

    def keep_capture(self, name: str, capture: Capture) -> None:
        """Keep packets, as a file for Wireshark."""
        self.keep(name, pcapng.write(capture))

    def keep_flows(self, name: str, flows: Iterable[Flow]) -> None:
        """Keep the segments of connections as text, one per line, for readers without Wireshark."""
        lines: list[str] = []
        for flow in flows:
            times_s = ((segment.time_ns - flow.segments[0].time_ns) / 1e9 for segment in flow.segments)
            lines += [str(flow), *map("{:10.6f}  {}".format, times_s, flow.segments)]
        self.keep(name, "\n".join(lines) + "\n")


class Flag:
    """A file in a host that programs wait for."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._host = lab.host(host)
        self.path = f"/tmp/flag-{token_hex(4)}"  # noqa: S108  # in a host of the lab's, under a name drawn by lot

    def __str__(self) -> str:
        return self.path

    def raise_(self) -> None:
        """Let the waiting programs go on."""
        self._host.put(self.path, "")


def _paper_argv(*messages: str) -> list[str]:
    return ["python3", "observed.py", "--messages", *messages, "--", "paper_client.py", "server", str(PAPER_PORT)]


def _client_times(result: Result) -> list[dict[str, float]]:
    if not result.stdout:
        raise LabError(f"the paper's client printed nothing; status {result.exit_code}: {result.stderr[-500:]}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def argv_of(program: str, *words: object) -> list[str]:
    """The argv of a program of `testbed.paper.programs` in any host."""
    text = (_PROGRAMS / f"{program}.py").read_text(encoding="utf-8")
    return ["python3", "-c", text, *map(str, words)]


def printed_json(program: Program, timeout: str = "60s") -> dict[str, object]:
    """Wait for a program's end; the JSON of its last line. Raises NotAsMeantError if it failed."""
    result = program.wait(timeout)
    if not result.ok:
        raise NotAsMeantError(f"a program ended with status {result.exit_code}: {result.stderr[-1000:]}")
    body: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return body
