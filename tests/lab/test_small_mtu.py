"""A network whose MTU is below the minimum of IPv6: its devices have no IPv6 settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.conftest import Datagrams, lab_of, prepare

LABS = ("local",)

_STACK = """
x-host: &host
  image: small
  command: [python3, -c, "import time; time.sleep(1e9)"]
  x-testbed: {local: {path: ./app}}
services: {client: *host, server: *host}
networks:
  default: {driver_opts: {com.docker.network.driver.mtu: "576"}}
"""


def test_a_link_of_576_bytes_is_impaired(kind: str, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    path = tmp_path / "compose.yaml"
    path.write_text(_STACK)
    with lab_of(kind, pytestconfig, path) as lab:
        client, server = lab.hosts["client"], lab.hosts["server"]
        prepare(client, server)
        lab.impair("client -> server", delay="20ms")
        assert min(Datagrams(client, server, network="default").round_trips(3)) >= 0.02
        lab.verifier.verify()
