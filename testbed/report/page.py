"""A report as one page of HTML: what is in it, as values, and how it is written. Pure but for the template.

The page needs no network: style, script and plotting library are in it. Charts are drawn by Observable Plot (on D3,
0.5 MB, the same for every report), in the browser, when what they are in is opened. It was chosen by what 200 cells of
two charts each cost: matplotlib's SVG took 40 s and 5.4 MB, pygal's 6 s and 13.5 MB, Plotly's script alone has 4.8 MB;
with Plot, a cell costs the data of its points. Its marks are SVG in the colour of the text, which light and dark pages
share, with roles and labels for screen readers.

Templates escape by themselves (Jinja2); the only texts that they take as they are lie beside them in `assets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from testbed.resources import resource

_DIGITS = 6
_SCRIPTS = ("d3.min.js", "plot.umd.min.js", "report.js")
Tone = str
"""``good``, ``bad``, ``odd`` (the result does not count), ``mild`` (needs a look) or ``none``: a colour and no more."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Samples of one thing in several groups: every point, and each group's cumulative distribution."""

    title: str
    unit: str
    groups: Mapping[str, Sequence[float]]
    logarithmic: bool = False
    marked: Mapping[str, float] = field(default_factory=dict)
    """A value of a group that is marked: what was asked, for example."""
    kind: str = "points"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One value a run of two versions; run by run, and the differences pair by pair if they are paired."""

    title: str
    unit: str
    base: Sequence[float]
    head: Sequence[float]
    paired: bool
    ratio: bool
    """Whether differences are shares of base's value."""
    kind: str = "pairs"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity over time."""

    name: str
    unit: str
    times_s: Sequence[float]
    values: Sequence[float]
    step: bool = True


@dataclass(frozen=True, kw_only=True)
class OverTime:
    """Quantities over time, those of one unit together, all on one axis of time."""

    title: str
    lines: Sequence[Line]
    kind: str = "time"


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines over two axes."""

    title: str
    x: str
    """Title of the axis, with its unit."""
    y: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    dashed: Sequence[str] = ()
    """Those that are theory, or asked, and not measured."""
    logarithmic_x: bool = False
    logarithmic_y: bool = False
    kind: str = "curves"


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A bar for each of several names, or one for each of several series."""

    title: str
    y: str
    """Title of the values' axis, with its unit."""
    names: Sequence[str]
    series: Mapping[str, Mapping[str, float]]
    """By series, the values by name."""
    logarithmic: bool = False
    kind: str = "bars"


@dataclass(frozen=True, kw_only=True)
class NestedLayer:
    """What is put around what is within it: a header."""

    name: str
    size_bytes: int
    above: str
    """What stands above the row of which it is the outermost."""
    text: str = ""
    """What it holds: shown where the pointer rests."""


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Layers, the outermost first: a row for each, with all that is within it."""

    title: str
    layers: Sequence[NestedLayer]
    below: str = ""
    """What stands below the last row."""
    kind: str = "nested"


Chart = Points | Pairs | OverTime | Curves | Bars | Nested


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows below heads; a row's tone colours its last cell."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    tones: Sequence[Tone] = ()
    links: Sequence[str] = ()
    """Where the first cell of each row leads: files beside the page."""
    numeric_from: int = 99
    """From which column on cells are numbers, which stand on the right."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text as a terminal shows it; with a button that copies it, if it is to be run."""

    title: str
    text: str
    copied: bool = False


@dataclass(frozen=True, kw_only=True)
class Charts:
    """Charts side by side, as far as there is room."""

    title: str
    charts: Sequence[Chart]


@dataclass(frozen=True, kw_only=True)
class Links:
    """Files beside the page, each with its name."""

    title: str
    files: Sequence[tuple[str, str]]


Part = Table | Text | Charts | Links


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """What is known of one row of the matrix in one column."""

    row: str
    column: str
    word: str
    """The outcome or verdict."""
    tone: Tone
    brief: str = ""
    """What stands beside the word."""
    parts: Sequence[Part] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report."""

    title: str
    lead: str
    """What matters, in a sentence or two."""
    facts: Sequence[tuple[str, str]] = ()
    counts: Sequence[tuple[str, int, Tone]] = ()
    """How many cells have each word."""
    notes: Sequence[str] = ()
    rows: str = "test"
    """What a row of the matrix is of."""
    before: Sequence[Part] = ()
    """What stands before the matrix."""
    cells: Sequence[MatrixCell] = ()
    parts: Sequence[Part] = ()
    """What is of no cell; after the matrix."""
    open_first: bool = field(default=False)
    """Whether the first cell is open from the start."""


def render(page: Page) -> str:
    """The whole page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # 30 ms, of no use to a session without a lab
    from markupsafe import Markup

    folder = resource("testbed/report/assets")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "separators": (",", ":"),
    }  # groups are drawn in their order
    template = environment.get_template("report.html.j2")
    own = {name: Markup((folder / name).read_text(encoding="utf-8")) for name in ("report.css", *_SCRIPTS)}  # noqa: S704  # ours
    charts: list[dict[str, Any]] = []

    def place(chart: Chart) -> int:
        """Keep a chart's data; the number by which the script finds it."""
        charts.append(_rounded(chart))
        return len(charts) - 1

    return template.render(
        page=page,
        columns=list(dict.fromkeys(cell.column for cell in page.cells)),
        table=_matrix(page.cells),
        style=own["report.css"],
        scripts=[own[name] for name in _SCRIPTS],
        place=place,
        charts=charts,
        kind=_kind,
    )


def _kind(part: Part) -> str:
    return type(part).__name__.lower()


def _matrix(cells: Sequence[MatrixCell]) -> dict[str, dict[str, list[tuple[int, MatrixCell]]]]:
    """By row and column, the cells there with their numbers."""
    matrix: dict[str, dict[str, list[tuple[int, MatrixCell]]]] = {}
    for number, cell in enumerate(cells):
        matrix.setdefault(cell.row, {}).setdefault(cell.column, []).append((number, cell))
    return matrix


def _rounded(value: Any) -> Any:
    """For JSON: numbers with as many digits as a chart can show; what is not finite is null, which is not drawn."""
    if is_dataclass(value):
        return {part.name: _rounded(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, float):
        rounded = float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
        return int(rounded) if rounded is not None and rounded.is_integer() and abs(rounded) < 1e9 else rounded
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
