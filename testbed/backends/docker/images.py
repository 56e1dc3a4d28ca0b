"""Images: our common base, the agent's image, and those that a Compose file builds.

Each image of ours carries a digest of what it was built from and is built again only when that changes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import testbed.agent
from testbed import reading
from testbed.backends.docker.engine import INPUTS_LABEL, Engine, tar_archive
from testbed.backends.docker.sources import NO_SOURCES, Sources
from testbed.errors import EnvironmentUnfitError, ImageBuildError, InvalidComposeError, UserError
from testbed.resources import resource
from testbed.text import shown
from testbed.writing import refuse_links

BASE_REPOSITORY, BASE_TAG = "debian", "trixie-slim"
BASE = f"{BASE_REPOSITORY}:{BASE_TAG}"
NETEM_REPOSITORY = "testbed/netem"

_KERNELS = ("/proc/", "/sys/", "/dev/")
_BASE_DEADLINE_S = 900.0

_FROM_BASE = re.compile(rf"^[ \t]*FROM[ \t]+(--\S+[ \t]+)*{re.escape(BASE)}(\s|$)", re.IGNORECASE | re.MULTILINE)

Say = Callable[[str], None]


def ensure_base(engine: Engine, say: Say) -> None:
    """Provide ``debian:trixie-slim``: present, else pulled, else built from Debian's archive with mmdebstrap.

    Raises EnvironmentUnfitError saying what was tried.
    """
    if engine.image_labels(BASE) is not None:
        return
    say(f"pulling {BASE}")
    not_pulled = engine.pull(BASE_REPOSITORY, BASE_TAG)
    if not_pulled is None:
        return
    if shutil.which("mmdebstrap") is None:
        raise EnvironmentUnfitError(
            f"{BASE} is not on the engine and cannot be pulled ({not_pulled}). Without a registry it is built "
            f"from Debian's archive: apt-get install mmdebstrap, then run this again."
        )
    say(f"no registry answers; building {BASE} from Debian's archive (about 30 s)")
    script = resource("images/base") / "build"
    with tempfile.TemporaryDirectory(prefix="testbed-base-") as folder:
        archive = Path(folder) / "root.tar"
        try:
            done = subprocess.run(
                ["sh", str(script), str(archive)],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                timeout=_BASE_DEADLINE_S,
            )
        except subprocess.TimeoutExpired as expired:
            last = (expired.stderr or b"")[-2000:].decode(errors="replace")
            raise ImageBuildError(
                f"{script} did not end within {_BASE_DEADLINE_S:g} s; it said last:\n{last}"
            ) from None
        if done.returncode:
            raise ImageBuildError(f"{script} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
        labels = {INPUTS_LABEL: hashlib.sha256(script.read_bytes()).hexdigest()[:16]}
        engine.import_root(archive, BASE_REPOSITORY, BASE_TAG, labels)


def base_pullable(engine: Engine) -> bool:
    """Whether the base image is there or a registry gives it."""
    return engine.image_labels(BASE) is not None or engine.pull(BASE_REPOSITORY, BASE_TAG) is None


def netem_tag() -> str:
    """The tag of the agent's image for this version of its inputs."""
    return f"{NETEM_REPOSITORY}:{_digest(_netem_context())}"


def ensure_netem(engine: Engine, say: Say, sources: Sources = NO_SOURCES) -> str:
    """Provide the agent's image; returns its tag. Raises ImageBuildError or EnvironmentUnfitError.

    ``sources``: other engines, one of which may have it.
    """
    context = _netem_context()
    digest = _digest(context)
    tag = f"{NETEM_REPOSITORY}:{digest}"
    sources.bring(engine, {tag: digest}, say)
    if engine.image_labels(tag) is not None:
        return tag
    ensure_base(engine, say)
    for step in engine.build(tar_archive(context), tag=tag, dockerfile="Dockerfile", labels={INPUTS_LABEL: digest}):
        say(f"building {NETEM_REPOSITORY}: {step.text[:100]}")
    remove_older(engine, NETEM_REPOSITORY, but=tag)
    return tag


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """An image that we have built, by a name that we have given it."""

    tag: str
    size_bytes: int
    made_at: float
    """Seconds since the epoch."""


def built(engine: Engine) -> list[BuiltImage]:
    """The images that carry our label and are tagged with its value: the agent's, and those of services.

    Not one that somebody has built from them, which inherits the label, nor one that a Compose file names.
    """
    return [
        BuiltImage(tag=tag, size_bytes=entry["Size"], made_at=entry["Created"])
        for entry in engine.labelled_images(INPUTS_LABEL)
        for tag in entry["RepoTags"] or ()
        if tag.startswith("testbed/") and tag.endswith(f":{entry['Labels'][INPUTS_LABEL]}")
    ]


def remove_older(engine: Engine, repository: str, *, but: str = "", older_than_s: float = 3600.0) -> None:
    """Remove older builds of one of our images; not one that a container uses, nor one built just now.

    Another checkout on this engine may be about to use what it has just built.
    """
    for image in built(engine):
        if image.tag.startswith(f"{repository}:") and image.tag != but and time.time() - image.made_at > older_than_s:
            engine.remove_image(image.tag)


def ensure_archived(engine: Engine, archive: Path, say: Say) -> None:
    """Provide the agent's image, from an archive that has it; else write it to the archive.

    Raises UserError if the archive cannot be written; otherwise as `ensure_netem`.
    """
    tag = netem_tag()
    held = tag in _archived(archive, say)
    if held and engine.image_labels(tag) is None:
        say(f"loading {tag} from {archive}")
        engine.load(archive)
    ensure_netem(engine, say)
    if not held:
        say(f"writing {tag} to {archive}")
        try:
            refuse_links(archive, Path.cwd())
            archive.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".testbed-", dir=archive.parent) as folder:
                new = Path(folder) / archive.name
                engine.save(tag, new)
                new.replace(archive)
        except OSError as error:
            raise UserError(f"--archive {shown(str(archive))}: {error.strerror or error}") from None


def _archived(archive: Path, say: Say) -> set[str]:
    """The names of the images in an archive; none if there is none, or none that can be read."""
    if not archive.exists():
        return set()
    try:
        with tarfile.open(archive, "r:") as tar, tar.extractfile("manifest.json") or io.BytesIO() as manifest:
            return {str(name) for image in json.load(manifest) for name in image["RepoTags"] or ()}
    except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
        say(f"warning: {archive} is no archive of images, so it is not used: {error}")
        return set()


def _netem_context() -> dict[str, bytes]:
    agent = Path(testbed.agent.__file__).parent
    files = {f"testbed/agent/{path.name}": path.read_bytes() for path in agent.iterdir() if path.is_file()}
    return {"Dockerfile": (resource("images/netem") / "Dockerfile").read_bytes(), **files}


_MOST_FILES = 50_000
_MOST_BYTES = 2 << 30
"""Files of a build context that are read each time; a larger context is left to Compose and its cache."""


def _digest(files: Mapping[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        whole.update(content)
    return whole.hexdigest()[:16]


def service_image(build: Mapping[str, Any], service: str) -> tuple[str, str | None]:
    """Repository and digest of inputs for a service that is built.

    No digest where its inputs are not all in one local folder, cannot all be read, or are very many: then Compose, with
    its cache, decides each time. The digest covers the build section and everything in the context, ignored files
    included, with what a build copies of it: names, permissions, contents, the targets of symbolic links. At worst an
    image is built once too often. Raises UnreadableError for a Dockerfile that is no file, InvalidComposeError for a
    context that has the kernel's files in it, which are without end.
    """
    context = Path(str(build.get("context", ".")))
    repository = f"testbed/{_repository_word(context.resolve().name)}-{_repository_word(service)}"
    if (real := f"{os.path.realpath(context)}/") == "//" or real.startswith(_KERNELS):
        raise InvalidComposeError(
            f"service {shown(service)}: the build context {shown(str(context))} has the kernel's own files in it, "
            f"without end; name a folder of your files"
        )
    if not context.is_dir() or build.get("additional_contexts"):
        return repository, None
    dockerfile = context / str(build.get("dockerfile") or "Dockerfile")  # it may lie outside its context
    files = {"\0Dockerfile": reading.read_bytes(dockerfile)} if reading.exists(dockerfile) else {}
    left_bytes = _MOST_BYTES
    try:
        for path in context.rglob("*"):
            name = path.relative_to(context)
            if {".git", "__pycache__"}.intersection(name.parts):
                continue
            left_bytes -= path.lstat().st_size
            if len(files) > _MOST_FILES or left_bytes < 0:
                return repository, None
            files.update([_entry(path, name)])
    except OSError:  # it has gone meanwhile, or we may not read it; perhaps the build does not need it
        return repository, None
    # Where the context lies does not matter: two checkouts of the same files share the image.
    files["\0build"] = yaml.safe_dump({key: value for key, value in build.items() if key != "context"}).encode()
    return repository, _digest(files)


def _entry(path: Path, name: Path) -> tuple[str, bytes]:
    """The part of a context's entry that ends up in an image."""
    if path.is_symlink():
        return f"{name}\0link", os.fsencode(path.readlink())
    kind = f"{path.stat().st_mode:o}"
    if not path.is_file() or not path.stat().st_size:  # in /proc, files have no size, and some no end
        return f"{name}\0{kind}", b""
    with path.open("rb") as file:
        return f"{name}\0{kind}", hashlib.file_digest(file, "sha256").digest()


def _repository_word(name: str) -> str:
    """A name with nothing in it that an image's repository may not have: ``My App`` becomes ``my-app``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"


def starts_from_base(build: Mapping[str, Any]) -> bool:
    """Whether a build's Dockerfile starts from the base image that we can make where no registry answers."""
    text = build.get("dockerfile_inline")
    if text is None:
        dockerfile = Path(str(build.get("context", "."))) / str(build.get("dockerfile") or "Dockerfile")
        try:
            text = reading.read_text(dockerfile)
        except reading.UnreadableError:
            return False  # Compose reports the problem
    return _FROM_BASE.search(str(text)) is not None
