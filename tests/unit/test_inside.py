"""What the agent reads in a host's network namespace: here in our own, and in files written by hand."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.agent import inside, offloads
from testbed.agent.protocol import Refused


@pytest.fixture
def unheard() -> Iterator[socket.socket]:
    """A TCP socket that has a port and does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /proc/net."""
    monkeypatch.setattr(inside, "Path", lambda path: tmp_path / Path(path).name)
    return tmp_path


# --- counters --------------------------------------------------------------------------------------

SNMP = """\
Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 12
Tcp: RtoAlgorithm MaxConn RetransSegs
Tcp: 1 -1 3
"""
NETSTAT = """\
TcpExt: SyncookiesSent TCPTimeouts
TcpExt: 0 18446744073709551615
Tcp: Invented
Tcp: 5
"""


def test_counters_are_read_group_by_group_from_both_files(proc: Path) -> None:
    (proc / "snmp").write_text(SNMP)
    (proc / "netstat").write_text(NETSTAT)
    assert inside.counters() == {
        "Ip": {"Forwarding": 1, "DefaultTTL": 64, "InReceives": 12},
        "Tcp": {"RtoAlgorithm": 1, "MaxConn": -1, "RetransSegs": 3, "Invented": 5},
        "TcpExt": {"SyncookiesSent": 0, "TCPTimeouts": 2**64 - 1},
    }


@pytest.mark.parametrize("snmp", ["Ip: A B\n", "Ip: A B\nIp: 1\n", "Ip: A\nIp: 1 2\n", "Ip: A\nIp: x\n"])
def test_a_table_that_does_not_fit_together_is_not_guessed_at(proc: Path, snmp: str) -> None:
    (proc / "snmp").write_text(snmp)
    (proc / "netstat").write_text("")
    with pytest.raises(ValueError, match=r"argument|invalid literal"):
        inside.counters()


def test_this_kernel_counts_a_connection(unheard: socket.socket) -> None:
    before = inside.counters()["Tcp"]["ActiveOpens"]
    unheard.listen()
    with socket.create_connection(unheard.getsockname()):
        assert inside.counters()["Tcp"]["ActiveOpens"] > before


# --- listeners -------------------------------------------------------------------------------------


def test_a_socket_that_listens_is_seen_at_once(unheard: socket.socket) -> None:
    unheard.listen()
    port = unheard.getsockname()[1]
    seen = inside.await_listener(port=port, deadline_s=0)
    assert seen["listening"] is True
    assert port in seen["ports"]


def test_a_socket_that_is_bound_alone_does_not_listen_and_the_others_are_told(unheard: socket.socket) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        seen = inside.await_listener(port=unheard.getsockname()[1], deadline_s=0)
        assert seen["listening"] is False
        assert other.getsockname()[1] in seen["ports"]
        assert seen["ports"] == sorted(seen["ports"])


def test_a_connection_to_a_port_is_no_listener_on_it(unheard: socket.socket) -> None:
    unheard.listen()
    address = unheard.getsockname()
    with socket.create_connection(address):
        served, _ = unheard.accept()
        with served:
            unheard.close()
            assert not inside.await_listener(port=address[1], deadline_s=0)["listening"]


def test_a_listener_that_comes_later_is_awaited(unheard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def meanwhile(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            unheard.listen()

    monkeypatch.setattr(time, "sleep", meanwhile)
    assert inside.await_listener(port=unheard.getsockname()[1], deadline_s=60)["listening"]
    assert len(pauses) == 2


# net/ipv4/tcp_ipv4.c and net/ipv6/tcp_ipv6.c: number, local, remote, state (0A listens, 01 is established).
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000
   1: 0100007F:0050 00000000:0000 01 00000000:00000000
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


def test_listeners_of_both_families_are_read(proc: Path) -> None:
    (proc / "tcp").write_text(TCP)
    (proc / "tcp6").write_text(TCP6)
    assert inside.await_listener(port=443, deadline_s=0) == {"listening": True, "ports": [443, 8080]}


def test_a_kernel_without_ipv6_is_read_too(proc: Path) -> None:
    (proc / "tcp").write_text(TCP)
    assert inside.await_listener(port=443, deadline_s=0) == {"listening": False, "ports": [8080]}


# --- interfaces ------------------------------------------------------------------------------------


def test_every_interface_with_a_peer_is_told_but_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, index in (("lo", 1), ("eth1", 9), ("eth0", 7)):
        (tmp_path / name).mkdir()
        files = {"ifindex": index, "iflink": index + 1, "address": f"02:42:ac:12:00:0{index}", "mtu": 1500}
        for file, content in files.items():
            (tmp_path / name / file).write_text(f"{content}\n")
    (tmp_path / "bonding_masters").write_text("")
    monkeypatch.setattr(inside, "SYS_NET", tmp_path)
    (tmp_path / "if_inet6").write_text(
        "fe80000000000000004212fffe000007 07 40 20 80     eth0\n"
        "fd000000000000000000000000000002 07 40 00 80     eth0\n"
        "fe80000000000000004212fffe000001 01 40 20 80       lo\n"
    )
    monkeypatch.setattr(inside, "IF_INET6", tmp_path / "if_inet6")
    assert inside.interfaces() == [
        {
            "name": "eth0",
            "ifindex": 7,
            "peer_ifindex": 8,
            "mac": "02:42:ac:12:00:07",
            "mtu": 1500,
            "link_local": ["fe80::42:12ff:fe00:7"],
        },
        {"name": "eth1", "ifindex": 9, "peer_ifindex": 10, "mac": "02:42:ac:12:00:09", "mtu": 1500, "link_local": []},
    ]


# --- offloads --------------------------------------------------------------------------------------


class Ethtool:
    """A kernel's offloads of one interface, by the numbers of linux/ethtool.h."""

    def __init__(self) -> None:
        self.on = {"tso": True, "gso": True, "gro": False}
        self.stay: set[str] = set()

    def ioctl(self, _control: object, interface: str, command: int, wanted: int = 0) -> int:
        """Ask or set."""
        if interface != "eth0":
            raise OSError(errno.ENODEV, "No such device")
        name = {0x1E: "tso", 0x1F: "tso", 0x23: "gso", 0x24: "gso", 0x2B: "gro", 0x2C: "gro"}[command]
        if command in (0x1F, 0x24, 0x2C) and name not in self.stay:
            self.on[name] = bool(wanted)
        return int(self.on[name])


@pytest.fixture
def ethtool(monkeypatch: pytest.MonkeyPatch) -> Ethtool:
    kernel = Ethtool()
    monkeypatch.setattr(offloads, "ethtool", kernel.ioctl)
    return kernel


def test_the_three_offloads_are_switched_off_and_put_back_as_they_were(ethtool: Ethtool) -> None:
    before = inside.per_packet(interface="eth0")
    assert before == {"tso": True, "gso": True, "gro": False}
    assert not any(ethtool.on.values())
    assert inside.put_back(interface="eth0", offloads_were=before) == before == ethtool.on


def test_offloads_that_stay_on_are_refused_by_name(ethtool: Ethtool) -> None:
    ethtool.on["gro"], ethtool.stay = True, {"tso", "gro"}
    with pytest.raises(Refused, match=r"^offloads of eth0 stay on: tso, gro$"):
        inside.per_packet(interface="eth0")


def test_an_interface_without_offloads_is_named(ethtool: Ethtool) -> None:
    assert ethtool.on
    with pytest.raises(Refused, match=r"^offloads of eth9: No such device$"):
        inside.per_packet(interface="eth9")


def test_a_connection_is_told_by_the_kernels_table_and_one_in_time_wait_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   0: 0200A8C0:9108 0300A8C0:22B8 04 00000005:00000000 01:000004F1 00000003     0        0 0\n"
        "   1: 0200A8C0:9109 0300A8C0:22B8 06 00000000:00000000 03:00001443 00000000     0        0 0\n"
        "   2: 00000000:22B8 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 0\n"
    )
    monkeypatch.setattr(inside, "Path", lambda path: table if path == "/proc/net/tcp" else tmp_path / "none")
    assert inside.connections() == [
        {
            "local_port": 0x9108,
            "remote_port": 8888,
            "state": "FIN-WAIT-1",
            "send_queue_bytes": 5,
            "receive_queue_bytes": 0,
            "retransmits": 3,
        }
    ]
