"""Images: the base that all of ours start from, the agent's, and those that a Compose file builds.

Each image of ours carries a digest of what it was built from and is built again only when that changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

import testbed.agent
from testbed.errors import EnvironmentUnfitError, ImageBuildError
from testbed.labs.engine import INPUTS_LABEL, Engine, tar_archive
from testbed.resources import resource

BASE_REPOSITORY, BASE_TAG = "debian", "trixie-slim"
BASE = f"{BASE_REPOSITORY}:{BASE_TAG}"
NETEM_REPOSITORY = "testbed/netem"

Say = Callable[[str], None]


def ensure_base(engine: Engine, say: Say) -> None:
    """Have ``debian:trixie-slim``: present, else pulled, else built from Debian's archive with mmdebstrap.

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
        done = subprocess.run(
            ["sh", str(script), str(archive)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
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


def ensure_netem(engine: Engine, say: Say) -> str:
    """Have the agent's image; returns its tag. Raises ImageBuildError or EnvironmentUnfitError."""
    context = _netem_context()
    digest = _digest(context)
    tag = f"{NETEM_REPOSITORY}:{digest}"
    if engine.image_labels(tag) is not None:
        return tag
    ensure_base(engine, say)
    for step in engine.build(tar_archive(context), tag=tag, dockerfile="Dockerfile", labels={INPUTS_LABEL: digest}):
        say(f"building {NETEM_REPOSITORY}: {step.text[:100]}")
    engine.remove_images(NETEM_REPOSITORY, but=tag)
    return tag


def _netem_context() -> dict[str, bytes]:
    agent = Path(testbed.agent.__file__).parent
    files = {f"testbed/agent/{path.name}": path.read_bytes() for path in agent.iterdir() if path.is_file()}
    return {"Dockerfile": (resource("images/netem") / "Dockerfile").read_bytes(), **files}


def _digest(files: Mapping[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()[:16]


def service_image(build: Mapping[str, Any], service: str) -> tuple[str, str] | None:
    """Repository and digest for a service that is built from a local folder; None if it is built from elsewhere.

    The digest covers the build section and every file of the context, ignored ones included: at worst an image
    is built once too often.
    """
    context = Path(str(build.get("context", ".")))
    if not context.is_dir():
        return None
    files = {
        str(path.relative_to(context)): path.read_bytes()
        for path in sorted(context.rglob("*"))
        if path.is_file() and ".git" not in path.parts and "__pycache__" not in path.parts
    }
    dockerfile = context / str(build.get("dockerfile", "Dockerfile"))
    if dockerfile.is_file():  # it may lie outside its context
        files["\0Dockerfile"] = dockerfile.read_bytes()
    # Where the context lies does not matter: two checkouts of the same files share the image.
    files["\0build"] = yaml.safe_dump({key: value for key, value in build.items() if key != "context"}).encode()
    return f"testbed/{context.resolve().name.lower()}-{service.lower()}", _digest(files)


def starts_from_base(build: Mapping[str, Any]) -> bool:
    """Whether a build's Dockerfile starts from the base image that we can make where no registry answers."""
    dockerfile = Path(str(build.get("context", "."))) / str(build.get("dockerfile", "Dockerfile"))
    try:
        lines = dockerfile.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False  # Compose reports what is wrong with it, better than we could
    return any(line.split()[:2] == ["FROM", BASE] for line in lines)
