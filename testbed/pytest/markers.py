"""What the markers of a test ask of its links; checked at collection, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import EnvironmentUnfitError, InvalidComposeError, UserError
from testbed.pytest.state import PROBLEMS, WRONG_USE, lab_of
from testbed.pytest.workers import TOLD_PROBLEMS, side_by_side, worker_of
from testbed.text import shortened, shown

if TYPE_CHECKING:
    from testbed.lab.lab import Lab
    from testbed.spec.impairment import Impairment
    from testbed.spec.links import LinkRef
    from testbed.spec.timeline import Timeline


@dataclass(frozen=True)
class Wanted:
    """What the markers of a test ask of the links of a lab."""

    links: dict[LinkRef, tuple[Impairment | Timeline, str]] = field(default_factory=dict)
    """Of each link; and the name of the profile that says so."""
    prove: set[LinkRef] = field(default_factory=set)
    by_marker: dict[str, tuple[LinkRef, ...]] = field(default_factory=dict)
    """What each marker, as it is written, names."""


WANTED: pytest.StashKey[Wanted] = pytest.StashKey()
ID: pytest.StashKey[str] = pytest.StashKey()
"""The node id that a test was collected by: pytest-xdist may add the name of a group to it."""


def id_of(item: pytest.Item) -> str:
    """The node id of a test, the same whoever runs it."""
    return item.stash.get(ID, item.nodeid)


def marked(item: pytest.Item) -> bool:
    """Whether a test's markers ask for something."""
    return WANTED in item.stash and bool(item.stash[WANTED].links)


def needs_lab(item: pytest.Item) -> bool:
    """Whether a test is one of ours: it is marked, or its fixture `lab` is ours."""
    if marked(item):
        return True
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).get("lab", ())
    return bool(known) and getattr(known[-1].func, "__module__", "") == "testbed.pytest.plugin"


def one_each(metafunc: pytest.Metafunc) -> None:
    """Make one test of each profile that ``impair_each`` names."""
    marks = list(metafunc.definition.iter_markers("impair_each"))
    if not marks:
        return
    problems = metafunc.config.stash[PROBLEMS]
    where = metafunc.definition.nodeid
    names: tuple[Any, ...] = ()
    if len(marks) > 1:
        problems.append(f"{where}: impair_each stands twice; one test runs under one list of profiles")
    elif not marks[0].args or marks[0].kwargs or not all(isinstance(word, str) for word in marks[0].args):
        given = _given(marks[0])
        problems.append(
            f'{where}: impair_each({", ".join(given)}): write impair_each("client <-> server", "clean", "lossy")'
        )
    else:
        names = marks[0].args[1:]
        if not names:
            try:
                names = tuple(lab_of(metafunc.config).profiles)
            except UserError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
    if "profile" not in metafunc.fixturenames:
        metafunc.fixturenames.append("profile")
    metafunc.parametrize("profile", names, indirect=True, ids=str)


def read(session: pytest.Session) -> None:
    """Read the markers of the chosen tests, and note every problem."""
    problems = session.config.stash[PROBLEMS]
    tests: dict[str, list[str]] = {}
    for item in session.items:
        try:
            item.stash[WANTED] = wanted(item, lambda: lab_of(session.config))
        except (EnvironmentUnfitError, InvalidComposeError) as error:  # the same for every test
            problems.append(str(error))
            break
        except UserError as error:
            for problem in error.problems:
                tests.setdefault(problem, []).append(id_of(item))
    for problem, ids in tests.items():  # of a marker on a class, or of impair_each, once
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        problems.append(f"{ids[0]}{more}: {problem}")
    workers = side_by_side(session.config)
    if workers > 1 and not problems and sum(map(needs_lab, session.items)) > 1:
        problems += _only_one(session.config, workers)


def _only_one(config: pytest.Config, workers: int) -> list[str]:
    """What keeps several workers from having a stack each."""
    try:
        found = lab_of(config).only_one
    except (UserError, EnvironmentUnfitError):  # told where the stack is to start
        return []
    return [f"{workers} stacks side by side (-n {workers}): {each}; or run without -n" for each in found]


def refuse(session: pytest.Session) -> None:
    """End the run with all problems, if there are any."""
    problems = session.config.stash[PROBLEMS]
    if not problems:
        return
    unique = list(dict.fromkeys(problems))
    if worker_of(session.config) is not None:  # one that exits is replaced by another; one without tests is at its end
        session.items.clear()
        session.config.workeroutput[TOLD_PROBLEMS] = unique  # type: ignore[attr-defined]  # xdist's
        return
    told = tell_problems(session.config, unique)
    pytest.exit(f"{len(unique)} problem(s) in testbed's markers and options; {told}", returncode=WRONG_USE)


def tell_problems(config: pytest.Config, problems: list[str]) -> str:
    """Print what is wrong with the markers, or return it, where nothing can be printed."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return "\n".join(problems)
    terminal.section("testbed: the tests ask for what cannot be", red=True)
    for problem in problems:
        terminal.write_line(problem, red=True)
    return "nothing was started"


def wanted(item: pytest.Item, lab_of_it: Callable[[], Lab]) -> Wanted:
    """What a test's markers ask of each link of a lab, which is made if there are any. Raises UserError: every problem.

    Of the session's own lab what is wrong with the user's files is told once, of the files.
    """
    found = Wanted()
    said_by: dict[LinkRef, str] = {}
    problems: list[str] = []
    for said, marker, link, profile, words in _asked(item, problems):
        from testbed.lab.prober import unprovable
        from testbed.lab.wanted import InvalidWantError, profile_name

        lab = lab_of_it()
        lab.topology  # noqa: B018  # what is wrong with the stack is told once, and not of each marker
        prove = words.pop("prove", False)
        if not isinstance(prove, bool):
            problems.append(f"{said}: prove={shown(prove)}: must be True or False")
            continue
        try:
            asked = lab.wanted(link, profile, words)
        except InvalidWantError as error:
            problems += [f"{marker}: {problem}" for problem in error.of_link]
            problems += [f"{said}: {problem}" for problem in error.of_impairment]
            continue
        except UserError as error:
            problems += [f"{said}: {problem}" for problem in error.problems]
            continue
        problems += [f"{said}: {problem}" for problem in (unprovable(asked) if prove else ())]
        found.by_marker[said] = tuple(asked)
        for ref, impairment in asked.items():
            if ref in said_by:
                problems.append(f"{ref} is impaired twice, by {said_by[ref]} and by {said}; a link has one impairment")
            found.links[ref], said_by[ref] = (impairment, profile_name(profile)), said
            if prove:
                found.prove.add(ref)
    if problems:
        raise UserError(problems)
    return found


def profile_of(item: pytest.Item) -> str | None:
    """The profile that ``impair_each`` runs a test under."""
    callspec = getattr(item, "callspec", None)
    said = callspec.params.get("profile") if callspec is not None else None
    return said if isinstance(said, str) and next(item.iter_markers("impair_each"), None) is not None else None


def _given(mark: pytest.Mark) -> list[str]:
    """The arguments of a marker, as they were written, more or less."""
    return [*map(shown, mark.args), *(f"{shortened(word)}={shown(value)}" for word, value in mark.kwargs.items())]


def _asked(item: pytest.Item, problems: list[str]) -> Iterator[tuple[str, str, str, Any, dict[str, Any]]]:
    """Each marker of a test: what it asks of this test in words, itself in words; link, profile and words."""
    for mark in item.iter_markers("impair"):
        given = _given(mark)
        said = f"impair({', '.join(given)})"
        if not 1 <= len(mark.args) <= 2 or not isinstance(mark.args[0], str):
            problems.append(f'{said}: write impair("client -> server", "lossy") or impair("a -> b", delay="40ms")')
            continue
        yield said, said, mark.args[0], mark.args[1] if len(mark.args) == 2 else None, dict(mark.kwargs)
    for mark in item.iter_markers("impair_each"):
        if (profile := profile_of(item)) is not None:
            link = shown(mark.args[0])
            yield f"impair_each({link}, {shown(profile)})", f"impair_each({link})", mark.args[0], profile, {}
