"""Network regression testing for programs that run in containers.

The names exported here are the public API; everything else may move. Each is imported when it is first asked for: a
pytest that has the plugin and no stack pays for none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.backends.docker.lab import ComposeLab
    from testbed.backends.local.lab import LocalLab
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
    from testbed.lab.host import Host, Program, Result
    from testbed.lab.lab import Lab, Link
    from testbed.lab.observer import PortCapture
    from testbed.netem.profiles import load_profiles
    from testbed.observe.capture import Capture
    from testbed.observe.observation import Observation
    from testbed.spec import drawings as topologies
    from testbed.spec.impairment import Impairment
    from testbed.spec.profile import Profile

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
    "Program",
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
    "backends.docker.lab": ("ComposeLab",),
    "lab.host": ("Host", "Program", "Result"),
    "lab.lab": ("Lab", "Link"),
    "backends.local.lab": ("LocalLab",),
    "lab.observer": ("PortCapture",),
    "netem.profiles": ("load_profiles",),
    "spec.impairment": ("Impairment",),
    "spec.profile": ("Profile",),
    "spec.drawings": ("topologies",),
    "observe.capture": ("Capture",),
    "observe.observation": ("Observation",),
}  # fmt: skip
_MODULE_OF = {name: f"testbed.{module}" for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # or type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'testbed' has no attribute {name!r}")
        module = import_module(_MODULE_OF[name])
        attribute = globals()[name] = module if name == "topologies" else getattr(module, name)
        return attribute

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
