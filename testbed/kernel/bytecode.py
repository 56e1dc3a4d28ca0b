"""Compiled modules for programs in virtual time: one set for all runs, whatever this machine's ``__pycache__`` hold.

Compiling pytest and this package takes longer than an hour of a small test. It is done once, outside, and the kernel
has the result as a layer above this machine's files. Python itself compares each with its source.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import testbed.agent
from testbed import kernel

OLDER_KEPT, _KEPT_S = 3, 600.0
"""Older layers that stay, and the age until which any does: a kernel may be running on it."""
_DEADLINE_S = 300.0
# A test, so that the modules which pytest rewrites are compiled as it rewrites them.
_IMPORTS = """
import compileall, contextlib, importlib, pkgutil
import testbed

def test_imports():
    compileall.compile_dir(testbed.__path__[0], quiet=2)
    for part in ("pytest", "commands", "lab", "backends", "report"):
        package = importlib.import_module(f"testbed.{part}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # of what is optional
                importlib.import_module(module.name)
    importlib.import_module("scipy.stats")
"""


def ensure(say: Callable[[str], None]) -> Path:
    """The layer: a folder with ``__pycache__`` folders, each at the place of its modules; made where it is missing.

    An empty folder if it cannot be made: programs then start more slowly.
    """
    installation, sources = digests()
    layer = kernel.cache() / f"bytecode-{installation}-{sources}"
    if not layer.is_dir():
        kernel.cache().mkdir(parents=True, exist_ok=True)
        _remove_old(installation)
        with tempfile.TemporaryDirectory(prefix="compiling-", dir=kernel.cache()) as folder:
            say("compiling modules for virtual time, once")
            compiled, new = Path(folder, "compiled"), Path(folder, "layer")
            new.mkdir(mode=0o755)
            if problem := _compile(Path(folder), compiled):
                say(f"modules cannot be compiled, so programs start more slowly: {problem}")
            lay_out(compiled, new)
            with suppress(OSError):  # another process has just done the same
                new.rename(layer)
    return layer


def _remove_old(installation: str) -> None:
    with suppress(FileNotFoundError):  # another process has just done the same
        layers = {folder: folder.stat().st_ctime for folder in kernel.cache().glob(f"bytecode-{installation}-*")}
        for folder in sorted(layers, key=lambda folder: -layers[folder])[OLDER_KEPT:]:
            if time.time() - layers[folder] > _KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


def digests() -> tuple[str, str]:
    """Of Python with its packages' folder, and of what is compiled: its versions, and this package's files."""
    folder = Path(sysconfig.get_path("purelib"))
    package = Path(testbed.agent.__file__).parent.parent
    files = sorted(
        (str(file.relative_to(package)), status.st_size, status.st_mtime_ns)
        for file in package.rglob("*.py")
        if (status := file.stat())
    )
    content = (sys.version, sorted(entry.name for entry in folder.glob("*.dist-info")), files)
    return _digest(f"{sys.prefix} {package}"), _digest(repr(content))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _compile(folder: Path, into: Path) -> str:
    """Import everything, in a process that writes compiled modules; returns what went wrong."""
    (folder / "test_imports.py").write_text(_IMPORTS, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS", "TESTBED_VIRTUAL_TIME")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_imports.py"],
            cwd=folder,
            env={**environment, "PYTHONPYCACHEPREFIX": str(into)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_DEADLINE_S,
        )
    except subprocess.TimeoutExpired as late:
        return str(late)
    return "" if done.returncode == 0 else " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])


def lay_out(compiled: Path, layer: Path) -> None:
    """Move compiled modules from the tree that Python wrote to where it looks for them in other runs.

    A folder of the layer hides the attributes of the one below, so it gets the same.
    """
    for written in sorted(path for path in compiled.rglob("*") if path.is_dir()):
        original = Path("/", written.relative_to(compiled)).resolve()
        files = list(written.glob("*.pyc"))
        if not files or not original.is_dir() or original == compiled.parent.resolve():  # that one vanishes
            continue
        place = layer / original.relative_to("/") / "__pycache__"
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.rename(place / file.name)
        for folder in (original, *original.parents):
            shutil.copystat(folder, layer / folder.relative_to("/"))
            with suppress(PermissionError):
                status = folder.stat()
                os.chown(layer / folder.relative_to("/"), status.st_uid, status.st_gid)
