"""Bad inputs as a table: files, arguments, and a part of the expected message.

The kinds are those that users and fuzzers brought: what is no file, what has no end, what multiplies, what is too long,
what acts on a terminal. Each names a part of the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

GOOD = """services:
  server: {image: none/a, command: [sleep, "30"], x-testbed: {local: {path: ./app}}}
  client: {image: none/b, command: [sleep, "30"], x-testbed: {local: {path: ./app}}}
"""


class Case(NamedTuple):
    """One bad input; ``part`` stands in its message."""

    part: str
    files: Mapping[str, str | bytes | None] = {}
    """By path; None is a folder, FIFO a FIFO, ``-> PLACE`` a symbolic link."""
    words: str = ""
    """What ``--impair`` asks of ``client -> server``; or all of it, with an arrow."""
    more: tuple[str, ...] = ()
    """More of the command line."""


def aliases(head: str = "", times: int = 9) -> str:
    """Aliases of aliases: ten to so many parts."""
    rows = [f"x-0: &a0 [{', '.join(['x'] * 10)}]"]
    rows += [f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, times)]
    return "\n".join(rows) + f"\n{head}"


def profile(part: str, text: str | bytes | None) -> Case:
    """A profile that says so."""
    return Case(part, {"netem/x.yaml": text}, "x")


def trace(part: str, text: str | bytes | None, name: str = "t.csv") -> Case:
    """A trace."""
    return Case(part, {"netem/x.yaml": f"both: {{trace: {name}}}\n", f"netem/{name}": text}, "x")


def named(part: str, name: str) -> Case:
    """A trace of this name."""
    return Case(part, {"netem/x.yaml": f"both: {{trace: {name}}}\n"}, "x")


def table(part: str, text: str | bytes | None) -> Case:
    """A table of delays."""
    return Case(part, {"netem/m.dist": text}, "delay=20ms jitter=5ms distribution=m.dist")


def compose(part: str, text: str | bytes | None, **files: str | bytes | None) -> Case:
    """A Compose file."""
    return Case(part, {"compose.yaml": text, **{name.replace("_", "."): content for name, content in files.items()}})


def service(part: str, words: str) -> Case:
    """A service that says so too."""
    return compose(part, GOOD.replace("{image: none/a,", f"{{image: none/a, {words},"))


MUCH = "more than 100000 keys and values"
DEEP = "nested more than 64 deep"

CASES: dict[str, Case] = {
    # --- profiles
    "profile: empty list": profile("must be a mapping", "both: []\n"),
    "profile: a text": profile("must be a mapping with keys", "hello\n"),
    "profile: a list": profile("must be a mapping with keys", "- a\n"),
    "profile: NUL": profile("not YAML", "both: {delay: 40ms}\0\n"),
    "profile: UTF-16": profile("UTF-16, by its first bytes", "both: {delay: 4ms}\n".encode("utf-16")),
    "profile: Latin-1": profile("1: is not UTF-8: byte 0xe9", b"description: caf\xe9\n"),
    "profile: aliases in a side": profile(MUCH, aliases("both: *a8\n")),
    "profile: aliases in a value": profile(MUCH, aliases("both: {delay: *a8}\n")),
    "profile: aliases in a key": profile(MUCH, aliases("both: {? *a8 : 1}\n")),
    "profile: aliases in a trace": profile(MUCH, aliases("both: {trace: *a8}\n")),
    "profile: few aliases": profile("unknown", aliases("both: *a3\n", 4)),
    "profile: an alias of itself": profile("x.yaml: ", "both: &a [*a]\n"),
    "profile: an alias of its mapping": profile("x.yaml: ", "both: &a {delay: *a}\n"),
    "profile: deep lists": profile(DEEP, "both: " + "[" * 5000 + "]" * 5000),
    "profile: deep mappings": profile(DEEP, "both: " + "{a: " * 3000 + "1" + "}" * 3000),
    "profile: deep without end": profile(DEEP, "[" * 50_000),
    "profile: steps": profile(MUCH, "both:\n" + "".join(f"  - {{at: {n}ms, delay: 1ms}}\n" for n in range(100_000))),
    "profile: an object": profile("must be a mapping", "both: !!python/object/apply:os.system ['touch PWNED']\n"),
    "profile: a folder": profile("is a folder, and no file", None),
    "profile: a FIFO": profile("is a FIFO, and no file", "FIFO"),
    "profile: a device": profile("is a device, and no file", "-> /dev/zero"),
    "profile: a link to itself": profile("Too many levels", "-> x.yaml"),
    "profile: a link to nothing": profile("No such file", "-> /nonexistent/q"),
    "profile: a link to secrets": profile("is not quoted", "-> /etc/passwd"),
    "profile: large": profile("at most 8388608", b"#" * (9 << 20)),
    "profile: a date": profile("not a duration", "both: {delay: 2024-13-45}\n"),
    "profile: a key twice": profile("second time", "both: {delay: 1ms, delay: 2ms}\n"),
    "profile: a long number": profile("not a whole number", "both: {limit: " + "9" * 6000 + "}\n"),
    "profile: long": profile("not a duration", f"both: {{delay: {'a' * 100_000}}}\n"),
    "profile: an escape": profile("\\x1b[2J", 'both: {delay: "\\e[2JX"}\n'),
    "profile: right to left": profile("\\u202e", "both: {delay: \u202e40ms}\n"),
    "profile: wide digits": profile("not a duration", "both: {delay: '\uff14\uff10ms'}\n"),
    "profile: beyond floats": profile("not a duration", "both: {delay: 1e99999999999s}\n"),
    "profile: a line feed": profile("not a duration", 'both: {delay: "40ms\\nqdisc del dev lo root"}\n'),
    **{
        f"profile: {word} {value}": profile(part, f"both: {{{word}: {value}}}\n")
        for word, value, part in (
            ("delay", "-5ms", "negative"), ("delay", ".nan", 'needs a unit; write for example delay="40ms"'),
            ("delay", "'nanms'", "not a duration"),
            ("delay", "''", "not a duration"), ("delay", "[1ms]", "not a duration"), ("delay", "{a: 1}", "not a dur"),
            ("delay", "true", "not a duration"), ("loss", "120%", "between 0%"), ("loss", "1e-30%", "2⁻³²"),
            ("rate", "0", "above 0"), ("rate", "1e30tbit", "2⁶⁷"), ("rate", "5mbps", "bytes per second"),
            ("limit", "9999999999999999999", "2³²-1"), ("limit", "1.5", "whole number"), ("seed", "-1", "2⁶⁴-1"),
            ("burst", "-1", "between 1"), ("gemodel", "'1% 2% 3% 4% 5%'", "two to four"), ("jitter", "5s", "widest"),
            ("distribution", "../../etc/passwd", "unknown"), ("distribution", "nosuch.dist", "without jitter") ,
            ("slot", "'normal 1ms 99s'", "spread"), ("gap", "-5", "at least 1"), ("overhead", "1e10", "whole number"),
            ("bucket", "1e30GB", "2³¹-1"), ("drop_packets", "['1-99999999999999']", "2³¹-1"), ("ecn", "maybe", "true"),
            ("latency", "5ms", "here it is delay"), ("bandwidth", "5mbit", "here it is rate"),
        )
    },
    "profile: an outage of years": profile("at most a day", "both: [{at: 1s, outage: 99999999s}]\n"),
    "profile: no step": profile("must be a mapping such as", "both: [null]\n"),
    # --- traces and tables
    "trace: a million rows": trace("at most 100000", "time_s,delay_ms\n" + "0,1\n" * 1_000_000),
    "trace: a long cell": trace("line 2", "time_s,delay_ms\n0," + "9" * 200_000 + "\n"),
    "trace: digits": trace("delay='111", "time_s,delay_ms\n0," + "1" * 5000 + "\n"),
    "trace: an open quote": trace("line 2: unexpected end", 'time_s,delay_ms\n0,"5\n'),
    "trace: UTF-16": trace("is not UTF-8", "time_s,delay_ms\n0,5\n".encode("utf-16")),
    "trace: a folder": trace("is a folder", None),
    "trace: a FIFO": trace("is a FIFO", "FIFO"),
    "trace: a link to itself": trace("Too many levels", "-> t.csv"),
    "trace: Mahimahi that is none": trace("not a whole number", "x\n", "t.mahi"),
    "trace: Mahimahi without end": trace("has no opportunity", "0\n" * 1_000_000, "t.mahi"),
    "trace: Mahimahi of digits": trace("not a whole number", "1" * 5000 + "\n", "t.mahi"),
    "trace: held for a day": trace("line 2: rate 0 for 86400s", "time_s,rate_mbit\n0,0\n86400,1\n"),
    "trace: elsewhere": named("is not quoted", "/etc/passwd"),
    "trace: above": named("is not quoted", "../" * 20 + "etc/passwd"),
    "trace: a process's": named("is not quoted", "/proc/self/environ"),
    "trace: the kernel's log": named("trace '/proc/kmsg'", "/proc/kmsg"),
    "trace: a device": named("is a device", "/dev/zero"),
    "trace: a long name": named("no such file", "x" * 5000),
    "trace: a NUL": named("may not stand in it", '"a\\0b"'),
    "table: empty": table("0 numbers", ""),
    "table: words": table("is not a whole number", "a b c\n"),
    "table: a million numbers": table("at most 1048576", "1 " * 1_000_000),
    "table: a hundred thousand words": table("is not a whole number", "x " * 100_000),
    "table: one number": table("all numbers are 5", "5 " * 4096),
    "table: a folder": table("is a folder", None),
    "table: a FIFO": table("is a FIFO", "FIFO"),
    "table: a device": table("is a device", "-> /dev/zero"),
    "table: a link to secrets": table("is not quoted", "-> /etc/passwd"),
    # --- words and links
    "link: none": Case("which link?", words="=delay=1ms"),
    "link: an arrow": Case("link '->'", words="->=delay=1ms"),
    "link: long": Case("unknown", words="x" * 300 + " -> server=delay=1ms"),
    "link: very long": Case("at most 10000", words=",".join(["client"] * 10_000) + " -> server=delay=1ms"),
    "link: a range": Case("has 1 replicas", words="client[1..2000000000] -> server=delay=1ms"),
    "link: an escape": Case("\\x1b[31m", words="\x1b[31mclient -> server=delay=1ms"),
    "link: a port": Case("a -> server tcp/80", words="client -> server:80=delay=1ms"),
    "link: the machine": Case("the machine itself", words="127.0.0.1 -> server=delay=1ms"),
    "words: deep": Case(DEEP, words="client -> server=[" + "[" * 3000),
    "words: no YAML": Case("'[{': line 2: not YAML", words="client -> server=[{"),
    "words: a recursive step": Case("an alias of something that it is a part of", words="client -> server=[&a [*a]]"),
    "words: a profile elsewhere": Case("unknown", words="../../etc/passwd"),
    "words: a long profile": Case("unknown", words="x" * 3000),
    # --- Compose files
    "compose: empty": compose("has no `services:`", ""),
    "compose: a list": compose("has no `services:`", "- a\n"),
    "compose: NUL": compose("not YAML", GOOD + "\0"),
    "compose: UTF-16": compose("is not UTF-8", GOOD.encode("utf-16")),
    "compose: aliases": compose(MUCH, aliases(GOOD)),
    "compose: deep": compose(DEEP, "x-a: " + "[" * 3000 + "]" * 3000 + f"\n{GOOD}"),
    "compose: an alias of itself": compose("an alias of something", "services: &a\n  x: *a\n"),
    "compose: a folder": compose("is a folder", None),
    "compose: a FIFO": compose("is a FIFO", "FIFO"),
    "compose: a device": compose("is a device", "-> /dev/zero"),
    "compose: a link to nothing": compose("No such file", "-> /nonexistent"),
    "compose: a long name": compose("at most 255", GOOD.replace("server", "s" * 300)),
    "compose: includes a device": compose("is a device", f"include: [/dev/zero]\n{GOOD}"),
    "compose: includes a bomb": compose(MUCH, f"include: [b.yaml]\n{GOOD}", b_yaml=aliases("services: {}\n")),
    "compose: extends a FIFO": compose("is a FIFO", "services: {a: {extends: {file: b, service: a}}}\n", b="FIFO"),
    "compose: a chain": compose("at most 10000", GOOD + "x-testbed: {topology: {chain: 99999999}}\n"),
    "compose: all addresses": compose(
        "every address", GOOD + "networks: {default: {ipam: {config: [{subnet: 0.0.0.0/0}]}}}\n"
    ),
    "compose: a wide subnet": compose("subnet", GOOD + "networks: {default: {ipam: {config: [{subnet: x}]}}}\n"),
    **{
        f"compose: {words}": service(part, words)
        for words, part in (
            ("scale: 99999999", "at most 10000"), ("deploy: {replicas: 99999999}", "at most 10000"),
            ("scale: 1e9", "whole number"), ("scale: -1", "from 0"), ("ports: ['1-99999:1-99999']", "1 to 65535"),
            ("env_file: /dev/zero", "is a device"), ("env_file: /etc", "is a folder"), ("volumes: ['::::']", "colons"),
            ("user: '99999999999'", "2147483647"), ("hostname: '${'", "closing brace"), ("x-testbed: 5", "second time"),
            ("privileged: true", "privileged"), ("init: maybe", "true or false"),
            ("tmpfs: ''", "absolute path"), ("tmpfs: ['/x:size=x']", "'size=x' is no option of a tmpfs"),
            ("tmpfs: ['/tmp:bogus']", "'bogus' is no option"), ('sysctls: {net.ipv4.ip_forward: "1\\n"}', "no value"),
        )
    },
    "env: a FIFO": compose("is a FIFO", GOOD, _env="FIFO"),
    "env: a folder": compose("is a folder", GOOD, _env=None),
    "env: NUL": compose("has no NUL", GOOD, _env="A=\0\n"),
    "env: Latin-1": compose("is not UTF-8", GOOD, _env=b"A=\xe9\n"),
    "env: nested variables": compose(
        "more than 1048576 characters", GOOD,
        _env="A0=xxxxxxxxxx\n" + "".join(f"A{n}={f'${{A{n - 1}}}' * 10}\n" for n in range(1, 10)),
    ),
    # --- options
    "option: no such file": Case("see --compose-file", more=("-f", "/nonexistent.yaml")),
    "option: a folder": Case("is a folder", more=("-f", "/etc")),
    "option: a device": Case("is a device", more=("-f", "/dev/zero")),
    "option: secrets": Case("/etc/passwd", more=("-f", "/etc/passwd")),
    "option: a long name": Case("File name too long", more=("-f", "x" * 300)),
    "option: a Compose profile of nobody": Case("no service has a profile", more=("--compose-profile", "$(x)")),
    "option: another Compose profile": Case(
        "'dbg': unknown; did you mean 'debug'?",
        {"compose.yaml": GOOD.replace("{image: none/a,", "{image: none/a, profiles: [debug],")},
        more=("--compose-profile", "dbg"),
    ),
    "option: no such lab": Case("--lab", more=("--lab", "moon\x1b[2J")),
}  # fmt: skip
