"""The other fields of netem on a real kernel: requested, read back, and seen by datagrams.

Counts are judged by 5 σ of the binomial distribution: one honest seed in a million falls outside.
"""

from __future__ import annotations

import itertools
import json
import math

import pytest

from testbed import Lab
from testbed.judge import statistics as exact
from testbed.spec.impairment import Impairment
from tests.exact import two_sided
from tests.lab.conftest import Datagrams, await_quiet

BELOW_THE_LAB = True


def five_sigma(count: int, share: float) -> tuple[float, float]:
    """The counts of successes within five standard deviations of the mean."""
    mean, reach = count * share, 5 * math.sqrt(count * share * (1 - share))
    return mean - reach, mean + reach


@pytest.fixture
def quiet(datagrams: Datagrams) -> Datagrams:
    """Datagrams on a link that carries nothing else."""
    await_quiet(datagrams.src, datagrams.dst)
    return datagrams


def bursts(numbers: list[int], count: int) -> list[int]:
    """Lengths of the runs of missing numbers."""
    here = set(numbers)
    return [len(list(run)) for missing, run in itertools.groupby(range(count), lambda n: n not in here) if missing]


@pytest.mark.parametrize("burst", [3, 8])
def test_losses_come_in_bursts_of_the_mean_length_asked(lab: Lab, quiet: Datagrams, burst: int) -> None:
    count, loss = 1500, 0.2
    lab.link("client -> server").impair(loss="20%", burst=burst, seed=11)
    lost = bursts(quiet.arrived(count, pace_s=0.001), count)
    # Bursts are geometric with mean B: σ = √(B (B - 1)); about count·loss/B of them are seen.
    mean, reach = sum(lost) / len(lost), 5 * math.sqrt(burst * (burst - 1) / (count * loss / burst))
    assert abs(mean - burst) <= reach
    assert mean > 1 / (1 - loss) + 0.5, "independent losses would come 1.25 in a row"
    # A Markov chain's counts spread (1 + ρ)/(1 - ρ) times the binomial variance, with ρ = 1 - p - r.
    p, r = loss / (burst * (1 - loss)), 1 / burst
    spread = math.sqrt(count * loss * (1 - loss) * (2 - p - r) / (p + r))
    assert abs(sum(lost) - count * loss) <= 5 * spread


def test_four_states_lose_and_are_read_back(lab: Lab, quiet: Datagrams) -> None:
    applied = lab.link("client -> server").impair(loss_state="5% 50% 0% 0% 0%", seed=3)
    assert applied.kernel["options"]["loss-state"]["p13"] == pytest.approx(0.05)
    # In state 3 everything is lost: p13/(p13 + p31) of the time, 1/11 of 800.
    assert 20 <= 800 - len(quiet.arrived(800, pace_s=0.001)) <= 140


def test_duplicates_arrive_twice(lab: Lab, quiet: Datagrams) -> None:
    lab.link("client -> server").impair(duplicate="20%", seed=5)
    numbers = quiet.arrived(400, pace_s=0.001)
    twice = len(numbers) - len(set(numbers))
    low, high = five_sigma(400, 0.2)
    assert low <= twice <= high
    assert sorted(set(numbers)) == list(range(400)), "nothing is lost"


def test_reordered_packets_overtake(lab: Lab, quiet: Datagrams) -> None:
    lab.link("client -> server").impair(delay="15ms", reorder="20%", seed=5)
    numbers = quiet.arrived(400)
    late = sum(number < highest for number, highest in zip(numbers, itertools.accumulate(numbers, max), strict=True))
    assert late >= 400 * 0.2, "each that skips 15 ms overtakes up to seven that are 2 ms apart"
    lab.link("client -> server").impair(delay="15ms")
    assert quiet.arrived(200) == list(range(200)), "a field that is no longer asked is gone"


def test_a_gap_lets_only_every_fifth_overtake(lab: Lab, quiet: Datagrams) -> None:
    lab.link("client -> server").impair(delay="15ms", reorder="100%", gap=5)
    numbers = quiet.arrived(100)
    overtakers = {number for place, number in enumerate(numbers) if number > min(numbers[place:], default=0)}
    assert 15 <= len(overtakers) <= 21
    assert len({number % 5 for number in overtakers}) == 1, "each fifth, and no other"


def test_corrupt_packets_are_dropped_by_their_checksum(lab: Lab, quiet: Datagrams) -> None:
    link = lab.link("client -> server")
    before = lab.host("server").counters()
    link.impair(corrupt="20%", seed=5)
    lost = 400 - len(set(quiet.arrived(400, pace_s=0.001)) & set(range(400)))
    after = lab.host("server").counters()
    # A bit flipped in the sender's hardware address (6 of some 45 bytes) harms nobody.
    low, high = five_sigma(400, 0.2 * 0.7)[0], five_sigma(400, 0.2)[1]
    assert low <= lost <= high
    assert link.counters().dropped_packets == 0, "netem has dropped nothing"
    refusals = (("Udp", "InCsumErrors"), ("Ip", "InHdrErrors"))
    checksums = sum(after[group][key] - before[group][key] for group, key in refusals)
    assert checksums >= lost / 3, "most were refused by the receiver's kernel"


_MARKED = """
import json, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
s.bind(("", 9001)); print("ready", flush=True)
marks = []
for _ in range(50):
    _, ancillary, _, _ = s.recvmsg(99, 99)
    marks.append(ancillary[0][2][0] & 3)
print(json.dumps(marks))
"""
_CAPABLE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
for _ in range(50): s.sendto(b"x", (sys.argv[1], 9001))
"""


def test_ecn_marks_what_would_be_lost(lab: Lab) -> None:
    server, client = lab.hosts["server"], lab.hosts["client"]
    lab.link("client -> server").impair(loss="40%", ecn=True, seed=5)
    receiver = server.start(["python3", "-c", _MARKED], ready="ready")
    assert client.run(["python3", "-c", _CAPABLE, server.addresses()[0]]).ok
    marks = json.loads(receiver.wait().stdout.splitlines()[1])
    assert len(marks) == 50, "nothing is lost"
    low, high = five_sigma(50, 0.4)
    assert low <= marks.count(3) <= high
    assert set(marks) == {2, 3}  # RFC 3168: ECT(0), and CE for congestion experienced


def test_overhead_counts_toward_the_rate(lab: Lab, datagrams: Datagrams) -> None:
    # 43 bytes on the wire and 100 on top: 1144 bits, so 57.2 ms at 20 kbit/s.
    lab.link("client -> server").impair(rate="20kbit", overhead=100)
    assert min(datagrams.round_trips(5)) >= (43 + 100) * 8 / 20_000


@pytest.mark.parametrize("bad", [0.6, 1.0])
def test_the_losses_of_each_state_of_gilbert_elliott_are_those_asked(lab: Lab, quiet: Datagrams, bad: float) -> None:
    # p and r of 100 %: good and bad take turns, packet by packet, and the first finds it good. So each other packet is
    # lost with 1-k, those between with 1-h, each drawn for itself.
    count, good = 1000, 0.1
    lab.link("client -> server").impair(gemodel=f"100% 100% {bad:.0%} {good:.0%}", seed=11)
    arrived = set(quiet.arrived(count, pace_s=0.001))
    turns = [[number not in arrived for number in range(first, count, 2)] for first in (0, 1)]
    for lost, share in zip(map(sum, turns), (good, bad), strict=True):
        first, last = exact.accepted(count // 2, share)
        assert first <= lost <= last
        first, last = exact.accepted(count // 2, (good + bad) / 2)
        assert not first <= lost <= last, "one loss for both states would be told from it"


def test_a_delay_is_drawn_toward_the_one_before_it_as_far_as_is_told(lab: Lab, datagrams: Datagrams) -> None:
    await_quiet(datagrams.src, datagrams.dst)
    link, pairs = lab.link("client -> server"), 250

    def alike(correlation: str) -> int:
        """Number of pairs of neighbours, of disjoint pairs, that lie on the same side of the median."""
        link.impair(delay="40ms", jitter="15ms", correlation=correlation, reorder_by_jitter=True, seed=7)
        flight = lab.prober.fly(link.ref, count=2 * pairs, pace_s=0.002, size_bytes=64, quiet_s=0.5)
        late = [flight.delays_s[number] > 0.04 for number in range(2 * pairs)]
        return sum(one == other for one, other in zip(late[::2], late[1::2], strict=True))

    # Drawn for themselves, half of the pairs are alike.
    assert two_sided(alike("0%"), pairs, 0.5) > 1e-6
    # With 99.9 % a delay moves on by at most 7 % of the range: 93 of 100 pairs are alike.
    assert exact.at_least(alike("99.9%"), pairs, 0.5) < 1e-6
    # And with 80 % by more than the whole of it, as netem reckons: the tool says so, and this is whether it is true.
    assert two_sided(alike("80%"), pairs, 0.5) > 1e-6
    (problem,) = Impairment.parse({"delay": "40ms", "jitter": "15ms", "correlation": "80%"}).realised
    assert "resembles the one before it only above" in problem


def test_everything_at_once_is_read_back(lab: Lab) -> None:
    applied = lab.link("server -> client").impair(
        delay="40ms", jitter="5ms", correlation="25%", distribution="paretonormal", gemodel="1% 25% 90% 0.1%", ecn=True,
        duplicate="1%", reorder="10%", gap=5, corrupt="0.5%", rate="10mbit", overhead=-4, limit=1234, seed=2**63,
    )  # fmt: skip
    assert applied.kernel["options"]["loss-gemodel"]["1-h"] == pytest.approx(0.9)
    # … and taken back field by field.
    applied = lab.link("server -> client").impair(delay="40ms")
    kernel = applied.kernel["options"]
    assert {name for name in kernel if isinstance(kernel[name], dict)} == {"delay"}
    assert (kernel["gap"], kernel["ecn"]) == (0, False)


def test_every_profile_is_held_by_the_kernel(lab: Lab) -> None:
    for name in lab.profiles:
        assert len(lab.impair("client <-> server", name)) == 2, name
        lab.verifier.verify()
    assert len(lab.profiles) >= 31
