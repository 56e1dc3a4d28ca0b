"""A store of three nodes under partition, and a checker: is each write that was acknowledged still there?"""

import pytest
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

WRITES = 20


def wait_until(condition):
    """Wait until it is true; fail after 30 s."""
    Retrying(retry=retry_if_result(lambda met: not met), stop=stop_after_delay(30), wait=wait_fixed(0.1))(condition)


def redis(lab, node, *command):
    """What a node answers to whoever sits beside it."""
    return lab.host(node).run(["redis-cli", *command]).stdout


def write(lab, node, keys):
    """Write keys from the client; return those that the node acknowledged."""
    answers = {key: lab.host("client").run(["redis-cli", "-h", node, "set", key, "1"]).stdout for key in keys}
    return {key for key, answer in answers.items() if answer == "OK\n"}


def follow(lab, primary, *replicas):
    """Make these nodes replicas of that one."""
    for node in replicas:
        redis(lab, node, "replicaof", primary, "6379")
    for node in replicas:
        wait_until(lambda node=node: "master_link_status:up" in redis(lab, node, "info", "replication"))


@pytest.mark.impair("a <-> b", delay="2ms")
@pytest.mark.impair("a <-> c", delay="2ms")
@pytest.mark.parametrize("replicas_to_write", [0, 1], ids="min-replicas-to-write {}".format)
def test_acknowledged_writes_survive_a_failover(lab, replicas_to_write):
    redis(lab, "a", "replicaof", "no", "one")
    redis(lab, "a", "flushall")
    redis(lab, "a", "config", "set", "min-replicas-to-write", "0")
    follow(lab, "a", "b", "c")
    redis(lab, "a", "config", "set", "min-replicas-max-lag", "2")
    redis(lab, "a", "config", "set", "min-replicas-to-write", str(replicas_to_write))
    assert len(write(lab, "a", [f"before-{n}" for n in range(WRITES)])) == WRITES
    wait_until(lambda: redis(lab, "b", "dbsize") == f"{WRITES}\n" == redis(lab, "c", "dbsize"))

    lab.partition({"a", "client"}, {"b", "c"})
    if replicas_to_write:
        wait_until(lambda: "min_slaves_good_slaves:0" in redis(lab, "a", "info", "replication"))
    acknowledged = write(lab, "a", [f"during-{n}" for n in range(WRITES)])
    redis(lab, "b", "replicaof", "no", "one")  # what a failover does on the other side
    lab.mend()
    follow(lab, "b", "a", "c")

    lost = acknowledged - set(redis(lab, "b", "keys", "*").split())
    lab.record("acknowledged, and lost", len(lost), unit="", better="lower")
    assert len(lost) == (0 if replicas_to_write else WRITES), "asynchronous replicas have not heard of them"
