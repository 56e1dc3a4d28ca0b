"""What the keys of real files make of a local lab's plan, and the one clear line for each that it refuses."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from testbed.agent import relay
from testbed.backends.local import hostkeys, localplan, servicekeys, settings
from testbed.backends.local.blueprint import Given, LabPlan, Restart
from testbed.compose import composefile
from testbed.errors import InvalidComposeError
from testbed.spec.topology import Topology
from tests.unit.fakes import FakeImages


def plan(folder: Path, text: str) -> LabPlan:
    (folder / "compose.yaml").write_text(text)
    file = composefile.read(folder / "compose.yaml", environment={})
    return localplan.make(file, Topology.from_compose(file.config), FakeImages())


def a(words: str, rest: str = "") -> str:
    return (
        f"services:\n  a: {{image: python, command: [x], {words}}}\n  b: {{image: python, command: [x]}}\n"
        f"  c: {{image: python, command: [x], container_name: see}}\n{rest}"
    )


@pytest.mark.parametrize(
    ("words", "restart"),
    [
        ("restart: always", Restart(when="always")),
        ("restart: 'no'", Restart(when="no")),
        ("restart: 'on-failure:3'", Restart(when="on-failure", most=3)),
        ("restart: unless-stopped, deploy: {restart_policy: {condition: none}}", Restart(when="no")),
        ("deploy: {restart_policy: {condition: on-failure, max_attempts: 4}}", Restart(when="on-failure", most=4)),
        ("deploy: {restart_policy: {}}", Restart(when="no")),
        ("deploy: {restart_policy: {condition: any}}", Restart(when="always")),
    ],
)
def test_restart(words: str, restart: Restart, tmp_path: Path) -> None:
    assert plan(tmp_path, a(words)).services["a"].restart == restart


def test_a_link_is_a_name_for_this_host_alone(tmp_path: Path) -> None:
    made = plan(tmp_path, a("links: ['b:bee', c]"))
    mine, other, third = made.hosts
    assert mine.extra_hosts == (("bee", other.interfaces[0].plain[0]),)
    assert (other.extra_hosts, third.extra_hosts) == ((), ())
    assert list(made.services)[-1] == "a", "it starts after what it links"


def test_udp_and_ranged_ports(tmp_path: Path) -> None:
    made = plan(tmp_path, a("ports: ['5300:53/udp', '5300:53/tcp', '6000-6001:60-61/udp', '7000-7009:70']"))
    known = [(port.port, port.last, port.target, port.protocol) for port in made.services["a"].published]
    assert known == [
        (5300, 0, 53, "udp"),
        (5300, 0, 53, "tcp"),
        (6000, 0, 60, "udp"),
        (6001, 0, 61, "udp"),
        (7000, 7009, 70, "tcp"),
    ]


def test_whose_namespaces_a_host_is_in(tmp_path: Path) -> None:
    made = plan(tmp_path, a("network_mode: 'service:b', ipc: 'container:see'"))
    mine = next(host for host in made.hosts if host.name == "a")
    assert (mine.net_of, mine.ipc_of, mine.interfaces, mine.hostname) == ("b", "c", (), "b")
    sent = {host.name: settings.host(made, host, {}) for host in made.hosts}
    assert sent["a"]["hosts_head"] == sent["b"]["hosts_head"]
    assert [sent[name]["shm_of"] for name in "abc"] == ["c", "", "c"]


def test_secrets_and_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "out")
    (tmp_path / "s").write_text("x")
    words = "secrets: [f, {source: e, target: e2, uid: '7', mode: 0400}], configs: [c, {source: c, target: /etc/c}]"
    rest = "secrets: {f: {file: ./s}, e: {environment: WORD}}\nconfigs: {c: {content: text}}\n"
    made = plan(tmp_path, a(words, rest)).services["a"]
    assert made.binds == ((str(tmp_path / "s"), "/run/secrets/f", True),)
    assert made.given == (
        Given("/run/secrets/e2", "out", 0o400, 7, 0),
        Given("/c", "text", 0o444, 0, 0),
        Given("/etc/c", "text", 0o444, 0, 0),
    )


def test_folders_memory_and_name_servers(tmp_path: Path) -> None:
    words = (
        "tmpfs: ['/t:size=1m,noexec', /u], shm_size: 1gb, read_only: true, dns: 192.0.2.1, dns_search: [x.example], "
        "volumes: [{type: tmpfs, target: /v, tmpfs: {size: 4k, mode: 0700}}, './new/one:/n']"
    )
    made = plan(tmp_path, a(words)).services["a"]
    assert made.tmpfs == {"/t": "mode=1777,size=1m,noexec", "/u": "mode=1777", "/v": "mode=700,size=4096"}
    assert (made.shm_bytes, made.read_only) == (1 << 30, True)
    assert made.resolver == "nameserver 192.0.2.1\nsearch x.example\n"
    assert made.new_folders == (str(tmp_path / "new/one"),)
    assert not (tmp_path / "new").exists(), "a plan makes nothing"
    assert plan(tmp_path, a("dns: []")).services["a"].shm_bytes == 64 << 20


def test_the_place_on_a_network(tmp_path: Path) -> None:
    rest = (
        "networks:\n"
        "  n: {ipam: {config: [{subnet: 10.1.0.0/24, ip_range: 10.1.0.64/26, aux_addresses: {x: 10.1.0.64}}]}}\n"
        "  m: {ipam: {config: [{subnet: 10.2.0.0/24}]}}\n"
    )
    words = "networks: {n: {interface_name: lan7, mac_address: '02:00:00:00:00:0A', priority: 5}, m: {gw_priority: 1}}"
    mine = plan(tmp_path, a(words, rest)).hosts[0]
    assert next((end.name, end.mac, end.plain) for end in mine.interfaces) == (
        "lan7",
        "02:00:00:00:00:0a",
        ("10.1.0.65",),
    )
    assert mine.routes == (("0.0.0.0/0", "10.2.0.1"),)


def test_what_is_not_kept_is_told(tmp_path: Path) -> None:
    rest = "networks: {out: {external: true}}\nvolumes: {v: {external: true}}\n"
    words = "mem_limit: 1g, deploy: {resources: {limits: {cpus: '1'}}}, networks: [out], volumes: ['v1:/x']"
    made = plan(tmp_path, a(words, rest.replace("{v:", "{v1:")))
    assert made.notes == (
        "not kept in a local lab: `mem_limit:` of a",
        "not kept in a local lab: `deploy: resources` of a",
        "network 'out' is external: in a local lab it is the lab's own, and nobody else is on it",
        "volume 'v1' is external: in a local lab it is an empty folder of the lab's own",
    )


def test_host_gateway_is_the_gateway(tmp_path: Path) -> None:
    mine = plan(tmp_path, a("extra_hosts: ['host.docker.internal:host-gateway']")).hosts[0]
    assert mine.extra_hosts == (("host.docker.internal", "172.18.0.1"),)


REFUSED = {
    "volumes: ['/var/run/docker.sock:/var/run/docker.sock']": "is an engine's socket: a local lab gives no host",
    "volumes: [{type: bind, source: /run/podman/podman.sock, target: /s}]": "is an engine's socket",
    "restart: sometimes": "restart: 'sometimes': write no, always, unless-stopped, on-failure or on-failure:3",
    "restart: 'always:3'": "restart: 'always:3': write",
    "network_mode: host": "a host of a local lab has a network of its own, or that of a service; write `networks:`",
    "network_mode: 'service:d'": "`network_mode: service:d`: unknown; known: b, c",
    "network_mode: 'container:d'": "no service of this file has this `container_name:`",
    "network_mode: 'service:b', ports: ['80:80']": "its network is another service's; publish the port there",
    "ipc: host": "`ipc: host`: a host of a local lab has an IPC namespace of its own",
    "links: [bb]": "'bb': unknown; did you mean 'b'?",
    "secrets: [s]": "secret 's': unknown",
    "configs: [c]": "config 'c': unknown",
    "external_links: [x]": "a local lab has no container of another stack",
    "shm_size: big": "shm_size: 'big': is no size; write 64m or 1gb",
    "privileged: true": "name the ones needed under `cap_add:`",
}


@pytest.mark.parametrize("words", REFUSED)
def test_one_clear_line_and_everything_else_is_read(words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidComposeError) as refused:
        plan(tmp_path, a(f"{words}, user: '9999999999'"))
    lines = [line for line in str(refused.value).splitlines() if "9999999999" not in line]
    assert len(lines) == 1, lines
    assert REFUSED[words] in lines[0]
    assert len(str(refused.value).splitlines()) == 2, "the rest is checked all the same"


def test_secrets_that_cannot_be_given(tmp_path: Path) -> None:
    rest = "secrets: {e: {environment: NOT_SET_HERE}, x: {external: true}, f: {file: ./none}, c: {content: y}}\n"
    for words, part in {
        "secrets: [e]": "variable NOT_SET_HERE is not set",
        "secrets: [x]": "secret 'x' is external",
        "secrets: [f]": "/none does not exist",
        "secrets: [c], read_only: true": "give it a `file:`",
    }.items():
        with pytest.raises(InvalidComposeError, match=part):
            plan(tmp_path, a(words, rest))


def test_datagrams_are_relayed_for_each_client() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as published,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for end in (published, host, one, other):
            end.bind(("127.0.0.1", 0))
            end.settimeout(10)
        relayed = published.dup()
        threading.Thread(target=relay.serve, args=[[(relayed, host.getsockname())]], daemon=True).start()
        senders = set()
        for client in (one, other, one):
            client.sendto(b"question", published.getsockname())
            question, sender = host.recvfrom(100)
            senders.add(sender)
            host.sendto(question + b" answered", sender)
            assert client.recv(100) == b"question answered"
        assert len(senders) == 2


def test_every_word_that_is_kept_or_not_stands_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/howto/no-root.md").read_text("utf-8")
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`\n]+`", text))))
    kept = servicekeys.HONOURED - {"image", "build", "x-testbed", "mac_address", "deploy"}
    assert kept - words == set()
    assert {"mem_limit", "cpus", "pids_limit", "security_opt", "runtime", "gpus"} <= hostkeys.NOT_KEPT & words
