"""Whether both labs agree: the verdict of each test on both, and the delays of one profile side by side.

The delays are measured in turns, flight by flight, on a Compose stack and a local one that are up together; what is
judged is the 99 % confidence interval of the mean difference of the flights' medians (Student's t). The full run takes
every test of tests/lab and tests/paper that runs on both, and writes ``report/labs.md``.

Both parts also for Redis, nginx, PostgreSQL, Mosquitto and a Python web service, in the files of their images: a suite
of 15 tests, a third of which must fail. ``--services`` takes these alone. ``--quick`` takes one delay, and of
the suites two services' alone.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import click

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.local.lab import LocalLab
from testbed.lab.lab import Lab
from testbed.spec.impairment import Impairment

APART_S = 0.0003
"""The delays of one profile on the two labs."""

SERVICES = common.ROOT / "benchmarks/services/compose.yaml"
_FLIGHTS, _QUICK_FLIGHTS = 30, 8
_PROBES = 200
_DELAYS_S, _QUICK_DELAYS_S = (0.0, 0.05), (0.05,)
_T_99 = {8: 3.499, 30: 2.756}
"""Student's t, 99 % two-sided, for so many flights less one (NIST/SEMATECH e-Handbook, 1.3.6.7.2)."""
_FOLDERS = ("tests/lab", "tests/paper")
_QUICK_SERVICES = ("redis", "web")
_DEADLINE_S = 3600.0


def measure(report: Report) -> None:
    """All parts. Raises EnvironmentUnfitError if either lab cannot run here."""
    _measure_delays(report, SERVICES, "client -> postgres")
    _compare_services(report)
    if report.options["services"]:
        return
    _measure_delays(report, common.STACK, "client -> server")
    if not report.quick:
        _compare_verdicts(report)


def _measure_delays(report: Report, stack: Path, link: str) -> None:
    flights = _QUICK_FLIGHTS if report.quick else _FLIGHTS
    with ComposeLab(stack, say=report.say) as compose, LocalLab(stack, say=report.say) as local:
        for delay_s in _QUICK_DELAYS_S if report.quick else _DELAYS_S:
            report.say(f"{delay_s * 1e3:g} ms on both labs, in turns")
            for lab in (compose, local):
                lab.link(link).impair(Impairment(delay_s=delay_s or None, limit_packets=1000))
            seen = [(_median_s(compose, link, delay_s), _median_s(local, link, delay_s)) for _ in range(flights)]
            apart = [one - other for one, other in seen]
            mean, half = statistics.mean(apart), _T_99[flights] * statistics.stdev(apart) / math.sqrt(flights)
            compose_s, local_s = (statistics.median(side) for side in zip(*seen, strict=True))
            report.check(
                Check(
                    name=f"{delay_s * 1e3:g} ms, {link}: how far apart at most, {flights} flights each",
                    value=abs(mean) + half,
                    bound=APART_S,
                    unit="s",
                    bound_words=f"99 % interval {(mean - half) * 1e3:+.3f} to {(mean + half) * 1e3:+.3f} ms",
                    rivals={"Compose, median": f"{compose_s * 1e3:.3f} ms", "local": f"{local_s * 1e3:.3f} ms"},
                )
            )


def _median_s(lab: Lab, link: str, delay_s: float) -> float:
    (ref,) = lab.topology.links(link)
    flight = lab.prober.fly(ref, count=_PROBES, pace_s=0.001, size_bytes=64, quiet_s=2 * delay_s + 0.2)
    if not flight.delays_s:
        raise BenchmarkError(f"{ref}: no probe arrived")
    return statistics.median(flight.delays_s.values())


def _compare_services(report: Report) -> None:
    """The suite of the services on one lab after the other."""
    outcomes = {}
    chosen = ["-k", " or ".join(_QUICK_SERVICES)] if report.quick else []
    for kind in ("compose", "local"):
        report.say(f"the services' suite, --lab {kind}")
        with tempfile.TemporaryDirectory(prefix="testbed-labs-") as folder:
            options = [f"--lab={kind}", f"--compose-file={SERVICES}", *chosen]
            root = _junit(Path(folder), [*options, str(SERVICES.parent / "suite.py")])
        outcomes[kind] = {str(case.get("name")): _outcome(case) for case in root.iter("testcase")}
    compose, local = outcomes["compose"], outcomes["local"]
    differ = [name for name in {*compose, *local} if compose.get(name) != local.get(name)]
    for name in differ:
        report.note(f"{name}: {compose.get(name)} on Compose, {local.get(name)} on the local lab")
    failed = sum(outcome == "failure" for outcome in compose.values())
    for name, value, bound in (
        (f"services: different verdicts, of {len(compose)} tests", len(differ), 0),
        (
            "services: tests that fail, and must",
            failed,
            sum(name.startswith("test_what_must_fail") for name in compose),
        ),
    ):
        report.check(Check(name=name, value=value if compose else None, bound=bound, unit="", at_least=bool(bound)))


def _junit(folder: Path, arguments: Sequence[str]) -> ElementTree.Element:
    """What pytest reports of a run. Raises BenchmarkError."""
    path = folder / "junit.xml"
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={path}", "-o",
            "junit_family=xunit2", f"--testbed-results={folder}/results.jsonl", *arguments]  # fmt: skip
    done = subprocess.run(argv, cwd=common.ROOT, capture_output=True, text=True, check=False, timeout=_DEADLINE_S)
    if done.returncode not in (0, 1) or not path.is_file():
        raise BenchmarkError(f"pytest ended with status {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
    return ElementTree.parse(path).getroot()  # noqa: S314  # pytest has just written it


def _outcome(case: ElementTree.Element) -> str:
    return next((text.tag for text in case if text.tag in ("failure", "error", "skipped")), "passed")


def _compare_verdicts(report: Report) -> None:
    report.say("the tests that run on both labs")
    with tempfile.TemporaryDirectory(prefix="testbed-labs-") as folder:
        verdicts = dict(_verdicts(_junit(Path(folder), ["-k", "compose or local", *_FOLDERS])))
    both = {name: outcomes for name, outcomes in verdicts.items() if {"compose", "local"} <= set(outcomes)}
    ran = {name: outcomes for name, outcomes in both.items() if "skipped" not in outcomes.values()}
    differ = [name for name, outcomes in ran.items() if outcomes["compose"] != outcomes["local"]]
    report.check(
        Check(
            name=f"different verdicts, of {len(ran)} tests that ran on both labs",
            value=len(differ) if ran else None,
            bound=0,
            unit="",
        )
    )
    for name in differ:
        report.note(f"{name}: {both[name]['compose']} on Compose, {both[name]['local']} on the local lab")
    folder_out = common.ROOT / "report"
    folder_out.mkdir(exist_ok=True)
    lines = ["| test | Compose | local |", "|---|---|---|"]
    lines += [f"| {name} | {outcomes['compose']} | {outcomes['local']} |" for name, outcomes in sorted(both.items())]
    (folder_out / "labs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report.note(
        f"{len(both) - len(ran)} tests say of a lab that they are not for it. Written: {folder_out / 'labs.md'}"
    )


def _verdicts(root: ElementTree.Element) -> Iterator[tuple[str, dict[str, str]]]:
    """By test, without the lab in its name: the verdict on each lab."""
    by_test: dict[str, dict[str, str]] = {}
    for case in root.iter("testcase"):
        name, bracket, words = str(case.get("name")).partition("[")
        parts = words.rstrip("]").split("-", 1)
        if not bracket or parts[0] not in ("compose", "local"):
            continue
        rest = f"[{parts[1]}]" if len(parts) > 1 else ""
        by_test.setdefault(f"{case.get('classname')}::{name}{rest}", {})[parts[0]] = _outcome(case)
    yield from by_test.items()


if __name__ == "__main__":
    alone = click.Option(["--services"], is_flag=True, help="The five services alone.")
    common.run("Both labs alike", measure, options=[alone])
