"""The kernel's counters of one host during a test: the difference of two readings.

The names are the kernel's own (net/ipv4/proc.c; Documentation/networking/snmp_counter.rst). Each counts events
on that host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Readings = Mapping[str, Mapping[str, int]]

# Levels and constants: their difference has no meaning.
_LEVELS = {
    "Ip": {"Forwarding", "DefaultTTL"},
    "Tcp": {"RtoAlgorithm", "RtoMin", "RtoMax", "MaxConn", "CurrEstab"},
    "MPTcpExt": {"MPCurrEstab"},
}
_SOCKETS = "sockets "


@dataclass(frozen=True)
class Counters:
    """What a host's kernel counted between two readings; a counter that this kernel does not know is 0.

    ``counters["TcpExt", "TCPTimeouts"]`` for any of them, and a name for those that matter most.
    """

    changes: Readings
    """By group and name; only counters."""
    levels: Readings
    """Levels at the second reading, such as ``levels["sockets TCP"]["inuse"]``."""

    @classmethod
    def between(cls, before: Readings, after: Readings) -> Counters:
        """From two readings of one host. Raises ValueError if a counter decreased: the host was started again."""
        changes: dict[str, dict[str, int]] = {}
        levels: dict[str, dict[str, int]] = {}
        for group, readings in after.items():
            for name, value in readings.items():
                if group.startswith(_SOCKETS) or name in _LEVELS.get(group, ()):
                    levels.setdefault(group, {})[name] = value
                    continue
                change = value - before.get(group, {}).get(name, 0)
                if change < 0:
                    raise ValueError(
                        f"{group} {name} went from {before[group][name]} to {value}: the host was started again "
                        f"between the two readings, which cannot be compared"
                    )
                changes.setdefault(group, {})[name] = change
        return cls(changes=changes, levels=levels)

    def __getitem__(self, key: tuple[str, str]) -> int:
        group, name = key
        return self.changes.get(group, {}).get(name, 0)

    # --- TCP: sessions ---------------------------------------------------------------------------

    @property
    def connections_opened(self) -> int:
        """Connections that this host began: ActiveOpens (RFC 4022)."""
        return self["Tcp", "ActiveOpens"]

    @property
    def connections_accepted(self) -> int:
        """Connections that began at the other side: PassiveOpens (RFC 4022)."""
        return self["Tcp", "PassiveOpens"]

    @property
    def connections_failed(self) -> int:
        """Connections given up before they were established: AttemptFails (RFC 4022)."""
        return self["Tcp", "AttemptFails"]

    @property
    def resets_sent(self) -> int:
        """RST segments that this host sent: OutRsts (RFC 4022)."""
        return self["Tcp", "OutRsts"]

    @property
    def established_resets(self) -> int:
        """Established connections that ended by a reset, either side's: EstabResets (RFC 4022)."""
        return self["Tcp", "EstabResets"]

    @property
    def aborts_on_data(self) -> int:
        """Sockets whose program was gone, or wanted no lingering, when data came; they reset: TCPAbortOnData."""
        return self["TcpExt", "TCPAbortOnData"]

    @property
    def aborts_on_close(self) -> int:
        """Sockets that their program closed with unread data in them, which resets: TCPAbortOnClose (RFC 2525 2.17)."""
        return self["TcpExt", "TCPAbortOnClose"]

    @property
    def aborts_on_timeout(self) -> int:
        """Connections given up after too many retransmissions or probes: TCPAbortOnTimeout."""
        return self["TcpExt", "TCPAbortOnTimeout"]

    # --- TCP: loss and its repair ----------------------------------------------------------------

    @property
    def segments_sent(self) -> int:
        """Segments sent, retransmissions left out: OutSegs (RFC 4022)."""
        return self["Tcp", "OutSegs"]

    @property
    def retransmitted_segments(self) -> int:
        """Segments sent again, SYNs included: RetransSegs (RFC 4022)."""
        return self["Tcp", "RetransSegs"]

    @property
    def timeouts(self) -> int:
        """Retransmission time-outs (RFC 6298): TCPTimeouts."""
        return self["TcpExt", "TCPTimeouts"]

    @property
    def syn_retransmissions(self) -> int:
        """SYN or SYN-ACK segments sent again: TCPSynRetrans."""
        return self["TcpExt", "TCPSynRetrans"]

    @property
    def fast_retransmissions(self) -> int:
        """Retransmissions on evidence of loss rather than a time-out (RFC 5681, 8985): TCPFastRetrans."""
        return self["TcpExt", "TCPFastRetrans"]

    @property
    def loss_probes(self) -> int:
        """Tail loss probes sent (RFC 8985 section 7): TCPLossProbes."""
        return self["TcpExt", "TCPLossProbes"]

    @property
    def loss_probes_that_repaired(self) -> int:
        """Tail losses that a probe repaired: TCPLossProbeRecovery."""
        return self["TcpExt", "TCPLossProbeRecovery"]

    @property
    def out_of_order_segments(self) -> int:
        """Segments that this host kept for later because an earlier one was missing: TCPOFOQueue."""
        return self["TcpExt", "TCPOFOQueue"]

    @property
    def spurious_retransmissions(self) -> int:
        """Retransmissions that the receiver reported to have had already (DSACK, RFC 2883): TCPDSACKRecv."""
        return self["TcpExt", "TCPDSACKRecv"]

    @property
    def checksum_errors(self) -> int:
        """TCP and UDP packets with a wrong checksum: InCsumErrors of both."""
        return self["Tcp", "InCsumErrors"] + self["Udp", "InCsumErrors"]

    # --- TCP: a receiver that cannot keep up -----------------------------------------------------

    @property
    def listen_overflows(self) -> int:
        """Connections refused because a listener's queue was full: ListenOverflows."""
        return self["TcpExt", "ListenOverflows"]

    @property
    def listen_drops(self) -> int:
        """SYNs and completing ACKs that a listener dropped, for any reason: ListenDrops."""
        return self["TcpExt", "ListenDrops"]

    @property
    def zero_windows_announced(self) -> int:
        """Times that this host's announced window went to zero: TCPToZeroWindowAdv."""
        return self["TcpExt", "TCPToZeroWindowAdv"]

    @property
    def windows_reopened(self) -> int:
        """Times that its window opened again: TCPFromZeroWindowAdv."""
        return self["TcpExt", "TCPFromZeroWindowAdv"]

    @property
    def window_probes(self) -> int:
        """Zero-window probes sent (RFC 9293 section 3.8.6.1): TCPWinProbe."""
        return self["TcpExt", "TCPWinProbe"]

    @property
    def pruned(self) -> int:
        """Times that a receive queue was collapsed or pruned for want of memory: PruneCalled."""
        return self["TcpExt", "PruneCalled"]

    @property
    def receive_queue_drops(self) -> int:
        """Segments dropped for want of room in a socket's receive buffer: TCPRcvQDrop and TCPZeroWindowDrop."""
        return self["TcpExt", "TCPRcvQDrop"] + self["TcpExt", "TCPZeroWindowDrop"]

    # --- UDP -------------------------------------------------------------------------------------

    @property
    def datagrams_sent(self) -> int:
        """UDP datagrams sent: OutDatagrams (RFC 4113)."""
        return self["Udp", "OutDatagrams"]

    @property
    def datagrams_delivered(self) -> int:
        """UDP datagrams that a program got, or can: InDatagrams (RFC 4113)."""
        return self["Udp", "InDatagrams"]

    @property
    def receive_buffer_errors(self) -> int:
        """UDP datagrams dropped because the socket's receive buffer was full: RcvbufErrors, over IPv4 and IPv6.

        The network delivered them: this is the host's loss.
        """
        return self["Udp", "RcvbufErrors"] + self["Udp6", "RcvbufErrors"]

    @property
    def datagrams_to_nobody(self) -> int:
        """UDP datagrams for a port that nobody listened on: NoPorts (RFC 4113)."""
        return self["Udp", "NoPorts"]
