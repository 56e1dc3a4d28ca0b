"""What the engine's inspection of a container means. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.backends.starting import last_check


def wellness(inspected: Mapping[str, Any]) -> str:
    """``well``, ``waiting`` or ``failed``."""
    state = inspected.get("State", {})
    health = (state.get("Health") or {}).get("Status", "none")
    match state.get("Status"):
        case "running":
            return {"starting": "waiting", "unhealthy": "failed"}.get(health, "well")
        case "exited":
            return "well" if state.get("ExitCode") == 0 else "failed"
        case "created" | "restarting":
            return "waiting"
        case _:
            return "failed"


def describe(inspected: Mapping[str, Any]) -> str:
    """The container's state in words."""
    state = inspected.get("State", {})
    health = (state.get("Health") or {}).get("Status")
    match state.get("Status"):
        case None:
            return "is gone"
        case "exited":
            return f"exited with status {state.get('ExitCode')}"
        case "running" if health not in (None, "none"):
            checks = (state.get("Health") or {}).get("Log") or []
            return f"is running and {health}; {last_check(str(checks[-1].get('Output', '')) if checks else None)}"
        case "created":
            return ": ".join(filter(None, ["was created and not started", state.get("Error")]))
        case status:
            return f"is {status}"
