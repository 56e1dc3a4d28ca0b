"""The Docker engine: the only module that talks to it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import posixpath
import sys
import tarfile
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.models.containers import Container

from testbed.backends.docker.connecting import NoPermissionError, connected, engine_place, unreachable
from testbed.backends.docker.streams import Demultiplexed
from testbed.backends.docker.swarming import Manager, Membership
from testbed.errors import EnvironmentUnfitError, ImageBuildError, LabError
from testbed.text import shown

RUN_LABEL = "testbed.run"
"""On everything that a run owns; its value is the run's id."""
OWNER_LABEL = "testbed.owner"
"""Beside it: the process that owns the run, so that a later run can tell whether it is still alive."""
OURS = (RUN_LABEL, OWNER_LABEL)
"""What makes an object a run's."""
ROLE_LABEL = "testbed.role"
"""On containers of the agent's image: ports, capture, inside, files or signal."""
INPUTS_LABEL = "testbed.inputs"
"""On our images: a digest of what they were built from."""

_USERS = {"rootless": "rootless", "userns": "with users of its own for containers (userns-remap)"}
"""Engines whose root is not the machine's, by their security options."""
_UNREACHABLE = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
_THE_KERNELS = ("/dev", "/proc", "/sys")
_PODMANS_API = "/v4.0.0/libpod"
_PS, _PODMANS_PS = "-eo pid,ppid,args --sort=start_time", "pid,ppid,hpid,args"
"""What `leaders` reads: the numbers are of the engine's machine; Podman's are the container's but for the third."""
_LISTS = (
    "It runs `ps` on its own machine; Debian or Ubuntu: apt-get install procps",
    "A rootless engine can on a machine with cgroup v2",
)
"""When an engine can list processes: one with root, and a rootless one."""
_STEPS = 400
"""Most steps in resolving a path, symbolic links included; path_resolution(7) follows 40 links."""
_PAUSES = 5
"""How often at most a busy engine is to pause a container."""
# Every start of pytest looks for an engine; to build or to pull takes longer.
_ANSWERS_WITHIN_S, _WORKS_FOR_S = 10, 120


class RefusedError(EnvironmentUnfitError):
    """The engine refuses what every lab needs, or has stopped answering."""


@contextlib.contextmanager
def refusals_raised() -> Iterator[None]:
    """Turn errors of the engine's client in this block into RefusedError. Decorates functions, too."""
    try:
        yield
    except docker.errors.APIError as error:
        raise RefusedError(f"the Docker engine refuses: {_explanation(error)}") from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise RefusedError(f"the Docker engine does not answer any more: {error}") from error


@dataclass(frozen=True)
class ImageStep:
    """One line of a builder's or puller's progress."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A container, network or volume with a label of ours."""

    kind: str
    """``container``, ``network`` or ``volume``; of a Swarm also ``service``, ``secret``, ``config`` or ``node``."""
    name: str
    labels: Mapping[str, str]
    of_image: Mapping[str, str] = field(default_factory=dict)
    """The labels of a container's image, which the container has, too."""
    handle: Any = None
    """The engine client's."""

    @property
    def is_agent(self) -> bool:
        """Whether it runs our agent, and none of the user's programs."""
        return ROLE_LABEL in self.labels


@dataclass(frozen=True, kw_only=True)
class Exec:
    """A program that the engine runs in a container."""

    id: str
    stream: Demultiplexed


class Engine:
    """A connection to the engine that DOCKER_HOST, the Docker context or the default socket points at."""

    _security: Sequence[str] = ()
    """Its security options."""
    is_podman = False
    """Whether it is Podman, by its service for Docker's clients."""
    membership = Membership(node="", manages=False)
    """Its place in a Swarm."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Connect, by these variables or this process's; raises EnvironmentUnfitError saying what came back."""
        environment = os.environ if environment is None else environment
        self.place = engine_place(environment)
        try:
            self._client = connected(self.place, environment, answers_within_s=_ANSWERS_WITHIN_S)
            version = self._client.version()
            self.version: str = version["Version"]
            self.is_podman = any("Podman" in part["Name"] for part in version.get("Components") or ())
            info = self._client.info()
            rootless = ["name=rootless"] * bool(info.get("Rootless"))  # as Podman tells it
            self._security = [*map(str, info.get("SecurityOptions") or ()), *rootless]
            self.membership = Membership.of(info)
            self._client.api.timeout = _WORKS_FOR_S
        except (docker.errors.DockerException, *_UNREACHABLE) as error:
            raise unreachable(error, self.place, environment) from None
        self._api = self._client.api

    def describe(self) -> str:
        """In a few words, for a header line."""
        how = ", ".join(["", *(words for name, words in _USERS.items() if f"name={name}" in self._security)])
        return f"{'Podman' if self.is_podman else 'Docker Engine'} {self.version} at {self.place}{how}"

    @property
    def rootless(self) -> bool:
        """Whether it runs as an ordinary user."""
        return "name=rootless" in self._security

    @property
    def manager(self) -> Manager | None:
        """As a manager of its Swarm; None if it is none."""
        return Manager(self._client) if self.membership.manages else None

    # --- images ----------------------------------------------------------------------------------

    def image_labels(self, tag: str) -> dict[str, str] | None:
        """The labels of an image, or None if there is no such image."""
        return None if (image := self.image(tag)) is None else dict((image.get("Config") or {}).get("Labels") or {})

    def image(self, reference: str) -> Mapping[str, Any] | None:
        """The engine's inspection of an image, or None if there is no such image."""
        try:
            inspection: Mapping[str, Any] = self._client.images.get(reference).attrs
        except (docker.errors.ImageNotFound, docker.errors.NullResource):
            return None
        except docker.errors.APIError as error:
            raise LabError(f"image {shown(reference)}: {_explanation(error)}") from None
        return inspection

    def pull(self, repository: str, tag: str) -> str | None:
        """Pull; returns None, or why it could not be had."""
        try:
            for line in self._api.pull(repository, tag=tag, stream=True, decode=True):
                if "error" in line:
                    return str(line["error"])
        except (docker.errors.APIError, *_UNREACHABLE) as error:
            return str(getattr(error, "explanation", None) or error)
        return None

    def import_root(self, archive: Path, repository: str, tag: str, labels: Mapping[str, str]) -> None:
        """Make an image of a root file system's tar archive."""
        changes = [f'LABEL "{key}"="{value}"' for key, value in labels.items()]
        with archive.open("rb") as stream:
            self._api.import_image_from_data(stream, repository=repository, tag=tag, changes=changes)

    def save(self, tag: str, archive: Path) -> None:
        """Write an image, with its name and its layers, to a tar archive. Raises OSError if it cannot be written."""
        with archive.open("wb") as file:
            for chunk in self._api.get_image(tag):
                file.write(chunk)

    def exported(self, image: str, labels: Mapping[str, str]) -> Generator[bytes, None, None]:
        """An image's files, as one archive in chunks. Raises ImageBuildError.

        They are a container's, with these labels, which is never started, and removed once the archive has begun.
        """
        try:
            container = self._client.containers.create(image, ["-"], labels=dict(labels), network_mode="none")
            try:
                archive: Iterator[bytes] = iter(self._api.export(container.id or "", chunk_size=1 << 20))
                first = next(archive, b"")
            finally:
                self.remove(container)
            yield first
            yield from archive
        except (docker.errors.APIError, *_UNREACHABLE) as error:
            raise ImageBuildError(f"the engine does not export image {shown(image)}: {error}") from None

    def load(self, archive: Path) -> None:
        """Load the images of an archive that `save` wrote. Raises ImageBuildError if the engine refuses it."""
        with archive.open("rb") as file:
            try:
                lines = list(self._api.load_image(file))  # type: ignore[no-untyped-call]  # the stubs lack its types
            except docker.errors.APIError as error:
                raise ImageBuildError(f"{archive}: the engine does not load it: {_explanation(error)}") from None
        if errors := [str(line["error"]) for line in lines if "error" in line]:
            raise ImageBuildError(f"{archive}: the engine does not load it: {errors[0]}")

    def build(self, context: bytes, *, tag: str, dockerfile: str, labels: Mapping[str, str]) -> Iterator[ImageStep]:
        """Build from a tar archive, yielding the builder's progress. Raises ImageBuildError with its last lines."""
        last: deque[str] = deque(maxlen=25)
        lines = self._api.build(
            fileobj=io.BytesIO(context),
            custom_context=True,
            tag=tag,
            dockerfile=dockerfile,
            labels=dict(labels),
            rm=True,
            forcerm=True,
            decode=True,
        )
        for line in lines:
            if "error" in line:
                raise ImageBuildError(f"image {tag} could not be built: {line['error']}\n" + "".join(last).rstrip())
            if text := line.get("stream", ""):
                last.append(text)
                if text.startswith("Step "):
                    yield ImageStep(text.strip())

    def labelled_images(self, label: str) -> list[Mapping[str, Any]]:
        """The list entries of images with a label, which those built from them inherit. Asks about no single image."""
        return list(self._api.images(filters={"label": label}))

    def remove_image(self, tag: str) -> str | None:
        """Remove an image by name, if it is still there; returns why not, if a container uses it for example."""
        try:
            self._client.images.remove(tag)
        except docker.errors.APIError as error:
            return None if isinstance(error, docker.errors.NotFound) else _explanation(error)
        return None

    # --- containers ------------------------------------------------------------------------------

    def attached(
        self, image: str, command: Sequence[str], *, outlives_us: bool = False, **options: Any
    ) -> tuple[Container, Demultiplexed]:
        """Start a container with an open stdin, attached, that is removed when it ends.

        Its stdin closes when this connection does, also by our death; with ``outlives_us`` it stays open. Raises
        RefusedError.
        """
        try:
            # docker-py's name for the engine's StdinOnce=false is `detach`.
            container = self._client.containers.create(
                image, list(command), stdin_open=True, auto_remove=True, detach=outlives_us, **options
            )
            try:
                stream = self.attach(container)
                container.start()
            except BaseException:
                self.remove(container)
                raise
        except docker.errors.APIError as error:
            raise RefusedError(
                f"{self.describe()} does not start a container of ours (agent `{command[0]}`, network "
                f"{options.get('network_mode')}): {_explanation(error)}"
            ) from error
        return container, stream

    def attach(self, container: Container) -> Demultiplexed:
        """Attach to a container's stdin and output, from now on."""
        streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        return Demultiplexed(self._api.attach_socket(container.id or "", params=streams))

    def containers(self, **labels: str) -> list[Container]:
        """Every container, running or not, with these labels."""
        return self._client.containers.list(all=True, filters={"label": _label_filter(labels)}, ignore_removed=True)

    def networks(self, **labels: str) -> list[Any]:
        """Every network with these labels."""
        return list(self._client.networks.list(filters={"label": _label_filter(labels)}))

    def make_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume; nothing happens if there is one of this name."""
        self._client.volumes.create(name, labels=dict(labels))

    def labelled(self, label: str, value: str | None = None) -> list[Labelled]:
        """Every container, network, volume and part of a Swarm with this label, of this value or (None) of any.

        A node that does not manage its Swarm cannot remove the networks of the Swarm, and they are none of its.
        """
        wanted: dict[str, Any] = {"label": label if value is None else f"{label}={value}"}
        images: dict[str, Mapping[str, str]] = {}
        objects = []
        for container in self._client.containers.list(all=True, filters=wanted, ignore_removed=True):
            image = str(container.attrs["Image"])
            if image not in images:
                images[image] = self.image_labels(image) or {}
            objects.append(
                Labelled(
                    kind="container",
                    name=container.name or "",
                    labels=container.labels,
                    of_image=images[image],
                    handle=container,
                )
            )
        return objects + [
            Labelled(kind=kind, name=name, labels=own, handle=item)
            for kind, name, own, item in _beside_containers(self._client, wanted, self.manager)
        ]

    def discard(self, item: Labelled) -> None:
        """Remove an object; one that is gone already is removed. A node takes tasks again. Raises LabError."""
        try:
            if item.kind == "container":
                self.remove(item.handle)
            elif item.kind == "node" and self.manager is not None:
                self.manager.rejoin(item.handle.id, OURS)
            else:
                item.handle.remove()
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            raise LabError(f"the engine does not remove {item.kind} {item.name}: {_explanation(error)}") from None

    def remove(self, container: Container) -> None:
        """Remove a container, running or not; one that is gone or going already is removed."""
        try:
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            going = error.status_code == requests.codes.conflict  # "removal is already in progress"
            if not going and not (self.is_podman and self.await_removed(container, _ANSWERS_WITHIN_S)):
                raise

    def await_removed(self, container: Container, deadline_s: float) -> bool:
        """Wait until a container that removes itself is gone."""
        try:
            container.wait(timeout=deadline_s, condition="removed")
        except docker.errors.APIError:  # Podman has an error of its own for one that goes meanwhile
            return not self.state(container)
        except _UNREACHABLE:
            return False
        return True

    def state(self, container: Container) -> dict[str, Any]:
        """The engine's inspection of a container: Status, ExitCode, Health, …; empty if it is gone."""
        try:
            inspected: dict[str, Any] = self._api.inspect_container(container.id or "")
        except docker.errors.NotFound:
            return {}
        return inspected

    def listing(self, **labels: str) -> list[dict[str, Any]]:
        """Every container with these labels in the engine's short form, running or not."""
        rows: list[dict[str, Any]] = self._api.containers(all=True, filters={"label": _label_filter(labels)})
        return rows

    def not_healthy(self, **labels: str) -> list[str]:
        """The ids of running containers with these labels whose health check does not pass, or not yet."""
        filters = {"label": _label_filter(labels), "health": ["starting", "unhealthy"], "status": ["running"]}
        return [str(row["Id"]) for row in self._api.containers(filters=filters)]

    def check_health(self, id_: str) -> None:
        """Have Podman run a container's health check once, and note its result."""
        self._api.get(f"{self._api.base_url}{_PODMANS_API}/containers/{id_}/healthcheck", timeout=_WORKS_FOR_S)

    def container(self, id_: str) -> Container:
        """A container by its id. Raises LabError if it is gone."""
        try:
            return self._client.containers.get(id_)
        except docker.errors.NotFound:
            raise LabError(f"container {id_[:12]} is gone") from None

    @contextlib.contextmanager
    def requesting(self, what: str, container: Container) -> Iterator[None]:
        """Turn refusals of the engine in this block into LabError. ``what``: the verb of the message."""
        try:
            yield
        except docker.errors.APIError as error:
            raise LabError(f"cannot {what} {container.name}: {_explanation(error)}") from None

    def logs(self, container: Container, *, last: int | None = None) -> str:
        """What its main program printed, or the last lines of it."""
        data: bytes = container.logs(tail="all" if last is None else last)
        return data.decode(errors="replace")

    def follow(self, container: Container) -> Any:
        """What its main program printed and prints, in chunks; ``close()`` ends it. Docker's have time stamps."""
        if self.is_podman:  # it would answer with the first line, and its stamps are of whole seconds
            return container.attach(stream=True, logs=True)
        return container.logs(stream=True, follow=True, timestamps=True)

    def exec(
        self,
        container: Container,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        workdir: str | None,
        user: str,
    ) -> Exec:
        """Start a program in a running container."""
        created = self._api.exec_create(
            container.id,
            list(argv),
            stdout=True,
            stderr=True,
            stdin=False,
            environment=dict(env),
            workdir=workdir,
            user=user,
        )
        raw = self._api.exec_start(created["Id"], socket=True)
        return Exec(id=created["Id"], stream=Demultiplexed(raw))

    def exec_state(self, program: Exec) -> tuple[int | None, int]:
        """Its exit status (None while it runs) and its process number on the engine's machine.

        Raises LabError if its container was removed: the engine knows nothing of the program any more.
        """
        try:
            state = self._api.exec_inspect(program.id)
        except docker.errors.NotFound:
            raise LabError("its container was removed, and how it ended is not known") from None
        return (None if state["Running"] else state["ExitCode"]), int(state["Pid"])

    def leaders(self, container: Container) -> list[tuple[int, str]]:
        """The container's first process and each program started in it, in order of their start.

        Returns for each its number on the engine's machine and its command line as ps prints it: numbers are reused.
        Empty if the container does not run. Raises EnvironmentUnfitError if the engine cannot list them.
        """
        try:
            listing = container.top(ps_args=_PODMANS_PS if self.is_podman else _PS)
        except docker.errors.APIError as error:
            gone = error.status_code in (requests.codes.not_found, requests.codes.conflict)
            if gone or not self.state(container).get("State", {}).get("Running"):
                return []
            raise EnvironmentUnfitError(
                f"the engine cannot list the processes of a container, which sending a signal needs: "
                f"{_explanation(error)}. {_LISTS[self.rootless]}"
            ) from None
        return (_podmans_leaders if self.is_podman else _leaders)(listing["Processes"])

    def put(self, container: Container, path: str, content: bytes, mode: int) -> None:
        """Write a file in a container that does not run; its folder must exist."""
        target = PurePosixPath(path)
        archive = tar_archive({target.name: content}, mode=mode)
        self._api.put_archive(container.id or "", str(target.parent), archive)

    def shows(self, container: Container, path: str) -> bool:
        """Whether `get` reads the file that the container's programs see: the engine does not see their mounts.

        Those are every tmpfs, and /dev, /proc and /sys. Symbolic links are followed, as they may lead there.
        """
        inspected = self.state(container)
        mounts = [mount["Destination"] for mount in inspected.get("Mounts", ()) if mount.get("Type") == "tmpfs"]
        host = inspected.get("HostConfig", {})
        mounts += [*(host.get("Tmpfs") or {}), *_THE_KERNELS]
        mounts += [mount["Target"] for mount in host.get("Mounts") or () if mount.get("Type") == "tmpfs"]
        hidden = [PurePosixPath(posixpath.normpath(mount)) for mount in mounts]
        place, left = PurePosixPath("/"), path.split("/")[::-1]
        for _ in range(_STEPS):
            if not left:
                return True
            name = left.pop()
            if name in ("", "."):
                continue
            place = place.parent if name == ".." else place / name
            if any(place.is_relative_to(mount) for mount in hidden):
                return False
            if (target := self._link(container, place)) is not None:
                place, left = PurePosixPath("/"), left + target.split("/")[::-1]
        return False  # links in a circle; the container's kernel reports that

    def _link(self, container: Container, path: PurePosixPath) -> str | None:
        """The target of a symbolic link in a container; None if it is not one, or does not exist."""
        # docker-py has this request (HEAD /containers/ID/archive) only together with the file's content.
        url = f"{self._api.base_url}/v{self._api.api_version}/containers/{container.id}/archive"
        answer = self._api.head(url, params={"path": str(path)}, timeout=_WORKS_FOR_S)
        if not answer.ok:
            return None
        stat = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        return str(stat["linkTarget"]) or None

    def get(self, container: Container, path: str) -> bytes:
        """Read a file that the engine `shows`. Raises FileNotFoundError or IsADirectoryError."""
        try:
            chunks, _ = self._api.get_archive(container.id or "", path)
        except docker.errors.NotFound:
            raise FileNotFoundError(path) from None
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            member = archive.next()
            content = archive.extractfile(member) if member is not None else None
            if content is None:
                raise IsADirectoryError(path)
            return content.read()


def _beside_containers(
    client: docker.DockerClient, wanted: Mapping[str, Any], manager: Manager | None
) -> Iterator[tuple[str, str, Mapping[str, str], Any]]:
    """The kind, name, labels and handle of each network, each volume and each part of a Swarm that passes a filter."""
    for network in client.networks.list(filters=dict(wanted)):
        if manager is not None or network.attrs.get("Scope") != "swarm":
            yield "network", network.name or "", network.attrs.get("Labels") or {}, network
    for volume in client.volumes.list(filters=dict(wanted)):
        yield "volume", volume.name, volume.attrs.get("Labels") or {}, volume
    if manager is not None:
        yield from manager.labelled(wanted)


def _leaders(rows: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Those whose parent is not among them."""
    inside = {pid for pid, _, _ in rows}
    return [(int(pid), args) for pid, parent, args in rows if parent not in inside]


def _podmans_leaders(rows: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Likewise. A number that is "?" is of another container in the same namespace, such as our agent's."""
    first = sorted((int(own), pid, args) for own, parent, pid, args in rows if parent == "0")
    return [(0 if pid == "?" else int(pid), args) for _, pid, args in first]


@refusals_raised()
def send(source: Engine, target: Engine, names: Sequence[str]) -> None:
    """Have an engine load images as another one has them, which docker-py does for one. Raises ImageBuildError."""
    api = source._api
    with api.get(f"{api.base_url}/v{api.api_version}/images/get", params={"names": names}, stream=True) as archive:
        archive.raise_for_status()
        lines = list(target._api.load_image(archive.iter_content(1 << 20)))  # type: ignore[no-untyped-call]  # as in load
    if errors := [str(line["error"]) for line in lines if "error" in line]:
        raise ImageBuildError(f"{target.place} does not load {', '.join(names)}: {errors[0]}")


def pause(container: Container) -> None:
    """Pause a container. A busy engine may give up before all of its processes stand still: it is asked again."""
    for left in reversed(range(_PAUSES)):
        try:
            container.pause()
        except docker.errors.APIError as error:
            if not left or not error.is_server_error():
                raise
        else:
            return


def _explanation(error: docker.errors.APIError) -> str:
    return str(error.explanation or error)


def tar_archive(files: Mapping[str, bytes], *, mode: int = 0o644) -> bytes:
    """A tar archive of these files; the same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _label_filter(labels: Mapping[str, str]) -> list[str]:
    """``testbed_run="x"`` as keyword, ``testbed.run=x`` to the engine."""
    return [f"{key.replace('_', '.')}={value}" for key, value in labels.items()]


def main() -> int:
    """Say whether an engine answers: exit status 0, 1 (none does) or 2 (it refuses us). For scripts/bootstrap."""
    try:
        sys.stdout.write(Engine().describe() + "\n")
    except EnvironmentUnfitError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, NoPermissionError) else 1
    return 0
