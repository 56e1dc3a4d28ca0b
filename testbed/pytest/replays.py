"""After a session in virtual time: its failed tests run again, with the packets at every port and TCP_INFO kept.

The first run does nothing for it, so its packets are what they were without. Each replay is compared with it, packet by
packet, and what is told of one that is not the same says so. Reading TCP_INFO takes time on the simulated clock and may
move packets, so it is read in a replay of its own.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import TestbedError
from testbed.evidence.replaying import Replay
from testbed.evidence.verdict import Verdict
from testbed.pytest import results, state
from testbed.pytest.markers import under

if TYPE_CHECKING:
    from testbed.evidence.stored import StoredTest
    from testbed.judge.sameness import Sameness
    from testbed.pytest.kernels import RunKernel
    from testbed.pytest.share import Share

_Replayed = Future[dict[str, "StoredTest"]]
_MOST_READINGS = 2000
_MOST_TOLD = 5


class Replays:
    """Replays what fails in the session that runs next."""

    def __init__(self, config: pytest.Config, run: RunKernel, say: Callable[[str], None]) -> None:
        self._config, self._run, self._say = config, run, say
        repeats = Replay.requested(os.environ) is not None
        self._most = 0 if config.option.collectonly or repeats else state.most_replays(config)
        self._earlier = _version(results.file_of(config))

    def replay(self, shares: Mapping[str, Share] = MappingProxyType({})) -> None:
        """Replay the tests that failed, once the session is over. ``shares``: of each test, if there were several."""
        if not self._most or _version(results.file_of(self._config)) == self._earlier:
            return
        if not (tests := _failed(self._config, self._most, shares)):
            return
        self._say(
            f"replaying {len(tests)} failed test{'s'[: len(tests) > 1]} with the packets at every port and TCP_INFO "
            "(--testbed-replays 0: none)"
        )
        try:
            replayed = {test.id: content for test, content in _replays(self._config, self._run, tests, shares)}
            _tell(self._config, replayed, self._say)
        except KeyboardInterrupt:
            self._say("interrupted; not replayed")
        except (TestbedError, OSError) as error:  # what the tests have shown counts all the same
            self._say(f"not replayed: {error}")


def _version(file: Path) -> tuple[int, int] | None:
    """Tells a file from an earlier one in its place; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns  # the other time is of the simulated clock


def _failed(config: pytest.Config, most: int, shares: Mapping[str, Share]) -> list[StoredTest]:
    """The first tests that failed and whose packets have digests; of a search, the first alone.

    Of several kernels' tests, those that come first by seed and name: which one ends first is chance.
    """
    from testbed.evidence import stored

    file = results.file_of(config)
    with file.open(encoding="utf-8") as lines:
        tests = stored.read(lines, name=file.name).tests
    failed = [test for test in tests if test.last.outcome is Verdict.FAILS and test.last.content.get("packets")]
    if shares:
        failed = sorted((test for test in failed if test.id in shares), key=lambda test: (test.last.seed, test.id))
    return failed[: min(most, 1) if state.seeds_of(config) is not None else most]


def _replays(
    config: pytest.Config, run: RunKernel, tests: Sequence[StoredTest], shares: Mapping[str, Share]
) -> Iterator[tuple[StoredTest, dict[str, Any]]]:
    """What became of each test, as the results file has it. Two replays run at the same time."""
    # A test that observes its lab has read TCP_INFO itself.
    every_s = {test.id: _every_s(test) for test in tests if not test.last.content["series"]}
    parts: dict[Share | None, list[StoredTest]] = {}
    for test in tests:
        parts.setdefault(shares.get(test.id), []).append(test)
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="testbed-replays-") as name, ThreadPoolExecutor(2) as pool:

        def begin(into: Path, share: Share | None, observed: Mapping[str, float]) -> _Replayed:
            chosen = [test.id for test in parts[share] if test.id in observed or not observed]
            again = Replay(tests=tuple(chosen), into=str(into), observe_every_s=observed)
            return pool.submit(_replay, config, run, share, again, stop)

        plain: list[_Replayed] = []
        observing: list[_Replayed] = []
        for number, share in enumerate(parts):
            plain.append(begin(Path(name, f"plain-{number}"), share, {}))
            if observed := {test.id: every_s[test.id] for test in parts[share] if test.id in every_s}:
                observing.append(begin(Path(name, f"observed-{number}"), share, observed))
        try:
            replayed = [replay.result() for replay in plain]
            observations = {test: content for replay in observing for test, content in replay.result().items()}
        finally:
            stop.set()  # of those that have ended it changes nothing
        for number, part in enumerate(parts.values()):
            for test in part:
                yield (
                    test,
                    _kept(
                        config,
                        test,
                        replayed[number].get(test.id),
                        Path(name, f"plain-{number}"),
                        observations.get(test.id),
                        every_s,
                    ),
                )


def _kept(
    config: pytest.Config,
    test: StoredTest,
    replayed: StoredTest | None,
    place: Path,
    observed: StoredTest | None,
    every_s: Mapping[str, float],
) -> dict[str, Any]:
    """What a test's replays have shown; the packets of the one in ``place`` are kept."""
    from testbed.judge.sameness import compare

    comparison = compare(test, replayed)
    kept = [] if replayed is None else [path for path in replayed.last.content["captures"] if "/replay/" in path]
    _keep(config, kept, place)
    tcp_info = None
    if observed is not None:
        tcp_info = {
            "every_s": every_s[test.id],
            **_in_words(compare(test, _unobserved(observed))),
            "series": observed.last.content["series"],
        }
    return {**_in_words(comparison), "packets": comparison.packets, "captures": kept, "tcp_info": tcp_info}


def _unobserved(test: StoredTest) -> StoredTest:
    """Without what was read in this replay alone."""
    return replace(
        test, attempts=(*test.attempts[:-1], replace(test.last, content={**test.last.content, "series": []}))
    )


def _every_s(test: StoredTest) -> float:
    """How often TCP_INFO is read during a test: each reading takes this machine some time."""
    return max(math.ceil(test.last.duration_s / _MOST_READINGS * 1000), 1) / 1000


def _replay(
    config: pytest.Config, run: RunKernel, share: Share | None, again: Replay, stop: threading.Event
) -> dict[str, StoredTest]:
    """The tests of another run of the session, or of a share, by id; it ends with the last of those that it is for."""
    from testbed.evidence import stored

    file = results.file_of(config)
    lines: list[str] = []
    of_seeds = state.seeds_of(config) is not None

    def take(event: str) -> None:
        report = json.loads(event).get("report", {})
        if (result := report.get("testbed_result")) is not None:
            name = under(result["id"], report["testbed_seed"]) if of_seeds else result["id"]
            lines.append(json.dumps({"test": {**result, "id": name}}))

    run(share, lambda _text: None, None if share is None else take, stop, again)
    if share is None:
        for written in Path(again.into).rglob(file.name):
            lines = written.read_text(encoding="utf-8").splitlines()
    elif lines:  # a share has no results file of its own
        lines.insert(0, file.read_text(encoding="utf-8").partition("\n")[0])
    return {test.id: test for test in stored.read(lines, name=file.name).tests} if lines else {}


def _in_words(comparison: Sameness) -> dict[str, Any]:
    """Whether a replay is the same, and where it parts first."""
    words = [comparison.missing, *map(str, comparison.parted), *comparison.differing]
    return {"same": comparison.same, "differences": [word for word in words if word][:_MOST_TOLD]}


def _keep(config: pytest.Config, paths: Sequence[str], place: Path) -> None:
    """Put the files of a replay where its results say that they are."""
    from testbed.writing import write_whole

    folder = config.invocation_params.dir
    for path in paths:
        write_whole(folder / path, (place / path).read_bytes(), below=folder)


def _tell(config: pytest.Config, contents: Mapping[str, Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """Say it, and write it into the results and the report."""
    from testbed.report.replayed import lines

    for test, replayed in contents.items():
        for line in lines(replayed):
            say(f"{test}: {line}")
    results.add(config, {test: {"replayed": replayed} for test, replayed in contents.items()})
