"""More traffic than a line carries fills its queue: how long does everybody else wait?"""

from statistics import median

import pytest

CONNECT = (
    "import socket, time; began = time.monotonic(); "
    "socket.create_connection(('server', 8000)).close(); print(time.monotonic() - began)"
)


def connect_s(lab):
    """How long the laptop takes to connect; the median of five."""
    return median(float(lab.host("laptop").run(["python3", "-c", CONNECT]).stdout) for _ in range(5))


@pytest.mark.impair("server <-> laptop", delay="10ms")
@pytest.mark.parametrize("qdisc", ["fifo", "fq_codel"])
def test_a_connection_beside_other_traffic(lab, qdisc):
    lab.shape("server -> *", rate="8mbit", queue="300kB", qdisc=qdisc)
    idle_s = connect_s(lab)
    with lab.traffic("server -> laptop", udp="12mbit"):
        lab.host("laptop").run(["sleep", "2"])  # until the queue is full
        busy_s = connect_s(lab)
    lab.record("time to connect, line idle", idle_s, unit="s", better="lower")
    lab.record("time to connect, line busy", busy_s, unit="s", better="lower")
    if qdisc == "fifo":
        assert busy_s > 0.2, "300 kB at 8 Mbit/s are 300 ms"
    else:
        assert busy_s < 0.2
