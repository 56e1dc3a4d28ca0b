"""Failed tests in virtual time run again after the session: which, what is kept of them, and what is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import jsonschema
import pytest

from testbed.errors import EnvironmentUnfitError, InvalidValueError
from testbed.evidence import results, stored
from testbed.evidence.replaying import Replay
from testbed.evidence.series import Series
from testbed.evidence.trail import Passed, Trail
from testbed.evidence.verdict import Verdict
from testbed.pytest import replays
from testbed.pytest.share import Share
from testbed.report import run as report
from testbed.units import parse_time

SCHEMA = json.loads(Path(results.__file__).with_name(results.SCHEMA_FILE).read_text())
WINDOW = Series.of("client :1 -> server:2: congestion window", "segments", [(0.0, 10.0), (1.0, 5.0)])


def result_of(
    name: str, *, digest: str = "00", failed: bool = True, observed: bool = False, seed: int = 1
) -> results.TestResult:
    trail = Trail(packets=1, size_bytes=60, digest=digest, lost=0, every=1, marks=((1000, int(digest, 16)),))
    attempt = results.Attempt(
        seed=seed,
        duration_s=9.1,
        outcome=Verdict.FAILS if failed else Verdict.HOLDS,
        packets=Passed(since_ns=0, ports={"server@lan": trail}),
        series=[WINDOW] if observed else [],
    )
    return results.TestResult(id=f"t.py::{name}", attempts=[attempt])


def lay_out(file: Path, tests: list[results.TestResult]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Any] = [results.head(started="2027", seed=1, machine={"kernel": "7.2", "versions": {}, "git": None})]
    lines += [*({"test": test.as_json()} for test in tests), results.end(duration_s=1.0, exit_status=1)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


class Kernel:
    """Takes the place of the kernel: writes results and packets, as a session inside would."""

    def __init__(self, folder: Path, *, moved: bool = False, moved_by_reading: bool = True) -> None:
        self.folder = folder
        self.digests = {False: "01" if moved else "00", True: "01" if moved_by_reading else "00"}
        self.requests: list[Replay] = []
        self.shares: list[Share | None] = []
        self.there: list[str] = []
        self.turn = threading.Lock()

    def __call__(
        self,
        share: Share | None,
        say: Callable[[str], None],
        event: Callable[[str], None] | None,
        stop: object,
        again: Replay | None,
    ) -> int:
        assert again is not None
        with self.turn:
            self.requests.append(again)
            self.shares.append(share)
            self.there.append((self.folder / "junit.xml").read_text())
        tests = []
        for name in again.tests:
            reads = name in again.observe_every_s
            _, _, seed = name.removesuffix(")").partition(" (seed ")
            test = result_of(
                name.partition("::")[2],
                digest=self.digests[reads],
                observed=reads or name == "t.py::c",
                seed=int(seed or 1),
            )
            path = f"report/captures/{name.partition('::')[2]}/replay/server@lan.pcapng"
            test.attempts[0].captures = ["report/captures/other.pcapng", path]
            tests.append(test)
            (Path(again.into) / path).parent.mkdir(parents=True)
            (Path(again.into) / path).write_bytes(f"{name} {reads}".encode())
        if share is None:
            lay_out(Path(again.into, "report", "results.jsonl"), tests)
            return 1
        assert event is not None
        for test in tests:
            of_seed = {**test.as_json(), "id": test.id.partition(" (seed ")[0]}
            for content in ({}, {"testbed_result": of_seed, "testbed_seed": test.attempts[-1].seed}):
                event(json.dumps({"event": "logreport", "report": content}))
        event(json.dumps({"event": "end"}))
        return 1


def session(
    folder: Path,
    tests: list[results.TestResult] | None,
    run: Any,
    *,
    most: str | None = None,
    seeds: str | None = None,
    shares: Mapping[str, Share] = MappingProxyType({}),
) -> list[str]:
    """What is told of a session that writes these results, or none, and a JUnit file."""
    options = {"--testbed-results": "report/results.jsonl", "--testbed-replays": most, "--testbed-seeds": seeds}
    config: Any = SimpleNamespace(
        getoption={"--virtual-time": True, **options}.get,
        invocation_params=SimpleNamespace(dir=folder),
        option=SimpleNamespace(collectonly=False),
    )
    lines: list[str] = []
    replaying = replays.Replays(config, run, lines.append)
    if tests is not None:
        lay_out(folder / "report" / "results.jsonl", tests)
    (folder / "junit.xml").write_text("<of the first run/>")
    replaying.replay(shares)
    return lines


def written(folder: Path) -> dict[str, Any]:
    """What the results say of replays, by test."""
    lines = (folder / "report" / "results.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        jsonschema.Draft202012Validator(SCHEMA).validate(line)
    session = stored.read(lines, name="results")
    assert session.end is not None
    assert report.page(session).cells
    return {test.id: test.last.content["replayed"] for test in session.tests if "replayed" in test.last.content}


def test_the_first_tests_that_failed_are_replayed_and_their_packets_kept(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    tests = [result_of("a", failed=False), result_of("b"), result_of("c", observed=True), result_of("d")]
    lines = session(tmp_path, tests, kernel, most="2")
    assert sorted((request.tests, dict(request.observe_every_s)) for request in kernel.requests) == [
        (("t.py::b",), {"t.py::b": 0.005}),
        (("t.py::b", "t.py::c"), {}),
    ], "of c, the test itself has read TCP_INFO"
    assert kernel.there == ["<of the first run/>"] * 2, "it would be lost with a session that is killed now"
    kept = "report/captures/b/replay/server@lan.pcapng"
    assert (tmp_path / kept).read_text() == "t.py::b False"
    parting = "server@lan: packet 1 differs, by 0.000001 s"
    series = [WINDOW.as_json()]
    assert written(tmp_path) == {
        "t.py::b": {
            "same": True, "differences": [], "packets": 1, "captures": [kept],
            "tcp_info": {"every_s": 0.005, "same": False, "differences": [parting], "series": series},
        },
        "t.py::c": {
            "same": True, "differences": [], "packets": 1, "captures": [kept.replace("/b/", "/c/")], "tcp_info": None,
        },
    }  # fmt: skip
    assert lines == [
        "replaying 2 failed tests with the packets at every port and TCP_INFO (--testbed-replays 0: none)",
        "t.py::b: replayed, identical: all 1 packets at 1 ports are in report/captures/b/replay",
        f"t.py::b: TCP_INFO, read every 5ms, is in the report; reading it moved packets: {parting}",
        "t.py::c: replayed, identical: all 1 packets at 1 ports are in report/captures/c/replay",
    ]
    assert "TCP_INFO, read every 5ms" in (tmp_path / "report" / "index.html").read_text()


def test_tests_of_several_kernels_are_replayed_each_with_its_share(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    first, second = (Share(worker=f"gw{number}", number=number, count=2) for number in range(2))
    tests = [result_of("d"), result_of("c", observed=True), result_of("b"), result_of("lost")]
    lines = session(tmp_path, tests, kernel, shares={"t.py::b": first, "t.py::c": second, "t.py::d": second})
    ran = zip(kernel.shares, kernel.requests, strict=True)
    assert sorted((share.number, request.tests, *request.observe_every_s) for share, request in ran if share) == [
        (0, ("t.py::b",)),
        (0, ("t.py::b",), "t.py::b"),
        (1, ("t.py::c", "t.py::d")),
        (1, ("t.py::d",), "t.py::d"),
    ], "by name: which kernel ended first is chance"
    assert len({request.into for request in kernel.requests}) == 4
    replayed = written(tmp_path)
    assert {name: content["same"] for name, content in replayed.items()} == dict.fromkeys(
        ("t.py::b", "t.py::c", "t.py::d"), True
    )
    assert (tmp_path / replayed["t.py::d"]["captures"][0]).read_text() == "t.py::d False"
    assert [name for name, content in replayed.items() if content["tcp_info"]] == ["t.py::d", "t.py::b"]
    assert lines[0].startswith("replaying 3 failed tests ")


def test_of_a_search_by_several_kernels_the_smallest_seed_is_replayed_with_its_share(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    first, second = (Share(worker="master", number=number, count=2) for number in range(2))
    tests = [result_of("b (seed 5)", seed=5), result_of("b (seed 2)", seed=2), result_of("b (seed 4)", seed=4)]
    shares = {"t.py::b (seed 5)": first, "t.py::b (seed 2)": second, "t.py::b (seed 4)": second}
    session(tmp_path, tests, kernel, seeds="1..6", shares=shares)
    assert kernel.shares == [second] * 2, "once for its packets, once for TCP_INFO"
    assert {request.tests for request in kernel.requests} == {("t.py::b (seed 2)",)}
    replayed = written(tmp_path)
    assert {name: content["same"] for name, content in replayed.items()} == {"t.py::b (seed 2)": True}
    assert replayed["t.py::b (seed 2)"]["tcp_info"]["series"]


def test_a_replay_that_is_not_the_same_says_so(tmp_path: Path) -> None:
    lines = session(tmp_path, [result_of("b")], Kernel(tmp_path, moved=True, moved_by_reading=False))
    parting = "server@lan: packet 1 differs, by 0.000001 s"
    assert lines[1:] == [
        f"t.py::b: replayed, and not identical ({parting}); its packets are in report/captures/b/replay",
        "t.py::b: TCP_INFO, read every 5ms, is in the report",
    ]


@pytest.mark.parametrize(
    ("tests", "most"), [([result_of("a", failed=False)], None), ([result_of("b")], "0"), ([], None)]
)
def test_nothing_is_replayed_where_nothing_failed_or_nobody_wants_it(
    tmp_path: Path, tests: list[results.TestResult], most: str | None
) -> None:
    kernel = Kernel(tmp_path)
    assert session(tmp_path, tests, kernel, most=most) == []
    assert kernel.requests == []


def test_what_an_earlier_session_has_written_is_not_replayed(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    lay_out(tmp_path / "report" / "results.jsonl", [result_of("b")])
    assert session(tmp_path, None, kernel) == []
    assert kernel.requests == []


def test_a_replay_is_not_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in Replay(tests=("t.py::b",), into="elsewhere").environment().items():
        monkeypatch.setenv(name, value)
    kernel = Kernel(tmp_path)
    assert session(tmp_path, [result_of("b")], kernel) == []
    assert kernel.requests == []


def test_a_kernel_that_dies_changes_nothing_of_the_results(tmp_path: Path) -> None:
    def dies(*_: object) -> int:
        raise EnvironmentUnfitError("the kernel did not run to its end")

    assert session(tmp_path, [result_of("b")], dies)[1:] == ["not replayed: the kernel did not run to its end"]
    assert written(tmp_path) == {}


def test_what_a_file_says_wrongly_of_a_replay_is_refused(tmp_path: Path) -> None:
    session(tmp_path, [result_of("b")], Kernel(tmp_path))
    lines = (tmp_path / "report" / "results.jsonl").read_text()
    with pytest.raises(InvalidValueError, match="tcp_info: every_s 'often': must be a finite number"):
        stored.read(lines.replace('"every_s": 0.005', '"every_s": "often"').splitlines(), name="results")


def test_how_often_tcp_info_is_read_is_what_it_is_told_as() -> None:
    assert parse_time("0.005000s", name="every") == 0.005
