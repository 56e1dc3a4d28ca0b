"""After a session in virtual time: its failed tests run again, with the packets at every port and TCP_INFO kept.

The first run does nothing for it, so its packets are what they were without. Each replay is compared with it, packet by
packet, and what is told of one that is not the same says so. Reading TCP_INFO takes time on the simulated clock and may
move packets, so it is read in a replay of its own.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import pytest

from testbed.errors import TestbedError
from testbed.evidence.replaying import Replay
from testbed.evidence.verdict import Verdict
from testbed.pytest import results, state

if TYPE_CHECKING:
    from testbed.evidence.stored import StoredTest
    from testbed.judge.sameness import Sameness

_Replayed = Future[dict[str, "StoredTest"]]
_MOST_READINGS = 2000
_MOST_TOLD = 5


class _RunAgain(Protocol):
    def __call__(
        self, share: None, say: Callable[[str], None], event: None, stop: threading.Event, again: Replay, /
    ) -> int:
        """Run the session again: see `testbed.pytest.kernels.RunKernel`."""


class _Unseen(io.BytesIO):
    def __init__(self, real: BinaryIO) -> None:
        super().__init__()
        self.fileno, self.isatty = real.fileno, real.isatty  # type: ignore[method-assign]  # as the programs are told

    def write(self, content: Any, /) -> int:
        return len(memoryview(content))


def unseen(real: BinaryIO) -> BinaryIO:
    """Output that nobody sees. To the programs that write it, it is what the first run's was."""
    return _Unseen(real)


@contextmanager
def afterwards(
    config: pytest.Config, run: _RunAgain, say: Callable[[str], None], *, files: Sequence[Path]
) -> Iterator[None]:
    """Replay what fails in the session that the block runs. ``files``: what the session writes beside its folders.

    Raises what `testbed.kernel.virtual.run` raises.
    """
    new = [file for file in files if not file.exists()]
    repeats = Replay.requested(os.environ) is not None
    most = 0 if config.option.collectonly or repeats else state.most_replays(config)
    earlier = _version(results.file_of(config))
    yield
    if most and _version(results.file_of(config)) != earlier and (tests := _failed(config, most)):
        say(
            f"replaying {len(tests)} failed test{'s'[: len(tests) > 1]} with the packets at every port and TCP_INFO "
            "(--testbed-replays 0: none)"
        )
        try:
            with _without(config, new):
                replayed = {test.id: content for test, content in _replays(config, run, tests)}
            _tell(config, replayed, say)
        except KeyboardInterrupt:
            say("interrupted; not replayed")
        except (TestbedError, OSError) as error:  # what the tests have shown counts all the same
            say(f"not replayed: {error}")


@contextmanager
def _without(config: pytest.Config, files: Sequence[Path]) -> Iterator[None]:
    """As it was before the first run: another file beside the tests would move their packets."""
    from testbed.writing import write_whole

    kept = {file: file.read_bytes() for file in files if file.is_file()}
    for file in kept:
        file.unlink()
    try:
        yield
    finally:
        for file, content in kept.items():
            write_whole(file, content, below=config.invocation_params.dir)


def _version(file: Path) -> tuple[int, int] | None:
    """Tells a file from an earlier one in its place; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns  # the other time is of the simulated clock


def _failed(config: pytest.Config, most: int) -> list[StoredTest]:
    """The first tests that failed and whose packets have digests; of a search, the first alone."""
    from testbed.evidence import stored

    file = results.file_of(config)
    with file.open(encoding="utf-8") as lines:
        tests = stored.read(lines, name=file.name).tests
    failed = [test for test in tests if test.last.outcome is Verdict.FAILS and test.last.content.get("packets")]
    return failed[: min(most, 1) if state.seeds_of(config) is not None else most]


def _replays(
    config: pytest.Config, run: _RunAgain, tests: Sequence[StoredTest]
) -> Iterator[tuple[StoredTest, dict[str, Any]]]:
    """What became of each test, as the results file has it. Both replays run at the same time."""
    from testbed.judge.sameness import compare

    # A test that observes its lab has read TCP_INFO itself.
    every_s = {test.id: _every_s(test) for test in tests if not test.last.content["series"]}
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="testbed-replays-") as name, ThreadPoolExecutor(2) as pool:

        def begin(word: str, chosen: Sequence[StoredTest], observed: Mapping[str, float]) -> _Replayed:
            again = Replay(
                tests=tuple(test.id for test in chosen), into=str(Path(name, word)), observe_every_s=observed
            )
            return pool.submit(_replay, config, run, again, stop) if chosen else pool.submit(dict)

        plain = begin("plain", tests, {})
        observing = begin("observed", [test for test in tests if test.id in every_s], every_s)
        try:
            replayed, observed = plain.result(), observing.result()
        finally:
            stop.set()  # of those that have ended it changes nothing
        for test in tests:
            there, comparison = replayed.get(test.id), compare(test, replayed.get(test.id))
            kept = [] if there is None else [path for path in there.last.content["captures"] if "/replay/" in path]
            _keep(config, kept, Path(name, "plain"))
            tcp_info = None
            if test.id in observed:
                tcp_info = {
                    "every_s": every_s[test.id],
                    **_in_words(compare(test, _unobserved(observed[test.id]))),
                    "series": observed[test.id].last.content["series"],
                }
            yield (
                test,
                {
                    **_in_words(comparison),
                    "packets": comparison.packets,
                    "captures": kept,
                    "tcp_info": tcp_info,
                },
            )


def _unobserved(test: StoredTest) -> StoredTest:
    """Without what was read in this replay alone."""
    return replace(
        test, attempts=(*test.attempts[:-1], replace(test.last, content={**test.last.content, "series": []}))
    )


def _every_s(test: StoredTest) -> float:
    """How often TCP_INFO is read during a test: each reading takes this machine some time."""
    return max(math.ceil(test.last.duration_s / _MOST_READINGS * 1000), 1) / 1000


def _replay(config: pytest.Config, run: _RunAgain, again: Replay, stop: threading.Event) -> dict[str, StoredTest]:
    """The tests of another run of the session, by id; it ends with the last of those that are asked for."""
    from testbed.evidence import stored

    run(None, lambda _text: None, None, stop, again)
    for file in Path(again.into).rglob(results.file_of(config).name):
        with file.open(encoding="utf-8") as lines:
            return {test.id: test for test in stored.read(lines, name=file.name).tests}
    return {}


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
