"""Slots, token buckets, the user's own tables, packets lost by number: requested, read back, and seen by datagrams."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from testbed import ComposeLab, ImpairmentNotAppliedError, InvalidValueError
from testbed.lab.ports import Port
from testbed.netem import qdisc
from testbed.spec.impairment import Impairment
from tests.lab.conftest import Datagrams, await_quiet

BELOW_THE_LAB = True

LINK = "client -> server"


@pytest.fixture
def quiet(datagrams: Datagrams) -> Datagrams:
    """Datagrams on a link that carries nothing else."""
    await_quiet(datagrams.src, datagrams.dst)
    return datagrams


# --- slots -----------------------------------------------------------------------------------------


def test_packets_of_a_slot_leave_together(lab: ComposeLab, quiet: Datagrams) -> None:
    lab.link(LINK).impair(slot="40ms")
    times = quiet.arrival_times_s(200, pace_s=0.002)  # 0.4 s: some ten slots
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == 200
    assert sum(gap >= 0.025 for gap in gaps) >= 6, "these are between slots"
    assert sorted(gaps)[100] < 0.002, "these are within one: closer than they were sent"


def test_a_slot_passes_no_more_packets_than_asked(lab: ComposeLab, quiet: Datagrams) -> None:
    lab.link(LINK).impair(slot="30ms 31ms", slot_packets=5)
    times = quiet.arrival_times_s(100, pace_s=0.001)
    assert len(times) == 100
    assert times[-1] - times[0] >= (100 / 5 - 2) * 0.030  # the first slot may be open already, the last is not full


def test_slots_by_a_distribution_are_read_back(lab: ComposeLab, quiet: Datagrams) -> None:
    applied = lab.link(LINK).impair(slot="normal 20ms 5ms", slot_bytes="3kB", seed=1)
    assert applied.kernel["options"]["slot"] == {"distribution": 0.02, "jitter": 0.005, "packets": 0, "bytes": 3000}
    assert len(quiet.arrived(50)) == 50


# --- token buckets ---------------------------------------------------------------------------------


def test_a_token_bucket_passes_a_burst_and_then_the_rate(lab: ComposeLab, quiet: Datagrams) -> None:
    count, frame = 600, 14 + 20 + 8 + 1  # Ethernet, IPv4, UDP, and at least one digit
    lab.link(LINK).impair(rate="100kbit", bucket="16kB", queue="64kB")
    times = quiet.arrival_times_s(count, pace_s=0.0002)
    assert len(times) == count
    assert times[-1] - times[0] >= (count * frame - 16_000) / 12_500
    # At the rate alone the first 300 would take 1.03 s.
    assert times[299] - times[0] < 0.5 * 300 * frame / 12_500


def test_what_a_token_buckets_queue_cannot_hold_is_lost(lab: ComposeLab, quiet: Datagrams) -> None:
    lab.link(LINK).impair(rate="20kbit", bucket="1600B", queue="2kB")
    # 1600 bytes at once and 2000 that wait are 80 frames of 45; some more leave meanwhile.
    assert 40 <= len(quiet.arrived(400, pace_s=0.0002)) <= 200


def test_a_token_bucket_that_was_taken_away_is_found(lab: ComposeLab) -> None:
    link = lab.link(LINK)
    handle = int(link.impair(delay="1ms", rate="1mbit", bucket="16kB").kernel["handle"].rstrip(":"), 16)
    lab.verifier.verify()
    port = lab.ports.attached("server", "lan")
    line = f"qdisc delete dev {port.device} parent {handle:x}:1 handle {handle | 0x2000:x}:"
    assert port.channel.call("tc", port=port.name, lines=[line])["complaints"] == []
    with pytest.raises(ImpairmentNotAppliedError, match=r"asked bucket 16kB, the kernel reports none"):
        lab.verifier.verify()
    link.heal()


def test_a_token_bucket_is_changed_in_place_and_gone_when_not_asked(lab: ComposeLab) -> None:
    link = lab.link(LINK)
    first = link.impair(rate="1mbit", bucket="16kB").kernel["handle"]
    assert link.impair(rate="2mbit", bucket="32kB", queue="100kB").kernel["handle"] == first
    assert link.impair(rate="2mbit").kernel["handle"] != first
    lab.verifier.verify()


# --- tables ----------------------------------------------------------------------------------------


def test_a_table_of_ones_own_shapes_the_jitter(
    lab: ComposeLab, quiet: Datagrams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "two-ways.dist"
    table.write_text("# one jitter less or one more, and nothing between\n" + "-8192 8192\n" * 64)
    monkeypatch.setattr(type(lab), "tables", {"two-ways.dist": table})
    lab.link(LINK).impair(delay="60ms", jitter="50ms", distribution="two-ways.dist", seed=4)
    times = quiet.round_trips(40)
    short, long = [t for t in times if t < 0.060], [t for t in times if t >= 0.110]
    assert min(times) >= 0.010
    assert min(len(short), len(long)) >= 5
    # Of a uniform jitter half would lie between the two: 20 ± 3 of 40. Here only what this machine was late with.
    assert len(times) - len(short) - len(long) <= 8


def test_a_table_that_is_not_there_is_refused_before_anything_changes(lab: ComposeLab) -> None:
    with pytest.raises(InvalidValueError, match=r"distribution='measured.dist': of the tables in netem/"):
        lab.impair(LINK, delay="5ms", jitter="1ms", distribution="measured.dist")
    assert lab.impairer.impairments() == {}


# --- by number -------------------------------------------------------------------------------------


def missing(numbers: list[int], count: int) -> list[int]:
    """Which did not come, counted from 1 as ``drop_packets`` counts."""
    return sorted(set(range(1, count + 1)) - {number + 1 for number in numbers})


def test_exactly_the_numbered_packets_are_lost_each_time_that_it_is_asked(lab: ComposeLab, quiet: Datagrams) -> None:
    for _time in range(2):
        lab.link(LINK).impair(delay="5ms", drop_packets=[3, "17-20"])
        assert missing(quiet.arrived(100), 100) == [3, 17, 18, 19, 20]
        assert lab.link(LINK).dropped_by_number() == 5
        lab.verifier.verify()
        checks = lab.ledger.evidence[-1].checks
        assert [check.seen for check in checks if check.field == "drop_packets"] == ["5 packets lost"]


def test_every_nth_packet_is_lost(lab: ComposeLab, quiet: Datagrams) -> None:
    lab.link(LINK).impair(drop_every=10, drop_packets="1")
    assert missing(quiet.arrived(45), 45) == [1, 10, 20, 30, 40]


def test_only_packets_of_the_part_that_is_impaired_are_counted(lab: ComposeLab, quiet: Datagrams) -> None:
    lab.impair(f"{LINK} udp/9001", drop_packets=[2])
    assert missing(quiet.arrived(10), 10) == []
    quiet.port = 9001
    assert missing(quiet.arrived(10), 10) == [2]
    lab.heal()
    assert missing(quiet.arrived(10), 10) == []


def test_no_packet_is_lost_by_its_number_any_more_when_that_is_no_longer_asked(
    lab: ComposeLab, quiet: Datagrams
) -> None:
    link = lab.link(LINK)
    link.impair(drop_every=2)
    link.impair(delay="2ms")
    lab.verifier.verify()
    assert missing(quiet.arrived(20), 20) == []
    link.impair(drop_every=2)
    link.heal()
    assert missing(quiet.arrived(20), 20) == []


def test_a_program_that_was_taken_off_or_changed_is_found(lab: ComposeLab) -> None:
    link = lab.link(LINK)

    def taken_off(port: Port) -> list[str]:
        return [qdisc.stop_counting(port.device, 0x10)]

    def another(port: Port) -> list[str]:
        return qdisc.count(port.device, 0x10, lab.impairer.store_count(port, Impairment(drop_every=3)))

    for spoil, seen in ((taken_off, "reports none"), (another, "reports program")):
        link.impair(drop_every=2)
        port = lab.ports.attached("server", "lan")
        assert port.channel.call("tc", port=port.name, lines=spoil(port))["complaints"] == []
        with pytest.raises(ImpairmentNotAppliedError, match=f"asked drop_packets program .*{seen}"):
            lab.verifier.verify()
        link.heal()
