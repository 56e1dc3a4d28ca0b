"""The resolver that `testbed init --resolver` writes: lookups cross a link, are late, lost and counted there."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from testbed import Lab
from testbed.evidence.verdict import Verdict
from tests.lab.conftest import ROOT, as_one_test, cli, lab_of, own_subnet

_DELAY_S = 0.3
_LOOK_UP = "import socket; print(sorted({entry[4][0] for entry in socket.getaddrinfo('names', 53, socket.AF_INET)}))"
_COMPOSE = """
services:
  names:
    build: resolver
    x-testbed: {{local: {{path: resolver}}}}
    networks: {{default: {{ipv4_address: 10.53.0.53}}}}
  client:
    build: {{context: "{images}", dockerfile: client/Dockerfile}}
    x-testbed: {{local: {{path: "{images}/client"}}}}
    command: [sleep, infinity]
    init: true
    volumes: ["./resolver/resolv.conf:/etc/resolv.conf:ro"]
    depends_on: {{names: {{condition: service_healthy}}}}
networks:
  default: {{ipam: {{config: [{{subnet: 10.53.0.0/24}}]}}}}
"""
_OF_ITS_IMAGE = """    command: [python3, names.py]
    healthcheck: {test: [CMD, python3, names.py, check], interval: 1s, retries: 30}
"""


@pytest.fixture(scope="module")
def named(kind: str, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("resolver")
    done = cli("init", "--resolver", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = _COMPOSE.format(images=ROOT / "images")
    if kind == "local":  # which runs no image here, and so knows neither its command nor its health check
        text = text.replace("  client:", f"{_OF_ITS_IMAGE}  client:")
    for path, content in ((folder / "compose.yaml", text), (conf := folder / "resolver/resolv.conf", conf.read_text())):
        path.write_text(content.replace("10.53.0", f"198.{own_subnet()}"))
    with conf.open("a") as added:
        added.write("options timeout:1 attempts:5\n")
    with lab_of(kind, pytestconfig, folder / "compose.yaml") as lab:
        yield lab


@pytest.fixture
def lab(named: Lab) -> Iterator[Lab]:
    yield from as_one_test(named)


def looked_up_s(lab: Lab) -> float:
    """How long a lookup of the client took; seconds."""
    began = time.perf_counter()
    done = lab.host("client").run(["python3", "-c", _LOOK_UP])
    assert done.stdout == f"{[lab.host('names').addresses()[0]]}\n", done.stderr
    return time.perf_counter() - began


def test_a_lookup_is_late_by_the_link_and_counted(lab: Lab) -> None:
    lab.impair("names -> client udp/53", delay=f"{_DELAY_S}s", prove=True)  # whose sender uses the port
    assert looked_up_s(lab) >= _DELAY_S
    lab.verifier.verify()
    (evidence,) = lab.ledger.evidence
    assert (evidence.read_back, evidence.probe, evidence.problems) == (Verdict.HOLDS, Verdict.HOLDS, [])
    assert (evidence.met_packets or 0) >= 1


def test_a_lost_query_is_sent_again_and_counted(lab: Lab) -> None:
    lab.impair("client -> names udp/53", drop_packets=[1])
    assert looked_up_s(lab) >= 1  # glibc's time-out, as resolv.conf has it
    assert lab.link("client -> names udp/53").dropped_by_number() == 1
