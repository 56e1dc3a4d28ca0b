"""One message as each layer hands it to the next: a picture, in SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BOX = 960, 150, 230, 64, 66, 40
_LEAST = 46
"""Of a box, so that its name has room."""
_STYLE = """
svg { --ink: #1f2328; --faint: #6e7781; --paper: #fff; --box: #fff; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --faint: #9198a1; --paper: #0d1117; --box: #0d1117; } }
text { font: 13px system-ui, sans-serif; fill: var(--ink); } .faint { fill: var(--faint); font-size: 12px; }
.title { font-size: 15px; font-weight: 600; } .size { font-size: 12px; fill: var(--box); }
.name { font-weight: 600; fill: var(--box); }
.paper { fill: var(--paper); } .line { stroke: var(--faint); stroke-dasharray: 3 4; opacity: .6; }
.p0 { fill: #2f7d5d; } .p1 { fill: #2b6cb0; } .p2 { fill: #6b46c1; } .p3 { fill: #c05621; }
@media (prefers-color-scheme: dark) { .p0 { fill: #56c596; } .p1 { fill: #63a4e8; } .p2 { fill: #b392f0; }
  .p3 { fill: #f0883e; } }
"""


@dataclass(frozen=True, kw_only=True)
class StackBlock:
    """A header, or the message, as it lies in the frame."""

    name: str
    size_bytes: int
    tcp_ip: str
    """The layer of TCP/IP that it is of."""
    osi: tuple[str, ...]
    """The layers of OSI."""
    text: str = ""
    """What it holds: shown where the pointer rests."""


def stack_picture(parts: Sequence[StackBlock], *, title: str) -> str:
    """The layers from the program down to the wire: ``parts`` in the order of the frame, the outermost header first.

    A box is as wide as its share of the bytes, but for the smallest. Nothing but a title of no parts.
    """
    rows = len(parts)
    height = _TOP + _ROW * (rows + bool(parts)) + 30
    widths = _widths([part.size_bytes for part in parts])
    begins = [_LEFT + sum(widths[:number]) for number in range(rows)]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>',
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
        f'<text class="title" x="16" y="24">{escape(title)}</text>',
    ]
    if parts:
        out.append(f'<text class="faint" x="16" y="{_TOP - 14}">TCP/IP</text>')
        out.append(f'<text class="faint" x="{_WIDTH - _RIGHT + 20}" y="{_TOP - 14}">OSI</text>')
    for row, part in enumerate(reversed(parts)):
        y = _TOP + row * _ROW
        first = rows - 1 - row
        out.append(f'<line class="line" x1="16" x2="{_WIDTH - 16}" y1="{y + _ROW - 13}" y2="{y + _ROW - 13}"/>')
        out.append(f'<text x="16" y="{y + 25}">{escape(part.tcp_ip)}</text>')
        lines = part.osi or ("",)
        begin = y + 25 - 8 * (len(lines) - 1)
        out += [
            f'<text x="{_WIDTH - _RIGHT + 20}" y="{begin + 16 * number}">{escape(line)}</text>'
            for number, line in enumerate(lines)
        ]
        for number in range(first, rows):
            out.append(_box(parts[number], begins[number], y, widths[number], rows - 1 - number))
    if parts:
        y, total = _TOP + rows * _ROW, sum(part.size_bytes for part in parts)
        out.append(f'<text x="16" y="{y + 14}">wire</text>')
        out.append(
            f'<text x="{_LEFT}" y="{y + 14}">{total:,} bytes, as signals; preamble, check sequence and gap are '
            "not in a capture</text>"
        )
        out.append(f'<text x="{_WIDTH - _RIGHT + 20}" y="{y + 14}">1 physical</text>')
    return "\n".join([*out, "</svg>\n"])


def _widths(sizes: Sequence[int]) -> list[float]:
    """Shares of the room; who gets less than the least gets that, and the others give it."""
    room = float(_WIDTH - _LEFT - _RIGHT)
    small = [number for number, size in enumerate(sizes) if size * room < _LEAST * sum(sizes)]
    rest = sum(size for number, size in enumerate(sizes) if number not in small)
    left = room - _LEAST * len(small)
    return [float(_LEAST) if number in small else size * left / rest for number, size in enumerate(sizes)]


def _box(part: StackBlock, x: float, y: float, width: float, colour: int) -> str:
    middle, name = x + width / 2, escape(_short(part.name, width))
    return (
        f"<g><title>{escape(part.name)}: {escape(part.text)}</title>"
        f'<rect class="p{colour % 4}" x="{x + 1:.1f}" y="{y}" width="{width - 2:.1f}" height="{_BOX}" rx="4"/>'
        f'<text class="name" x="{middle:.1f}" y="{y + 17}" text-anchor="middle">{name}</text>'
        f'<text class="size" x="{middle:.1f}" y="{y + 33}" text-anchor="middle">{part.size_bytes:,} B</text></g>'
    )


def _short(name: str, width: float) -> str:
    """As many letters as have room, at about 8 a letter."""
    room = max(int(width / 8), 1)
    return name if len(name) <= room else f"{name[: room - 1]}…"
