"""Podman and Buildah: their store of images, and their builds, where no Docker engine answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.errors import EnvironmentUnfitError, ImageBuildError
from testbed.images import archive
from testbed.images.found import FoundImage, content_of
from testbed.images.settings import of_config, platform_problem
from testbed.images.unpack import Lost
from testbed.text import shown, word_set

NAMES = ("podman", "buildah")
"""Both have one store."""
_ANSWERS_WITHIN_S, _WORKS_FOR_S = 30.0, 900.0
_OPTIONS: Mapping[str, Callable[[Any], list[str]]] = {
    "args": lambda args: [
        f"--build-arg={name}" if value is None else f"--build-arg={name}={value}" for name, value in args.items()
    ],
    "target": lambda target: [f"--target={target}"],
    "network": lambda network: [f"--network={network}"],
    "shm_size": lambda size: [f"--shm-size={size}"],
    "no_cache": lambda wanted: ["--no-cache"] if wanted else [],
    "pull": lambda wanted: ["--pull-always"] if wanted else [],
}
"""What of `build:` they are told beside the folder and the Dockerfile."""
_NEUTRAL = word_set("context dockerfile dockerfile_inline labels tags cache_from cache_to provenance sbom")
"""What makes no difference to what runs, or is told otherwise."""
_LAST_CHARACTERS = 2000


class PodmanOrBuildah:
    """One of them."""

    def __init__(self, tool: str, say: Callable[[str], None]) -> None:
        self.name = os.path.basename(tool)
        self._tool, self._say = tool, say

    @classmethod
    def of_machine(cls, say: Callable[[str], None]) -> PodmanOrBuildah | None:
        """The one that this machine has; None if it has none."""
        tool = next(filter(None, map(shutil.which, NAMES)), None)
        return None if tool is None else cls(tool, say)

    def find(self, reference: str) -> FoundImage | None:
        """The image of this name in its store; None if there is none. Raises ImageBuildError if it cannot run here."""
        words = ["image", "inspect"] if self.name == "podman" else ["inspect", "--type", "image"]
        done = self._run([*words, reference], _ANSWERS_WITHIN_S)
        if done.returncode:
            return None
        try:
            shown_image = json.loads(done.stdout)
            inspection = shown_image[0] if self.name == "podman" else shown_image
            found_id = str(inspection["Id" if self.name == "podman" else "FromImageID"])
            image = inspection if self.name == "podman" else inspection["Docker"]
        except (ValueError, LookupError, TypeError) as error:
            raise ImageBuildError(f"{self.name} shows no image that can be read: {error!r}") from None
        of_it = {key.lower(): value for key, value in image.items()}
        problem = platform_problem(
            os=of_it.get("os", ""), architecture=of_it.get("architecture", ""), machine=os.uname().machine
        )
        if problem:
            raise ImageBuildError(problem)
        config = {"Healthcheck": of_it.get("healthcheck"), **(of_it.get("config") or {})}
        return FoundImage(
            id=found_id,
            content=content_of((inspection.get("RootFS") or {}).get("Layers") or _layers(inspection), found_id),
            name=reference,
            source=f"{self.name}'s store",
            settings=of_config(config),
            unpack=lambda folder: self._unpack(found_id, folder),
        )

    def _unpack(self, image: str, folder: Path) -> Lost:
        path = folder / "image.tar"
        words = ["push", "--quiet", image, f"docker-archive:{path}"]
        if self.name == "podman":
            words = ["save", "--quiet", "--format", "docker-archive", "--output", str(path), image]
        done = self._run(words, _WORKS_FOR_S)
        if done.returncode:
            raise ImageBuildError(f"`{self.name} {words[0]}` failed: {done.stderr[-_LAST_CHARACTERS:].strip()}")
        lost = archive.find(path, image, machine=os.uname().machine).unpack(folder)
        path.unlink()
        return lost

    def build(self, build: Mapping[str, Any], service: str) -> FoundImage:
        """Build a service's image, if what it is built from has changed. Raises ImageBuildError."""
        if others := sorted(set(build) - _NEUTRAL - _OPTIONS.keys()):
            raise ImageBuildError(
                f"service {shown(service)}: `build: {others[0]}` is not for {self.name}: a Docker engine builds it"
            )
        from testbed.backends.docker import images  # with the engine's library, which nothing else here needs

        repository, digest = images.service_image(build, service)
        tag = f"localhost/{repository}:{digest or 'latest'}"
        if digest is not None and (present := self.find(tag)) is not None:
            return present
        self._say(f"building {service} by {self.name}")
        words = ["build", "--quiet", "--layers", "--tag", tag]
        for key, option in _OPTIONS.items():
            words += option(build[key]) if build.get(key) is not None else []
        context, inline = str(build.get("context", ".")), build.get("dockerfile_inline")
        # Beside a context that is no folder of ours, the Dockerfile is looked for in there.
        path = str(build.get("dockerfile") or "Dockerfile")
        path = os.path.join(context, path) if os.path.isdir(context) else path
        done = self._run([*words, "--file", "-" if inline else path, context], _WORKS_FOR_S, given=inline or "")
        if done.returncode:
            raise ImageBuildError(
                f"service {shown(service)}: `{self.name} build` failed:\n{done.stderr[-_LAST_CHARACTERS:].strip()}"
            )
        if (built := self.find(tag)) is None:
            raise ImageBuildError(f"service {shown(service)}: `{self.name} build` ended well and left no image {tag}")
        return built

    def _run(self, words: Sequence[str], deadline_s: float, given: str = "") -> subprocess.CompletedProcess[str]:
        argv = [self._tool, *words]
        try:
            return subprocess.run(argv, capture_output=True, text=True, check=False, input=given, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise EnvironmentUnfitError(f"`{self.name} {words[0]}` did not end within {deadline_s:g} s") from None
        except OSError as error:
            raise EnvironmentUnfitError(f"`{self.name} {words[0]}` cannot be run: {error.strerror}") from None


def _layers(inspection: Mapping[str, Any]) -> Sequence[str]:
    """The digests of layers, as Buildah shows them."""
    layers: Sequence[str] = ((inspection.get("OCIv1") or {}).get("rootfs") or {}).get("diff_ids") or ()
    return layers
