"""Command lines of Pumba, tcconfig and Toxiproxy, as their documentation has them, in testbed's words."""

from __future__ import annotations

import shlex

import pytest
from click.testing import CliRunner

from testbed.commands.cli import cli
from testbed.errors import InvalidValueError
from testbed.netem.imported import TOOLS, Imported

GOOD = [
    (
        "pumba --log-level=info --interval=20s netem --tc-image=ghcr.io/alexei-led/pumba --duration=10s "
        "delay --time=3000 --jitter=20 ping",
        "ping -> *",
        {"delay": "3000ms", "jitter": "20ms", "correlation": "20%"},
        {},
    ),
    (
        "pumba netem --duration 60s delay --distribution pareto --time 3000 --jitter 500 -c 0 db_1",
        "db_1 -> *",
        {"delay": "3000ms", "jitter": "500ms", "distribution": "pareto"},
        {},
    ),
    ("pumba netem -d 1m -ingress-port 80 loss -p 20 api", "api -> * tcp/80", {"loss": "20%"}, {}),
    ("pumba netem -d 1m loss-gemodel --pg 1 --pb 25 api", "api -> *", {"gemodel": "1% 25% 100% 0%"}, {}),
    ("pumba netem -d 1m loss-state --p13 5 api", "api -> *", {"loss_state": "5% 100% 0% 100% 0%"}, {}),
    ("pumba netem -d 1m rate api", "api -> *", {"rate": "100kbit"}, {}),
    (
        "pumba netem -d 1m combine --delay --delay-time 200 --delay-jitter 0 --loss --loss-percent 5 -- api",
        "api -> *",
        {"delay": "200ms", "loss": "5%"},
        {},
    ),
    (
        "tcset eth0 --rate 100Kbps --delay 100ms --loss 0.1%",
        "HOST -> *",
        *({"rate": "100kbit", "delay": "100ms", "loss": "0.1%"}, {}),
    ),
    ("tcset eth0 --delay 10sec", "HOST -> *", {"delay": "10s"}, {}),
    ("tcset eth0 --delay 0.5min", "HOST -> *", {"delay": "0.5min"}, {}),
    ("tcset eth0 --delay 100ms --network 192.168.0.0/24 --port 80", "HOST -> * tcp/80", {"delay": "100ms"}, {}),
    (
        "tcset --docker api --delay 100 --delay-distro 20 --direction incoming",
        "api -> *",
        {},
        {"delay": "100ms", "jitter": "20ms", "distribution": "normal"},
    ),
    (
        "toxiproxy-cli toxic add -t latency -n myToxic -a latency=100 -a jitter=50 myProxy",
        "CLIENT -> myProxy",
        {},
        {"delay": "100ms", "jitter": "50ms"},
    ),
    (
        "toxiproxy-cli toxic add redis --type bandwidth -u --attribute rate=125",
        "CLIENT -> redis",
        {"rate": "1000kbit"},
        {},
    ),
]
WRONG = [
    ("pumba kill api", r'pumba .kill.: not translated; write lab.host\("NAME"\).kill\(\)'),
    ("pumba --random netem -d 1m loss -p 5 api", "random='true': testbed takes no container at random"),
    ("pumba netem -d 1m loss -p 5 -c 25 api", "correlation='25': netem's correlated shares are far"),
    ("pumba netem -d 1m delay re2:api.* -t 100", "'-t': Pumba takes it for a container"),
    ("pumba netem -d 1m delya api", "pumba netem 'delya': unknown; did you mean 'delay'?"),
    ("pumba netem -d 1m loss -p 150 api", r"loss='150%': a percentage lies between"),
    ("pumba netem --dura 1m loss api", "'--dura': unknown; did you mean 'duration'?"),
    ("tcset eth0 --rate fast", "rate='fast': not a rate"),
    ("tcset eth0 --delay 1fortnight --loss", r"(?s)'--loss': its value is missing.*delay='1fortnight': not a time"),
    ("tcset eth0 --delay 5ms --exclude-dst-port 22", "exclude-dst-port='22': a link has no exceptions"),
    (
        "toxiproxy-cli toxic add -t timeout -a timeout=5000 redis",
        r"toxic 'timeout': it stops all data: write lab.cut\(",
    ),
    ("toxiproxy-cli toxic add -t latency -a latency=5 --toxicity 0.5 redis", "toxicity='0.5': here a link treats all"),
    ("toxiproxy-cli create -l localhost:1 -u localhost:2 redis", "proxies are not needed"),
]


def imported(text: str) -> Imported:
    tool, *arguments = shlex.split(text)
    return TOOLS[tool](arguments)


@pytest.mark.parametrize(("text", "link", "forward", "reverse"), GOOD)
def test_a_line_is_said_in_our_words(text: str, link: str, forward: dict[str, str], reverse: dict[str, str]) -> None:
    command = imported(text)
    assert (command.link, dict(command.forward), dict(command.reverse)) == (link, forward, reverse)
    assert command.differs


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_cannot_be_translated_is_told_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        imported(text)


def test_what_differs_is_told() -> None:
    text = " ".join(imported("pumba -i 2m netem -d 1m -t 10.0.0.1 delay -t 100 re2:api.*").differs)
    for words in ("every 2m", "ends it after 1m", "packets to 10.0.0.1 alone", "re2:api.*", "reorder_by_jitter"):
        assert words in text


def test_it_is_printed_as_a_profile_or_as_a_test() -> None:
    line = "toxiproxy toxic add -t latency -a latency=100 redis"
    profile = CliRunner().invoke(cli, ["import", *line.split()], standalone_mode=False).stdout
    assert 'forward: {}\nreverse: {delay: "100ms"}\n' in profile
    test = CliRunner().invoke(cli, ["import", "--test", *line.split()], standalone_mode=False).stdout
    assert '@pytest.mark.impair("redis -> CLIENT", delay="100ms")\ndef test_' in test
    compile(test, "test", "exec")
