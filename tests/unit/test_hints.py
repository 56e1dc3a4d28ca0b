"""Words of other tools: the message names the word of testbed."""

from __future__ import annotations

import pytest

from testbed.errors import InvalidValueError
from testbed.netem.profiles import find_profile, load_profiles
from testbed.spec.impairment import Impairment
from testbed.spec.topology import Topology

TOPOLOGY = Topology.from_compose(
    {
        "services": {
            "a": {"networks": {"lan": {"aliases": ["web.example"], "ipv4_address": "10.0.0.5"}}},
            "b": {"container_name": "the_b", "hostname": "bee", "networks": {"lan": None}},
            "many": {"scale": 3, "networks": {"lan": None}},
            "side": {"network_mode": "service:a"},
        },
        "networks": {"lan": None},
    },
    inactive={"late": ("debug",)},
)

WORDS = {
    "latency": "delay=40ms",
    "Latency": "delay=40ms",
    "bandwidth": "rate=10mbit",
    "throughput": "rate=10mbit",
    "packet_loss": "loss=2%",
    "packet-loss": "loss=2%",
    "duplication": "duplicate=1%",
    "corruption": "corrupt=0.1%",
    "rtt": "one way: delay=40ms",
    "delai": "did you mean 'delay'?",
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_another_tool_is_told_in_ours(word: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        Impairment.parse({word: "5"})
    assert str(refused.value).startswith(f"{word}: unknown; ")
    assert WORDS[word] in str(refused.value)


def test_what_is_told_of_a_word_can_be_written() -> None:
    for word in WORDS:
        with pytest.raises(InvalidValueError) as refused:
            Impairment.parse({word: "5"})
        word_meant = str(refused.value).partition(". Known")[0].rpartition(" ")[2]
        if "=" in word_meant:
            name, _, value = word_meant.partition("=")
            extra = {} if name in ("delay", "rate", "loss", "duplicate", "corrupt") else {"delay": "40ms"}
            assert Impairment.parse({name: value, **extra})


def test_a_profile_may_be_called_so_all_the_same() -> None:
    assert find_profile(load_profiles(), "latency").name == "latency"
    with pytest.raises(InvalidValueError, match="did you mean 'latency'"):
        find_profile(load_profiles(), "latancy")


HOSTS = {
    "b:8080": 'a port stands behind the link: "a -> b tcp/8080"',
    "many:80": "a port stands behind the link",
    "Localhost": 'the machine itself is called localhost: "localhost -> api"',
    "host": "the machine itself is called localhost",
    "Internet": 'what is beyond stack and machine is called outside, or by its address: "api -> outside"',
    "127.0.0.1": "the machine itself is called localhost",
    "127.0.0.0/8": "an address that packets of a link can neither come from nor go to",
    "10.0.0.5": "that is a name or an address of a; call it a",
    "192.0.2.7/24": "'192.0.2.7/24' is no address, nor a network as in 203.0.113.0/24: 192.0.2.7/24 has host bits set",
    "0.0.0.0/0": "an address that packets of a link can neither come from nor go to",
    "web.example": "that is a name or an address of a; call it a",
    "the_b": "that is a name or an address of b; call it b",
    "bee": "that is a name or an address of b; call it b",
    "shop-b-1": "that is a name or an address of b; call it b",
    "shop_many_2": "that is a name or an address of many; call it many[1], or many[*]",
    "late": "belongs to the Compose profile 'debug', which is not active; activate it: --compose-profile debug",
    "B": "unknown; known: a, b, ",
    "clent": "unknown; known: a, b, ",
}


@pytest.mark.parametrize("host", HOSTS)
def test_another_name_of_a_host_is_told_as_the_hosts(host: str) -> None:
    for link in (f"a -> {host}", f"{host} -> b"):
        with pytest.raises(InvalidValueError) as refused:
            TOPOLOGY.links(link)
        assert f"host '{host}': {HOSTS[host]}" in str(refused.value)
    with pytest.raises(InvalidValueError) as refused:
        TOPOLOGY.links_between([host], ["b"])
    assert HOSTS[host] in str(refused.value)


def test_a_service_with_anothers_network_is_advised_what_compose_allows() -> None:
    with pytest.raises(InvalidValueError) as refused:
        TOPOLOGY.links("side -> b")
    assert str(refused.value).endswith("no port of its own to impair; its packets are those of a: name a")


def test_a_link_without_end_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidValueError) as refused:
        TOPOLOGY.links(",".join(["a"] * 10_000) + " -> b")
    assert len(str(refused.value)) < 400
    with pytest.raises(InvalidValueError) as refused:
        TOPOLOGY.links("a -> many[1..99999999999999999999]")
    assert "has 3 replicas, counted from 1" in str(refused.value)
