"""A host's files by way of an agent that sees them as the host's programs do: one set of errors for both labs."""

from __future__ import annotations

import base64
from typing import Any

from testbed.errors import AgentError, LabError
from testbed.lab.channel import Channel

_ANSWER_WITHIN_S = 120.0
"""For files of hundreds of megabytes; those of a test take milliseconds."""


def put(channel: Channel, whose: str, path: str, content: bytes | str, mode: int, **place: Any) -> None:
    """Write a file; ``place`` goes into the request. Raises LabError."""
    data = content.encode() if isinstance(content, str) else content
    encoded = base64.b64encode(data).decode()
    try:
        channel.call("put", path=path, data=encoded, mode=mode, answer_within_s=_ANSWER_WITHIN_S, **place)
    except AgentError as error:
        raise LabError(f"`{whose}`: cannot write {path}: {error}") from None


def get(channel: Channel, whose: str, path: str, **place: Any) -> bytes:
    """Read a file. Raises FileNotFoundError, IsADirectoryError, LabError."""
    try:
        return base64.b64decode(channel.call("get", path=path, answer_within_s=_ANSWER_WITHIN_S, **place))
    except AgentError as error:
        if error.kind == "missing":
            raise FileNotFoundError(f"`{whose}`: {path}") from None
        if error.kind == "folder":
            raise IsADirectoryError(f"`{whose}`: {path}") from None
        raise LabError(f"`{whose}`: cannot read {path}: {error}") from None
