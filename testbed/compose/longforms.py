"""A service with Compose's short forms written out as long ones, and as paths and texts that Compose would print."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from testbed import reading
from testbed.compose import shellwords
from testbed.compose.problems import FileProblems
from testbed.compose.shapes import quoted
from testbed.compose.variables import env_file
from testbed.reading.yamltree import Where, as_text, odd
from testbed.text import shown

_MOST_PORT = 65535
_PORT = re.compile(
    r"(?:(?:(?P<ip>\[[^]]+\]|[\d.]+):)?(?P<published>(?:\d+(?:-\d+)?)?):)?(?P<target>\d+(?:-\d+)?)"
    r"(?:/(?P<protocol>tcp|udp|sctp))?",
    re.ASCII,
)


class LongForms:
    """Writes out the short forms of one service."""

    def __init__(self, name: str, folder: Path, variables: Mapping[str, str], problems: FileProblems) -> None:
        self._at: Where = ("services", name)
        self._name = name
        self._folder = folder
        self._variables = variables
        self._problems = problems

    def _wrong(self, text: str, *where: str | int) -> None:
        if not self._problems.known((*self._at, *where)):
            self._problems.add((*self._at, *where), f"service {shown(self._name)}: {text}")

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """The service as Compose prints it."""
        if "build" in body:
            build = {"context": body["build"]} if isinstance(body["build"], str) else dict(body["build"])
            build["context"] = self._path(build.get("context") or ".")
            if "args" in build:
                build["args"] = _texts(_pairs(build["args"]), self._variables)
            body["build"] = build
        if body.get("network_mode") is None:
            networks = body.get("networks")
            joined = dict.fromkeys(filter(None, networks)) if isinstance(networks, list) else networks
            body["networks"] = dict(sorted((joined or {"default": None}).items()))
        for name in ("command", "entrypoint"):
            if isinstance(body.get(name), str):
                body[name] = self._words(body[name], name)
            elif body.get(name):
                body[name] = [word for word in body[name] if word is not None]
        body["environment"] = self._environment(body)
        depends = body.get("depends_on") or {}
        if isinstance(depends, list):
            depends = {name: {"condition": "service_started"} for name in depends if name is not None}
        body["depends_on"] = depends
        check = body.get("healthcheck")
        if isinstance(check, Mapping) and check.get("test") is not None:
            body["healthcheck"] = {**check, "test": self._test(check["test"])}
        body["ports"] = self._items(body.get("ports"), "ports", self._port)
        body["volumes"] = self._items(body.get("volumes"), "volumes", self._volume)
        for name in ("sysctls", "labels"):
            body[name] = {key: as_text(value) for key, value in self._valued(_pairs(body.get(name)), name)}
        hosts = body.get("extra_hosts") or []
        if isinstance(hosts, Mapping):
            lists = ((name, value if isinstance(value, list) else [value]) for name, value in hosts.items())
            hosts = [f"{name}={address or ''}" for name, addresses in lists for address in addresses]
        body["extra_hosts"] = self._items(hosts, "extra_hosts", self._extra_host)
        if isinstance(body.get("tmpfs"), str):
            body["tmpfs"] = [body["tmpfs"]]
        return body

    def _items(self, items: Any, key: str, long_form: Callable[[Any, Callable[[str], None]], list[Any]]) -> list[Any]:
        """The items of a list in their long form; one that is None was refused."""

        def wrong(text: str) -> None:
            self._wrong(text, key, number)

        long_forms: list[Any] = []
        for number, item in enumerate(items or ()):
            if item is not None:
                long_forms += [
                    {**written, "item": number} if isinstance(written, dict) else written
                    for written in long_form(item, wrong)
                ]
        return long_forms

    def _words(self, text: str, name: str) -> list[str]:
        try:
            return shellwords.split(text)
        except ValueError as error:
            self._wrong(f"{name}: {shown(text)}: {error}", name)
            return []

    def _environment(self, body: dict[str, Any]) -> dict[str, str | None]:
        from_files = self._of_env_files(body.pop("env_file", None) or [])
        written = body.get("environment") or {}
        names = (
            enumerate(entry and entry.partition("=")[0] for entry in written)
            if isinstance(written, list)
            else zip(written, written, strict=True)
        )
        for key, name in names:
            if name is not None and (not name or "=" in name):
                self._wrong(
                    f"environment: {shown(name)}: a variable's name is not empty and has no =", "environment", key
                )
        values = _texts(_pairs(written), self._variables)
        for name, value in values.items():
            if value and (problem := odd(value)):  # a value of the process's own environment may have such bytes
                self._wrong(f"environment.{name}: {problem}", "environment", name)
        return {**from_files, **values}

    def _of_env_files(self, files: str | list[Any]) -> dict[str, str]:
        values: dict[str, str] = {}
        for number, file in enumerate([files] if isinstance(files, str) else files):
            if file is None:
                continue
            options = file if isinstance(file, Mapping) else {"path": file}
            where = ("env_file",) if isinstance(files, str) else ("env_file", number)
            path = self._folder / options["path"]
            if not reading.exists(path):
                if options.get("required") is not False:
                    self._wrong(f"env_file {shown(str(path))} does not exist", *where)
                continue
            known = {**values, **self._variables}
            of_file, problems = env_file(path, known, self._folder, raw=options.get("format") == "raw")
            values.update(of_file)
            for line, text in problems:
                if line:
                    self._problems.add((*self._at, *where), text, place=(path, line))
                else:
                    self._wrong(f"env_file {shown(str(path))} {text}", *where)
        return values

    def _valued(self, pairs: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
        for name, value in pairs.items():
            if value is None and key == "sysctls":
                self._wrong(f"sysctl {shown(name)}: needs a value", key, name)
            else:
                yield name, "" if value is None else value

    def _test(self, test: str | list[str | None]) -> list[str]:
        if isinstance(test, str):
            return ["CMD-SHELL", test]
        words = [word for word in test if word is not None]
        if words and (words[0] not in ("NONE", "CMD", "CMD-SHELL") or (len(words) == 1 and words[0] != "NONE")):
            self._wrong(
                f'healthcheck.test: {quoted(test)}: write ["CMD", "program", …], ["CMD-SHELL", "line"] or ["NONE"]',
                "healthcheck",
                "test",
            )
            return []
        return words

    def _port(self, value: Any, wrong: Callable[[str], None]) -> list[dict[str, Any]]:
        if isinstance(value, Mapping):
            published = value.get("published")
            ports = [{**value, "published": "" if published is None else as_text(published)}]
        else:
            ports = self._short_port(value, wrong)
        for port in ports:
            if not _are_ports(port["target"], port["published"]):
                wrong(f"port {quoted(value)}: ports go from 1 to {_MOST_PORT}")
                return []
            if (host_ip := port.get("host_ip")) and not is_address(host_ip):
                wrong(f"port {quoted(value)}: {shown(host_ip)} is no address")
                return []
        return ports

    def _short_port(self, value: Any, wrong: Callable[[str], None]) -> list[dict[str, Any]]:
        match = None if isinstance(value, bool) else _PORT.fullmatch(str(value))
        if match is None:
            wrong(f'port {quoted(value)}: write "8080:80" or "127.0.0.1:8080:80"')
            return []
        if not _are_ports(match["target"].partition("-")[0], match["target"], match["published"] or ""):
            wrong(f"port {quoted(value)}: ports go from 1 to {_MOST_PORT}")
            return []
        targets, published = _span(match["target"]), _span(match["published"] or "")
        if not targets or (match["published"] and not published):
            wrong(f"port {quoted(value)}: the range runs backwards")
            return []
        host_ip = (match["ip"] or "").strip("[]")
        if len(targets) == 1 and len(published) > 1:  # the engine takes a free one of them
            published = [match["published"]]
        elif published and len(published) != len(targets):
            wrong(f"port {shown(value)}: as many ports outside as inside, or one inside")
            return []
        port = {"protocol": match["protocol"] or "tcp", **({"host_ip": host_ip} if host_ip else {})}
        return [
            {"target": target, "published": str(published[number]) if published else "", **port}
            for number, target in enumerate(targets)
        ]

    def _volume(self, value: Any, wrong: Callable[[str], None]) -> list[dict[str, Any]]:
        if isinstance(value, Mapping):
            if value["type"] != "bind":
                return [dict(value)]
            if not value.get("source"):
                wrong(f"volume {quoted(value)}: needs `source`, the folder or file to mount")
                return []
            return [{**value, "source": self._path(value["source"])}]
        if len(value) > 2 and not all(value.split(":")):
            wrong(f"volume {quoted(value)}: nothing between its colons, or beside them; is a variable in it not set?")
            return []
        source, colon, rest = str(value).partition(":")
        if not colon:
            return [{"type": "volume", "target": source}]
        target, _, mode = rest.partition(":")
        read_only = {"read_only": True} if "ro" in mode.split(",") else {}
        if source.startswith((".", "/", "~")):
            return [{"type": "bind", "source": self._path(source), "target": target, **read_only}]
        return [{"type": "volume", "source": source, "target": target, **read_only}]

    def _path(self, path: str) -> str:
        return os.path.realpath(self._folder / os.path.expanduser(path))

    def _extra_host(self, entry: str, wrong: Callable[[str], None]) -> list[str]:
        name, _, address = re.sub(r"^([^=:]+)[=:]", r"\1=", entry).partition("=")
        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        if bare == "host-gateway":
            wrong(f"extra_hosts: {shown(entry)}: the hosts of a local lab do not reach this machine; name an address")
        elif not is_address(bare):
            wrong(f"extra_hosts: {shown(entry)}: {shown(bare)} is no address; write NAME=ADDRESS")
        else:
            return [f"{name}={bare}"]
        return []


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _texts(values: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, str | None]:
    """The values as texts; one that is missing as the environment has it, or None."""
    return {name: variables.get(name) if value is None else as_text(value) for name, value in values.items()}


def _pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        pairs = (entry.partition("=") for entry in value if entry is not None)
        return {name: text if equals else None for name, equals, text in pairs}
    return dict(value or {})


def _are_ports(target: Any, *others: str) -> bool:
    """Whether the numbers in these can be ports; 0 outside lets the kernel choose."""
    # Six digits are too many, and int() refuses thousands.
    digits = [number.lstrip("0")[:6] for text in (str(target), *others) for number in re.findall(r"\d+", text)]
    numbers = [int(number or 0) for number in digits]
    return str(target)[0] != "-" and numbers[0] > 0 and max(numbers) <= _MOST_PORT


def _span(text: str) -> list[int | str]:
    if not text:
        return []
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))
