"""What the engine's inspection of a container says of its service. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.backends.starting import Wellness, last_check


def wellness(inspected: Mapping[str, Any]) -> Wellness:
    """Whether the service of a container is well, and its state in words."""
    state = inspected.get("State", {})
    health = (state.get("Health") or {}).get("Status", "none")
    match state.get("Status"):
        case None:
            return Wellness(state="failed", words="is gone")
        case "exited":
            code = state.get("ExitCode")
            return Wellness(state="well" if code == 0 else "failed", words=f"exited with status {code}")
        case "running" if health == "none":
            return Wellness(state="well", words="is running")
        case "running":
            checks = (state.get("Health") or {}).get("Log") or []
            last = last_check(str(checks[-1].get("Output", "")) if checks else None)
            return Wellness(
                state={"starting": "waiting", "unhealthy": "failed"}.get(health, "well"),
                words=f"is running and {health}; {last}",
            )
        case "created":
            error = state.get("Error")
            words = ": ".join(filter(None, ["was created and not started", error]))
            return Wellness(state="failed" if error else "waiting", words=words, began=False)
        case status:
            return Wellness(state="waiting" if status == "restarting" else "failed", words=f"is {status}")
