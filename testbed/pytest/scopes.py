"""Fixtures of class, module and session scope: they, too, meet what the markers of their scope impair.

A test's own fixtures find its impairments in force. A wider fixture is set up before them and torn down after them, and
finds those of the markers that all tests in its scope share. Between two tests the links are healed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from testbed.pytest.declared import IMPAIRING
from testbed.pytest.markers import wanted
from testbed.pytest.running import lab_on, put
from testbed.pytest.stacks import SESSION_LAB
from testbed.pytest.state import SEED, fail_if_not_up

if TYPE_CHECKING:
    from testbed.lab.lab import Lab

_WIDER = ("class", "module", "package", "session")
_NOT_USERS = ("testbed.pytest.", "_pytest.")


@contextmanager
def impaired(fixture: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the markers of a fixture's scope in force while it is set up, and once more while it is torn down."""
    if fixture.scope not in _WIDER or not any(mark.name in IMPAIRING for mark in request.node.iter_markers()):
        yield
        return
    item: pytest.Item = request._pyfuncitem  # pytest has no public way to the test that needs a wider fixture
    definitions: dict[str, Any] = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    if (
        fixture.func.__module__.startswith(_NOT_USERS)
        or lab_on(item) is not None  # asked for in the test's body, where the test's own are in force
        or any(fixture.argname in _below(name, definitions) for name in ("lab", "stack"))  # there is no lab yet
    ):
        yield
        return
    lab = _lab(fixture, request, definitions)
    request.addfinalizer(lab.heal)
    with _in_force(lab, request.node, fixture.argname):
        yield
    request.addfinalizer(lambda: _apply(lab, request.node, fixture.argname))


def _below(name: str, definitions: dict[str, Any]) -> set[str]:
    """A fixture, and all that it is made of."""
    names, todo = set[str](), [name]
    while todo:
        if (this := todo.pop()) not in names:
            names.add(this)
            todo += [needed for definition in definitions.get(this, ()) for needed in definition.argnames]
    return names


def _lab(fixture: pytest.FixtureDef[Any], request: pytest.FixtureRequest, definitions: dict[str, Any]) -> Lab:
    """The lab of the test, which comes up if it is not; fails the fixture if it does not."""
    from testbed.lab.lab import Lab

    narrowest = _WIDER.index(fixture.scope)
    for name in ("lab", "stack"):
        scope = definitions[name][-1].scope if name in definitions else None
        if scope in _WIDER[narrowest:] and isinstance(given := request.getfixturevalue(name), Lab):
            return given
    lab: Lab = request.getfixturevalue(SESSION_LAB)
    fail_if_not_up(request.config, lab)
    return lab


def _apply(lab: Lab, node: pytest.Collector, fixture: str) -> None:
    """Have the markers of a class, a module or the session in force, until the links are healed."""
    if not lab.hosts:  # it is down: another stack is up by now
        return
    requests = wanted(node, lambda: lab)
    lab.carriage.warn_only = node.config.getoption("--testbed-lateness") == "warn"
    lab.lifecycle.begin(f"{node.config.stash[SEED]}:{node.name}:{fixture}", requests.all_links)
    for _ in put(lab, requests):
        pass
    lab.carriage.settle()
    lab.lifecycle.begin_body()


@contextmanager
def _in_force(lab: Lab, node: pytest.Collector, fixture: str) -> Iterator[None]:
    """Raises ImpairmentNotAppliedError if the impairments are not in force, or are no more at the end."""
    _apply(lab, node, fixture)
    yield
    lab.lifecycle.end_body()
    lab.verifier.verify()
