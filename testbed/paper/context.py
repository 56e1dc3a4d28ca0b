"""What an experiment works with: a lab, small programs, and a folder for evidence."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed.errors import LabError
from testbed.labs.lab import Lab, Program, Result
from testbed.observe import pcapng
from testbed.observe.capture import Capture

BOTH = "client <-> server"
THERE = "client -> server"
BACK = "server -> client"
PAPER_PORT = 8888


@dataclass
class Context:
    """One experiment's surroundings."""

    lab: Lab
    folder: Path
    """Where evidence goes."""
    quick: bool = False
    say: Callable[[str], None] = lambda _text: None
    kept: list[str] = field(default_factory=list)
    """Names of the evidence files."""

    def impair(self, link: str = BOTH, profile: str | None = None, **words: object) -> None:
        """Impair a link beside what is impaired already."""
        self.lab.impair(link, profile, prove=False, **words)

    def heal(self) -> None:
        """Read everything that is in force once more, then take it off: a condition that was not in force is none."""
        self.lab.verify()
        self.lab.heal()

    @property
    def address(self) -> str:
        """The server's."""
        return self.lab.host("server").addresses("lan")[0]

    def serve(self, code: str, *words: object) -> Program:
        """Start a small Python program at the server; it prints ``ready`` when it is."""
        return self.lab.host("server").start(["python3", "-c", code, *map(str, words)], ready="ready")

    def call(self, code: str, *words: object, timeout: str = "60s") -> Result:
        """Run a small Python program at the client, the server's address its first word, to its end."""
        argv = ["python3", "-c", code, self.address, *map(str, words)]
        return self.lab.host("client").run(argv, timeout=timeout)

    def begin(self, code: str, *words: object, ready: str | None = None) -> Program:
        """Start one there."""
        return self.lab.host("client").start(["python3", "-c", code, self.address, *map(str, words)], ready=ready)

    def paper_client(self, message: str, timeout: str = "60s") -> dict[str, float]:
        """Run the paper's client, with its times in nanoseconds; ``error`` is there if it failed."""
        argv = ["python3", "observed.py", "--messages", message, "--", "paper_client.py", "server", str(PAPER_PORT)]
        result = self.lab.host("client").run(argv, timeout=timeout)
        if not result.stdout:
            raise LabError(f"the paper's client printed nothing; status {result.exit_code}: {result.stderr[-500:]}")
        told: dict[str, float] = json.loads(result.stdout)
        return told

    def keep(self, name: str, content: bytes | str) -> None:
        """Keep a file of evidence."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        self.kept.append(name)

    def keep_capture(self, name: str, capture: Capture) -> None:
        """Keep packets, as a file that Wireshark opens."""
        self.keep(name, pcapng.write(capture))


def milliseconds(values: Sequence[float]) -> str:
    """Median and worst, for a row."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2] * 1e3:.1f} ms, at most {ordered[-1] * 1e3:.1f} ms" if ordered else "—"
