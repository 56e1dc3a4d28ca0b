"""In virtual time: what passed at every port during each test, as digests; in a replay, the packets themselves too."""

from __future__ import annotations

import gc
import os
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import LabError
from testbed.evidence.replaying import Replay
from testbed.kernel import variables
from testbed.pytest.markers import id_of, under
from testbed.pytest.state import SEED

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.evidence.trail import Passed
    from testbed.lab.lab import Lab
    from testbed.lab.trails import Trails

_KEEP_BYTES = 64 << 20
"""Of the packets of a port, in a replay."""
_SECOND_NS = 10**9
_FOLDER, _SUFFIX = "replay", ".pcapng"
"""Within a test's folder of captures; of each port's file."""


class Following:
    """Follows every port during one test."""

    def __init__(self, item: pytest.Item, lab: Lab, folder: Path) -> None:
        """Raises LabError."""
        from testbed.lab.trails import Trails

        # At a whole second, so that nothing depends on what the set-up took, nor on whether packets are kept.
        since_ns = (time.time_ns() // _SECOND_NS + 2) * _SECOND_NS
        kept = item.config.pluginmanager.get_plugin(_NAME)
        self._kept: Kept | None = kept if kept is not None and kept.wants(item) else None
        keep_bytes = _KEEP_BYTES if self._kept is not None else 0
        self._observing = ExitStack()
        if self._kept is not None and (every_s := self._kept.observe_every_s(item)):
            with suppress(LabError):  # a host is gone
                self._observing.enter_context(lab.observe(captures=(), every=f"{every_s:.6f}s"))
        self._trails: Trails = Trails(lab, since_ns=since_ns, keep_bytes=keep_bytes)
        self._folder = folder / _FOLDER
        collect_garbage()
        variables.wait_until(since_ns)

    def end(self, item: pytest.Item) -> tuple[Passed, list[Path]]:
        """What has passed, and the files of packets that there will be at the end of the session. Raises LabError."""
        passed = self._trails.end()
        self._observing.close()
        if self._kept is None:
            return passed, []
        self._kept.take(item, self._trails, self._folder)
        return passed, [self._folder / f"{port}{_SUFFIX}" for port in passed.ports]


def collect_garbage() -> None:
    """Have the next collection depend on nothing before it, not even on the number of objects.

    What it closes takes the kernel some time.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # the next collections are of later objects alone
    gc.collect()


def follow(item: pytest.Item, lab: Lab, folder: Path) -> Following | None:
    """Follow every port of a lab from now on; None in real time, and in a lab that cannot be followed.

    ``folder``: of this test's captures.
    """
    if not variables.is_inside():
        return None
    try:
        return Following(item, lab, folder)
    except LabError:
        return None


_NAME = "testbed-replay"


class Kept:
    """Keeps the packets of the tests that are replayed, and ends the session after the last of them.

    They are fetched in the last one's tear-down, and written at the end of the session: what is done between two tests
    takes time, by which the random numbers of the second would be others.
    """

    def __init__(self, config: pytest.Config, replay: Replay) -> None:
        self._config = config
        self._replay = replay
        self._left = set(replay.tests)
        self._followed: list[tuple[Trails, Path]] = []
        self._files: dict[Path, bytes] = {}

    def _names(self, item: pytest.Item) -> set[str]:
        name = id_of(item)
        return {name, under(name, self._config.stash[SEED])} & set(self._replay.tests)

    def wants(self, item: pytest.Item) -> bool:
        """Whether this test's packets are kept."""
        return bool(self._names(item))

    def observe_every_s(self, item: pytest.Item) -> float:
        """How often TCP_INFO is read during this test; 0: never."""
        return max((self._replay.observe_every_s.get(name, 0.0) for name in self._names(item)), default=0.0)

    def take(self, item: pytest.Item, trails: Trails, folder: Path) -> None:
        """Take what a test's ports were followed with; fetch all packets if it is the last one. Raises LabError."""
        self._followed.append((trails, folder))
        if self._left <= self._names(item):
            for followed, place in self._followed:
                for port, content in followed.files().items():
                    self._files[place / f"{port}{_SUFFIX}"] = content

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """End the session after the last test that is replayed."""
        result = yield
        self._left -= self._names(item)
        if self._replay.tests and not self._left:
            item.session.shouldstop = "all that was to be replayed has been"
        return result

    def pytest_sessionfinish(self) -> None:
        """Write the files."""
        from testbed.writing import write_whole

        for path, content in self._files.items():
            write_whole(path, content, below=self._config.invocation_params.dir)


def configure(config: pytest.Config) -> None:
    """In virtual time: keep what a replay asks for. Without one nothing, in the same steps: each takes time."""
    if variables.is_inside():
        replay = Replay.requested(os.environ) or Replay(tests=(), into="")
        config.pluginmanager.register(Kept(config, replay), _NAME)
