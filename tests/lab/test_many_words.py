"""One stack that uses many of Compose's words at once: both labs make the same of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import Lab
from testbed.lab.waiting import await_condition
from tests.lab.conftest import ROOT, lab_of, own_subnet

_STACK = """
x-own: &own
  build: {context: ROOT/images, dockerfile: client/Dockerfile}
  x-testbed: {local: {}}
  init: true
  restart: unless-stopped
services:
  front:
    <<: *own
    command:
      - python3
      - -c
      - |
        import socket
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("", 9000))
        print("ready", flush=True)
        while True:
            data, sender = receiver.recvfrom(2048)
            receiver.sendto(data.upper(), sender)
    hostname: outside
    env_file: [words.env, {path: none.env, required: false}]
    networks:
      back: {priority: 1}
      lan: {ipv4_address: 198.SUBNET.77, priority: 100, aliases: [www]}
    ports: ["127.0.0.1::9000/udp"]
    links: ["flaky:cache"]
    extra_hosts: ["else.example:192.0.2.7"]
    dns_search: [example.test]
    dns_opt: [use-vc]
    tmpfs: ["/scratch:size=1m"]
    shm_size: 8m
    ipc: shareable
    cap_drop: [ALL]
    cap_add: [NET_BIND_SERVICE]
    secrets: [token, {source: word, target: other, mode: 0440}]
    configs: [{source: site, target: /etc/site.conf}]
    deploy: {resources: {limits: {memory: 256m}}}
  side:
    <<: *own
    command: [sleep, infinity]
    network_mode: service:front
    ipc: service:front
    read_only: true
    volumes: ["./made/here:/made"]
  flaky:
    <<: *own
    restart: on-failure:5
    networks: [back]
    volumes: ["kept:/kept"]
    command:
      - sh
      - -c
      - |
        echo x >> /kept/starts
        echo start $$(wc -l < /kept/starts)
        [ $$(wc -l < /kept/starts) -lt 3 ] && exit 3
        exec sleep infinity
networks:
  lan: {ipam: {config: [{subnet: 198.SUBNET.0/24, ip_range: 198.SUBNET.64/26}]}}
  back: {}
volumes: {kept: {}}
secrets:
  token: {file: ./token.txt}
  word: {environment: WORD}
configs:
  site: {content: "listen 80\\n"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def lab(kind: str, pytestconfig: pytest.Config, folder: Path) -> Iterator[Lab]:
    (folder / "compose.yaml").write_text(_STACK.replace("ROOT", str(ROOT)).replace("SUBNET", own_subnet()))
    (folder / "words.env").write_text("GREETING='hello there'\n")
    (folder / "token.txt").write_text("open sesame\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORD", "from outside")
        with lab_of(kind, pytestconfig, folder / "compose.yaml") as lab:
            yield lab


SEEN = {
    "hostname": "outside",
    "echo $GREETING": "hello there",
    "cat /run/secrets/token": "open sesame",
    "cat /run/secrets/other; stat -c ' %a' /run/secrets/other": "from outside 440",
    "cat /etc/site.conf": "listen 80",
    "touch /scratch/x && df -B1 --output=size /scratch | tail -1 | tr -d ' '": str(1 << 20),
    "stat -c %a /scratch": "1777",
    "df -B1 --output=size /dev/shm | tail -1 | tr -d ' '": str(8 << 20),
    "getent hosts else.example | cut -d' ' -f1": "192.0.2.7",
    "grep -w search /etc/resolv.conf": "search example.test",
    "grep -wo use-vc /etc/resolv.conf": "use-vc",
    "getent hosts cache >/dev/null && echo linked": "linked",
    "grep CapBnd /proc/self/status | cut -f2": f"{1 << 10:016x}",
}
"""By a line of shell in `front`: what it prints."""


def test_words_of_one_host_mean_the_same(lab: Lab) -> None:
    front = lab.host("front")
    assert {line: front.run(["sh", "-c", line]).stdout.strip() for line in SEEN} == SEEN
    assert front.addresses("lan") == (f"198.{own_subnet()}.77",)


def test_a_published_udp_port_answers_each_client(lab: Lab) -> None:
    address = lab.host("front").published(9000, protocol="udp")
    for word in (b"one", b"two"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.2)

            def answer(client: socket.socket = client, word: bytes = word) -> bytes:
                client.sendto(word, address)
                try:
                    return client.recv(100)
                except TimeoutError:  # the datagram, or the answer, came before a socket was there
                    return b""

            assert await_condition(answer, bool, deadline_s=10) == word.upper()


def test_a_service_in_the_namespaces_of_another_shares_its_network_and_memory(lab: Lab) -> None:
    front, side = lab.host("front"), lab.host("side")
    ask = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(5); s.connect(('127.0.0.1', 9000))"
    done = side.run(["python3", "-c", f"{ask}; s.send(b'near'); print(s.recv(9).decode())"])
    assert done.stdout == "NEAR\n", done.stderr
    assert side.run(["hostname"]).stdout == "outside\n"
    assert side.run(["sh", "-c", "echo shared > /dev/shm/word"]).ok
    assert front.run(["cat", "/dev/shm/word"]).stdout == "shared\n"
    assert side.run(["cat", "/proc/net/fib_trie"]).stdout == front.run(["cat", "/proc/net/fib_trie"]).stdout


def test_a_folder_that_is_not_there_is_made(lab: Lab, folder: Path) -> None:
    assert lab.host("side").run(["sh", "-c", "echo made > /made/file"]).ok
    assert (folder / "made/here/file").read_text() == "made\n"
    assert not lab.host("side").run(["touch", "/etc/new"]).ok


def test_a_service_that_fails_is_started_again_and_one_that_is_stopped_is_not(lab: Lab) -> None:
    flaky = lab.host("flaky")
    await_condition(lambda: flaky.restarts, lambda restarts: restarts == 2, deadline_s=20)
    await_condition(lambda: flaky.logs().split("\n")[:3], lambda lines: lines[-1] == "start 3", deadline_s=20)
    assert flaky.run(["true"]).ok
    front = lab.host("front")
    front.kill()
    front.start()
    assert front.restarts == 0
