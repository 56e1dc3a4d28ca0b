"""A subscriber is cut off for longer than its keep-alive: what was published meanwhile waits for it, or is lost."""

import pytest
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

MISSED = 10


def wait_until(condition):
    """Wait until it is true; fail after a minute."""
    Retrying(retry=retry_if_result(lambda met: not met), stop=stop_after_delay(60), wait=wait_fixed(0.1))(condition)


def publish(lab, qos, *messages):
    for message in messages:
        done = lab.host("sensor").run(["mosquitto_pub", "-h", "broker", "-q", qos, "-t", "level", "-m", message])
        assert done.ok, done.stderr


@pytest.mark.impair("broker <-> display", delay="5ms")
@pytest.mark.parametrize(("qos", "delivered"), [("1", MISSED), ("0", 0)], ids=["QoS 1", "QoS 0"])
def test_what_was_missed(lab, qos, delivered):
    name = f"display-{qos}"
    subscribe = ["mosquitto_sub", "-h", "broker", "-i", name, "-c", "-k", "5", "-q", qos, "-t", "level"]
    display = lab.host("display").start(subscribe)
    wait_until(lambda: f"as {name} " in lab.host("broker").logs())
    publish(lab, qos, "first")
    wait_until(lambda: "first" in display.output)
    lab.cut("broker <-> display")
    wait_until(lambda: f"{name} has exceeded timeout" in lab.host("broker").logs())
    publish(lab, qos, *map(str, range(MISSED)))
    lab.mend()
    wait_until(lambda: lab.host("broker").logs().count(f"as {name} ") > 1)
    publish(lab, qos, "last")
    wait_until(lambda: "last" in display.output)
    received = display.output.split()
    lab.record("delivered", len(received) - 2, unit="", better="higher")
    assert len(received) - 2 == delivered, received
