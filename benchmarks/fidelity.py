"""Requested against seen: what probes measure of each impairment over a grid, judged by the proof's exact tests.

The stack is the paper's; ``client -> server`` is impaired, and ``server -> client`` must stay untouched. By either
engine: where this machine's kernel has no netem, the host engine is measured in the local lab on the machine of a
carried kernel. Writes ``report/fidelity.svg`` (asked against seen, both logarithmic) and ``report/fidelity.json``
(every cell).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any, TypeVar

from benchmarks import common
from benchmarks.common import BenchmarkError, Check, Report
from testbed import units
from testbed.backends.docker.lab import ComposeLab
from testbed.backends.local.lab import LocalLab
from testbed.evidence.proof import Check as Judged
from testbed.evidence.verdict import Verdict
from testbed.judge import impairments
from testbed.judge import statistics as exact
from testbed.judge.flight import HEADERS_BYTES, Flight
from testbed.judge.rate import seen_rate_bps
from testbed.lab.lab import Lab
from testbed.spec.impairment import CLEAN, Impairment

DELAY_OFF_S = 0.0005
SIGMA_OFF = 0.05
RATE_OFF = 0.015
INSIDE = 0.99
QUIET_S = 0.0005
"""The untouched direction's 97th percentile may lie so far above its fastest probe."""
MATHIS = (1.0, 1.4)
ALPHA = 0.001
"""Of each cell: an honest one lies outside once in a thousand."""

LINK, BACK = "client -> server", "server -> client"
_TABLE_UNIT = 8192
_MSS_BYTES = 1448
_Measured = TypeVar("_Measured")
_MATHIS_DELAY_S, _MATHIS_LOSS = 0.020, 0.01


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    shares: int
    """Probes for each share."""
    delays: int
    jitters: int
    train_s: float
    trains: int
    attempts: int
    """How often the machine may turn out to be busy while it is measured."""
    reno_s: float
    quick: bool


FULL = Size(shares=30_000, delays=1000, jitters=4000, train_s=3.0, trains=5, attempts=5, reno_s=60.0, quick=False)
QUICK = Size(shares=3000, delays=150, jitters=1000, train_s=0.8, trains=2, attempts=1, reno_s=0.0, quick=True)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One impairment, as asked and as seen."""

    kind: str
    words: str
    asked: float
    seen: float
    unit: str
    ok: bool
    how: str
    engine: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of one engine."""

    engine: str
    cells: Sequence[Cell]
    backward: Sequence[int]
    """Of each impairment: probes of the other direction that were lost, doubled, damaged or late."""


def measure(report: Report) -> None:
    """Measure every cell with either engine, and hold the bounds."""
    with ComposeLab(common.STACK, say=report.say) as lab:
        measured = [_cells(lab, report)]
    if measured[0].engine == "carried":
        measured.append(_in_carried(report))
        report.note("host: by the local lab on the machine of a carried kernel, for this one's kernel has no netem")
    for check in measured:
        _hold(report, check)
    if report.quick:
        report.note("--quick: a subset of the grid, fewer probes, the same tests; Reno against Mathis needs a full run")
    cells = [cell for check in measured for cell in check.cells]
    folder = common.ROOT / "report"
    folder.mkdir(exist_ok=True)
    (folder / "fidelity.json").write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    (folder / "fidelity.svg").write_text(plot(cells), encoding="utf-8")
    for cell in cells:
        mark = "inside " if cell.ok else "outside, as it should be" if "control" in cell.words else "OUTSIDE"
        report.note(f"{cell.engine:<7} {mark} {cell.kind:<9} {cell.words:<45} {cell.how}")
    report.note(f"written: {folder / 'fidelity.svg'}, {folder / 'fidelity.json'}")


def _cells(lab: Lab, report: Report) -> Measured:
    bench = Bench(lab, QUICK if report.quick else FULL, report)
    for step in (bench.delays, bench.jitters, bench.shares, bench.bursts, bench.rates, bench.reno):
        step()
    return Measured(
        engine=lab.netem_engine,
        cells=[replace(cell, engine=lab.netem_engine) for cell in bench.cells],
        backward=bench.backward,
    )


def _in_carried(report: Report) -> Measured:
    """What the host engine does on the machine of a carried kernel."""
    answer = common.in_carried(report, __file__, common.HOST_ENGINE, *(["--quick"] if report.quick else []))
    return Measured(
        engine=answer["engine"], cells=[Cell(**cell) for cell in answer["cells"]], backward=answer["backward"]
    )


def _tell_host_engine(*, quick: bool) -> None:
    """On that machine: the cells as JSON."""
    report = Report(quick=quick, as_json=True)
    with LocalLab(common.STACK, say=report.say, netem="host") as lab:
        json.dump(asdict(_cells(lab, report)), sys.stdout)


class Bench:
    """The cells measured so far, on one lab."""

    def __init__(self, lab: Lab, size: Size, report: Report) -> None:
        self.lab, self.size, self.report = lab, size, report
        self.cells: list[Cell] = []
        self.backward: list[int] = []
        self.link = lab.topology.links(LINK)[0]
        self.back = lab.topology.links(BACK)[0]
        self.lab.impairer.apply(self.link, CLEAN)
        self.clean = self._fly(200, 0.001)

    def _put(self, impairment: Impairment) -> None:
        self.report.say(impairment.describe())
        self.lab.impairer.apply(self.link, impairment)
        self.lab.impairer.rewrite(self.link, impairment)

    def _fly(self, count: int, pace_s: float, *, longest_s: float = 0.0, **options: Any) -> Flight:
        options = {"size_bytes": 64, **options}
        return self.lab.prober.fly(self.link, count=count, pace_s=pace_s, quiet_s=2 * longest_s + 0.3, **options)

    def _untouched(self) -> None:
        back = self.lab.prober.fly(self.back, count=500, pace_s=0.001, size_bytes=64, quiet_s=0.3)
        self.backward.append(500 - len(back.first) + len(back.arrivals) - len(back.first) + back.damaged)

    def _when_quiet(self, measure: Callable[[], _Measured]) -> tuple[_Measured, str]:
        """Measure while the machine is quiet, as the other direction shows; else report that it is not.

        What decides about another attempt is the control, never the measurement.
        """
        for _attempt in range(self.size.attempts):
            before = self._spread_s()
            values = measure()
            worst_s = max(before, self._spread_s())
            if worst_s <= QUIET_S:
                return values, ""
        return values, f"; the machine is busy: the untouched direction spreads by {worst_s * 1e3:.2g} ms"

    def _spread_s(self) -> float:
        seen = self.lab.prober.fly(self.back, count=300, pace_s=0.001, size_bytes=64, quiet_s=0.3).delays_s.values()
        ordered = sorted(seen)
        return ordered[int(len(ordered) * 0.97)] - ordered[0]

    def delays(self) -> None:
        """The median of each delay, and that none comes before it."""
        for ms in (1, 25) if self.size.quick else (1, 5, 25, 120, 600):
            impairment = Impairment(delay_s=ms / 1000)
            self._put(impairment)
            flight = self._fly(self.size.delays, 0.002, longest_s=ms / 1000)
            seen = list(flight.delays_s.values())
            median, early = statistics.median(seen), sum(value < ms / 1000 for value in seen)
            off = median - ms / 1000
            self.cells.append(
                Cell(
                    kind="delay",
                    words=impairment.describe(),
                    asked=ms / 1000,
                    seen=median,
                    unit="s",
                    ok=not early and 0 <= off <= DELAY_OFF_S,
                    how=f"median {off * 1e3:+.3f} ms off, {early} of {len(seen)} before it, the earliest "
                    f"{(min(seen) - ms / 1000) * 1e3:+.3f} ms, 99th percentile "
                    f"{(sorted(seen)[int(len(seen) * 0.99)] - ms / 1000) * 1e3:+.3f} ms",
                    extra={"early": early, "off_s": off},
                )
            )
        self._untouched()

    def jitters(self) -> None:
        """The standard deviation of each jitter: of independent draws, which may overtake, or are too far apart to."""
        grid = (
            [("uniform", 0.003, True), ("normal", 0.025, True)]
            if self.size.quick
            else [
                ("uniform", 0.0, False),
                ("uniform", 0.003, False),
                *((name, jitter, True) for jitter in (0.003, 0.025) for name in ("uniform", "normal", "pareto")),
            ]
        )
        for distribution, jitter_s, may_overtake in grid:
            words: dict[str, Any] = (
                {"distribution": distribution, "reorder_by_jitter": may_overtake} if jitter_s else {}
            )
            impairment = Impairment(delay_s=0.12, jitter_s=jitter_s or None, **words)
            pace_s = 0.00025 if may_overtake or not jitter_s else 2 * jitter_s + 0.002

            sigma, count = self._shape(distribution)

            def fly(
                impairment: Impairment = impairment,
                longest_s: float = 0.12 + 4 * jitter_s,
                count: int = count,
                pace_s: float = pace_s,
            ) -> Flight:
                self._put(impairment)
                return self._fly(count, pace_s, longest_s=longest_s)

            flight, busy = self._when_quiet(fly)
            # Later than the distribution reaches: the machine's doing, not netem's.
            latest_s = 0.12 + (1 if distribution == "uniform" else 4) * jitter_s + DELAY_OFF_S
            within = [value for value in flight.delays_s.values() if value <= latest_s]
            late, seen = len(flight.first) - len(within), statistics.pstdev(within)
            sigma *= jitter_s
            off = abs(seen / sigma - 1) if sigma else math.nan
            self.cells.append(
                Cell(
                    kind="jitter",
                    words=f"{impairment.describe()}",
                    asked=sigma,
                    seen=seen,
                    unit="s",
                    ok=math.isnan(off) or off <= SIGMA_OFF,
                    how=f"σ {seen * 1e3:.3f} ms, the distribution's {sigma * 1e3:.3f} ms; "
                    f"{late} of {len(flight.first)} came later than it reaches and are left out{busy}",
                    extra={"off": off} if sigma else {},
                )
            )

    def _shape(self, distribution: str) -> tuple[float, int]:
        """The standard deviation at a jitter of 1, of the uniform or of iproute2's table, and how many draws show it.

        So many that the sample's own deviation has a standard error of a quarter of the bound: √((κ - 1) / 4n) of it,
        κ being the kurtosis (Kenney and Keeping, Mathematics of Statistics, part 2, section 7.12).
        """
        if distribution == "uniform":
            sigma, kurtosis = 1 / math.sqrt(3), 1.8
        else:
            table: list[int] = self.lab.hosts["server"].inside().call("delay_table", name=distribution)
            mean, spread = statistics.fmean(table), statistics.pstdev(table)
            sigma, kurtosis = spread / _TABLE_UNIT, statistics.fmean(((x - mean) / spread) ** 4 for x in table)
        return sigma, max(self.size.jitters, math.ceil((kurtosis - 1) / (4 * (SIGMA_OFF / 4) ** 2)))

    def shares(self) -> None:
        """Loss, duplicates, corruption and reordering."""
        losses = (0.03, 0.2) if self.size.quick else (0.005, 0.03, 0.08, 0.2)
        for loss in losses:
            self._share("loss", Impairment(loss_ratio=loss), loss)
        self._untouched()
        for share in (0.15,) if self.size.quick else (0.01, 0.15):
            self._share("duplicate", Impairment(duplicate_ratio=share), share)
            self._share("reorder", Impairment(delay_s=0.02, reorder_ratio=share), share)
            self._share("corrupt", Impairment(corrupt_ratio=share), share, size_bytes=1000, checksum=False)
        self._untouched()

    def _share(self, kind: str, impairment: Impairment, share: float, **options: Any) -> None:
        self._put(impairment)
        flight = self._fly(self.size.shares, 0.00025, longest_s=impairment.delay_s or 0.0, **options)
        check = self._judged(impairment, flight)[kind]
        count, total = _counted(check)
        if kind == "corrupt":  # the rest hits headers
            total = round(total * flight.size_bytes / (flight.size_bytes + HEADERS_BYTES))
        self.cells.append(
            Cell(
                kind=kind,
                words=impairment.describe(),
                asked=share,
                seen=count / total,
                unit="",
                ok=check.verdict != Verdict.FAILS,
                how=f"{check.seen}; {check.how}",
            )
        )

    def _judged(self, impairment: Impairment, flight: Flight) -> dict[str, Judged]:
        # judge() shares its alpha among 20 tests; each cell here is one.
        return {
            check.field: check for check in impairments.judge(impairment, flight, clean=self.clean, alpha=20 * ALPHA)
        }

    def bursts(self) -> None:
        """Gilbert's model: where bursts begin, and where they end."""
        for burst in (3,) if self.size.quick else (3, 8):
            impairment = Impairment(loss_ratio=0.05, loss_burst_packets=burst)
            self._put(impairment)
            flight = self._fly(self.size.shares, 0.00025)
            judged = self._judged(impairment, flight)
            lengths = exact.bursts([number not in flight.first for number in range(flight.count)])
            both = [judged["bursts begin"], judged["bursts end"]]
            self.cells.append(
                Cell(
                    kind="burst",
                    words=impairment.describe(),
                    asked=burst,
                    seen=statistics.fmean(lengths),
                    unit="packets",
                    ok=all(check.verdict != Verdict.FAILS for check in both),
                    how=f"{judged['loss'].seen}; begin {both[0].seen}; end {both[1].seen}",
                )
            )

    def rates(self) -> None:
        """UDP's payload over the time from the first to the last arrival of a train that waits in the queue."""
        for mbit in (5, 50) if self.size.quick else (0.5, 5, 50, 200):
            impairment = Impairment(rate_bps=mbit * 1e6)
            bits, payload = (1400 + HEADERS_BYTES) * 8, 1400 * 8
            # All at once, so that the sender is never slower than the link; the queue holds 1000.
            count = min(max(int(self.size.train_s * mbit * 1e6 / bits), 20), 500)

            def trains(impairment: Impairment = impairment, count: int = count) -> list[float]:
                self._put(impairment)
                flights = [self._fly(count, 0.0, longest_s=0.5, size_bytes=1400) for _ in range(self.size.trains)]
                return [rate for flight in flights for rate in [seen_rate_bps(impairment, flight)] if rate is not None]

            rates, busy = self._when_quiet(trains)
            if not rates:
                raise BenchmarkError(f"{impairment.describe()}: no train of {count} probes arrived")
            rate = statistics.median(rates)
            goodput, exact_bps = rate * payload / bits, mbit * 1e6 * payload / bits
            off = goodput / exact_bps - 1
            self.cells.append(
                Cell(
                    kind="rate",
                    words=impairment.describe(),
                    asked=exact_bps,
                    seen=goodput,
                    unit="bit/s",
                    ok=abs(off) <= RATE_OFF,
                    how=f"goodput {goodput / 1e6:.4g} Mbit/s, {off:+.2%} off; the median of "
                    f"{len(rates)} trains of {count}{busy}",
                    extra={"off": off, "mbit": mbit},
                )
            )

    def reno(self) -> None:
        """Reno's goodput at 1 % loss, with offloads off and, as the control, on."""
        if not self.size.reno_s:
            return
        if not isinstance(self.lab, ComposeLab):  # its hosts' are off already; the control is the containers' alone
            self.cells.append(self._mathis("Reno"))
            return
        for offloads in (False, True):
            ends = [
                (host, interface["name"])
                for host in ("client", "server")
                for interface in self.lab.hosts[host].inside().call("interfaces")
            ]
            for host, interface in ends:
                all_of_them = dict.fromkeys(("tso", "gso", "gro"), offloads)
                self.lab.hosts[host].inside().call("put_back", interface=interface, offloads_were=all_of_them)
            try:
                self.cells.append(self._mathis("control, offloads on" if offloads else "Reno"))
            finally:
                for host, interface in ends:
                    self.lab.hosts[host].inside().call("per_packet", interface=interface)

    def _mathis(self, name: str) -> Cell:
        self.lab.impairer.apply(self.back, Impairment(delay_s=_MATHIS_DELAY_S))
        impairment = Impairment(delay_s=_MATHIS_DELAY_S, loss_ratio=_MATHIS_LOSS, seed=2020)
        self._put(impairment)
        server, client = self.lab.hosts["server"], self.lab.hosts["client"]
        sink = server.start(["python3", "-c", _SINK], ready=9300)
        address, lasts = server.addresses("lan")[0], f"{self.size.reno_s:g}"
        sent = client.run(["python3", "-c", _RENO, address, lasts], timeout=f"{self.size.reno_s + 60:g}s")
        if not sent.ok:
            raise BenchmarkError(f"Reno's sender: {sent.stderr.strip()}")
        received = json.loads(sink.wait("60s").stdout)
        counters = self.lab.ports.counters(self.link)
        self.lab.impairer.clear(self.back)
        goodput = received["bytes"] * 8 / received["seconds"]
        p = counters.dropped_packets / (counters.sent_packets + counters.dropped_packets)
        # Mathis, Semke, Mahdavi, Ott, "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997:
        # goodput = MSS / RTT × C / √p.
        c = goodput * json.loads(sent.stdout)["rtt_s"] * math.sqrt(p) / (_MSS_BYTES * 8)
        return Cell(
            kind="mathis",
            words=f"{name}: {impairment.describe()}",
            asked=1.22,
            seen=c,
            unit="C",
            ok=MATHIS[0] <= c <= MATHIS[1],
            how=f"{goodput / 1e6:.3g} Mbit/s at {p:.2%} loss and a smoothed RTT of "
            f"{json.loads(sent.stdout)['rtt_s'] * 1e3:.4g} ms: C = {c:.3g}",
        )


_SINK = """
import json, socket, time
with socket.create_server(("", 9300)) as listener:
    peer, _ = listener.accept()
    total, first = 0, None
    while data := peer.recv(1 << 20):
        first = first or time.monotonic()
        total += len(data)
        last = time.monotonic()
    print(json.dumps({"bytes": total, "seconds": last - first}))
"""
_RENO = """
import json, socket, struct, sys, time
s = socket.socket()
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
s.connect((sys.argv[1], 9300))
until, rtts = time.monotonic() + float(sys.argv[2]), []
while time.monotonic() < until:
    s.send(bytes(16384))
    rtts.append(struct.unpack_from("I", s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 68)[0])
s.close()
print(json.dumps({"rtt_s": sorted(rtts)[len(rtts) // 2] / 1e6}))
"""


def _counted(check: Judged) -> tuple[int, int]:
    """The count and the total in ``3% (117 of 3512)``."""
    count, _, total = check.seen.partition("(")[2].partition(" of ")
    return int(count), int(total.split()[0].rstrip(")"))


def _hold(report: Report, measured: Measured) -> None:
    def cells(*kinds: str) -> list[Cell]:
        return [cell for cell in measured.cells if cell.kind in kinds]

    def check(name: str, value: float | None, bound: float, unit: str, **options: Any) -> None:
        report.check(Check(name=f"{measured.engine}: {name}", value=value, bound=bound, unit=unit, **options))

    def worst(chosen: Iterable[Cell], of: Callable[[Cell], float]) -> float | None:
        return max((of(cell) for cell in chosen), default=None)

    shares = cells("loss", "duplicate", "corrupt", "reorder", "burst")
    delays, jitters = cells("delay"), [cell for cell in cells("jitter") if cell.extra]
    rates = [cell for cell in cells("rate") if cell.extra["mbit"] <= 50]
    check(
        "delay: the worst median's distance from what was asked",
        worst(delays, lambda cell: abs(cell.extra["off_s"]) * 1e3),
        DELAY_OFF_S * 1e3,
        "ms",
    )
    check("delay: probes that came before it was over", sum(cell.extra["early"] for cell in delays), 0, "probes")
    check(
        "jitter: the worst standard deviation's distance from the distribution's",
        worst(jitters, lambda cell: cell.extra["off"] * 100),
        SIGMA_OFF * 100,
        "%",
    )
    check(
        "loss, bursts, duplicates, corruption, reordering: cells inside the 99.9 % binomial bounds",
        100 * sum(cell.ok for cell in shares) / len(shares),
        INSIDE * 100,
        "%",
        at_least=True,
        bound_words=f"{len(shares)} cells",
    )
    check("the other direction: probes lost, doubled or damaged", sum(measured.backward), 0, "probes")
    check(
        "rate, 0.5 to 50 Mbit/s: the worst goodput's distance from the exact figure",
        worst(rates, lambda cell: abs(cell.extra["off"]) * 100),
        RATE_OFF * 100,
        "%",
    )
    for cell in cells("mathis")[:1]:
        check("Reno against Mathis: C, at least", cell.seen, MATHIS[0], "", at_least=True)
        check("Reno against Mathis: C, at most", cell.seen, MATHIS[1], "")


# --- the plot ----------------------------------------------------------------------------------------------


_PANELS = ("delay", "jitter", "loss", "burst", "duplicate", "reorder", "corrupt", "rate")
_SIDE, _GAP = 230, 60
_WORDS_WIDE = 45
_INSIDE_COLOUR, _OUTSIDE_COLOUR = "#2f7d5d", "#c53030"


def plot(cells: Sequence[Cell]) -> str:
    """Requested against seen, one panel per kind, both axes logarithmic; they are equal on the line."""
    panels = [(kind, [cell for cell in cells if cell.kind == kind and cell.asked > 0 < cell.seen]) for kind in _PANELS]
    panels = [(kind, chosen) for kind, chosen in panels if chosen]
    step, columns = _SIDE + _GAP, 4
    rows = math.ceil(len(panels) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * step + _GAP} {rows * (step + 20) + 30}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#444"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for index, (kind, chosen) in enumerate(panels):
        left, top = _GAP + index % columns * step, 30 + index // columns * (step + 20)
        parts += _panel(kind, chosen, left, top)
    if any(cell.engine == "host" for cell in cells):
        bottom = rows * (step + 20) + 22
        parts.append(f'<circle cx="{_GAP + 5}" cy="{bottom - 4}" r="5" fill="{_INSIDE_COLOUR}"/>')
        parts.append(f'<text x="{_GAP + 18}" y="{bottom}">carried engine</text>')
        parts.append(f'<circle cx="{_GAP + 135}" cy="{bottom - 4}" r="8" fill="none" stroke="{_INSIDE_COLOUR}"/>')
        parts.append(f'<text x="{_GAP + 150}" y="{bottom}">host engine</text>')
    return "\n".join([*parts, "</svg>"])


def _panel(kind: str, cells: Sequence[Cell], left: int, top: int) -> list[str]:
    values = [value for cell in cells for value in (cell.asked, cell.seen)]
    low, high = math.log10(min(values)) - 0.15, math.log10(max(values)) + 0.15

    def place(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * _SIDE

    parts = [
        f'<rect x="{left}" y="{top}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#ccc"/>',
        f'<line x1="{left}" y1="{top + _SIDE}" x2="{left + _SIDE}" y2="{top}" stroke="#bbb" stroke-dasharray="4 4"/>',
        f'<text x="{left}" y="{top - 8}" font-weight="600" fill="#111">{escape(kind)}: asked → seen ↑</text>',
    ]
    said_at = [-100.0, -100.0]  # in two rows: where the last words of each are
    for cell in sorted(cells, key=lambda cell: cell.asked):
        x, y = left + place(cell.asked), top + _SIDE - place(cell.seen)
        row = min(range(len(said_at)), key=lambda row: (x - said_at[row] < _WORDS_WIDE, row))
        said_at[row] = x
        colour = _INSIDE_COLOUR if cell.ok else _OUTSIDE_COLOUR
        title = escape(f"{cell.words}: {cell.how}")
        if cell.engine == "host":  # a ring around the other's dot
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="{colour}"><title>{title}</title></circle>'
            )
            continue
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{title}</title></circle>')
        parts.append(f'<text x="{x:.1f}" y="{top + _SIDE + 14 + 13 * row}" text-anchor="middle">{_label(cell)}</text>')
    return parts


def _label(cell: Cell) -> str:
    match cell.unit:
        case "s":
            return f"{cell.asked * 1e3:.3g} ms"
        case "bit/s":
            return units.format_rate(round(cell.extra["mbit"] * 1e6))
        case "":
            return f"{cell.asked:.3g}".replace("0.", ".")
        case _:
            return f"{cell.asked:g}"


if __name__ == "__main__":
    if common.HOST_ENGINE in sys.argv:
        _tell_host_engine(quick="--quick" in sys.argv)
        sys.exit()
    common.run("Asked against seen, by probes and exact tests", measure)
