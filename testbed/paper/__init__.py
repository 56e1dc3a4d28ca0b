"""The paper's claims, each put to the test across a lab.

G. Zholdangarova, "The development of the TCP protocol in Python" (2020). A claim is a line of the paper, an experiment
that could refute it, and what came of it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from testbed.errors import ImpairmentNotAppliedError, InvalidValueError, TestbedError
from testbed.evidence.verdict import Verdict
from testbed.lab.lab import Lab
from testbed.paper import c01, c02, c03, c04, c05, c06, c07, c09, c10, c11, c12
from testbed.paper.context import Context
from testbed.paper.outcomes import Outcome, invalid
from testbed.paper.pages import Page, claim_page, index_page
from testbed.spec.words import unknown
from testbed.text import shown
from testbed.writing import write_whole


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
        _claim("C1", "session", "TCP establishes a session before data, and ends it", "protocol", c01.session),
        _claim("C2", "delivery", "every segment is delivered, without exception", "protocol", c02.delivery),
        _claim("C3", "order", "data is delivered in the order of sending, over routes of different rate", "protocol",
               c03.order),
        _claim("C4", "retransmission", "lost data is sent again after a waiting time", "protocol",
               c04.retransmission),
        _claim("C5", "acknowledgement", "segments are tracked and acknowledged", "protocol", c05.acknowledgement),
        _claim("C6", "flow control", "a busy receiver slows the sender; nothing is overrun or sent again for it",
               "protocol", c06.flow_control),
        _claim("C7", "no delays", "it works without delays", "conclusion", c07.no_delays),
        _claim("C8", "no losses", "“no losses were detected”", "conclusion", c02.no_losses),
        _claim("C9", "blocking structures", "the server may use one or another blocking structure", "server",
               c09.structures),
        _claim("C10", "games", "games freeze with UDP; switching to TCP solves many problems", "introduction",
               c10.games),
        _claim("C11", "figure 4", "the server prints the message", "figure 4", c11.figure_4),
        _claim("C12", "layers", "the TCP/IP stack maps onto OSI", "stack", c12.stack),
    )
}  # fmt: skip


def chosen(ids: Iterable[str]) -> list[Claim]:
    """The claims of these ids, in their order; all if there is none. Raises InvalidValueError naming each unknown."""
    said = [each.strip() for each in ids if each.strip()]
    wanted = [each.upper() for each in said]
    problems = [f"claim {shown(each)}: {unknown(each, CLAIMS)}" for each in said if each.upper() not in CLAIMS]
    if problems:
        raise InvalidValueError(problems)
    return [claim for claim in CLAIMS.values() if not wanted or claim.id in wanted]


def examine(
    claim: Claim,
    lab: Lab,
    folder: Path,
    *,
    quick: bool = False,
    say: Callable[[str], None] = lambda _text: None,
    earlier: Mapping[str, Outcome] = MappingProxyType({}),
) -> Outcome:
    """Put one claim to the test; a condition that was not in force, or a failure of any kind, makes it INVALID.

    ``earlier``: what was found of other claims, which an experiment may build upon instead of repeating theirs.
    """
    context = Context(lab=lab, folder=folder, quick=quick, say=say, earlier=earlier)
    started = time.monotonic()
    lab.begin(f"paper {claim.id}")
    try:
        outcome = claim.experiment(context)
    except ImpairmentNotAppliedError as error:
        outcome = invalid(f"The conditions were not in force: {error}")
    except TestbedError as error:
        outcome = invalid(f"The experiment failed: {error}")
    except Exception as error:  # noqa: BLE001  # whatever broke: a crash says nothing of the claim, and never HOLDS
        outcome = invalid(f"The experiment failed: {type(error).__name__}: {error}")
        context.keep(f"{claim.id}-crash.txt", traceback.format_exc())
    applied = [f"{each.link}: {each.describe()}" for each in lab.ledger.history]
    try:
        lab.end()
    except TestbedError as error:
        outcome = invalid(f"The links could not be healed after it: {error}")
    return replace(
        outcome, evidence=tuple(context.kept), conditions=outcome.conditions or tuple(dict.fromkeys(applied)),
        took_s=time.monotonic() - started,
    )  # fmt: skip


_FILE = "claims.json"
_INDEX = "index.html"
WRITTEN = (_FILE, _INDEX)
"""What is written in any case, beside a page for each claim."""
_VERSION = 3


def inputs(lab: str, *, netem: str, quick: bool) -> dict[str, object]:
    """What decides an outcome besides chance: an outcome is taken up again only where all of it is the same."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return {"quick": quick, "lab": lab, "netem": netem, "experiments": digest.hexdigest()[:16]}


def keep(folder: Path, outcomes: Mapping[str, Outcome], given: Mapping[str, object]) -> None:
    """Write what was found so far, so that a run that ends early is taken up."""
    found = {name: each.as_json() for name, each in outcomes.items()}
    body = {"version": _VERSION, "inputs": dict(given), "claims": found}
    # As a whole: an interrupted run leaves the one before.
    write_whole(folder / _FILE, json.dumps(body, indent=1), below=Path.cwd())


def kept(folder: Path, given: Mapping[str, object]) -> dict[str, Outcome]:
    """What an earlier run with the same inputs found and decided. Raises InvalidValueError if the file is not ours."""
    path = folder / _FILE
    if not path.exists():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["version"] != _VERSION or body["inputs"] != given:
            return {}
        found = {name: Outcome.from_json(each) for name, each in body["claims"].items() if name in CLAIMS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidValueError(
            f"{path}: not written by `testbed paper` ({error!r}); say --again, or --report"
        ) from None
    return {
        name: each for name, each in found.items()
        if each.finding is not Verdict.INVALID and all((folder / file).exists() for file in each.evidence)
    }  # fmt: skip


def write_report(folder: Path, outcomes: Mapping[str, Outcome], given: Mapping[str, object]) -> None:
    """Write index.html and a page for each claim that there is an outcome of."""
    pages = [
        Page(id=claim.id, name=claim.name, text=claim.text, section=claim.section, how=claim.how,
             outcome=outcomes[claim.id])
        for claim in CLAIMS.values() if claim.id in outcomes
    ]  # fmt: skip
    about = {
        "lab": str(given["lab"]), "netem": str(given["netem"]), "kernel of the hosts": platform.release(),
        "conditions": "the fewer ones of --quick" if given["quick"] else "all",
        "experiments": str(given["experiments"]),
    }  # fmt: skip
    write_whole(folder / _INDEX, index_page(pages, about), below=Path.cwd())
    for before, page, after in zip([None, *pages[:-1]], pages, [*pages[1:], None], strict=True):
        write_whole(folder / page.file, claim_page(page, before=before, after=after), below=Path.cwd())
