"""The command lines of Pumba, tcconfig and Toxiproxy, in testbed's words. Pure.

Their options as of Pumba 1.2 (``netem``), tcconfig 0.30 (``tcset``) and Toxiproxy 2.12 (``toxiproxy-cli toxic add``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from testbed.errors import InvalidValueError
from testbed.netem.profiles import checked_side
from testbed.spec.words import DISTRIBUTIONS, unknown
from testbed.text import shown, word_set


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a command line asks of a link."""

    link: str
    """As in a marker; an end that the line does not name is ``*``."""
    forward: Mapping[str, str]
    reverse: Mapping[str, str]
    differs: Sequence[str]
    """What is not the same here, a sentence each."""


@dataclass
class _CommandLine:
    """A command line while it is read."""

    problems: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    def options(self, arguments: list[str], known: Mapping[str, str]) -> dict[str, str]:
        """The options at the beginning, taken away, by their first name; the last of each counts.

        ``known``: by that name, the others, after a colon; ``!`` before them: a flag, which takes no value.
        """
        names = {alias: name for name, aliases in known.items() for alias in (name, *aliases.removeprefix("!").split())}
        values: dict[str, str] = {}
        while arguments and arguments[0].startswith("-") and len(arguments[0]) > 1:
            written = arguments.pop(0)
            if written == "--":
                break
            word, equals, value = written.lstrip("-").partition("=")
            name = names.get(word)
            if name is None:
                self.problems.append(f"{shown(written)}: {unknown(word, names)}")
            elif known[name].startswith("!"):
                values[name] = value or "true"
            elif equals:
                values[name] = value
            elif arguments:
                values[name] = arguments.pop(0)
            else:
                self.problems.append(f"{shown(written)}: its value is missing")
        return values

    def number(self, values: Mapping[str, str], name: str, default: float = 0.0) -> float:
        """The number of an option."""
        written = values.get(name, default)
        try:
            return float(written)
        except ValueError:
            self.problems.append(f"{name}={shown(written)}: not a number")
            return default

    def not_here(self, values: Mapping[str, str], reasons: Mapping[str, str]) -> None:
        """Options that cannot be translated, if they are given and not zero."""
        for name, reason in reasons.items():
            if values.get(name, "0") not in ("0", "0.0", "false", ""):
                self.problems.append(f"{name}={shown(values[name])}: {reason}")

    def in_the_sender(self, tool: str, words: Mapping[str, str]) -> None:
        """What differs where a tool impairs what leaves an interface of the sender, by netem as it is."""
        self.differs.append(
            f"{tool} impairs in the sender, whose TCP hears of losses; here it is at the receiver's port."
        )
        if "jitter" in words:
            self.differs.append(f"With {tool} jitter reorders packets; here reorder_by_jitter=True lets it.")

    def done(self, link: str, forward: Mapping[str, str], reverse: Mapping[str, str]) -> Imported:
        """The result. Raises InvalidValueError with every problem."""
        for side in (forward, reverse):
            if not self.problems:
                try:
                    checked_side(dict(side))
                except InvalidValueError as error:
                    self.problems += error.problems
        if self.problems:
            raise InvalidValueError(self.problems)
        return Imported(link=link, forward=forward, reverse=reverse, differs=self.differs)


_NO_CORRELATION = (
    "netem's correlated shares are far from what is asked (loss 10% 25% loses about 1.8%), so testbed has none; for "
    "losses in a row, write loss and burst"
)


def _share(percent: float) -> str:
    return f"{percent:.10g}%"


# --- Pumba ------------------------------------------------------------------------------------------

_PUMBA = {
    **dict.fromkeys(word_set("runtime containerd-socket containerd-namespace containerd-address podman-socket"), ""),
    **dict.fromkeys(word_set("tlscacert tlscert tlskey slackhook slackchannel label"), ""),
    "host": "H",
    "log-level": "l",
    "interval": "i",
    "random": "!r",
    "json": "!j",
    **dict.fromkeys(word_set("tls tlsverify dry-run skip-error"), "!"),
}
_PUMBA_NETEM = {
    "duration": "d",
    "interface": "i",
    "target": "t",
    "egress-port": "egressPort",
    "ingress-port": "ingressPort",
    "tc-image": "",
    "limit": "",
    "pull-image": "!",
    "pull": "!",
}
_EFFECTS: Mapping[str, Mapping[str, str]] = {
    "delay": {"time": "t", "jitter": "j", "correlation": "c", "distribution": "d"},
    "loss": {"percent": "p", "correlation": "c"},
    "loss-state": {"p13": "", "p31": "", "p32": "", "p23": "", "p14": ""},
    "loss-gemodel": {"pg": "p", "pb": "r", "one-h": "", "one-k": ""},
    "rate": {"rate": "r", "packetoverhead": "p", "cellsize": "s", "celloverhead": "c"},
    "duplicate": {"percent": "p", "correlation": "c"},
    "corrupt": {"percent": "p", "correlation": "c"},
}
_COMBINED = {
    "delay": {"time": "delay-time", "jitter": "delay-jitter", "correlation": "delay-correlation"}
    | {"distribution": "delay-distribution"},
    **{name: {key: f"{name}-{key}" for key in ("percent", "correlation")} for name in ("loss", "corrupt", "duplicate")},
    "rate": {"rate": "rate-value", "packetoverhead": "rate-packet-overhead", "cellsize": "rate-cell-size"}
    | {"celloverhead": "rate-cell-overhead"},
}
_PUMBA_OTHERS = {
    "kill": 'write lab.host("NAME").kill() in the test',
    "stop": 'write lab.host("NAME").stop() in the test',
    "restart": 'write lab.host("NAME").stop() and .start() in the test',
    "pause": 'write lab.host("NAME").pause() in the test',
    "exec": 'write lab.host("NAME").run([…]) in the test',
    "rm": 'write lab.host("NAME").kill() in the test',
    "iptables": 'its loss of incoming packets is impair("* -> NAME", loss="…") or drop_every=',
    "stress": "testbed impairs networks, not processors",
}


def pumba(arguments: Sequence[str]) -> Imported:
    """From ``pumba netem …``. Raises InvalidValueError with every problem."""
    line, rest = _CommandLine(), list(arguments)
    globals_ = line.options(rest, _PUMBA)
    command = rest.pop(0) if rest else ""
    if command != "netem":
        reason = _PUMBA_OTHERS.get(command, "write pumba netem …")
        raise InvalidValueError([*line.problems, f"pumba {shown(command)}: not translated; {reason}"])
    values = line.options(rest, _PUMBA_NETEM)
    effect = rest.pop(0) if rest else ""
    if effect == "combine":
        flags = dict.fromkeys(_COMBINED, "!")
        given = line.options(rest, {**flags, **{key: "" for keys in _COMBINED.values() for key in keys.values()}})
        forward: dict[str, str] = {}
        for name, keys in _COMBINED.items():
            if name in given:
                forward |= _effect(line, name, {key: given[long] for key, long in keys.items() if long in given})
    elif effect in _EFFECTS:
        forward = _effect(line, effect, line.options(rest, _EFFECTS[effect]))
    else:
        raise InvalidValueError([*line.problems, f"pumba netem {shown(effect)}: {unknown(effect, _EFFECTS)}"])
    late = [word for word in rest if word.startswith("-")]
    line.problems += [f"{shown(word)}: Pumba takes it for a container; put it before the names" for word in late]
    line.not_here(globals_, {"random": "testbed takes no container at random; name it in a marker"})
    if "interval" in globals_:
        line.differs.append(f"Pumba begins again every {globals_['interval']}; here it holds for the whole test.")
    if "duration" in values:
        line.differs.append(
            f"Pumba ends it after {values['duration']}; here it holds for the whole test. A timeline ends it: steps "
            f'[{{…}}, {{"at": "…", "clean": True}}].'
        )
    if "target" in values:
        line.differs.append(f"Pumba asks for packets to {values['target']} alone: name that host instead of *.")
    if "limit" in values or len(rest) > 1 or any(name.startswith("re2:") for name in rest):
        line.differs.append(f"Pumba takes every container that matches {' '.join(rest)}: a marker names each service.")
    line.in_the_sender("Pumba", forward)
    sender = rest[0] if len(rest) == 1 and re.fullmatch(r"[\w.-]+", rest[0]) else "SENDER"
    ports = f"{values.get('egress-port', '')},{values.get('ingress-port', '')}"
    return line.done(f"{sender} -> *{_port(line, ports)}", forward, {})


def _port(line: _CommandLine, written: str) -> str:
    """The narrowing of a link to the first port of a list."""
    ports = [port for port in written.split(",") if port]
    if not ports:
        return ""
    if len(ports) > 1:
        line.differs.append(f"The ports {', '.join(ports)}: write a marker for each.")
    line.differs.append(f"Port {ports[0]} of either end, and of TCP; for UDP write udp/{ports[0]}.")
    return f" tcp/{ports[0]}"


def _effect(line: _CommandLine, name: str, values: Mapping[str, str]) -> dict[str, str]:
    """The words of one of Pumba's effects, with its defaults."""
    if name == "delay":
        words = {"delay": f"{line.number(values, 'time', 100):g}ms"}
        jitter_ms, correlation = line.number(values, "jitter", 10), line.number(values, "correlation", 20)
        if jitter_ms > 0:
            words["jitter"] = f"{jitter_ms:g}ms"
            words |= {"correlation": _share(correlation)} if correlation > 0 else {}
            words |= {"distribution": values["distribution"]} if values.get("distribution") else {}
        return words
    if name == "loss-state":
        defaults = {"p13": 0.0, "p31": 100.0, "p32": 0.0, "p23": 100.0, "p14": 0.0}
        return {"loss_state": " ".join(_share(line.number(values, key, default)) for key, default in defaults.items())}
    if name == "loss-gemodel":
        defaults = {"pg": 0.0, "pb": 100.0, "one-h": 100.0, "one-k": 0.0}
        return {"gemodel": " ".join(_share(line.number(values, key, default)) for key, default in defaults.items())}
    if name == "rate":
        line.not_here(
            values, dict.fromkeys(("cellsize", "celloverhead"), "testbed has no cells; overhead is per packet")
        )
        overhead = line.number(values, "packetoverhead")
        return {"rate": values.get("rate", "100kbit"), **({"overhead": f"{overhead:g}"} if overhead else {})}
    line.not_here(values, {"correlation": _NO_CORRELATION})
    return {name: _share(line.number(values, "percent"))}


# --- tcconfig ---------------------------------------------------------------------------------------

_TCSET = {
    "device": "d",
    "rate": "bandwidth-rate",
    "network": "dst-network",
    "port": "dst-port",
    **dict.fromkeys(word_set("delay delay-distro delay-distribution loss duplicate corrupt reordering limit"), ""),
    **dict.fromkeys(word_set("shaping-algo mtu burst direction src-network src-port src-container dst-container"), ""),
    **dict.fromkeys(word_set("exclude-dst-network exclude-src-network exclude-dst-port exclude-src-port"), ""),
    **dict.fromkeys(word_set("import-setting overwrite change add iptables ipv6 docker tc-command tc-script"), "!"),
    **dict.fromkeys(word_set("debug debug-query quiet stacktrace"), "!"),
}
_TIMES = {
    "ms": "ms msec msecs millisecond milliseconds",
    "us": "us usec usecs microsecond microseconds",
    "s": "s sec secs second seconds",
    "min": "m min mins minute minutes",
}


def tcset(arguments: Sequence[str]) -> Imported:
    """From ``tcset …``. Raises InvalidValueError with every problem."""
    line, rest, values = _CommandLine(), list(arguments), dict[str, str]()
    places: list[str] = []
    while rest:  # argparse takes options and the device in any order
        values |= line.options(rest, _TCSET)
        places += [rest.pop(0)] if rest else []
    excluded = ("exclude-dst-network", "exclude-src-network", "exclude-dst-port", "exclude-src-port")
    line.not_here(values, dict.fromkeys(excluded, "a link has no exceptions; impair what is to be impaired"))
    line.not_here(values, {"import-setting": "write the tcset line of each of its rules"})
    line.not_here(values, {"burst": 'write bucket="16kB" beside rate, and how large it is to be'})
    words: dict[str, str] = {}
    if "rate" in values:
        words["rate"] = _tc_rate(line, values["rate"])
    if "delay" in values:
        words["delay"] = _tc_time(line, "delay", values["delay"])
    if "delay-distro" in values:
        words["jitter"] = _tc_time(line, "delay-distro", values["delay-distro"])
        words["distribution"] = values.get("delay-distribution", DISTRIBUTIONS[1])
    for option, word in (
        ("loss", "loss"),
        ("duplicate", "duplicate"),
        ("corrupt", "corrupt"),
        ("reordering", "reorder"),
    ):
        if option in values:
            words[word] = f"{values[option].removesuffix('%')}%"
    if "limit" in values:
        words["limit"] = values["limit"]
    for option in ("network", "src-network", "src-container", "dst-container"):
        if option in values:
            line.differs.append(f"tcset asks for {option} {values[option]} alone: name that host instead of *.")
    line.in_the_sender("tcset", words)
    container = places[0] if places and "docker" in values else values.get("src-container", "")
    host = container if re.fullmatch(r"[\w.-]+", container) else "HOST"
    link = f"{host} -> *{_port(line, ','.join(filter(None, map(values.get, ('port', 'src-port')))))}"
    if values.get("direction") == "incoming":
        return line.done(link, {}, words)
    return line.done(link, words, {})


def _tc_time(line: _CommandLine, name: str, written: str) -> str:
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", written)
    unit = next((ours for ours, theirs in _TIMES.items() if match and (match[2] or "ms") in theirs.split()), None)
    if match is None or unit is None:
        line.problems.append(f"{name}={shown(written)}: not a time; write it as in 100ms")
        return "0ms"
    return f"{match[1]}{unit}"


def _tc_rate(line: _CommandLine, written: str) -> str:
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(?:bps|bit/s|bits/s)?\s*", written, re.IGNORECASE)
    if match is None:
        line.problems.append(f"rate={shown(written)}: not a rate; write it as in 100Kbps")
        return "1mbit"
    return f"{match[1]}{match[2].lower()}bit"


# --- Toxiproxy --------------------------------------------------------------------------------------

_TOXIC = {"toxicName": "n", "type": "t", "toxicity": "tox", "upstream": "!u", "downstream": "!d", "attribute": "a"}
_TOXICS_OTHERS = {
    "timeout": 'it stops all data: write lab.cut("CLIENT -> SERVER") in the test',
    "reset_peer": 'it resets connections: write lab.cut("CLIENT -> SERVER", reject=True) in the test',
    "slow_close": "it belongs to a proxy's connections; no packet is delayed by it",
    "slicer": "it belongs to a proxy's connections: a network keeps no bounds of writes",
    "limit_data": 'it ends a connection after so many bytes: write lab.cut("CLIENT -> SERVER") in the test',
}


def toxiproxy(arguments: Sequence[str]) -> Imported:
    """From ``toxiproxy-cli toxic add …``. Raises InvalidValueError with every problem."""
    line, rest = _CommandLine(), list(arguments)
    line.options(rest, {"host": "h"})
    what, rest = rest[:2], rest[2:]
    if what[:1] == ["toggle"]:
        raise InvalidValueError('toxiproxy-cli toggle: write lab.cut("CLIENT -> SERVER") and lab.mend in the test')
    if what not in (["toxic", "add"], ["toxic", "a"], ["t", "add"], ["t", "a"]):
        raise InvalidValueError(
            f"toxiproxy-cli {shown(' '.join(what))}: not translated; write toxiproxy-cli toxic add …; proxies are not "
            "needed: programs talk to each other directly"
        )
    attributes, values, names = dict[str, str](), dict[str, str](), list[str]()
    while rest:
        if rest[0].startswith("-"):
            count = 1 if "=" in rest[0] or rest[0].lstrip("-") in ("u", "d", "upstream", "downstream") else 2
            option = line.options(rest[:count], _TOXIC)
            key, _, value = option.pop("attribute", "").partition("=")
            attributes |= {key: value} if key else {}
            values, rest = values | option, rest[count:]
        else:
            names.append(rest.pop(0))
    kind = values.get("type", "")
    if kind not in _TOXICS:
        line.problems.append(
            f"toxic {shown(kind)}: {_TOXICS_OTHERS.get(kind) or unknown(kind, (*_TOXICS, *_TOXICS_OTHERS))}"
        )
        raise InvalidValueError(line.problems)
    if line.number(values, "toxicity", 1.0) != 1.0:
        line.problems.append(f"toxicity={shown(values['toxicity'])}: here a link treats all connections alike")
    words = _TOXICS[kind](line, attributes)
    line.differs += [
        "Toxiproxy delays the bytes of connections that it has accepted; here every packet is, handshakes included.",
        "No proxy is needed: the client connects to the server by its own name and port.",
    ]
    link = f"CLIENT -> {next(filter(re.compile(r'[a-zA-Z0-9_.-]+').fullmatch, names), 'SERVER')}"
    return line.done(link, words, {}) if "upstream" in values else line.done(link, {}, words)


def _latency(line: _CommandLine, attributes: Mapping[str, str]) -> dict[str, str]:
    jitter_ms = line.number(attributes, "jitter")
    words = {"delay": f"{line.number(attributes, 'latency'):g}ms"}
    return {**words, "jitter": f"{jitter_ms:g}ms"} if jitter_ms else words


def _bandwidth(line: _CommandLine, attributes: Mapping[str, str]) -> dict[str, str]:
    return {"rate": f"{8 * line.number(attributes, 'rate'):g}kbit"}


_TOXICS: Mapping[str, Callable[[_CommandLine, Mapping[str, str]], dict[str, str]]] = {
    "latency": _latency,
    "bandwidth": _bandwidth,
}
TOOLS: Mapping[str, Callable[[Sequence[str]], Imported]] = {"pumba": pumba, "tcset": tcset, "toxiproxy-cli": toxiproxy}
"""By the name of the command."""
