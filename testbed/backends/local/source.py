"""A service as the Compose file has it, and what a local lab refuses of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.backends.local.images import Images
from testbed.compose.composefile import ComposeFile
from testbed.compose.problems import FileProblems
from testbed.text import shown

WAY_OUT = "or run it with --lab compose"
CANNOT = f"a local lab cannot honour it; leave it out, {WAY_OUT}"


@dataclass(frozen=True, kw_only=True)
class ServiceSource:
    """One service of a Compose file."""

    name: str
    body: Mapping[str, Any]
    file: ComposeFile
    problems: FileProblems
    images: Images
    not_kept: dict[str, list[str]] = field(default_factory=dict)
    """What is not kept, and the services that ask for it; one for all sources of a file."""

    def tell(self, what: str) -> None:
        """Note that something is not kept."""
        self.not_kept.setdefault(what, []).append(self.name)

    @property
    def local(self) -> Mapping[str, Any] | None:
        """Its ``x-testbed: {local: …}``: where the service's programs are on this machine."""
        local: Mapping[str, Any] | None = (self.body.get("x-testbed") or {}).get("local")
        return local

    def unread(self, *keys: str) -> bool:
        """Whether one of these keys could not be read."""
        return any(self.problems.known(("services", self.name, key)) for key in keys)

    def refuse(self, text: str, *where: str | int) -> None:
        """Note a problem. ``where``: the path within the service, as in ``"volumes", 0``."""
        self.problems.of_part(("services", self.name, *where), f"service {shown(self.name)}: {text}")
