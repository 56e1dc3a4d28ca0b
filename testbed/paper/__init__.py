"""The paper's claims, each tested across a lab.

G. Zholdangarova, "The development of the TCP protocol in Python" (2020). A claim is a line of the paper, with an
experiment that can refute it.
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
from testbed.paper.claimpages import ClaimPage, claim_page, index_page
from testbed.paper.context import ExperimentContext
from testbed.paper.outcomes import ClaimOutcome, invalid
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
    experiment: Callable[[ExperimentContext], ClaimOutcome]

    @property
    def how(self) -> str:
        """What the experiment does, in its own words."""
        return (self.experiment.__doc__ or "").strip()


_EXPERIMENTS: dict[str, Callable[[ExperimentContext], ClaimOutcome]] = {
    "C1": c01.session,
    "C2": c02.delivery,
    "C3": c03.order,
    "C4": c04.retransmission,
    "C5": c05.acknowledgement,
    "C6": c06.flow_control,
    "C7": c07.no_delays,
    "C8": c02.no_losses,
    "C9": c09.structures,
    "C10": c10.games,
    "C11": c11.figure_4,
    "C12": c12.stack,
}
_CLAIMS = """
C1  | session             | TCP establishes a session before data, and ends it                        | protocol
C2  | delivery            | every segment is delivered, without exception                             | protocol
C3  | order               | data is delivered in the order of sending, over routes of different rate  | protocol
C4  | retransmission      | lost data is sent again after a waiting time                              | protocol
C5  | acknowledgement     | segments are tracked and acknowledged                                     | protocol
C6  | flow control        | a busy receiver slows the sender; nothing is overrun or sent again for it | protocol
C7  | no delays           | it works without delays                                                   | conclusion
C8  | no losses           | “no losses were detected”                                                 | conclusion
C9  | blocking structures | the server may use one or another blocking structure                      | server
C10 | games               | games freeze with UDP; switching to TCP solves many problems              | introduction
C11 | figure 4            | the server prints the message                                             | figure 4
C12 | layers              | the TCP/IP stack maps onto OSI                                            | stack
"""


def _claim(line: str) -> Claim:
    id_, name, text, section = (cell.strip() for cell in line.split("|"))
    return Claim(id=id_, name=name, text=text, section=section, experiment=_EXPERIMENTS[id_])


CLAIMS: dict[str, Claim] = {claim.id: claim for claim in map(_claim, _CLAIMS.strip().splitlines())}


def chosen(ids: Iterable[str]) -> list[Claim]:
    """The claims of these ids, in their order; all if there is none. Raises InvalidValueError naming each unknown."""
    names = [name.strip() for name in ids if name.strip()]
    problems = [f"claim {shown(name)}: {unknown(name, CLAIMS)}" for name in names if name.upper() not in CLAIMS]
    if problems:
        raise InvalidValueError(problems)
    wanted = {name.upper() for name in names} or CLAIMS.keys()
    return [claim for claim in CLAIMS.values() if claim.id in wanted]


_LONG = ("C9", "C7", "C10", "C4", "C11", "C2")
"""Claims that take the most processor time, the longest first."""


def shares(claims: Iterable[Claim]) -> list[list[str]]:
    """The claims' ids, those together whose experiments are one module's; what takes longest comes first."""
    groups: dict[str, list[str]] = {}
    for claim in claims:
        groups.setdefault(claim.experiment.__module__, []).append(claim.id)
    return sorted(groups.values(), key=lambda group: (*_LONG, group[0]).index(group[0]))


def examine(
    claim: Claim,
    lab: Lab,
    folder: Path,
    *,
    quick: bool = False,
    say: Callable[[str], None] = lambda _text: None,
    earlier: Mapping[str, ClaimOutcome] = MappingProxyType({}),
) -> ClaimOutcome:
    """Test one claim; a condition that was not in force, or a failure of any kind, makes it INVALID.

    ``earlier``: outcomes of other claims, which an experiment may use instead of repeating theirs.
    """
    context = ExperimentContext(lab=lab, folder=folder, quick=quick, say=say, earlier=earlier)
    started = time.monotonic()
    lab.lifecycle.begin(f"paper {claim.id}")
    try:
        outcome = claim.experiment(context)
    except ImpairmentNotAppliedError as error:
        outcome = invalid(f"The conditions were not in force: {error}")
    except TestbedError as error:
        outcome = invalid(f"The experiment failed: {error}")
    except Exception as error:  # noqa: BLE001  # a crash says nothing about the claim
        outcome = invalid(f"The experiment failed: {type(error).__name__}: {error}")
        context.keep(f"{claim.id}-crash.txt", traceback.format_exc())
    applied = [f"{change.link}: {change.describe()}" for change in lab.ledger.history]
    try:
        lab.lifecycle.end()
    except TestbedError as error:
        outcome = invalid(f"The links could not be healed after it: {error}")
    return replace(
        outcome,
        evidence=tuple(context.kept),
        conditions=outcome.conditions or tuple(dict.fromkeys(applied)),
        took_s=time.monotonic() - started,
    )


_FILE = "claims.json"
_INDEX = "index.html"
WRITTEN = (_FILE, _INDEX)
"""Files that are always written, besides a page per claim."""
_VERSION = 4


def inputs(lab: str, *, netem: str, quick: bool) -> dict[str, object]:
    """Whatever decides an outcome besides chance: an outcome is reused only if all of it is the same."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    kernel = platform.release()
    return {"quick": quick, "lab": lab, "netem": netem, "kernel": kernel, "experiments": digest.hexdigest()[:16]}


def keep(folder: Path, outcomes: Mapping[str, ClaimOutcome], inputs: Mapping[str, object]) -> None:
    """Write the outcomes so far, so that a later run continues one that ended early."""
    claims = {name: outcome.as_json() for name, outcome in outcomes.items()}
    body = {"version": _VERSION, "inputs": dict(inputs), "claims": claims}
    write_whole(folder / _FILE, json.dumps(body, indent=1), below=Path.cwd())


def kept(folder: Path, inputs: Mapping[str, object]) -> dict[str, ClaimOutcome]:
    """Decided outcomes of an earlier run with the same inputs. Raises InvalidValueError if the file is not ours."""
    if not (folder / _FILE).exists():
        return {}
    theirs, outcomes = read(folder)
    if theirs != inputs:
        return {}
    return {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome.finding is not Verdict.INVALID and all((folder / file).exists() for file in outcome.evidence)
    }


def read(folder: Path) -> tuple[Mapping[str, object], dict[str, ClaimOutcome]]:
    """What `keep` has written: the inputs, none of another version's, and the outcomes. Raises InvalidValueError."""
    path = folder / _FILE
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["version"] != _VERSION:
            return {}, {}
        claims = ((name, claim) for name, claim in body["claims"].items() if name in CLAIMS)
        return body["inputs"], {name: ClaimOutcome.from_json(claim) for name, claim in claims}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidValueError(
            f"{path}: not written by `testbed paper` ({error!r}); say --again, or --report"
        ) from None


def take_evidence(source: Path, folder: Path, outcome: ClaimOutcome) -> None:
    """Take the files of an outcome over from another folder."""
    for name in outcome.evidence:
        write_whole(folder / name, (source / name).read_bytes(), below=Path.cwd())


def write_report(folder: Path, outcomes: Mapping[str, ClaimOutcome], inputs: Mapping[str, object]) -> None:
    """Write index.html and a page for each claim with an outcome."""
    pages = [
        ClaimPage(
            id=claim.id,
            name=claim.name,
            text=claim.text,
            section=claim.section,
            how=claim.how,
            outcome=outcomes[claim.id],
        )
        for claim in CLAIMS.values()
        if claim.id in outcomes
    ]
    about = {
        "lab": str(inputs["lab"]),
        "netem": str(inputs["netem"]),
        "kernel of the hosts": str(inputs["kernel"]),
        "conditions": "the fewer ones of --quick" if inputs["quick"] else "all",
        "experiments": str(inputs["experiments"]),
    }
    write_whole(folder / _INDEX, index_page(pages, about), below=Path.cwd())
    for before, page, after in zip([None, *pages[:-1]], pages, [*pages[1:], None], strict=True):
        write_whole(folder / page.file, claim_page(page, before=before, after=after), below=Path.cwd())
