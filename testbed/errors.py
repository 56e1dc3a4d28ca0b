"""The exception tree: who can act on what went wrong.

::

    TestbedError
    ├── UserError                    the user wrote something that is not possible
    │   ├── InvalidValueError        a value: "loss=120%"
    │   │   ├── AtOddsError          values that contradict each other (testbed.spec.impairment)
    │   │   └── UnreadableError      a user's file that cannot be read (testbed.reading)
    │   └── InvalidComposeError      the Compose file, or what it describes
    ├── EnvironmentUnfitError        the machine lacks something: an engine, Compose, tun, a kernel
    │   └── ImageBuildError          an image could not be built or pulled
    ├── LabError                     the stack is up but did not do what was expected
    │   ├── ServiceFailedError       a service exited, or is unhealthy
    │   ├── CommandTimeoutError      a program in a host did not end, or was not ready, in time
    │   └── AgentError               the agent died, or refused an operation
    └── ImpairmentNotAppliedError    the kernel does not hold the impairment: the result must not count

A ``UserError`` carries every problem, not only the first. The command line and the pytest plugin map
``UserError``, ``EnvironmentUnfitError`` and ``ServiceFailedError`` (a stack that does not come up) to exit status 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from testbed.text import shortened, visible

_MOST_PROBLEMS = 100
_MOST_CHARACTERS = 2_000
"""The most characters of a problem; quoted values are shorter."""
_LONGEST = 40_000
"""The most characters of a message, which may contain the last output of services."""


class TestbedError(Exception):
    """The base of testbed's errors. The message is bounded and free of control characters, whatever it quotes."""

    __test__ = False  # the name starts with "Test"; pytest must not collect it

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(visible(message), _LONGEST))


class UserError(TestbedError):
    """The user wrote something that is not possible; ``problems`` has all that is wrong with it."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        texts = (problems,) if isinstance(problems, str) else problems
        self.problems: tuple[str, ...] = tuple(shortened(visible(text), _MOST_CHARACTERS) for text in texts)
        more = len(self.problems) - _MOST_PROBLEMS
        rest = [f"… and {more} more"] if more > 0 else []
        super().__init__("\n".join([*self.problems[:_MOST_PROBLEMS], *rest]))


class InvalidValueError(UserError):
    """A value with a wrong unit, out of range, or of a wrong kind."""


class InvalidComposeError(UserError):
    """The Compose file is missing or invalid, or describes something that a lab cannot do."""


class Problems(list[str]):
    """Problems of a user's input, gathered to be reported together."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the problems of a block for `tell`."""
        try:
            yield
        except InvalidValueError as error:
            self += error.problems

    def tell(self) -> None:
        """Raise InvalidValueError with every problem once, if there are any."""
        if self:
            raise InvalidValueError(dict.fromkeys(self))


class EnvironmentUnfitError(TestbedError):
    """The machine lacks something that is needed; the message says how to get it."""


class ImageBuildError(EnvironmentUnfitError):
    """An image could not be built or pulled; the message ends with the builder's last lines."""


class LabError(TestbedError):
    """The stack is up but did not do what was expected."""


class ServiceFailedError(LabError):
    """A service exited, or did not become healthy; the message has its last log lines."""


class CommandTimeoutError(LabError):
    """A program did not end, or did not become ready, before its deadline; the message has the last observation."""


class AgentError(LabError):
    """The agent beside the network died or refused an operation; ``kind`` is ``gone`` if the port has vanished."""

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class ImpairmentNotAppliedError(TestbedError):
    """The kernel does not hold the requested impairment; a result on this link must not count."""
