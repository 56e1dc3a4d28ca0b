"""An engine that remaps the users of containers (``userns-remap``), started beside the machine's; by hand.

Takes a minute, and root.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed import ComposeLab
from tests.lab.conftest import HERE
from tests.lab.engines import engine_beside, findings, passes
from tests.lab.ownengines import REMAPPED

LABS = ("compose",)

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def remapped(stack: ComposeLab) -> Iterator[dict[str, str]]:
    with engine_beside(stack, REMAPPED, "dockerd") as environment:
        yield environment


def test_there_the_doctor_finds_nothing_missing_and_says_which_engine_it_is(remapped: dict[str, str]) -> None:
    found_there = findings(remapped)
    assert "userns-remap" in found_there["Docker engine"]
    assert "state='ok'" in found_there["carried kernel"]


def test_there_links_are_impaired_captured_and_cut_and_agents_may_do_no_more(remapped: dict[str, str]) -> None:
    passes(remapped, f"{HERE}/test_privileges.py", f"{HERE}/test_impairments_are_real.py")
