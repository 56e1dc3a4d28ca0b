"""Bottlenecks on a simulated clock, where they are exact: rate, shares, drops, the standing queue, marks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.kernel import building, bytecode
from tests.lab.programs import bottleneck_project

pytestmark = [
    pytest.mark.skipif(
        building.find() is None, reason="no kernel with a simulated clock: `testbed kernel build` builds one"
    ),
    pytest.mark.timeout(800),
]


def test_a_shared_rate_and_queue_are_as_asked(tmp_path: Path) -> None:
    bytecode.ensure(print)  # which a first run tells
    bottleneck_project.lay_out(tmp_path)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--virtual-time", "--testbed-seed", "7"]
    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL
    )
    lines = (tmp_path / "report" / "results.jsonl").read_text().splitlines()
    tests: dict[str, Any] = {
        test["id"].partition("::")[2]: test for line in lines if (test := json.loads(line).get("test"))
    }
    outcomes = {name: test["outcome"] for name, test in tests.items()}
    invalid = {"test_vacuous": "no packet met", "test_gone": "asked limit 132, the kernel reports 7"}
    assert outcomes == {name: "invalid" if name in invalid else "passed" for name in outcomes}, done.stdout
    assert len(outcomes) == 15, done.stdout
    assert all(text in tests[name]["reason"] for name, text in invalid.items())
    drops = tests["test_drops"]
    (queue,) = [link["queue"] for link in drops["links"] if link["queue"] is not None]
    assert [flow["name"] for flow in drops["flows"]] == ["udp"] * 3
    metrics = {metric["name"]: metric["values"] for metric in drops["metrics"]}
    assert metrics["queue: drops a, b, c -> d on default"] == [queue["dropped_packets"]]
    assert len([name for name in metrics if name.startswith("traffic: ")]) == 3
