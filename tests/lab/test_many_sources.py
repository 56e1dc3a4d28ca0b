"""250 hosts at one port, each impaired differently: changing one leaves the others alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed import Lab
from tests.lab.conftest import HERE, Datagrams, lab_of, prepare

LABS = ("local",)
CLIENTS = range(1, 251)
pytestmark = pytest.mark.slow
TRIED = (1, 2, 125, 249, 250)


@pytest.fixture(scope="module")
def many(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with lab_of(kind, pytestconfig, HERE / "stacks" / "many.yaml") as lab:
        prepare(lab.hosts["server"], *(lab.hosts[f"client[{number}]"] for number in TRIED))
        yield lab


def test_250_sources_at_one_port_are_impaired_each_in_its_own_way(many: Lab) -> None:
    many.lifecycle.begin(None)
    for number in CLIENTS:
        many.link(f"client[{number}] -> server").impair(delay=f"{number}ms", loss="0.1%", seed=number)
    many.link("client[125] -> server").heal()
    many.verifier.verify()
    links_by_name = {link.link: (link.asked, link.read_back) for link in many.ledger.evidence}
    assert links_by_name == {
        f"client[{number}] -> server": ({"delay": f"{number}ms", "loss": "0.1%", "seed": number}, "holds")
        for number in CLIENTS
    }, "also of the one that was healed, looked at before"
    server, least = many.hosts["server"], {}
    for number in TRIED:
        least[number] = min(Datagrams(many.hosts[f"client[{number}]"], server).round_trips(4))
    assert all(least[number] >= number * 1e-3 for number in TRIED if number != 125)
    assert least[1] < least[249] - 0.1
    assert least[125] < 0.1, "it was healed, and has none of its neighbours' delays"
