"""What tells a machine, and the lab on it, from others: facts that measurements depend on. Pure.

A fact that is not known is absent or null, and speaks neither for nor against two machines being alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECISIVE = {
    "kernel": "kernel", "processor": "processor", "processors": "number of processors", "memory_bytes": "memory",
    "congestion_control": "congestion control", "lab": "lab", "netem": "netem engine", "netem_kernel": "netem's kernel",
    "tc": "tc", "offloads": "offloads",
}  # fmt: skip
"""The facts by which results of two machines must not be compared if they differ, each with its name for people.

Versions, the commit and the images are not among them: these are what one compares.
"""


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The decisive facts in which two machines differ, by their key: what the one has, and what the other has."""
    pairs = {key: (one.get(key), other.get(key)) for key in DECISIVE}
    return {key: pair for key, pair in pairs.items() if None not in pair and pair[0] != pair[1]}


def in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """What `differences` found, as a clause: ``kernel 6.1 and 6.12; tc …``."""
    return "; ".join(f"{DECISIVE[key]} {_word(one)} and {_word(other)}" for key, (one, other) in differing.items())


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {'on' if on else 'off'}" for key, on in value.items())
    return str(value)
