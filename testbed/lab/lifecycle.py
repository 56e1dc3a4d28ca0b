"""The tests of a lab, one after the other: each finds the lab as if it were the first."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

from testbed.lab import releasing, sequences
from testbed.lab.backend import Backend
from testbed.lab.carriage import Carriage
from testbed.lab.connections import Connections
from testbed.lab.cutter import Cutter
from testbed.lab.elsewhere import Elsewhere
from testbed.lab.impairer import Impairer
from testbed.lab.ledger import Ledger
from testbed.lab.measuring import Measuring
from testbed.lab.ports import Ports
from testbed.lab.shaper import Shaper
from testbed.lab.succession import Succession
from testbed.lab.suspensions import Suspensions
from testbed.lab.verifier import Verifier
from testbed.lab.wholeness import Wholeness
from testbed.spec.links import LinkRef


class Lifecycle:
    """Begins and ends tests; heals links within a test and between two."""

    def __init__(
        self,
        ports: Ports,
        ledger: Ledger,
        impairer: Impairer,
        cutter: Cutter,
        shaper: Shaper,
        verifier: Verifier,
        elsewhere: Elsewhere,
        carriage: Carriage,
        connections: Connections,
        whole: Wholeness,
        succession: Succession,
        suspensions: Suspensions,
        measuring: Measuring,
        backend: Backend,
    ) -> None:
        self._ports = ports
        self._ledger = ledger
        self._impairer = impairer
        self._cutter = cutter
        self._shaper = shaper
        self._verifier = verifier
        self._elsewhere = elsewhere
        self._carriage = carriage
        self._connections = connections
        self._whole = whole
        self._succession = succession
        self._suspensions = suspensions
        self._measuring = measuring
        self._backend = backend
        self._testing = False
        self.left_over = ""
        """Connections of the test that could not be ended; empty if there are none."""

    def begin(self, seeds_from: str | None, links: Collection[LinkRef] = ()) -> None:
        """Begin a test: heal what is left, and forget the metrics, the history and the programs of the one before.

        Brings back every host that was stopped, or was not left as it was when the stack came up. Raises LabError
        saying why one cannot be. Ports that nothing impairs become as if they had never been impaired, but not those
        of ``links``, which are to be impaired at once. ``seeds_from``: what to derive the seeds of random impairments
        from that name none; None leaves them to the kernel.
        """
        self._testing = True
        self._ledger.begin(seeds_from)  # first: if the rest fails, the ledger has nothing of the test before
        self._succession.begin()
        self._heal_all()
        self._whole.begin()
        releasing.release(self._ports, self._elsewhere, self._backend.hosts, but=links)
        self._ledger.begin(seeds_from)  # again: without what was found while links were healed
        self._carriage.begin()
        self._verifier.begin()
        self._connections.begin()
        self._measuring.forget()
        self.left_over = ""

    def begin_body(self) -> None:
        """The packets of a test's body come now: begin the links' sequences, then the timelines."""
        self._connections.begin_body()
        self._measuring.begin()
        sequences.begin(self._ports, self._impairer)
        self._shaper.begin()
        self._impairer.play()

    def end_body(self) -> None:
        """A test's body has ended, and with it its competing traffic and what is measured of it."""
        for traffic in self._ledger.traffic:
            traffic.stop()
        self._measuring.end()

    def end(self) -> None:
        """End a test: heal every link, kill the programs that it left running, and have their connections end."""
        with ExitStack() as undo:
            for host in self._backend.hosts.values():
                undo.callback(host.end_test)
            undo.callback(self._end)

    def _end(self) -> None:
        if not self._succession.end():
            with ExitStack() as undo:
                undo.callback(self._settle)
                for program in self._ledger.programs:
                    if not program.ended:
                        undo.callback(program.stop, "SIGKILL")
                undo.callback(self._heal_all)
                undo.callback(self._carriage.end)
                undo.callback(self._whole.resume_all)  # first: nothing in a paused host can be ended
        self._testing = False

    def _settle(self) -> None:
        self.left_over = self._connections.settle()

    def heal(self) -> None:
        """See `Lab.heal`."""
        self._verifier.take_leave(set(self._ports.impaired))
        self._ledger.over += self._shaper.look()
        self._heal_all()
        self._release_if_idle()

    def heal_link(self, ref: LinkRef) -> None:
        """Remove one link's impairment. Whether it held until now goes into the next `Verifier.verify`."""
        self._suspensions.heal(ref)
        self._verifier.take_leave({ref})
        self._impairer.clear(ref)
        self._release_if_idle()

    def mend_link(self, ref: LinkRef) -> None:
        """End the cut of one direction. Whether it held until now goes into the next `Verifier.verify`."""
        self._suspensions.mend(ref)
        self._cutter.mend(ref)

    def release(self) -> None:
        """Restore ports that nothing impairs or cuts, and hosts that send to none: as before they were impaired."""
        releasing.release(self._ports, self._elsewhere, self._backend.hosts, but=self._shaper.links)

    def _release_if_idle(self) -> None:
        if not self._testing:
            self.release()

    def _heal_all(self) -> None:
        self._suspensions.links.clear()
        with ExitStack() as undo:
            undo.callback(self._shaper.clear)  # last: it takes the device away that the others are on
            for ref in self._ports.impaired:
                undo.callback(self._impairer.clear, ref)
            for ref in self._ports.cut:
                undo.callback(self._cutter.mend, ref)
