"""Five seconds without a link between a pool and its database: nothing fails, and all of it waits for longer."""

import re

OUTAGE_S = 5.0


def test_transactions_wait_for_the_end_of_an_outage(lab):
    pgbench = ["pgbench", "--host=pool", "--port=6432", "--username=postgres"]
    assert lab.host("client").run([*pgbench, "--initialize", "--quiet", "postgres"], timeout="60s").ok
    lab.impair("pool <-> db", [{"delay": "2ms"}, {"at": "2s", "outage": f"{OUTAGE_S}s"}])
    done = lab.host("client").run([*pgbench, "--client=4", "--time=12", "--progress=1", "postgres"], timeout="60s")
    assert done.ok, done.stderr
    seconds = re.findall(r"^progress: .* s, ([\d.]+) tps, .*, (\d+) failed", done.stderr, re.MULTILINE)
    lab.record("transactions", [float(tps) for tps, _ in seconds], unit="1/s", better="higher")
    still = sum(tps == "0.0" for tps, _ in seconds)
    lab.record("seconds without a transaction", still, unit="s", better="lower")
    assert sum(int(failed) for _, failed in seconds) == 0, "the pool and TCP kept every connection"
    # TCP asks again after 0.2, 0.4, 0.8 … seconds: the first time after the outage is up to as late as it was long.
    assert OUTAGE_S - 2 <= still <= 2 * OUTAGE_S
    assert float(seconds[-1][0]) > 0, "they go on"
