"""An ordinary user gets the whole local lab: ``scripts/ordinary`` runs the local half of the suite as one.

Here is what is peculiar to him. In CI it is his run alone that has that half; root's has the other.
"""

from __future__ import annotations

import os

import pytest

from testbed import Lab
from testbed.backends.local.capabilities import probe_local

LABS = ("local",)


@pytest.fixture(autouse=True)
def ordinary(kind: str) -> None:
    assert kind == "local"
    if os.geteuid() == 0:
        pytest.skip("for an ordinary user: scripts/ordinary")


def test_a_host_is_root_in_its_own_namespaces_and_nobody_else(lab: Lab) -> None:
    client = lab.host("client")
    assert client.run(["id", "-u"]).stdout == "0\n"
    assert client.run(["touch", "/etc/hosts"]).exit_code == 1
    assert "without root" in client.run(["id"], user="nobody").stderr


def test_impairments_are_to_be_had_without_root() -> None:
    able = probe_local(lambda _text: None)
    assert not able.root
    assert able.impairs, able


def test_the_machines_kernel_takes_no_program_from_him_and_nothing_is_changed(lab: Lab) -> None:
    link = lab.link("client -> server")
    link.impair(drop_every=10)  # by the carried kernel; its program is then there to be tried
    port = lab.ports.attached("server", "lan")
    path = next(path for name, path in port.stored.items() if name.endswith(".o"))
    assert "Unable to load program" in port.channel.call("try_program", path=path)
    lab.verifier.verify()
    link.heal()
