"""Judge programs that write no journal: by exit status, output, and the bytes that arrived. Pure.

What a user's own programs must keep is in images/README.md: exit status 0 is success, 127 that the program is not
there or cannot do this; everything else is a failure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from testbed.evidence.observed import Evidence
from testbed.evidence.verdict import Verdict, worst

_UNSUPPORTED = 127

# Why a receiving kernel threw bytes away that its program was to read; linux/snmp.h, tcp_close() of net/ipv4/tcp.c.
_THROWN_AWAY = {
    "TCPAbortOnClose": "it closed the connection with bytes unread, and its kernel destroyed them and sent a reset",
    "TCPAbortOnData": "bytes came after it had closed the connection, and its kernel answered with a reset",
    "ListenOverflows": "its listener's queue was full",
    "TCPRcvQDrop": "its socket's buffer was full",
}


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Bytes too many to keep."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Of some bytes."""
        return cls(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, kw_only=True)
class OutputAccount:
    """The answer."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why it is not PASS; empty if it is."""
    expected: Digest
    received: Digest
    same_bytes: int | None
    """How many bytes at the beginning are as expected; None where only digests are known."""

    @property
    def passed(self) -> bool:
        """Whether it is PASS."""
        return self.verdict is Verdict.HOLDS

    def __str__(self) -> str:
        return "\n".join([self.verdict.of("account"), *(f"  {reason}" for reason in self.reasons)])


def judge_output(
    expected: bytes | Digest,
    received: bytes | Digest,
    *,
    exit_codes: Mapping[str, int | None],
    evidence: Evidence | None = None,
    receiver: str | None = None,
) -> OutputAccount:
    """Judge what arrived against what was to arrive.

    ``exit_codes`` by host; None for a program that did not end (which makes the result INCONCLUSIVE). With
    ``evidence``, counters of the ``receiver`` that explain missing bytes are named.
    """
    verdicts: list[Verdict] = []
    reasons: list[str] = []
    for host, code in exit_codes.items():
        if code == 0:
            continue
        if code is None:
            verdicts.append(Verdict.UNKNOWN)
            reasons.append(f"the program of {host} did not end")
        elif code == _UNSUPPORTED:
            verdicts.append(Verdict.INVALID)
            reasons.append(f"the program of {host} is not there, or cannot do this: exit status {_UNSUPPORTED}")
        else:
            verdicts.append(Verdict.FAILS)
            reasons.append(f"the program of {host} failed: exit status {code}")
    wanted, came = _digest(expected), _digest(received)
    same = _same(expected, received)
    if wanted != came:
        verdicts.append(Verdict.FAILS)
        reasons.append(_differs(wanted, came, same))
        if exit_codes and not any(exit_codes.values()) and None not in exit_codes.values():
            reasons.append(f"and nobody was told: exit status 0 at {' and '.join(exit_codes)}")
        if receiver is not None and evidence is not None:
            counted = {name: evidence.counted(receiver, "TcpExt", name) for name in _THROWN_AWAY}
            reasons += [f"{receiver}: {_THROWN_AWAY[name]} ({name} {n})" for name, n in counted.items() if n]
    return OutputAccount(
        verdict=worst(*verdicts), reasons=tuple(reasons), expected=wanted, received=came, same_bytes=same
    )


def _digest(content: bytes | Digest) -> Digest:
    return Digest.of(content) if isinstance(content, bytes) else content


def _same(expected: bytes | Digest, received: bytes | Digest) -> int | None:
    if not (isinstance(expected, bytes) and isinstance(received, bytes)):
        return None
    least = min(len(expected), len(received))
    if expected[:least] == received[:least]:
        return least
    return next(at for at in range(least) if expected[at] != received[at])


def _differs(wanted: Digest, came: Digest, same: int | None) -> str:
    if same is None:
        if wanted.size_bytes == came.size_bytes:
            return f"other bytes: SHA-256 {came.sha256[:16]}…, expected {wanted.sha256[:16]}…"
        return f"{came.size_bytes:,} bytes arrived, {wanted.size_bytes:,} were expected"
    if same == came.size_bytes:
        return f"{came.size_bytes:,} of {wanted.size_bytes:,} bytes arrived: it was cut off there"
    if same == wanted.size_bytes:
        return (
            f"{came.size_bytes - wanted.size_bytes:,} bytes too many arrived after the {wanted.size_bytes:,} expected"
        )
    return f"other bytes arrived from byte {same:,} on (of {wanted.size_bytes:,} expected, {came.size_bytes:,} came)"
