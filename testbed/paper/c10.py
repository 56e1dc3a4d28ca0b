"""C10: games freeze with UDP, and TCP solves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from testbed.drive.messages import ExchangeResult, game
from testbed.evidence.journal import Journal, ReceivedRow, SentRow
from testbed.evidence.verdict import Verdict
from testbed.paper.context import BACK, BOTH, THERE, ExperimentContext
from testbed.paper.outcomes import ClaimOutcome, Condition, Plot
from testbed.paper.staleness import Staleness, staleness

_RATE_PER_S = 60
_FREEZE_S = 0.1
_REAL_SHARE = 0.1
"""Of the time: two games over the same link may differ by less, as the losses fall and as the machine is busy."""
_PROFILES = (
    "clean",
    "wifi",
    "wifi-congested",
    "lossy-1",
    "lossy-5",
    "bursty",
    "satellite-leo",
    "4g-edge",
    "lossy-latency",
    "conference",
)
_SHOWN = "lossy-latency"
"""Its journals are kept as evidence."""
_QUICK = ("clean", _SHOWN)


@dataclass(frozen=True, kw_only=True)
class Game:
    """What a player got of a game."""

    sent: int
    seen: Staleness
    dropped: int
    """Packets that the link lost, both ways."""

    @property
    def complete(self) -> bool:
        """Whether every update came."""
        return self.seen.arrived == self.sent

    @property
    def freezes(self) -> tuple[float, ...]:
        """Pauses in which nothing newer came."""
        return self.seen.freezes(_FREEZE_S)

    @property
    def frozen(self) -> float:
        """The share of the time that these took."""
        return sum(self.freezes) / self.seen.watched_s if self.seen.watched_s else 1.0


@dataclass(frozen=True, kw_only=True)
class Match:
    """The same game over one link twice: over UDP and over TCP."""

    profile: str
    udp: Game
    tcp: Game

    @property
    def lost(self) -> int:
        """Packets that the link lost in both games."""
        return self.udp.dropped + self.tcp.dropped

    @property
    def more_frozen(self) -> float:
        """How much more of the time TCP's stood still; less than nothing where it was UDP's."""
        return self.tcp.frozen - self.udp.frozen

    @property
    def worse(self) -> bool:
        """Whether TCP's surely stood still for longer."""
        return self.more_frozen > _REAL_SHARE

    @property
    def better(self) -> bool:
        """Whether UDP's surely did."""
        return self.more_frozen < -_REAL_SHARE


def games(context: ExperimentContext) -> ClaimOutcome:
    """A player gets the state of the world sixty times a second, over UDP, then over TCP, over links of every kind.

    A freeze is a pause of more than 100 ms in which nothing newer came. How stale the picture is at any moment is the
    age of the newest state that has come (age of information). Each game counts from the first update that arrives to
    the last that was sent, or came. See `least_differing` for a link over which one stood still for longer.
    """
    profiles = _QUICK if context.quick else _PROFILES
    matches = [least_differing(partial(_match, context, profile)) for profile in profiles]
    context.keep_json(
        "C10.json",
        [
            {
                "profile": match.profile,
                **{
                    name: {
                        "sent": played.sent,
                        "arrived": played.seen.arrived,
                        "late": played.seen.late,
                        "dropped": played.dropped,
                        "freezes_s": played.freezes,
                        "frozen": played.frozen,
                        "mean_age_s": played.seen.mean_s,
                        "ages_s": [played.seen.quantile(q / 100) for q in range(0, 101, 5)],
                    }
                    for name, played in (("udp", match.udp), ("tcp", match.tcp))
                },
            }
            for match in matches
        ],
    )
    return judge(matches)


def least_differing(play: Callable[[], Match]) -> Match:
    """A match, played again with the same losses if one game stood still for longer; the one that differs least.

    A busy machine hardly stops the same game twice. Where no packet was lost it surely was the machine: then a match is
    played up to four times.
    """
    played = [play()]
    while (played[-1].worse or played[-1].better) and len(played) < (2 if played[-1].lost else 4):
        played.append(play())
    return min(played, key=lambda match: abs(match.more_frozen))


# --- judging ---------------------------------------------------------------------------------------


def judge(matches: Sequence[Match]) -> ClaimOutcome:
    """The claim's outcome: HOLDS if TCP freezes less somewhere and nowhere more, BREAKS if nowhere less and somewhere.

    INVALID if nothing arrived, or no link lost a packet of either: then nothing was tested.
    """
    empty = [match.profile for match in matches if not (match.udp.seen.arrived and match.tcp.seen.arrived)]
    if empty:
        return ClaimOutcome(finding=Verdict.INVALID, sentence=f"No update arrived over {', '.join(empty)}.")
    if not any(match.udp.dropped and match.tcp.dropped for match in matches):
        return ClaimOutcome(finding=Verdict.INVALID, sentence="No link lost packets of both games, as it was asked to.")
    worse, better = ([match for match in matches if pick(match)] for pick in (_worse, _better))
    udp_froze = [match for match in matches if match.udp.freezes]
    gaps = [match for match in matches if not match.udp.complete]
    torn = [match for match in matches if not match.tcp.complete]
    finding = Verdict.HOLDS if better and not worse else Verdict.HOLDS_WITHIN if better else Verdict.FAILS
    sentences = [
        "TCP does not end the freezes: "
        * (finding is Verdict.FAILS)
        + f"UDP's game stood still for over 100 ms on {len(udp_froze)} of {len(matches)} links, TCP's on "
        f"{sum(bool(match.tcp.freezes) for match in matches)}.",
        f"TCP delivers every update where UDP leaves some out ({len(gaps)} of {len(matches)} links)"
        + (f", but not over {_names(torn)}." if torn else "."),
    ]
    if worse:
        worst = max(worse, key=lambda match: match.more_frozen)
        sentences.append(
            f"TCP is worse over {_names(worse)}, as it holds back what came until what was lost is sent again: over "
            f"{worst.profile} the picture stood still for {100 * worst.tcp.frozen:.0f} % of the time, with UDP for "
            f"{100 * worst.udp.frozen:.0f} %."
        )
    sentences.append(f"It freezes less over {_names(better)}." if better else "It freezes less over none of them.")
    return ClaimOutcome(
        finding=finding,
        sentence=" ".join(sentences),
        rows=[_row(match) for match in matches],
        plots=_plots(matches),
        mechanism={
            "links": len(matches),
            "tcp_incomplete": len(torn),
            "udp_incomplete": len(gaps),
            "tcp_worse": len(worse),
            "tcp_better": len(better),
            "udp_late": sum(match.udp.seen.late for match in matches),
            "tcp_freezes": sum(len(match.tcp.freezes) for match in matches),
            "udp_freezes": sum(len(match.udp.freezes) for match in matches),
            "tcp_longest_freeze_s": max(match.tcp.seen.longest_pause_s for match in matches),
            "udp_longest_freeze_s": max(match.udp.seen.longest_pause_s for match in matches),
        },
    )


def _worse(match: Match) -> bool:
    return match.worse


def _better(match: Match) -> bool:
    return match.better


def _names(matches: Sequence[Match]) -> str:
    return ", ".join(match.profile for match in matches)


def _row(match: Match) -> Condition:
    values: dict[str, str] = {}
    for name, played in (("UDP", match.udp), ("TCP", match.tcp)):
        values[f"{name}: updates"] = f"{played.seen.arrived} of {played.sent}"
        values[f"{name}: freezes"] = f"{len(played.freezes)}, {100 * played.frozen:.0f} % of the time"
        values[f"{name}: longest pause"] = f"{played.seen.longest_pause_s * 1e3:.0f} ms"
        values[f"{name}: age of the picture, half and 99 % of the time"] = " / ".join(
            "—" if age is None else f"{age * 1e3:.0f} ms"
            for age in (played.seen.quantile(0.5), played.seen.quantile(0.99))
        )
    values["frozen less"] = "UDP" if match.worse else "TCP" if match.better else "neither"
    return Condition(name=match.profile, held=not match.worse, values=values)


def _plots(matches: Sequence[Match]) -> list[Plot]:
    names = tuple(match.profile for match in matches)

    def bars(title: str, y: str, of: str) -> Plot:
        return Plot(
            title=title,
            x="link",
            y=y,
            categories=names,
            series={
                name: [(float(n), _figure(played, of)) for n, played in enumerate(games)]
                for name, games in (
                    ("UDP", [match.udp for match in matches]),
                    ("TCP", [match.tcp for match in matches]),
                )
            },
        )

    return [
        bars("Time in which the picture stood still for over 100 ms", "share of the time, %", "frozen"),
        bars("Age of the picture, not exceeded in 99 % of the time", "age, ms", "age"),
        bars("Updates that never came", "share of the updates, %", "missing"),
    ]


def _figure(played: Game, of: str) -> float:
    if of == "frozen":
        return 100 * played.frozen
    if of == "age":
        return 1e3 * (played.seen.quantile(0.99) or 0.0)
    return 100 * (played.sent - played.seen.arrived) / played.sent


# --- measuring -------------------------------------------------------------------------------------


def _match(context: ExperimentContext, profile: str) -> Match:
    played = []
    for transport in ("udp", "tcp"):
        context.say(f"C10: {profile}, {transport.upper()}")
        played.append(_play(context, profile, transport, 180 if context.quick else 300))
    return Match(profile=profile, udp=played[0], tcp=played[1])


def _play(context: ExperimentContext, profile: str, transport: str, updates: int) -> Game:
    context.lab.ledger.seeds_from = f"C10 {profile} {transport}"
    context.impair(BOTH, profile)
    run = game(context.lab, THERE, transport=transport, updates=updates, rate_per_s=_RATE_PER_S)
    impaired = [context.lab.link(way) for way in (THERE, BACK)]
    dropped = sum(link.counters().dropped_packets for link in impaired if link.impairment is not None)
    context.heal()
    if profile == _SHOWN:
        context.keep_journals(f"C10-{profile}-{transport}", run.journals)
    return taken(run, dropped)


def taken(run: ExchangeResult, dropped: int) -> Game:
    """The game of the journals. Raises InvalidValueError if one of them cannot be read."""
    journals = {name: Journal.of(run.journals[name], name=name) for name in ("server", "client")}
    sent = [SentRow._make(row) for row in journals["server"].rows("sent")]
    received = [ReceivedRow._make(row) for row in journals["client"].rows("received")]
    updates = [
        (update.sequence, update.sent_ns, update.time_ns)
        for update in received
        if update.state == "whole" and update.sequence is not None and update.sent_ns is not None
    ]
    return Game(
        sent=len({update.sequence for update in sent}),
        dropped=dropped,
        seen=staleness(updates, max((update.time_ns for update in sent), default=0)),
    )
