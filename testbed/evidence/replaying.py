"""What a session of pytest repeats of an earlier one, as one process tells it another. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REPLAY = "TESTBED_REPLAY"
"""The environment variable that holds it; without it, a session repeats nothing."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What is repeated."""

    tests: tuple[str, ...]
    """The tests whose packets are kept, as the results name them; the session ends with the last of them."""
    into: str
    """The folder that its results go to, instead of where those of the first run are."""
    expected: Mapping[str, Any] | None = None
    """What the first run depended on: see `testbed.kernel.variables.facts`. None where nothing can differ."""
    observe_every_s: Mapping[str, float] = field(default_factory=dict)
    """By test: how often TCP_INFO is read of all connections, in seconds; of the others it is not."""

    @classmethod
    def requested(cls, environment: Mapping[str, str]) -> Replay | None:
        """What the process that started this one asks."""
        text = environment.get(REPLAY)
        if not text:
            return None
        content = json.loads(text)
        return cls(**{**content, "tests": tuple(content["tests"])})

    def environment(self) -> dict[str, str]:
        """What a process that replays is given."""
        return {REPLAY: json.dumps(vars(self))}
