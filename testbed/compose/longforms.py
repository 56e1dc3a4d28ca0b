"""A service with Compose's short forms written out as long ones, and as paths and texts that Compose would print."""

from __future__ import annotations

import math
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
_SIZES = ("shm_size", "mem_limit", "mem_reservation", "memswap_limit")
_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
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
            build.setdefault("dockerfile", "Dockerfile")
            if "args" in build:
                build["args"] = _texts(_pairs(build["args"]), self._variables)
            body["build"] = build
        self._write_networks(body)
        for name in ("command", "entrypoint"):
            if isinstance(body.get(name), str):
                body[name] = self._words(body[name], name)
            elif body.get(name):
                body[name] = [word for word in body[name] if word is not None]
        body["environment"] = self._environment(body)
        depends = body.get("depends_on") or {}
        if isinstance(depends, list):
            depends = {name: {"condition": "service_started"} for name in depends if name is not None}
        body["depends_on"] = {**self._implied(body), **_required(depends)}
        check = body.get("healthcheck")
        if isinstance(check, Mapping) and check.get("test") is not None:
            body["healthcheck"] = {**check, "test": self._test(check["test"])}
        body["ports"] = self._items(body.get("ports"), "ports", self._port)
        # Of several volumes at one place, Compose keeps the last; of equal ports, one.
        volumes = self._items(body.get("volumes"), "volumes", self._volume)
        body["volumes"] = list({str(volume["target"]): volume for volume in volumes}.values())
        body["ports"] = list({_identity(port): port for port in reversed(body["ports"])}.values())[::-1]
        for name in ("sysctls", "labels"):
            body[name] = {key: as_text(value) for key, value in self._valued(_pairs(body.get(name)), name)}
        hosts = body.get("extra_hosts") or []
        if isinstance(hosts, Mapping):
            lists = ((name, value if isinstance(value, list) else [value]) for name, value in hosts.items())
            hosts = [f"{name}={address or ''}" for name, addresses in lists for address in addresses]
        body["extra_hosts"] = sorted(
            self._items(hosts, "extra_hosts", self._extra_host), key=lambda entry: entry.partition("=")[0]
        )
        self._write_lists(body)
        return body

    def _write_networks(self, body: dict[str, Any]) -> None:
        networks = body.get("networks")
        joined = dict.fromkeys(filter(None, networks)) if isinstance(networks, list) else networks
        if body.get("network_mode") is None:
            body["networks"] = dict(sorted((joined or {"default": None}).items()))
        elif joined:
            self._wrong("`network_mode:` and `networks:`: write one of them", "networks")
            body["networks"] = {}

    def _write_lists(self, body: dict[str, Any]) -> None:
        """Write out what is a list in Compose's output, and sizes in bytes."""
        for name in ("tmpfs", "dns", "dns_search"):
            if isinstance(body.get(name), str):
                body[name] = [body[name]]
        for name in _SIZES:
            if body.get(name) is not None:
                body[name] = self._size(body[name], name)
        if "expose" in body:
            body["expose"] = [str(port) for port in body["expose"] if port is not None]
        for name in ("secrets", "configs"):
            if body.get(name):
                given = ({"source": item} if isinstance(item, str) else dict(item) for item in body[name] if item)
                body[name] = [_secret(item) if name == "secrets" else item for item in given]

    def _implied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a service starts after without a word of `depends_on:`: its links, and whose namespaces it shares."""
        links = [str(link).partition(":")[0] for link in body.get("links") or () if link]
        shared = [str(body.get(key) or "") for key in ("network_mode", "ipc", "pid")]
        names = links + [text.removeprefix("service:") for text in shared if text.startswith("service:")]
        implied = {name: {"condition": "service_started", "required": True, "restart": True} for name in names}
        sources = [str(source).split(":") for source in body.get("volumes_from") or () if source]
        for source in (parts[0] for parts in sources if parts[0] != "container"):
            implied.setdefault(source, {"condition": "service_started", "required": True})
        return implied

    def _size(self, value: Any, name: str) -> str:
        try:
            return str(size_bytes(value))
        except ValueError as error:
            self._wrong(f"{name}: {quoted(value)}: {error}", name)
            return "0"

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
        written = body.get("environment") or {}
        own = {name: as_text(value) for name, value in _pairs(written).items() if value is not None}
        from_files = self._of_env_files(body.pop("env_file", None) or [], own)
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

    def _of_env_files(self, files: str | list[Any], own: Mapping[str, str]) -> dict[str, str]:
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
            known = {**values, **own, **self._variables}
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
            published = "" if published is None else as_text(published)
            ports = [{"mode": "ingress", "protocol": "tcp", **value, "published": published}]
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
        port = {"mode": "ingress", "protocol": match["protocol"] or "tcp", **({"host_ip": host_ip} if host_ip else {})}
        return [
            {"target": target, "published": str(published[number]) if published else "", **port}
            for number, target in enumerate(targets)
        ]

    def _volume(self, value: Any, wrong: Callable[[str], None]) -> list[dict[str, Any]]:
        if isinstance(value, Mapping):
            volume = {**value, "target": _cleaned(value["target"])}
            if (size := (volume.get("tmpfs") or {}).get("size")) is not None:
                try:
                    volume["tmpfs"] = {**volume["tmpfs"], "size": str(size_bytes(size))}
                except ValueError as error:
                    wrong(f"volume {quoted(value)}: tmpfs.size: {error}")
                    return []
            if value["type"] != "bind":
                return [volume]
            if not value.get("source"):
                wrong(f"volume {quoted(value)}: needs `source`, the folder or file to mount")
                return []
            # Where `create_host_path` is false, Compose prints nothing.
            bind = {key: setting for key, setting in (value.get("bind") or {}).items() if setting is not False}
            kept = {key: setting for key, setting in volume.items() if key != "bind"}
            return [{**kept, "source": self._path(value["source"]), **({"bind": bind} if bind else {})}]
        if len(value) > 2 and not all(value.split(":")):
            wrong(f"volume {quoted(value)}: nothing between its colons, or beside them; is a variable in it not set?")
            return []
        source, colon, rest = str(value).partition(":")
        if not colon or re.fullmatch(r"[A-Za-z]:[/\\\\][^:]*", value):  # by its form, a path of Windows
            return [{"type": "volume", "target": _cleaned(value), "volume": {}}]
        target, _, mode = rest.partition(":")
        modes = mode.split(",")
        volume = {"target": _cleaned(target), **({"read_only": True} if "ro" in modes else {})}
        if source.startswith((".", "/", "~")):
            words = (("selinux", ("z", "Z")), ("propagation", _PROPAGATIONS))
            bind = {key: mode for key, known in words for mode in modes if mode in known}
            return [
                {"type": "bind", "source": self._path(source), **volume, "bind": {"create_host_path": True, **bind}}
            ]
        nocopy = {"nocopy": True} if "nocopy" in modes else {}
        return [{"type": "volume", "source": source, **volume, "volume": nocopy}]

    def _path(self, path: str) -> str:
        return path_of(self._folder, path)

    def _extra_host(self, entry: str, wrong: Callable[[str], None]) -> list[str]:
        name, _, address = re.sub(r"^([^=:]+)[=:]", r"\1=", entry).partition("=")
        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        if bare != "host-gateway" and not is_address(bare):
            wrong(f"extra_hosts: {shown(entry)}: {shown(bare)} is no address; write NAME=ADDRESS")
        else:
            return [f"{name}={bare}"]
        return []


def path_of(folder: Path, path: str) -> str:
    """A path of the machine in a file of this folder, written out."""
    return os.path.realpath(folder / os.path.expanduser(path))


def _secret(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "target": item.get("target") or f"/run/secrets/{item['source']}"}


def size_bytes(value: Any) -> int:
    """A size in bytes, as in ``64m`` or ``1.5gb`` (units of 1024). Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kmgtp])i?b?|b)?", as_text(value).lower())
    if match is None or math.isinf(float(match[1]) * 1024**5):
        raise ValueError("is no size; write 64m or 1gb")
    return int(float(match[1]) * 1024 ** (" kmgtp".index(match[2]) if match[2] else 0))


def _required(depends: Mapping[str, Any]) -> dict[str, Any]:
    """Dependencies with what Compose takes for granted of each."""
    return {name: {"required": True, **(dependency or {})} for name, dependency in depends.items()}


def _identity(port: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(port.get(key) for key in ("target", "published", "protocol", "host_ip", "mode"))


def _cleaned(target: str) -> str:
    """A place in a container without a slash at its end."""
    return target.rstrip("/") or target


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
