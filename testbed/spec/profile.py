"""A profile: a named pair of impairments, one per direction of a link, each with the bottleneck that links share."""

from __future__ import annotations

from dataclasses import dataclass, field

from testbed.spec.bottleneck import Bottleneck
from testbed.spec.impairment import Impairment
from testbed.spec.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A named pair of impairments: toward the second host of a link, and back."""

    name: str
    description: str = ""
    forward: Impairment | Timeline = field(default_factory=Impairment)
    reverse: Impairment | Timeline = field(default_factory=Impairment)
    forward_shape: Bottleneck | None = None
    """What the links toward the second host share at its port, behind their impairments; None: nothing."""
    reverse_shape: Bottleneck | None = None
