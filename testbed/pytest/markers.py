"""What the markers of a test ask of its links; checked at collection, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import EnvironmentUnfitError, InvalidComposeError, UserError
from testbed.pytest.stacks import OWN, StackOf, parametrize, stack_of
from testbed.pytest.state import PROBLEMS, WRONG_USE, lab_of, variation
from testbed.pytest.workers import OUTPUT_PROBLEMS, side_by_side, worker_of
from testbed.text import shortened, shown

if TYPE_CHECKING:
    from testbed.lab.lab import Lab
    from testbed.spec.bottleneck import Bottleneck
    from testbed.spec.impairment import Impairment
    from testbed.spec.links import LinkRef
    from testbed.spec.timeline import Timeline


@dataclass(frozen=True)
class Wanted:
    """What the markers of a test ask of the links of a lab."""

    links: dict[LinkRef, tuple[Impairment | Timeline, str]] = field(default_factory=dict)
    """The impairment of each link, and the profile that it comes from; empty if it is in words."""
    prove: set[LinkRef] = field(default_factory=set)
    shapes: list[tuple[tuple[LinkRef, ...], Bottleneck, str | None]] = field(default_factory=list)
    """The links of each bottleneck, and the profile that it comes from; empty if it is in words, None of ``shape``."""
    by_marker: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """By a marker's text, the names of its links, or of its bottlenecks, and their networks."""
    unknown: bool = False
    """Whether it is known only once the test's own fixture `stack` has given a lab."""

    @property
    def all_links(self) -> set[LinkRef]:
        """Every link that a marker names."""
        return {*self.links, *(ref for refs, *_ in self.shapes for ref in refs)}


WANTED: pytest.StashKey[Wanted] = pytest.StashKey()
ID: pytest.StashKey[str] = pytest.StashKey()
"""The node id at collection: pytest-xdist may add the name of a group to it later."""


def id_of(item: pytest.Item) -> str:
    """The node id of a test, the same in every process."""
    return item.stash.get(ID, item.nodeid)


def under(test: str, seed: int) -> str:
    """What results and captures call a test that runs under several seeds."""
    return f"{test} (seed {seed})"


def marked(item: pytest.Item) -> bool:
    """Whether a test's markers impair a link, or shape a port."""
    return WANTED in item.stash and bool(item.stash[WANTED].by_marker or item.stash[WANTED].unknown)


def needs_lab(item: pytest.Item) -> bool:
    """Whether a test needs a lab: it is marked, or uses our fixture `lab`, or names a stack."""
    if marked(item):
        return True
    return stack_of(item) is not OWN or _from_plugin("lab", item) is True


def _from_plugin(fixture: str, item: pytest.Item) -> bool | None:
    """Whether a fixture of a test is ours; None if the test does not use it."""
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).get(fixture, ())
    return getattr(known[-1].func, "__module__", "") == "testbed.pytest.plugin" if known else None


def one_per_stack(metafunc: pytest.Metafunc) -> StackOf:
    """Give a test the stack of its marker, or make one test for each; returns the first."""
    problems: list[str] = []
    stack = parametrize(metafunc, problems)
    metafunc.config.stash[PROBLEMS] += [f"{metafunc.definition.nodeid}: {problem}" for problem in problems]
    return stack


def one_per_profile(metafunc: pytest.Metafunc, stack: StackOf) -> None:
    """Make one test for each profile of ``impair_each``; without names, for each of a stack."""
    marks = list(metafunc.definition.iter_markers("impair_each"))
    if not marks:
        return
    problems = metafunc.config.stash[PROBLEMS]
    where = metafunc.definition.nodeid
    names: tuple[Any, ...] = ()
    if len(marks) > 1:
        problems.append(f"{where}: impair_each twice; a test runs under one list of profiles")
    elif not marks[0].args or marks[0].kwargs or not all(isinstance(word, str) for word in marks[0].args):
        problems.append(f'{where}: {_text(marks[0])}: write impair_each("client <-> server", "clean", "lossy")')
    else:
        names = marks[0].args[1:]
        if not names:
            try:
                names = tuple(lab_of(metafunc.config, stack).profiles)
            except UserError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
    if "profile" not in metafunc.fixturenames:
        metafunc.fixturenames.append("profile")
    metafunc.parametrize("profile", names, indirect=True, ids=str)


def read(session: pytest.Session) -> None:
    """Read the markers of the selected tests, and note every problem."""
    problems = session.config.stash[PROBLEMS]
    tests: dict[str, list[str]] = {}
    faulty: set[StackOf] = set()
    for item in session.items:
        if (stack := stack_of(item)) in faulty:
            continue
        try:
            item.stash[WANTED] = wanted(item, partial(lab_of, session.config, stack))
        except EnvironmentUnfitError as error:  # the same for every test
            problems.append(str(error))
            break
        except UserError as error:
            if _from_plugin("stack", item) is False:  # the user's own, of another file perhaps
                item.stash[WANTED] = Wanted(unknown=True)
            elif isinstance(error, InvalidComposeError):  # the same for every test of the stack
                problems.append(str(error))
                faulty.add(stack)
            else:
                for problem in error.problems:
                    tests.setdefault(problem, []).append(id_of(item))
    for problem, ids in tests.items():  # one of a marker on a class, or of impair_each, only once
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        problems.append(f"{ids[0]}{more}: {problem}")
    workers = side_by_side(session.config)
    if workers > 1 and not problems and len(in_need := [*filter(needs_lab, session.items)]) > 1:
        for stack in dict.fromkeys(map(stack_of, in_need)):
            problems += _only_one(session.config, workers, stack)


def _only_one(config: pytest.Config, workers: int, stack: StackOf) -> list[str]:
    """Why several workers cannot have a stack each."""
    try:
        reasons = lab_of(config, stack).only_one
    except (UserError, EnvironmentUnfitError):  # reported where the stack is to start
        return []
    return [f"{workers} stacks side by side (-n {workers}): {reason}; or run without -n" for reason in reasons]


def refuse(session: pytest.Session) -> None:
    """End the run with all problems, if there are any."""
    problems = session.config.stash[PROBLEMS]
    if not problems:
        return
    unique = list(dict.fromkeys(problems))
    if worker_of(session.config) is not None:  # a worker that exits is replaced; one without tests ends
        session.items.clear()
        session.config.workeroutput[OUTPUT_PROBLEMS] = unique  # type: ignore[attr-defined]  # xdist's
        return
    where = tell_problems(session.config, unique)
    pytest.exit(f"{len(unique)} problem(s) in testbed's markers and options; {where}", returncode=WRONG_USE)


def tell_problems(config: pytest.Config, problems: list[str]) -> str:
    """Print the problems; return them where nothing can be printed, else that nothing was started."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return "\n".join(problems)
    terminal.section("testbed: the tests ask for what cannot be", red=True)
    for problem in problems:
        terminal.write_line(problem, red=True)
    return "nothing was started; `pytest --testbed-help` shows what tests may write"


def wanted(item: pytest.Item | pytest.Collector, lab_of_it: Callable[[], Lab]) -> Wanted:
    """The impairments of a test's markers by link; ``lab_of_it`` is called if there are any.

    Raises UserError with every problem. Problems of the user's files are reported once, not once per marker.
    """
    wanted = Wanted()
    markers: dict[LinkRef, str] = {}
    shaped: dict[LinkRef, str] = {}
    problems: list[str] = []
    for request in _requests(item, problems):
        from testbed.lab.prober import unprovable
        from testbed.lab.wanted import InvalidWantError, impairments_of, profile_name, varied

        lab, text = lab_of_it(), request.text
        lab.topology  # noqa: B018  # a faulty stack is reported here, once
        prove = request.words.pop("prove", False)
        if not isinstance(prove, bool):
            problems.append(f"{text}: prove={shown(prove)}: must be True or False")
            continue
        try:
            asks = impairments_of(lab, request.link, request.profile, request.words)
            impairments = varied(asks.links, variation(item.config))
        except InvalidWantError as error:
            problems += [f"{request.marker}: {problem}" for problem in error.of_link]
            problems += [f"{text}: {problem}" for problem in error.of_impairment]
            continue
        except UserError as error:
            problems += [f"{text}: {problem}" for problem in error.problems]
            continue
        name = profile_name(request.profile)
        sharing = [ref for refs, _ in asks.shapes for ref in refs]
        problems += [f"{text}: {problem}" for problem in (unprovable(impairments, shared=sharing) if prove else ())]
        _add_shapes([(refs, shape, name) for refs, shape in asks.shapes], text, wanted, shaped, problems)
        wanted.by_marker[text] = {(str(ref), ref.network) for ref in impairments}
        for ref, impairment in impairments.items():
            if ref in markers:
                problems.append(f"{ref} is impaired twice, by {markers[ref]} and by {text}; a link has one impairment")
            wanted.links[ref], markers[ref] = (impairment, name), text
            if prove:
                wanted.prove.add(ref)
    _read_shapes(item, lab_of_it, wanted, shaped, problems)
    if problems:
        raise UserError(problems)
    return wanted


def _read_shapes(
    item: pytest.Item | pytest.Collector,
    lab_of_it: Callable[[], Lab],
    wanted: Wanted,
    shaped: dict[LinkRef, str],
    problems: list[str],
) -> None:
    """Read what the markers ``shape`` of a test ask for, and note every problem."""
    for mark in item.iter_markers("shape"):
        from testbed.lab.wanted import bottleneck_of
        from testbed.spec.bottleneck import by_port, name_of

        text = _text(mark)
        if len(mark.args) != 1 or not isinstance(mark.args[0], str):
            problems.append(f'{text}: write shape("* -> server", rate="8mbit", queue="200kB")')
            continue
        try:
            refs, bottleneck = bottleneck_of(lab_of_it(), mark.args[0], mark.kwargs)
        except UserError as error:
            problems += [f"{text}: {problem}" for problem in error.problems]
            continue
        _add_shapes([(refs, bottleneck, None)], text, wanted, shaped, problems)
        wanted.by_marker[text] = {(name_of(links), port.network) for port, links in by_port(refs).items()}


def _add_shapes(
    shapes: Sequence[tuple[tuple[LinkRef, ...], Bottleneck, str | None]],
    text: str,
    wanted: Wanted,
    shaped: dict[LinkRef, str],
    problems: list[str],
) -> None:
    """Add the bottlenecks of a marker; ``shaped``: the marker that shapes each link so far."""
    wanted.shapes.extend(shapes)
    for ref in (ref for refs, *_ in shapes for ref in refs):
        if ref in shaped:
            problems.append(f"{ref} is shaped twice, by {shaped[ref]} and by {text}")
        shaped[ref] = text


def profile_of(item: pytest.Item | pytest.Collector) -> str | None:
    """The profile that ``impair_each`` runs a test under."""
    callspec = getattr(item, "callspec", None)
    profile = callspec.params.get("profile") if callspec is not None else None
    parametrized = next(item.iter_markers("impair_each"), None) is not None
    return profile if isinstance(profile, str) and parametrized else None


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a marker wants of one test."""

    text: str
    """As if it was written for this test alone."""
    marker: str
    """The marker without what differs between its tests."""
    link: str
    profile: Any = None
    words: dict[str, Any] = field(default_factory=dict)


def _text(mark: pytest.Mark) -> str:
    """A marker about as it was written."""
    arguments = [*map(shown, mark.args), *(f"{shortened(word)}={shown(value)}" for word, value in mark.kwargs.items())]
    return f"{mark.name}({', '.join(arguments)})"


def _requests(item: pytest.Item | pytest.Collector, problems: list[str]) -> Iterator[_Request]:
    """The requests of a test's markers."""
    for mark in item.iter_markers("impair"):
        text = _text(mark)
        match mark.args:
            case (str() as link,):
                yield _Request(text=text, marker=text, link=link, words=dict(mark.kwargs))
            case (str() as link, profile):
                yield _Request(text=text, marker=text, link=link, profile=profile, words=dict(mark.kwargs))
            case _:
                problems.append(f'{text}: write impair("client -> server", "lossy") or impair("a -> b", delay="40ms")')
    for mark in item.iter_markers("impair_each"):
        if (profile := profile_of(item)) is not None:
            link = shown(mark.args[0])
            text = f"impair_each({link}, {shown(profile)})"
            yield _Request(text=text, marker=f"impair_each({link})", link=mark.args[0], profile=profile)
