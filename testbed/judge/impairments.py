"""Judge a flight of probes against an impairment, by exact tests. Pure.

The models are netem's own (sch_netem.c): which draws it makes for a packet, in which order. All tests of a link
together fail a link that is as asked with probability `alpha` at most. Fields without an exact test are shown and not
judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from testbed import units
from testbed.evidence.proof import Check
from testbed.evidence.verdict import Verdict
from testbed.judge import statistics as exact
from testbed.judge.case import Case
from testbed.judge.delay import delay
from testbed.judge.flight import Flight
from testbed.judge.plan import TESTS
from testbed.judge.rate import rate
from testbed.judge.shares import corruption, duplicates, loss, reordering
from testbed.spec.impairment import Impairment


def judge(
    impairment: Impairment,
    flight: Flight,
    *,
    clean: Flight,
    spread: Flight | None = None,
    train: Flight | None = None,
    clean_train: Flight | None = None,
    table: Sequence[int] = (),
    alpha: float = exact.ALPHA,
) -> list[Check]:
    """Every field of the impairment against what the probes saw.

    ``clean``: probes of the same path without impairment, which show the machine's own delay. ``spread``: probes far
    apart, for the delay. ``train``: probes sent at once, where a rate is asked; ``clean_train`` without impairment,
    which shows the machine's own rate. ``table``: iproute2's delay table, where the distribution has one.
    """
    case = Case(impairment, flight, clean, train, clean_train, table, exact.share(alpha, TESTS))
    checks = delay(case if spread is None else replace(case, flight=spread))
    for field in (loss, duplicates, reordering, corruption, rate):
        checks += field(case)
    return checks


def perhaps_busy(checks: Sequence[Check]) -> bool:
    """Whether a busy machine explains all failures: then it is worth probing again."""
    failed = [check for check in checks if check.verdict is Verdict.FAILS]
    return bool(failed) and all(check.maybe_busy for check in failed)


def kernel_words(options: Mapping[str, Any]) -> dict[str, str]:
    """The options of ``tc -j qdisc show`` by the fields that probes judge."""
    delay, rate = options.get("delay", {}), options.get("rate", {})
    words = {"delay": units.format_time(delay.get("delay", 0.0))}
    if delay.get("jitter"):
        words["delay"] += f" ± {units.format_time(delay['jitter'])}"
    words["loss"] = _share(options.get("loss-random", {}).get("loss", 0.0))
    if model := options.get("loss-gemodel"):
        words["loss"] = "gemodel " + " ".join(_share(model.get(key, 0.0)) for key in ("p", "r"))
        words["bursts begin"] = f"p={_share(model.get('p', 0.0))}"
        words["bursts end"] = f"r={_share(model.get('r', 0.0))}"
    if model := options.get("loss-state"):
        words["loss"] = "state " + " ".join(_share(value) for value in model.values())
    for name in ("duplicate", "reorder", "corrupt"):
        words[name] = _share(options.get(name, {}).get(name, 0.0))
    words["rate"] = units.format_rate(rate["rate"] * 8) if rate.get("rate") else "none"
    return words


def _share(ratio: float) -> str:
    """As tc shows it: the kernel keeps shares in steps of 1/2³², so that 10 % is 10.0000000116 %."""
    return units.format_ratio(float(f"{ratio:.6g}"))
