"""Draw the figures of the examples' chapters from the results of their tests (scripts/figures)."""

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from testbed.evidence.metric import Metric
from testbed.report.files import load

_FROM_SAMPLES = 9
"""That many samples of one test are drawn as a line, in order."""


def _label(test: str, name: str) -> str:
    """A row's label: the test's parameters, and the metric unless the axis names it."""
    return ", ".join(part for part in (test.partition("[")[2].rstrip("]"), name) if part)


def draw(results: Path, figure: Path) -> None:
    """Draw all metrics that the tests of one example recorded themselves; they share a unit.

    A row per test and metric, a point per sample; or one line, if there are many samples.
    """
    recorded: list[tuple[str, Metric]] = [
        (test.id, metric)
        for test in load(results).tests
        for metric in test.last.metrics
        if metric.group in ("recorded", "timed")
    ]
    names = {metric.name for _, metric in recorded}
    lines = [metric for _, metric in recorded if len(metric.values) >= _FROM_SAMPLES]
    rows = [(test, metric) for test, metric in recorded if metric not in lines]
    drawing = Figure(figsize=(7, 2.6 if lines else 0.8 + 0.4 * len(rows)), layout="constrained")
    axes = drawing.subplots()
    axes.grid(axis="x", color="#ddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        (line,) = lines
        axes.step(range(len(line.values)), line.values, where="post", color="#2563eb")
        axes.set_ylabel(f"{line.name} ({line.unit})")
        axes.set_xlabel("s")
        axes.set_ylim(bottom=0)
    else:
        labels = [_label(test, "" if len(names) == 1 else metric.name) for test, metric in rows]
        for number, (_, metric) in enumerate(rows):
            axes.barh(number, max(metric.values), height=0.5, color="#bfdbfe")
            axes.plot(metric.values, [number] * len(metric.values), "o", color="#2563eb")
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        unit = rows[0][1].unit
        axes.set_xlabel(
            " ".join(part for part in (*names, f"({unit})" if unit else "") if part) if len(names) == 1 else unit
        )
        axes.set_xlim(left=0)
    drawing.savefig(figure, metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "testbed", "svg.fonttype": "none", "font.size": 10})
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
