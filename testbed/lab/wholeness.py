"""The state of a lab's hosts: tests stop and start them, and changes by others are noticed.

`HostControl` stops, starts and reads hosts. `Wholeness` decides when, keeps their links impaired, and reports changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from testbed.errors import AgentError, LabError
from testbed.evidence.hoststate import EXITED, PAUSED, RUNNING, HostChange, HostState, change, is_whole
from testbed.spec.links import LinkRef

NOBODY = HostState(status="gone")
LAST_LINES = 3
"""Number of lines that are reported of a host that ended."""


class HostControl:
    """What a kind of lab can do with its hosts. The hosts of a lab that overrides nothing stay as they are."""

    def host_states(self) -> Mapping[str, HostState]:
        """The state of every host now. A container that was made anew is the host from here on."""
        return {}

    def may_end(self, _host: str) -> bool:
        """Whether its program is meant to end."""
        return False

    def last_lines(self, _host: str) -> tuple[str, ...]:
        """The last few lines that its program printed."""
        return ()

    def halt(self, host: str, _grace: str | None) -> None:
        """Ask its program to end, end it after ``grace``, and all else in the host with it."""
        raise _cannot(host, "stopped")

    def kill_host(self, host: str, _signal: str) -> None:
        """Signal its program; with SIGKILL, return once it has ended."""
        raise _cannot(host, "killed")

    def needed(self, _host: str) -> Sequence[str]:
        """The hosts that must run before its program starts."""
        return ()

    def revive(self, host: str, _timeout: str | None) -> None:
        """Start its program again; return once it is well. Raises ServiceFailedError."""
        raise _cannot(host, "started")

    def freeze(self, host: str) -> None:
        """Pause every process in the host until `thaw`."""
        raise _cannot(host, "paused")

    def thaw(self, host: str) -> None:
        """Have it go on."""
        raise _cannot(host, "resumed")

    def bring_back(self, wrong: Mapping[str, HostState]) -> None:
        """Have these hosts run again, in the order in which the stack came up, and wait until they are well."""
        raise _cannot(", ".join(wrong), "brought back")

    def await_healthy(self) -> None:
        """Wait until every health check passes that passed once. Raises ServiceFailedError."""
        return


def _cannot(host: str, what: str) -> LabError:
    return LabError(f"`{host}`: hosts of this kind of lab cannot be {what}")


class Wholeness:
    """The states of the hosts of one lab."""

    def __init__(
        self,
        control: HostControl,
        *,
        suspend: Callable[[str], None],
        resume_links: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """``suspend``: removes the impairments and cuts of a host's links, and keeps them.

        ``resume_links``: applies them again on links whose ends are up.
        """
        self._control = control
        self._suspend = suspend
        self._resume_links = resume_links
        self.say = say
        self._home: dict[str, HostState] = {}
        """The state of each when the stack was up."""
        self._known: dict[str, HostState] = {}
        """The last known state of each."""
        self._ending: set[str] = set()
        """Hosts that a test sent a signal, which may end them."""
        self.announced: set[str] = set()
        self.changes: list[HostChange] = []
        """The changes of hosts since the test began."""

    def up(self) -> None:
        """The stack is up: note the state of every host."""
        self._known = dict(self._control.host_states())
        self._home = dict(self._known)

    def begin(self) -> None:
        """Begin a test: bring back hosts that have changed since the stack came up. Raises LabError."""
        self.changes.clear()
        self._ending.clear()
        if not self._home:
            return
        states = self._control.host_states()
        for host, home in self._home.items():
            now = states.get(host, NOBODY)
            if home.status == RUNNING and now.status == EXITED and not now.exit_code and self._control.may_end(host):
                self._home[host] = now  # it has done its work
        wrong = {
            name: states.get(name, NOBODY)
            for name, home in self._home.items()
            if not is_whole(home, states.get(name, NOBODY))
        }
        if wrong:
            self._control.bring_back(wrong)
        self._control.await_healthy()
        before, self._known = self._known, dict(self._control.host_states())
        if any(state.endpoints != before.get(host, NOBODY).endpoints for host, state in self._known.items()):
            self._resume_links()

    def look(self) -> list[HostChange]:
        """The changes of hosts since the last look that the test did not make."""
        if not self._home:
            return []
        changes = []
        for host, now in self._control.host_states().items():
            before = self._known.get(host, NOBODY)
            self._known[host] = now
            if not (what := change(before, now, may_end=self._control.may_end(host))):
                continue
            ours = host in self._ending and now.status == EXITED
            ended = now.status == EXITED or now.restarts != before.restarts
            changes.append(
                HostChange(
                    host=host,
                    what=what,
                    by_test=ours,
                    before=before,
                    after=now,
                    last_lines=self._control.last_lines(host) if ended and not ours else (),
                )
            )
        self.changes += changes
        return [new for new in changes if not new.by_test]

    def ended(self, host: str) -> HostState | None:
        """The state of a host whose program has done its work and ended; None for other hosts."""
        known = self._known.get(host)
        home = self._home.get(host)
        done = known is not None and known.status == EXITED and home is not None and home.status == EXITED
        return known if done else None

    def there(self, refs: Iterable[LinkRef]) -> tuple[LinkRef, ...]:
        """These links without those of hosts that have done their work and ended; each such host is announced once.

        Raises LabError if none is left.
        """
        refs = tuple(refs)
        ends = dict.fromkeys(end for ref in refs for end in (ref.src, ref.dst))
        ended = {host: state for host in ends if (state := self.ended(host)) is not None}
        texts = {host: f"`{host}` has ended (exit status {state.exit_code})" for host, state in ended.items()}
        left = tuple(ref for ref in refs if ref.src not in ended and ref.dst not in ended)
        if refs and not left:
            raise LabError(f"{', '.join(map(str, refs))}: {'; '.join(texts.values())}: no link is left")
        for host, text in texts.items():
            if host not in self.announced:
                self.say(f"{text}: its links are left out")
        self.announced |= ended.keys()
        return left

    def running(self, host: str) -> bool:
        """Whether a host is up, as far as is known."""
        return self._known.get(host, NOBODY).status in (RUNNING, PAUSED)

    def networks(self, host: str) -> Collection[str]:
        """The networks that a host is on, as far as known; one outside the Compose file has the engine's name."""
        return self._known.get(host, NOBODY).endpoints.keys()

    def down(self, host: str) -> bool:
        """Whether a host is known not to be up."""
        return host in self._known and not self.running(host)

    # --- what a test does ------------------------------------------------------------------------

    def stop(self, host: str, grace: str | None) -> None:
        """See `Host.stop`."""
        if self._now(host).status == PAUSED:
            self.resume(host)
        self._end(host, lambda: self._control.halt(host, grace))

    def kill(self, host: str, signal: str) -> None:
        """See `Host.kill`."""
        if signal == "SIGKILL":
            self._end(host, lambda: self._control.kill_host(host, signal))
            return
        self._require(host, RUNNING)
        self._ending.add(host)
        self._control.kill_host(host, signal)

    def _end(self, host: str, how: Callable[[], None]) -> None:
        if self._now(host).status == EXITED and self._known.get(host, NOBODY).status == EXITED:
            return
        self._suspend(host)
        with self._by_test(host):
            how()

    def start(self, host: str, timeout: str | None) -> None:
        """See `Host.start`. Raises LabError if a host that it depends on does not run."""
        states = self._control.host_states()
        if states.get(host, NOBODY).status == RUNNING:
            return
        if states.get(host, NOBODY).status == PAUSED:
            raise LabError(f"`{host}` is paused; resume it")
        for other in self._control.needed(host):
            if states.get(other, NOBODY).status not in (RUNNING, PAUSED):
                raise LabError(f"`{host}` depends on `{other}`, which does not run; start that first")
        with self._by_test(host):
            self._control.revive(host, timeout)
        self._resume_links()

    def restart(self, host: str, grace: str | None, timeout: str | None) -> None:
        """See `Host.restart`."""
        self.stop(host, grace)
        self.start(host, timeout)

    def pause(self, host: str) -> None:
        """See `Host.pause`."""
        self._require(host, RUNNING)
        with self._by_test(host):
            self._control.freeze(host)

    def resume(self, host: str) -> None:
        """See `Host.resume`."""
        if self._now(host).status == RUNNING:
            return
        self._require(host, PAUSED)
        with self._by_test(host):
            self._control.thaw(host)

    def move(self, hosts: Sequence[str], how: Callable[[], None]) -> None:
        """Have these hosts run elsewhere, as the test wants it; their links are impaired again once they do."""
        for host in hosts:
            self._suspend(host)
        with contextlib.ExitStack() as block:
            for host in hosts:
                block.enter_context(self._by_test(host))
            how()
        self._resume_links()

    def resume_all(self) -> None:
        """Resume every host that a test paused: programs in a paused host cannot be ended."""
        for host, state in list(self._known.items()):
            if state.status == PAUSED:
                self.resume(host)

    def _now(self, host: str) -> HostState:
        """Read anew: a service may have ended since it was known, or its `restart:` may have started it again."""
        return self._control.host_states().get(host, NOBODY)

    def _require(self, host: str, status: str) -> None:
        if (now := self._now(host).status) != status:
            raise LabError(f"`{host}` is {now}, not {status}")

    @contextlib.contextmanager
    def _by_test(self, host: str) -> Iterator[None]:
        """Changes of a host in this block are the test's, even if the block fails."""
        before = self._known.get(host, NOBODY)
        try:
            yield
        finally:
            with contextlib.suppress(AgentError):  # then the block has failed for the same reason
                self._known[host] = after = self._control.host_states().get(host, NOBODY)
                what = change(before, after)
                if what:
                    done = HostChange(host=host, what=what, by_test=True, before=before, after=after)
                    self.changes.append(done)
