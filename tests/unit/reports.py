"""Results of a long run, drawn from a seed: for reports with many cells."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from testbed.evidence import results, stored
from testbed.evidence.metric import Metric, automatic
from testbed.evidence.programs import ProgramRun
from testbed.evidence.proof import Check, LinkEvidence, Span, Tally
from testbed.evidence.series import Series
from testbed.evidence.stored import Session
from testbed.evidence.verdict import Verdict

PROFILES = ("lan", "lossy", "4g", "satellite-geo", "wifi-congested")
MACHINE = {
    "kernel": "6.12.101",
    "processor": "AMD EPYC",
    "processors": 2,
    "lab": "compose",
    "netem": "carried",
    "netem_kernel": "6.12.113",
    "congestion_control": "cubic",
    "versions": {"testbed": "0.1.0"},
    "git": {"commit": "a" * 40, "dirty": True},
}
NASTY = '<script>alert(1)</script> & "quotes" </script> \x1b[31m it\'s {{ 7 * 7 }}'


def session(cells: int, *, seed: int = 1, samples: int = 40, output: int = 3000, factor: float = 1.0) -> Session:
    """A run of so many tests, each under one of five profiles; ``factor``: by how much its own metrics are larger."""
    return stored.read(list(lines(cells, seed=seed, samples=samples, output=output, factor=factor)), name="r.jsonl")


def lines(cells: int, *, seed: int, samples: int, output: int, factor: float) -> Iterator[str]:
    draw = random.Random(seed)  # noqa: S311  # no secret
    yield _line(results.head(started="2026-01-01T00:00:00+00:00", seed=seed, machine=MACHINE))
    for number in range(cells):
        yield _line({"test": _test(draw, number, samples=samples, output=output, factor=factor)})
    yield _line(results.end(duration_s=1.0, exit_status=1))


def _line(value: Any) -> str:
    return results.as_text(value) + "\n"


def _test(draw: random.Random, number: int, *, samples: int, output: int, factor: float) -> dict[str, Any]:
    profile = PROFILES[number % len(PROFILES)]
    outcome = draw.choices([Verdict.HOLDS, Verdict.FAILS, Verdict.INVALID, Verdict.SKIPPED], weights=[85, 8, 4, 3])[0]
    link = LinkEvidence(
        link="client -> server", network="lan", asked={"delay": "40ms", "loss": "2%", "seed": 7}, command="tc …",
        profile=profile, met_packets=draw.randint(50, 5000), warnings=["late once"] if number % 7 == 0 else [],
        checks=[Check(field=word, asked="40ms", kernel="40ms", seen="median 40.3 ms", verdict=Verdict.SHOWN)
                for word in ("limit", "delay", "loss", "lateness", "earlier connections")],
        tally=Tally(sent_packets=100, dropped_packets=2, queued_packets=0, tail_drops=Span(0, 0, ""),
                    duplicated=Span(0, 0, ""), reordered=Span(0, 0, ""), corrupted=Span(0, 0, "")),
    )  # fmt: skip
    own = [
        Metric(
            name=name,
            values=tuple(factor * draw.lognormvariate(-3, 0.6) for _ in range(samples)),
            unit="s",
            better="lower",
        )
        for name in ("request", "upload")
    ]
    counted = [
        automatic(group, f"metric {name}", [draw.randint(1, 10_000)], "packets")
        for group in ("wire", "tcp", "netem", "programs")
        for name in range(3)
    ]
    program = ProgramRun(
        host="client",
        argv=("python3", "upload.py", NASTY),
        exit_code=0,
        duration_s=1.0,
        cpu_s=0.2,
        stopped=False,
        output=(NASTY + "\n" + "transferred 1,024 bytes in 3 segments\n" * 200)[:output],
        output_left_out=0,
    )
    attempt = results.Attempt(
        series=_series(number) if number % 10 == 9 else [],
        seed=1,
        outcome=outcome,
        duration_s=draw.random(),
        reason=None if outcome is Verdict.HOLDS else NASTY,
        replay="pytest 'tests/test_upload.py::test_it' --testbed-seed 1",
        metrics=[*own, *counted],
        links=[link],
        programs=[program],
        captures=["report/captures/x/server@lan.pcapng"],
    )
    name = f"tests/test_upload.py::test_number_{number // len(PROFILES)}[{profile}]"
    result = results.TestResult(id=name, profile=profile, attempts=[attempt])
    document: dict[str, Any] = json.loads(results.as_text(result.as_json()))
    return document


def _series(number: int) -> list[Series]:
    draw = random.Random(number)  # noqa: S311  # no secret
    kinds = (("congestion window", "segments", 50), ("smoothed round trip", "s", 0.1))
    return [
        Series.of(f"client :4000 -> server: {name}", unit, [(at / 10, draw.random() * scale) for at in range(60)])
        for name, unit, scale in kinds
    ]
