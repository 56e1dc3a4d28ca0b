"""The containers of one run: images built, Compose's `up`, everything labelled, and awaited until it is well.

Every run has a project name of its own and a label, ``testbed.run=<id>``, on everything it owns; its owner's
process is in a second label, so that the next run can clear up after one that was killed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import docker.errors
from docker.models.containers import Container

from testbed.backends.docker import images
from testbed.backends.docker.engine import INPUTS_LABEL, OWNER_LABEL, ROLE_LABEL, RUN_LABEL, Engine
from testbed.backends.docker.runs import DETACHED, STACK_LABEL, STARTER_LABEL, UP_LABEL, Run, owner, remove_run, runs
from testbed.backends.docker.wellness import describe, wellness
from testbed.backends.starting import Progress, Unwell, unwell_in_words
from testbed.compose import composefile
from testbed.compose.command import Composer
from testbed.errors import ImageBuildError, LabError, ServiceFailedError
from testbed.lab.readiness import last_lines
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.spec.topology import Topology

_BUILD_DEADLINE_S = 900.0


class Stack:
    """What Compose brings up for one run, on an engine."""

    def __init__(
        self, composer: Composer, *, run_id: str, outlives_us: bool, up_deadline_s: float, say: Callable[[str], None],
        failed_logs: dict[str, str],
    ) -> None:  # fmt: skip
        """``failed_logs`` is given the log of each service that is not well when that is raised."""
        self.composer = composer
        self.run_id = run_id
        self.outlives_us = outlives_us
        self._up_deadline_s = up_deadline_s
        self._say = say
        self._failed_logs = failed_logs
        self._engine: Engine | None = None
        self.config_up: dict[str, Any] | None = None
        """What Compose was given, to make a container anew; None of a stack that another process brought up."""

    @property
    def engine(self) -> Engine:
        """The Docker engine, connected on first use. Raises EnvironmentUnfitError."""
        if self._engine is None:
            self._engine = Engine()
        return self._engine

    # --- whose it is -----------------------------------------------------------------------------

    def take(self, run_id: str) -> None:
        """From now on it is the stack of a run that another process has left."""
        self.run_id = run_id
        self.composer.project = f"testbed-{run_id}"
        self.outlives_us = True

    @property
    def name(self) -> str:
        """The files that Compose reads, whether they were named or it finds them."""
        files = self.composer.files or composefile.files_by_default(os.environ)
        return os.pathsep.join(str(file.resolve()) for file in files) or str(self.composer.directory)

    def labels(self) -> dict[str, str]:
        """What everything of this run carries."""
        return {
            RUN_LABEL: self.run_id,
            **({OWNER_LABEL: DETACHED, STARTER_LABEL: owner()} if self.outlives_us else {OWNER_LABEL: owner()}),
            STACK_LABEL: self.name,
        }

    def identity(self, role: str) -> dict[str, Any]:
        """Labels and name of a container of the agent's image."""
        return {
            "labels": {**self.labels(), ROLE_LABEL: role},
            "name": f"{self.composer.project}-{role}-{secrets.token_hex(3)}",
        }

    def left(self) -> list[Run]:
        """The runs of this Compose file that are to stay though no process owns them."""
        return [run for run in runs(self.engine) if run.owner == DETACHED and run.stack == self.name]

    def stay(self) -> None:
        """It is wholly up, and stays so when this process ends."""
        if self.config_up is not None:
            self.engine.make_volume(f"{self.composer.project}-up", {**self.labels(), UP_LABEL: ""})

    def stay_no_more(self) -> None:
        """Begin to take it down: if we are killed meanwhile, the rest is stale."""
        for each in self.engine.labelled(RUN_LABEL, self.run_id):
            if UP_LABEL in each.labels:
                self.engine.discard(each)

    # --- up and down -----------------------------------------------------------------------------

    def with_images(self, config: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
        """The Compose configuration with an image for each service that is built, building those that changed."""
        config = dict(config)
        services = {name: dict(body) for name, body in config["services"].items()}
        config["services"] = services
        missing: list[str] = []
        for name, service in topology.services.items():
            if service.build is None:
                continue
            repository, digest = images.service_image(service.build, name)
            if service.image is None:
                services[name]["image"] = f"{repository}:{digest or 'latest'}"
            if digest is None:
                missing.append(name)
                continue
            built = self.engine.image_labels(services[name]["image"])
            if built is None or built.get(INPUTS_LABEL) != digest:
                missing.append(name)
            services[name]["build"] = {
                **service.build,
                "labels": {**_as_mapping(service.build.get("labels")), INPUTS_LABEL: digest},
            }
        if missing:
            if any(images.starts_from_base(topology.services[name].build or {}) for name in missing):
                images.ensure_base(self.engine, self._say)
            self._say(f"building {', '.join(missing)}")
            failed = self.composer.build(config, missing, timeout_s=_BUILD_DEADLINE_S)
            if failed is not None:
                raise ImageBuildError(f"`docker compose build {' '.join(missing)}` failed:\n{failed}")
            for name in missing:
                if topology.services[name].image is None:
                    tag = services[name]["image"]
                    self.engine.remove_images(tag.partition(":")[0], but=tag)
        return config

    def labelled(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with our labels on all that it creates."""
        ours = self.labels()
        for body in config["services"].values():
            body["labels"] = {**_as_mapping(body.get("labels")), **ours}
            body.pop("profiles", None)  # what is here was chosen already
        for kind in ("networks", "volumes"):
            for name, body in (config.get(kind) or {}).items():
                body = dict(body or {})
                if not body.get("external"):
                    body["labels"] = {**_as_mapping(body.get("labels")), **ours}
                config[kind] = {**config[kind], name: body}
        return config

    def up(self, config: dict[str, Any]) -> list[Container]:
        """Have Compose bring it up, and await it; its containers. Raises ServiceFailedError."""
        progress = Progress(self._say, allowed_s=self._up_deadline_s)
        with progress.meanwhile(self._not_well_yet):
            failed = self.composer.up(config, timeout_s=self._up_deadline_s)
            containers = self.containers()
            if failed is not None and progress.left_s <= 0:
                self.raise_unwell(containers, f"not well after {self._up_deadline_s:g} s (the up-deadline): {failed}")
            if failed is not None:
                self.raise_unwell(containers, f"`docker compose up` failed: {failed}")
            self.await_well(containers, progress.left_s, self._up_deadline_s)
        return containers

    def containers(self) -> list[Container]:
        """Those that Compose made for this run."""
        return self.engine.containers(testbed_run=self.run_id, com_docker_compose_project=self.composer.project)

    def make_anew(self, host: str, service: str, container: Container, *, gone: bool) -> None:
        """Have Compose make a host's container again. Raises LabError."""
        if self.config_up is None:
            raise LabError(f"`{host}` {describe(self.engine.state(container))}, and another process "
                           f"brought this stack up: take it down and bring it up again")  # fmt: skip
        if not gone:
            self.engine.remove(container)
        if failed := self.composer.up_again(self.config_up, [service], timeout_s=self._up_deadline_s):
            raise LabError(f"`{host}` could not be made anew: {failed}")

    def remove(self) -> None:
        """Remove all that carries the run's label; anything still there afterwards is an error."""
        remove_run(self.engine, self.run_id, self.labels()[OWNER_LABEL])

    # --- whether it is well ----------------------------------------------------------------------

    def _not_well_yet(self) -> Mapping[str, str]:
        """Each container that is not well, and its state in words; asked while the stack starts. Raises LabError."""
        try:
            found = [(each.name or "", self.engine.state(each)) for each in self.containers()]
        except (docker.errors.APIError, OSError) as error:
            raise LabError(str(error)) from None
        prefix = f"{self.composer.project}-"
        return {name.removeprefix(prefix): describe(state) for name, state in found if wellness(state) != "well"}

    def await_well(self, containers: Sequence[Container], deadline_s: float, allowed_s: float = 0.0) -> None:
        """Wait until every container runs, and is healthy where it can say so, or has ended with status 0."""
        states: dict[str, str] = {}

        def look() -> list[str]:
            for container in containers:
                states[container.name or container.id or ""] = wellness(self.engine.state(container))
            return list(states.values())

        def settled(seen: list[str]) -> bool:
            return "waiting" not in seen

        try:
            await_condition(look, settled, deadline_s=max(deadline_s, 0.1))
        except NotSeenError:
            self.raise_unwell(containers, f"not well after {allowed_s or deadline_s:g} s")
        if "failed" in states.values():
            self.raise_unwell(containers, "")

    def await_healthy(self, containers: Sequence[Container]) -> None:
        """Wait until none of these runs whose health check fails. Raises ServiceFailedError."""

        def look() -> list[Container]:
            ids = self.engine.not_healthy(com_docker_compose_project=self.composer.project)
            return [container for container in containers if container.id in ids]

        try:
            await_condition(look, lambda unwell: not unwell, deadline_s=self._up_deadline_s)
        except NotSeenError:
            self.raise_unwell(look(), f"not healthy after {self._up_deadline_s:g} s")

    def look_again(self, containers: Sequence[Container]) -> None:
        """Once all is up: a service may have started well, and ended while the agent was awaited."""
        if any(wellness(self.engine.state(container)) == "failed" for container in containers):
            self.raise_unwell(containers, "")

    def raise_unwell(self, containers: Sequence[Container], context: str) -> None:
        """Raise ServiceFailedError naming each service that is not well, with its last lines."""
        found: list[Unwell] = []
        for container in containers:
            state = self.engine.state(container)
            if wellness(state) == "well":
                continue
            name = str(container.labels.get("com.docker.compose.service", container.name))
            self._failed_logs[name] = log = self.engine.logs(container)
            refused = bool(state.get("State", {}).get("Error"))
            found.append(Unwell(
                service=name, state=describe(state), failed=refused or wellness(state) == "failed",
                began=state.get("State", {}).get("Status") != "created", last_lines=last_lines(log),
            ))  # fmt: skip
        raise ServiceFailedError("\n".join([*unwell_in_words(found), *([context] if context else [])]))


def host_name(topology: Topology, labels: Mapping[str, str]) -> str:
    """Which host a container is, by the labels that Compose gives it; empty if it is none."""
    service = topology.services.get(labels.get("com.docker.compose.service", ""))
    if service is None:
        return ""
    number = int(labels["com.docker.compose.container-number"])
    return service.name if service.replicas == 1 else f"{service.name}[{number}]"


def depth(services: Mapping[str, Any], name: str) -> int:
    """How many services one after the other a service waits for, itself included."""
    waits_for = services.get(name, {}).get("depends_on") or ()
    return 1 + max((depth(services, other) for other in waits_for), default=0)


def _as_mapping(labels: Any) -> dict[str, str]:
    """Labels as a mapping; Compose's own output has them so, a user's file may have a list."""
    if isinstance(labels, list):
        return dict(label.partition("=")[::2] for label in labels)
    return dict(labels or {})
