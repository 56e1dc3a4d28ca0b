"""The paper's claims, each put to the test across a lab.

G. Zholdangarova, "The development of the TCP protocol in Python" (2020). A claim is a line of the paper, an experiment
that could refute it, and what came of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.errors import ImpairmentNotAppliedError, InvalidValueError, TestbedError
from testbed.judge.claims import Finding, Outcome, invalid
from testbed.labs.lab import Lab
from testbed.labs.waiting import NotSeenError
from testbed.model.impairment import unknown
from testbed.paper import delivery, transport, uses
from testbed.paper.context import Context


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper."""

    id: str
    name: str
    text: str
    """The claim in one line."""
    section: str
    """Where the paper makes it."""
    experiment: Callable[[Context], Outcome]

    @property
    def how(self) -> str:
        """What the experiment does, in its own words."""
        return (self.experiment.__doc__ or "").strip()


def _claim(id_: str, name: str, text: str, section: str, experiment: Callable[[Context], Outcome]) -> Claim:
    return Claim(id=id_, name=name, text=text, section=section, experiment=experiment)


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claim in (
        _claim("C1", "session", "TCP establishes a session before data, and ends it", "protocol", transport.session),
        _claim("C2", "delivery", "every segment is delivered, without exception", "protocol", delivery.delivery),
        _claim("C3", "order", "data is delivered in the order of sending, over routes of different rate", "protocol",
               transport.order),
        _claim("C4", "retransmission", "lost data is sent again after a waiting time", "protocol",
               transport.retransmission),
        _claim("C5", "acknowledgement", "segments are tracked and acknowledged", "protocol", transport.acknowledgement),
        _claim("C6", "flow control", "a busy receiver slows the sender; nothing is overrun or sent again for it",
               "protocol", transport.flow_control),
        _claim("C7", "no delays", "it works without delays", "conclusion", transport.no_delays),
        _claim("C8", "no losses", "“no losses were detected”", "conclusion", delivery.no_losses),
        _claim("C9", "blocking structures", "the server may use one or another blocking structure", "server",
               delivery.structures),
        _claim("C10", "games", "games freeze with UDP; switching to TCP solves many problems", "introduction",
               uses.games),
        _claim("C11", "figure 4", "the server prints the message", "figure 4", delivery.figure_4),
        _claim("C12", "layers", "the TCP/IP stack maps onto OSI", "stack", uses.stack),
    )
}  # fmt: skip


def chosen(ids: Iterable[str]) -> list[Claim]:
    """The claims of these ids, in their order; all if there is none. Raises InvalidValueError naming each unknown."""
    wanted = [each.strip().upper() for each in ids if each.strip()]
    problems = [f"claim {each!r}: {unknown(each, CLAIMS)}" for each in wanted if each not in CLAIMS]
    if problems:
        raise InvalidValueError(problems)
    return [claim for claim in CLAIMS.values() if not wanted or claim.id in wanted]


def examine(
    claim: Claim, lab: Lab, folder: Path, *, quick: bool = False, say: Callable[[str], None] = lambda _text: None
) -> Outcome:
    """Put one claim to the test; a condition that was not in force, or a failure of ours, makes it INVALID."""
    context = Context(lab=lab, folder=folder, quick=quick, say=say)
    started = time.monotonic()
    lab.begin(f"paper {claim.id}")
    try:
        outcome = claim.experiment(context)
    except ImpairmentNotAppliedError as error:
        outcome = invalid(f"the conditions were not in force: {error}")
    except (TestbedError, NotSeenError, LookupError, ValueError) as error:
        outcome = invalid(f"the experiment failed: {type(error).__name__}: {error}")
    finally:
        lab.end()
    return replace(outcome, evidence=tuple(context.kept), took_s=time.monotonic() - started)


_FILE = "claims.json"


def keep(folder: Path, outcomes: Mapping[str, Outcome], *, quick: bool) -> None:
    """Write what was found so far, so that a run that ends early is taken up."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"version": 1, "quick": quick, "claims": {name: each.as_json() for name, each in outcomes.items()}}
    (folder / _FILE).write_text(json.dumps(body, indent=1), encoding="utf-8")


def kept(folder: Path, *, quick: bool) -> dict[str, Outcome]:
    """What an earlier run of the same kind found and decided. Raises InvalidValueError if the file is not ours."""
    path = folder / _FILE
    if not path.exists():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["quick"] != quick:
            return {}
        found = {name: Outcome.from_json(each) for name, each in body["claims"].items() if name in CLAIMS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidValueError(
            f"{path}: not written by `testbed paper` ({error!r}); say --again, or --report"
        ) from None
    return {name: each for name, each in found.items() if each.finding is not Finding.INVALID}
