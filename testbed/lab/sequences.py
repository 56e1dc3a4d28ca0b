"""The sequence of an impaired link begins with the first packet of the test's body.

A seed decides the fate of the first, second, third packet of a netem. Packets of set-up, health checks and connections
of the session use up numbers, a different count each time. So a netem that has had packets is seeded again immediately
before the body, and packet numbers begin again.
"""

from __future__ import annotations

from testbed.errors import AgentError
from testbed.lab.impairer import Impairer
from testbed.lab.ports import Ports
from testbed.spec.impairment import Impairment


def begin(ports: Ports, impairer: Impairer) -> None:
    """Restart the sequence of each link whose netem has had packets. Raises ImpairmentNotAppliedError."""
    for port in ports:
        sources = [
            (ref, source, source.impairment)
            for ref, source in port.sources.items()
            if source.impairment is not None and not (source.running is not None and source.running.begun)
        ]
        if not any(_has_sequence(impairment) for _, _, impairment in sources):
            continue
        try:
            counted = ports.counts_at(port)
            for ref, source, impairment in sources:
                seen = counted.get(ref)
                used = seen is not None and seen.arrived_packets > source.sent_before + source.dropped_before
                if _has_sequence(impairment) and (used or impairment.by_number):
                    impairer.restart(ref, keep_queue=not _has_state(impairment) or source.running is not None)
        except AgentError as error:
            if error.kind != "gone":
                raise
            continue  # `verify` tells of it


def _has_sequence(impairment: Impairment) -> bool:
    return (impairment.is_random and impairment.seed is not None) or impairment.by_number


def _has_state(impairment: Impairment) -> bool:
    """Whether netem keeps a state of earlier packets that a change with the same seed does not reset.

    sch_netem.c, netem_change: it seeds the random numbers again. Not every version resets the packets since the last
    reordered one, the state of a loss model, and the start of a slot.
    """
    return bool(
        impairment.reorder_ratio
        or impairment.reorder_gap_packets
        or impairment.gilbert
        or impairment.loss_state
        or impairment.slot
    )
