"""The exception tree: who can act on what went wrong.

::

    TestbedError
    ├── UserError                    the user wrote something that cannot be honoured
    │   ├── InvalidValueError        a value: "loss=120%"
    │   │   └── UnreadableError      a file of the user's that cannot be read, or is none (testbed.reading)
    │   └── InvalidComposeError      the Compose file, or what it describes
    ├── EnvironmentUnfitError        the machine lacks something: an engine, Compose, tun, a kernel
    │   └── ImageBuildError          an image could not be built or pulled
    ├── LabError                     the stack is there but did not do what was awaited
    │   ├── ServiceFailedError       a service exited, or is unhealthy
    │   ├── CommandTimeoutError      a program in a host did not end, or was not ready, in time
    │   └── AgentError               the agent beside the network died, or refused
    └── ImpairmentNotAppliedError    the kernel does not hold what was asked: the result must not count

A ``UserError`` carries every problem found, not the first alone. The command line and the pytest plugin map
``UserError``, ``EnvironmentUnfitError`` and ``ServiceFailedError`` (a stack that does not come up) to exit status 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from testbed.text import shortened, visible

_MOST_PROBLEMS = 100
_MOST_CHARACTERS = 2_000
"""Of one problem; values in it are quoted in fewer."""
_LONGEST = 40_000
"""Of a message, with the last lines that services printed in it."""


class TestbedError(Exception):
    """Whatever testbed raises on purpose. Its message acts on no terminal, whatever it quotes, and has an end."""

    __test__ = False  # the name starts with "Test"; pytest must not collect it

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(visible(message), _LONGEST))


class UserError(TestbedError):
    """What the user wrote cannot be honoured; ``problems`` names everything that is wrong with it."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        said = (problems,) if isinstance(problems, str) else problems
        self.problems: tuple[str, ...] = tuple(shortened(visible(each), _MOST_CHARACTERS) for each in said)
        more = len(self.problems) - _MOST_PROBLEMS
        rest = [f"… and {more} more"] if more > 0 else []
        super().__init__("\n".join([*self.problems[:_MOST_PROBLEMS], *rest]))


class InvalidValueError(UserError):
    """A value with a wrong unit, out of range, or of a wrong kind."""


class InvalidComposeError(UserError):
    """The Compose file is missing, invalid, or describes something that a lab cannot be."""


class Problems(list[str]):
    """What is wrong with a user's words, gathered so that all of it is told at once."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the problems of a block for `tell`."""
        try:
            yield
        except InvalidValueError as error:
            self += error.problems

    def tell(self) -> None:
        """Raise InvalidValueError with each problem once, if there are any."""
        if self:
            raise InvalidValueError(dict.fromkeys(self))


class EnvironmentUnfitError(TestbedError):
    """The machine lacks something that the request needs; the message says how to get it."""


class ImageBuildError(EnvironmentUnfitError):
    """An image could not be built or pulled; the message ends with the builder's last lines."""


class LabError(TestbedError):
    """The stack is there but did not do what was awaited."""


class ServiceFailedError(LabError):
    """A service exited, or did not become healthy; the message carries its last log lines."""


class CommandTimeoutError(LabError):
    """A program did not end, or did not become ready, before its deadline; says what was seen last."""


class AgentError(LabError):
    """The agent beside the network died or refused an operation; ``kind`` is ``gone`` if the port has vanished."""

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class ImpairmentNotAppliedError(TestbedError):
    """The kernel does not hold the impairment that was asked for; a result on this link must not count."""
