"""A run of a test under other impairments than it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from testbed.judge.shrinking import Put, Scenario
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.timeline import Timeline


@dataclass
class Trial:
    """What the running test is given instead of what it asks for; and what that was."""

    scenario: Scenario = field(default_factory=lambda: Scenario({}, {}))
    puts: dict[Put, Impairment | Timeline] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)

    def instead(self, ref: LinkRef, number: int, wanted: Impairment | Timeline) -> Impairment | Timeline:
        """What is put on a link in place of what the test asks for."""
        put = Put(ref, number)
        self.puts[put] = wanted
        return self.scenario.puts.get(put, wanted)

    def at_most(self, count: int, name: str) -> int:
        """How much work the test does."""
        self.work[name] = count
        return min(count, self.scenario.work.get(name, count))


TRIAL: pytest.StashKey[Trial] = pytest.StashKey()
"""Of a configuration: the trial that the running test is, if it is one."""
