"""A second checkout of the user's repository, at another revision; and the removal of those whose makers were killed.

Each is a folder in the user's cache with a note of who made it, and in it git's worktree. The note is there first, so
that whatever becomes of us, a later run finds what to remove.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.backends.docker.runs import is_orphaned, owner
from testbed.errors import EnvironmentUnfitError, UserError
from testbed.text import shortened, shown
from testbed.writing import write_whole

_NOTE, _TREE = "made-by.json", "tree"
_GIT_WITHIN_S = 300


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """The repository that the user stands in."""

    top: Path
    prefix: str
    """The folder that the user stands in, from the top; empty at the top."""
    commit: str
    changed: tuple[str, ...]
    """Tracked files that differ from the commit."""


def checkout(folder: Path) -> Checkout:
    """The repository around a folder. Raises UserError where there is none, EnvironmentUnfitError without git."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top.returncode:
        raise UserError(f"{folder} is in no git repository, so it has no revisions: {_last(top.stderr)}")
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if commit.returncode:
        raise UserError(f"the repository {top.stdout.strip()} has no commit yet")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "-z").stdout.split("\0")
    return Checkout(
        top=Path(top.stdout.rstrip("\n")),
        prefix=_git(folder, "rev-parse", "--show-prefix").stdout.rstrip("\n"),
        commit=commit.stdout.strip(),
        changed=tuple(entry[3:] for entry in changed if entry[2:3] == " "),
    )


def commit_of(here: Checkout, revision: str) -> str:
    """The commit that a revision names. Raises UserError if there is none of that name."""
    commit = _git(here.top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit.returncode:
        raise UserError(
            f"--base {shown(revision)}: no commit of {here.top} has that name; `git branch -a` and `git tag` list "
            f"names (a shallow clone has few: git fetch --unshallow)"
        )
    return commit.stdout.strip()


@contextmanager
def worktree(here: Checkout, commit: str) -> Iterator[Path]:
    """A checkout of a commit, as long as the block lasts; its folder that corresponds to the user's.

    Raises UserError if git cannot make it, or if there is no such folder in it; EnvironmentUnfitError if no worktree
    can be kept in the cache.
    """
    place = _folder() / secrets.token_hex(4)
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise EnvironmentUnfitError(
            f"no worktree can be made in {place.parent}: {error.strerror}; XDG_CACHE_HOME may name another folder"
        ) from None
    try:
        note = {"owner": owner(), "repository": str(here.top)}
        write_whole(place / _NOTE, json.dumps(note), below=place)
        tree = place / _TREE
        made = _git(here.top, "worktree", "add", "--quiet", "--detach", str(tree), commit)
        if made.returncode:
            raise UserError(f"git worktree add of {commit[:12]} failed: {_last(made.stderr)}")
        folder = tree / here.prefix
        if not folder.is_dir():
            raise UserError(f"{commit[:12]} has no folder {shown(here.prefix)}, in which this command was started")
        yield folder
    finally:
        _remove(place, here.top)


def top_of(here: Checkout, folder: Path) -> Path:
    """The top of the checkout whose folder corresponds to the user's."""
    return folder.parents[len(Path(here.prefix).parts) - 1] if here.prefix else folder


def clear_stale(say: Callable[[str], None]) -> int:
    """Remove the worktrees whose makers are dead; how many there were."""
    removed = 0
    for note in sorted(_folder().glob(f"*/{_NOTE}")):
        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            dead = is_orphaned(content["owner"])
            repository = Path(content["repository"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"left alone: {note.parent}: its note cannot be read: {error}")
            continue
        if dead:
            _remove(note.parent, repository)
            say(f"removed a worktree that a killed run left: {note.parent}")
            removed += 1
    return removed


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "testbed" / "worktrees"


def _remove(place: Path, repository: Path) -> None:
    shutil.rmtree(place / _TREE, ignore_errors=True)  # quicker than git's, and works on what is half made
    if repository.is_dir():
        _git(repository, "worktree", "prune")
    shutil.rmtree(place, ignore_errors=True)


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # Hooks set these to the repository of whoever runs them; we mean the one of the folder.
    environment = {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_GIT_WITHIN_S,
            env=environment,
        )
    except FileNotFoundError:
        raise EnvironmentUnfitError("git is not installed: apt-get install git (Debian, Ubuntu)") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentUnfitError(f"git {' '.join(words[:2])} did not end within {_GIT_WITHIN_S} s") from None


def _last(text: str) -> str:
    return shortened(text.strip().splitlines()[-1]) if text.strip() else "git says nothing"
