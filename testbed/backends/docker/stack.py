"""The containers of one run: images built, everything labelled, and Compose's `up`.

Every run has its own project name, and a label ``testbed.run=<id>`` on everything it owns. A second label names the
owner's process, so that the next run can clear up after a process that was killed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from docker.models.containers import Container

from testbed.backends.docker import building
from testbed.backends.docker.engine import OWNER_LABEL, ROLE_LABEL, RUN_LABEL, Engine, refusals_raised
from testbed.backends.docker.inspection import wellness
from testbed.backends.docker.runs import (
    DETACHED,
    STACK_LABEL,
    STARTER_LABEL,
    UP_LABEL,
    StackRun,
    owner,
    remove_run,
    runs,
)
from testbed.backends.docker.sources import NO_SOURCES, Sources
from testbed.compose import composefile
from testbed.compose.command import Composer
from testbed.errors import LabError
from testbed.spec.topology import Topology


class Stack:
    """What Compose brings up for one run, on an engine."""

    def __init__(
        self, composer: Composer, *, run_id: str, outlives_us: bool, up_deadline_s: float, say: Callable[[str], None]
    ) -> None:
        self.composer = composer
        self.run_id = run_id
        self.outlives_us = outlives_us
        self._up_deadline_s = up_deadline_s
        self._say = say
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
        """Take over the stack of a run that another process has left."""
        self.run_id = run_id
        self.composer.project = f"testbed-{run_id}"
        self.outlives_us = True

    @property
    def name(self) -> str:
        """The files that Compose reads, named ones or those that it finds."""
        files = self.composer.files or composefile.files_by_default(os.environ)
        return os.pathsep.join(str(file.resolve()) for file in files) or str(self.composer.directory)

    def labels(self) -> dict[str, str]:
        """The labels of everything of this run."""
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

    def left(self) -> list[StackRun]:
        """The runs of this Compose file that stay without a process that owns them."""
        return [run for run in runs(self.engine) if run.owner == DETACHED and run.stack == self.name]

    @refusals_raised()
    def remove_left(self) -> list[str]:
        """Remove the rest of stacks of this Compose file whose agent is gone. Returns the runs' ids.

        Runs that a living process owns are left alone.
        """
        ids = sorted(run.id for run in self.left() if run.stays or run.is_stale)
        for run_id in ids:
            remove_run(self.engine, run_id, DETACHED)
        return ids

    def stay(self) -> None:
        """Note that the stack is wholly up and stays when this process ends."""
        if self.config_up is not None:
            self.engine.make_volume(f"{self.composer.project}-up", {**self.labels(), UP_LABEL: ""})

    def stay_no_more(self) -> None:
        """Note that the stack is being taken down: if we are killed meanwhile, the rest is stale."""
        for item in self.engine.labelled(RUN_LABEL, self.run_id):
            if UP_LABEL in item.labels:
                self.engine.discard(item)

    # --- up and down -----------------------------------------------------------------------------

    def with_images(self, config: Mapping[str, Any], sources: Sources = NO_SOURCES) -> dict[str, Any]:
        """See `building.with_images`."""
        return building.with_images(config, engine=self.engine, composer=self.composer, sources=sources, say=self._say)

    def labelled(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with our labels on all that it creates."""
        ours = self.labels()
        for body in config["services"].values():
            body["labels"] = {**building.as_mapping(body.get("labels")), **ours}
            body.pop("profiles", None)  # what is here was chosen already
        for kind in ("networks", "volumes"):
            for name, body in (config.get(kind) or {}).items():
                body = dict(body or {})
                if not body.get("external"):
                    body["labels"] = {**building.as_mapping(body.get("labels")), **ours}
                config[kind] = {**config[kind], name: body}
        return config

    def up(self, config: dict[str, Any]) -> str | None:
        """Have Compose bring the stack up. Returns why it could not, or None."""
        return self.composer.up(config, timeout_s=self._up_deadline_s)

    def containers(self) -> list[Container]:
        """The containers that Compose made for this run."""
        return self.engine.containers(testbed_run=self.run_id, com_docker_compose_project=self.composer.project)

    def make_anew(self, host: str, service: str, container: Container, *, gone: bool) -> None:
        """Have Compose make a host's container again. Raises LabError."""
        if self.config_up is None:
            words = wellness(self.engine.state(container)).words
            raise LabError(
                f"`{host}` {words}, and another process brought this stack up: take it down and bring it up again"
            )
        if not gone:
            self.engine.remove(container)
        if failed := self.composer.up_again(self.config_up, [service], timeout_s=self._up_deadline_s):
            raise LabError(f"`{host}` could not be made anew: {failed}")

    def remove(self) -> None:
        """Remove everything with the run's label. Raises LabError if something stays."""
        remove_run(self.engine, self.run_id, self.labels()[OWNER_LABEL])


def host_name(topology: Topology, labels: Mapping[str, str]) -> str:
    """The name of the host that a container is, by Compose's labels; empty if it is none."""
    service = topology.services.get(labels.get("com.docker.compose.service", ""))
    if service is None:
        return ""
    number = int(labels["com.docker.compose.container-number"])
    return service.name if service.replicas == 1 else f"{service.name}[{number}]"
