"""Network regression testing for programs that run in containers.

The names exported here are the public API; everything else may move.
"""

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
from testbed.labs.lab import Host, Lab, Link, Result
from testbed.labs.local import LocalLab
from testbed.labs.observing import PortCapture
from testbed.links.profiles import load_profiles
from testbed.model import topologies
from testbed.model.impairment import Impairment, Profile
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
