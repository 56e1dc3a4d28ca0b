"""Durations and signals, as Compose files and images write them. Pure."""

from __future__ import annotations

import re
from signal import Signals

from testbed.text import shown

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str) -> float:
    """A duration in the form of Go and Compose, ``"1m30s"``, in seconds. Raises ValueError."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError(f'{shown(text)} is not a duration; write "1m30s" or "500ms"')
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def signal_name(text: str) -> str:
    """``SIGTERM`` for ``SIGTERM``, ``TERM`` or ``15``. Raises ValueError."""
    word = text.strip().upper()
    known = {str(int(number)): name for name, number in Signals.__members__.items()}
    name = known.get(word, word if word.startswith("SIG") else f"SIG{word}")
    if name not in Signals.__members__:
        raise ValueError(f"{shown(text)} is no signal; write SIGTERM, or 15")
    return name
