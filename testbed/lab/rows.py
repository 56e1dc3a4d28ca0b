"""The table of a link's evidence: each word as asked, in the kernel, and as probes or counters saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testbed.evidence.proof import Check, Tally
from testbed.evidence.verdict import Verdict
from testbed.judge.impairments import kernel_words
from testbed.netem import qdisc, readback
from testbed.observe.connections import Crossed
from testbed.spec.impairment import Impairment


@dataclass(frozen=True)
class Held:
    """An impaired link and the kernel's account of it, at one moment."""

    impairment: Impairment
    netem: Mapping[str, Any] | None
    """The kernel's own account; None if there is none."""
    differences: Sequence[readback.Difference]
    """The differences between the two."""


EARLIER = "earlier connections"
"""The row of what connections that began before the test sent on a link."""
_ROWS = {"gemodel": "loss", "loss_state": "loss", "burst": "loss", "jitter": "delay", "distribution": "delay"}
"""Words that are part of another word's row."""


def rows(held: Held, tally: Tally | None, probed: Sequence[Check] = (), by_number: int | None = None) -> list[Check]:
    """A link's table: the rows of probes, then those of words that were not probed."""
    return _contradicted([*probed, *_unprobed(held, tally, probed, by_number)], held.differences)


def proven_rows(held: Held, probed: Sequence[Check]) -> list[Check]:
    """The table of a link that was just probed; its counters begin anew. All words, if it was not probed."""
    unprobed = _unprobed(held, None, probed)
    return _contradicted([*probed, *(row for row in unprobed if not probed or row.field == "seed")], held.differences)


def _contradicted(checks: Sequence[Check], differences: Sequence[readback.Difference]) -> list[Check]:
    """The rows; those fail where the kernel differs. So one reading decides the rows and the read-back."""
    table = {check.field: check for check in checks}
    for difference in differences:
        name = next(
            (word for word in (difference.field, difference.word, _ROWS.get(difference.word, "")) if word in table),
            None,
        )
        if name is None:
            table[difference.field] = Check(
                field=difference.field, asked=difference.requested, kernel=difference.reported, verdict=Verdict.FAILS
            )
            continue
        row, how = table[name], "; ".join(text for text in (table[name].how, str(difference)) if text)
        table[name] = replace(
            row, kernel=difference.reported if name == difference.field else row.kernel, verdict=Verdict.FAILS, how=how
        )
    return list(table.values())


def _unprobed(held: Held, tally: Tally | None, probed: Sequence[Check], by_number: int | None = None) -> list[Check]:
    """A row for each word that was not probed: as asked, in the kernel, and by its counters."""
    impairment, netem = held.impairment, held.netem
    kernel = kernel_words((netem or {}).get("options", {}))
    kernel["limit"] = str((netem or {}).get("options", {}).get("limit", "—"))
    kernel["seed"] = str((netem or {}).get("options", {}).get("seed", "none"))
    done = {check.field for check in probed}
    checks = []
    for word, value in {"limit": "sized", **impairment.words()}.items():
        name = _ROWS.get(word, word)
        if name in done:
            continue
        done.add(name)
        in_kernel = "none" if netem is None else kernel.get(name, "as asked")
        seen = "not measured"
        if name == "limit":
            sized = f"{qdisc.sized_limit(impairment)} (sized)"
            seen, value = _overflowed(tally), sized if impairment.limit_packets is None else value
        elif name == "loss" and tally is not None and tally.arrived_packets:
            share = tally.dropped_packets / tally.arrived_packets
            seen = f"{share * 100:.3g}% ({tally.dropped_packets} dropped of {tally.arrived_packets})"
        elif name in ("duplicate", "reorder", "corrupt"):
            seen = _befell(tally, name)
        elif name in ("drop_packets", "drop_every") and by_number is not None:
            both = " by either" if impairment.drop_packets and impairment.drop_every else ""
            seen = f"{_packets(by_number)} lost{both}"
        elif name in ("seed", "ecn", "gap", "overhead", "reorder_by_jitter", "correlation"):
            seen = "—"
        extra = " ".join(
            str(text) for key, text in impairment.words().items() if _ROWS.get(key, key) == name and key != word
        )
        verdict = Verdict.FAILS if netem is None and held.differences else Verdict.SHOWN
        checks.append(Check(field=name, asked=f"{value} {extra}".strip(), kernel=in_kernel, seen=seen, verdict=verdict))
    return checks


def _packets(count: int) -> str:
    return f"{count} packet{'' if count == 1 else 's'}"


def _befell(tally: Tally | None, name: str) -> str:
    if tally is None or not tally.arrived_packets:
        return "not measured"
    span = {"duplicate": tally.duplicated, "reorder": tally.reordered, "corrupt": tally.corrupted}[name]
    return f"{span} of {tally.arrived_packets} ({span.how})"


def _overflowed(tally: Tally | None) -> str:
    return "unknown" if tally is None else f"{tally.tail_drops} overflowed ({tally.tail_drops.how})"


def earlier(crossed: Crossed | None) -> list[Check]:
    """The packets that earlier connections sent on a link; they are part of its sequence."""
    return [] if crossed is None else [Check(field=EARLIER, seen=str(crossed), verdict=Verdict.SHOWN)]
