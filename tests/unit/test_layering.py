"""Which room may import which. Pure rooms stay pure, and each outside thing belongs to named modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import testbed

PACKAGE = Path(testbed.__file__).parent
FILES = {
    ".".join(("testbed", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path, module: str) -> Iterator[str]:
    """Every module that a file imports, wherever in it the import stands; a name of a package is one too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                if node.level
                else [node.module or ""]
            )
            source = ".".join(filter(None, base))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in FILES else source


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    """Keep no tree for the tests of other modules: they take hundreds of megabytes."""
    yield
    parsed.cache_clear()


@cache
def imports(module: str) -> frozenset[str]:
    return frozenset(_imports(FILES[module], module))


def breaches(find: Callable[[str], Iterable[str]], names: Iterable[str]) -> dict[str, list[str]]:
    """Of each of these modules or files, what it finds; without those of which it finds nothing."""
    return {name: results for name in names if (results := sorted(find(name)))}


def _below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def _of_testbed(module: str) -> set[str]:
    return {name for name in imports(module) if _below(name, ("testbed",))}


def test_imports_of_every_kind_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "batch.py"
    path.write_text(
        "import os.path as p\nfrom .protocol import Refused\nfrom . import carried\nfrom .. import units\n"
        "from testbed.netem import readback, nothing\nimport json, re\ndef f():\n    from docker import errors\n"
    )
    assert set(_imports(path, "testbed.agent.batch")) == {
        "os.path",
        "testbed.agent.protocol",
        "testbed.agent.carried",
        "testbed.units",
        "testbed.netem.readback",
        "testbed.netem",
        "json",
        "re",
        "docker",
    }


# --- testbed's own modules -------------------------------------------------------------------------

ROOMS: tuple[tuple[str, ...], ...] = (
    ("text", "writing", "resources"), ("errors",), ("units", "reading"), ("spec",), ("strategies", "evidence"),
    ("netem",), ("images",), ("judge", "observe", "compose"), ("agent",), ("kernel",), ("lab",), ("backends",),
    ("drive", "report", "versions"), ("paper",), ("pytest", "commands"),
)  # fmt: skip
"""Who may import whom: a room any that stands before its own, and none beside it."""
ALONE: dict[str, tuple[str, ...]] = {
    "testbed.agent": (),
    "testbed.kernel": ("testbed.errors", "testbed.agent"),
    "testbed.text": (),
    "testbed.images": ("testbed.errors", "testbed.text"),
    "testbed.images.settings": (),
    "testbed.images.tree": ("testbed.text",),
    "testbed.writing": (),
    "testbed.resources": (),
    "testbed.observe": ("testbed.errors", "testbed.spec"),
    "testbed.judge": ("testbed.errors", "testbed.units", "testbed.text", "testbed.spec", "testbed.evidence"),
    "testbed.lab.waiting": (),
    "testbed.lab.channel": ("testbed.errors",),
    "testbed.compose.tied": (),
    "testbed.compose.shellwords": (),
    "testbed.backends.docker.connecting": ("testbed.errors", "testbed.text"),
    "testbed.backends.docker.engine": (
        "testbed.errors",
        "testbed.text",
        "testbed.backends.docker.connecting",
        "testbed.backends.docker.streams",
        "testbed.backends.docker.swarming",
    ),
    "testbed.backends.docker.swarming": (),
    "testbed.compose.stackfile": ("testbed.errors", "testbed.text"),
    "testbed.backends.docker.streams": (),
    "testbed.backends.local.child": ("testbed.errors", "testbed.agent"),
    "testbed.backends.local.routing": (),
    "testbed.paper.outcomes": ("testbed.text", "testbed.evidence"),
    "testbed.paper.recovery": (),
    "testbed.paper.staleness": (),
    "testbed.paper.structures": ("testbed.judge",),
}
"""Rooms and modules that need no more than these of the others; the most specific counts."""


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _floor(room: str) -> int:
    return next(number for number, rooms in enumerate(ROOMS) if room in rooms)


def _not_below(module: str) -> set[str]:
    own = _room(module)
    others = {_room(name) for name in _of_testbed(module) if name != "testbed"} - {own}
    return {room for room in others if _floor(room) >= _floor(own)}


def test_no_room_knows_one_above_it_or_beside_it() -> None:
    assert breaches(_not_below, FILES.keys() - {"testbed"}) == {}


def picture() -> str:
    """Each room, those above first, and the rooms that it imports: what CONTRIBUTING shows (`scripts/rooms`)."""
    known: dict[str, set[str]] = {room: set() for rooms in reversed(ROOMS) for room in rooms}
    for module in FILES.keys() - {"testbed"}:
        known[_room(module)] |= {_room(name) for name in _of_testbed(module) if name != "testbed"} - {_room(module)}
    return "\n".join(
        f"    {room:9} <- {' '.join(sorted(rooms, key=lambda room: (_floor(room), room)))}".rstrip(" <-")
        for room, rooms in known.items()
    )


def test_the_picture_in_contributing_is_of_this_house() -> None:
    assert picture() in (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"), "run scripts/rooms"


def _beyond_what_it_needs(module: str) -> set[str]:
    root = max((root for root in ALONE if _below(module, (root,))), key=len)
    return {name for name in _of_testbed(module) if not _below(name, (root, *ALONE[root]))}


def test_who_needs_little_of_the_house_knows_no_more_of_it() -> None:
    assert breaches(_beyond_what_it_needs, [module for module in FILES if _below(module, tuple(ALONE))]) == {}


def test_every_room_and_rule_is_of_something_that_is_there() -> None:
    assert {_room(module) for module in FILES} - {""} == {room for rooms in ROOMS for room in rooms}
    assert set(ALONE) <= set(FILES)


AGENT = ("testbed.agent",)


def test_the_agents_modules_run_elsewhere_and_are_imported_by_no_one_here() -> None:
    # The folder that goes into its image is found through the package itself.
    others = [module for module in FILES if not _below(module, AGENT)]
    assert breaches(lambda module: {name for name in imports(module) if _below(name, AGENT)} - set(AGENT), others) == {}


def test_no_file_imports_another_in_a_circle() -> None:
    """Also not for types alone: who needs a type must know what it is a type of."""
    left = {module: _of_testbed(module) & set(FILES) - {module} for module in FILES}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, "of these, some are circles and the others need one"


# --- everybody else's ------------------------------------------------------------------------------


def _beyond_python(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)} - {"testbed"} - set(sys.stdlib_module_names)


def test_the_agent_needs_nothing_but_python() -> None:
    assert breaches(_beyond_python, [module for module in FILES if _below(module, AGENT)]) == {}


PURE = ("text", "errors", "units", "spec", "evidence", "netem", "judge", "observe")
PURE_OF_PAPER = tuple(
    f"testbed.paper.{name}" for name in ("outcomes", "claimpages", "recovery", "staleness", "structures")
)
READS = "testbed.netem.profiles"
"""The one among these that reads files: profiles, traces and tables of the user's and of the package."""


def _impure(module: str) -> set[str]:
    impure = {"os", "io", "pathlib", "shutil", "socket", "subprocess", "tempfile", "threading", "time", "select"}
    outside = _beyond_python(module) - set(NUMERICS if _room(module) == "judge" else ())
    return {name for name in imports(module) if name.partition(".")[0] in impure} | outside


def test_what_is_pure_touches_no_file_process_network_or_clock() -> None:
    pure = [module for module in FILES if (_room(module) in PURE and module != READS) or module in PURE_OF_PAPER]
    assert breaches(_impure, pure) == {}


NUMERICS = ("numpy", "scipy")
ONLY_IN: dict[str, set[str]] = {
    "pytest": {
        "testbed.pytest.plugin",
        *(
            f"testbed.pytest.{name}"
            for name in (
                "again",
                "helping",
                "inside",
                "kernels",
                "markers",
                "passes",
                "replays",
                "results",
                "running",
                "scopes",
                "seeds",
                "shards",
                "share",
                "shrinking",
                "engines",
                "manymachines",
                "onengine",
                "stacks",
                "state",
                "trails",
                "trial",
                "virtual",
                "watched",
                "workers",
            )
        ),
    },
    "_pytest": set(),
    "docker": {
        f"testbed.backends.docker.{name}"
        for name in ("agents", "connecting", "engine", "hosts", "lab", "programs", "stack", "swarm", "swarming")
    },
    "requests": {"testbed.backends.docker.engine"},
    "urllib3": {"testbed.backends.docker.engine"},
    "tenacity": {"testbed.lab.waiting"},
    "yaml": {"testbed.reading.yamltree", "testbed.backends.docker.images"},
    "subprocess": {
        "testbed.agent.batch",
        "testbed.agent.carried",
        "testbed.agent.machine",
        "testbed.agent.subordinate",
        "testbed.agent.trials",
        "testbed.agent.booting",
        "testbed.kernel.archive",
        "testbed.kernel.building",
        "testbed.kernel.bytecode",
        "testbed.kernel.machine",
        "testbed.kernel.virtual",
        "testbed.backends.local.builders",
        "testbed.backends.local.child",
        "testbed.backends.local.owners",
        "testbed.commands.replay",
        "testbed.compose.command",
        "testbed.pytest.machine",
        "testbed.backends.terminal",
        "testbed.backends.docker.images",
        "testbed.backends.docker.swarm",
        "testbed.versions.arm",
        "testbed.versions.worktrees",
    },
    "numpy": {"testbed.judge.betting"},
    "scipy": {"testbed.judge.statistics", "testbed.judge.unpaired"},
    "hypothesis": {"testbed.strategies"},
    "jinja2": {"testbed.report.page"},
}


@pytest.mark.parametrize("outside", ONLY_IN)
def test_an_outside_thing_is_known_to_its_own_modules_alone(outside: str) -> None:
    assert {module for module in FILES if any(_below(name, (outside,)) for name in imports(module))} == ONLY_IN[outside]


_TALK = {f"testbed.backends.docker.{name}" for name in ("connecting", "engine", "swarming")}


@pytest.mark.parametrize("module", sorted(ONLY_IN["docker"] - _TALK))
def test_the_compose_lab_knows_dockers_errors_and_types_but_does_not_talk_to_the_engine(module: str) -> None:
    known = {name for name in imports(module) if _below(name, ("docker",))}
    assert known <= {"docker.errors", "docker.models.containers"}


OF_PYTEST = ("testbed.pytest",)


def test_testbed_can_be_used_without_pytest() -> None:
    """Through others too: a module that imports the plugin would bring pytest with it."""
    others = [module for module in FILES if not _below(module, OF_PYTEST)]
    assert breaches(lambda module: {name for name in imports(module) if _below(name, OF_PYTEST)}, others) == {}


_WRITES = {"write_text", "write_bytes", "copyfile", "copytree", "mkstemp", "NamedTemporaryFile"}
_WRITERS = ("testbed.writing", "testbed.agent", "testbed.kernel", "testbed.images")
"""The one that writes for users; what runs beside the network and the two stores write places of their own."""


def test_files_are_written_in_one_place() -> None:
    results = []
    for module, path in FILES.items():
        if _below(module, _WRITERS):
            continue
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)] if called == "open" else []
            if called in _WRITES or any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes):
                results.append(f"{module}:{node.lineno}: {called}")
    # The archive that it opens so is in memory.
    assert [write for write in results if not write.startswith("testbed.backends.docker.engine:")] == []


# --- sizes -----------------------------------------------------------------------------------------

MOST_LINES, MOST_LINES_OF_A_CLASS = 600, 400


def _too_long(module: str) -> list[str]:
    """What of a module is: itself, or classes by name."""
    source = FILES[module].read_text(encoding="utf-8")
    classes = [node for node in ast.walk(parsed(FILES[module])) if isinstance(node, ast.ClassDef)]
    classes_too_long = [node.name for node in classes if (node.end_lineno or 0) - node.lineno >= MOST_LINES_OF_A_CLASS]
    return classes_too_long + [module] * (source.count("\n") > MOST_LINES)


def test_no_file_and_no_class_is_too_long_to_enter() -> None:
    assert breaches(_too_long, FILES) == {}


# --- private members -------------------------------------------------------------------------------

OF_TUPLES = {"_make", "_replace", "_asdict", "_fields"}
"""What namedtuples have in public."""
CHECKED = {
    str(path.relative_to(PACKAGE.parent)): path
    for folder in ("testbed", "tests", "benchmarks")
    for path in sorted((PACKAGE.parent / folder).rglob("*.py"))
}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OF_TUPLES


def _private(tree: ast.Module) -> tuple[set[str], list[tuple[str, str]]]:
    """The private names that a module defines: of its functions, classes, variables and attributes. And those it uses
    of modules and objects, but those inherited: each with where.
    """
    own, uses = set[str](), []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                own.add(name)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in ("testbed", "tests"):
                uses += [(f"{module}.{alias.name}", "") for alias in node.names if _is_private(alias.name)]
            case ast.Attribute(attr=name) if _is_private(name):
                if isinstance(node.ctx, ast.Store):
                    own.add(name)
                match node.value:
                    case ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")):
                        continue
                uses.append((name, f"line {node.lineno}: {ast.unparse(node)}"))
    return {name for name in own if _is_private(name)}, uses


def _foreign(own: set[str], uses: list[tuple[str, str]], known: set[str]) -> list[str]:
    """The uses of a private name that the module itself does not define, and another one does; and imports of any."""
    return [where or name for name, where in uses if not where or name in known - own]


def test_private_members_are_used_where_they_are_defined_alone() -> None:
    private = {file: _private(parsed(path)) for file, path in CHECKED.items()}
    known = set[str]().union(*(own for own, _ in private.values()))
    assert breaches(lambda file: _foreign(*private[file], known), CHECKED) == {}


def test_uses_of_private_members_are_seen() -> None:
    tree = ast.parse(
        "from testbed.units import _parse\nself._own\nother._hosts.x\nrow._replace(a=1)\nmine._mine\n_mine = 1"
    )
    assert _foreign(*_private(tree), {"_hosts", "_mine"}) == ["testbed.units._parse", "line 3: other._hosts"]


def test_a_local_lab_and_its_report_import_nothing_of_an_engine() -> None:
    """Each pytest in virtual time imports them, and an engine's library takes longer than a small stack to start."""
    code = (
        "import sys, testbed.backends.choice, testbed.backends.local.lab, testbed.pytest.inside, testbed.report.run; "
    )
    code += "print([name for name in ('docker', 'requests', 'rich', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
