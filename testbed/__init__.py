"""Network regression testing for programs that run in containers.

The names exported here are the public API; everything else may move. Each is imported when it is first asked for: a
pytest that has the plugin and no stack pays for none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.errors import (
        CommandTimeoutError,
        EnvironmentUnfitError,
        ImpairmentNotAppliedError,
        InvalidComposeError,
        InvalidValueError,
        LabError,
        ServiceFailedError,
        TestbedError,
        UserError,
    )
    from testbed.labs.compose import ComposeLab
    from testbed.labs.host import Host, Result
    from testbed.labs.lab import Lab, Link
    from testbed.labs.local import LocalLab
    from testbed.labs.observing import PortCapture
    from testbed.links.profiles import load_profiles
    from testbed.model import topologies
    from testbed.model.impairment import Impairment
    from testbed.model.profile import Profile
    from testbed.observe.capture import Capture
    from testbed.observe.observation import Observation

__all__ = [
    "Capture",
    "CommandTimeoutError",
    "ComposeLab",
    "EnvironmentUnfitError",
    "Host",
    "Impairment",
    "ImpairmentNotAppliedError",
    "InvalidComposeError",
    "InvalidValueError",
    "Lab",
    "LabError",
    "Link",
    "LocalLab",
    "Observation",
    "PortCapture",
    "Profile",
    "Result",
    "ServiceFailedError",
    "TestbedError",
    "UserError",
    "load_profiles",
    "topologies",
]

_MODULES = {
    "errors": (
        "CommandTimeoutError", "EnvironmentUnfitError", "ImpairmentNotAppliedError", "InvalidComposeError",
        "InvalidValueError", "LabError", "ServiceFailedError", "TestbedError", "UserError",
    ),
    "labs.compose": ("ComposeLab",),
    "labs.host": ("Host", "Result"),
    "labs.lab": ("Lab", "Link"),
    "labs.local": ("LocalLab",),
    "labs.observing": ("PortCapture",),
    "links.profiles": ("load_profiles",),
    "model.impairment": ("Impairment",),
    "model.profile": ("Profile",),
    "model.topologies": ("topologies",),
    "observe.capture": ("Capture",),
    "observe.observation": ("Observation",),
}  # fmt: skip
_MODULE_OF = {name: f"testbed.{module}" for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # or type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'testbed' has no attribute {name!r}")
        module = import_module(_MODULE_OF[name])
        found = globals()[name] = module if name == "topologies" else getattr(module, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
