"""The kinds of values that the keys of a Compose file take; checks all of them before anything uses one. Pure.

A wrong value is left out, so that the rest can be read: its key is missing or empty; in a list, the item is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.compose import scalars
from testbed.reading.yamltree import Where
from testbed.spec.words import unknown
from testbed.text import shown

Wrong = Callable[[Where, str], None]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a place may contain: a plain value, a list, a mapping, or one of several of these."""

    write: str
    """What to write instead of a wrong value."""
    plain: Callable[[Any], Any] | None = None
    """Reads a plain value; raises ValueError with what is wrong."""
    item: Shape | None = None
    """The items of a list."""
    words: Mapping[str, Shape] | None = None
    """The known keys of a mapping."""
    others: Shape | None = None
    """The other keys of a mapping; None refuses them."""
    required: tuple[str, ...] = ()
    empty: bool = False
    """Whether the value may be missing: ``key:``."""
    names: str = ""
    """A pattern for the keys of a mapping, if they are names."""


def read(shape: Shape, value: Any, wrong: Wrong, where: Where = ()) -> Any:
    """The value without what is wrong in it; ``wrong`` is called with the place and text of every problem."""
    return _ShapeReader(wrong).read(shape, value, where)


def called(where: Where) -> str:
    """The name of a place in messages: ``service 'a': ulimits.nofile``."""
    head: list[str] = []
    rest = where
    if len(where) > 1 and where[0] in ("services", "networks", "volumes"):
        head, rest = [f"{str(where[0])[:-1]} {shown(where[1])}"], where[2:]
    path = ".".join(str(key) for key in rest if not isinstance(key, int))
    return ": ".join([*head, *([path] if path else [])])


_LEFT_OUT = object()


class _ShapeReader:
    def __init__(self, wrong: Wrong) -> None:
        self._wrong = wrong

    def read(self, shape: Shape, value: Any, where: Where) -> Any:
        read = self._read(shape, value, where)
        return None if read is _LEFT_OUT else read

    def _read(self, shape: Shape, value: Any, where: Where) -> Any:
        match value:
            case _ if shape is ANY:
                return value
            case None if shape.empty:
                return None
            case Mapping() if shape.words is not None or shape.others is not None:
                return self._mapping(shape, value, where)
            case list() if shape.item is not None:
                items = [self._read(shape.item, item, (*where, number)) for number, item in enumerate(value)]
                return [None if item is _LEFT_OUT else item for item in items]
            case None | Mapping() | list():
                pass
            case _ if shape.plain is not None:
                try:
                    return shape.plain(value)
                except ValueError as error:
                    self._say(where, f"{quoted(value)}: {error}")
                    return _LEFT_OUT
        self._say(where, f"{quoted(value)}: write {shape.write}")
        if shape.required:
            return _LEFT_OUT
        return {} if shape.words is not None or shape.others is not None else [] if shape.item else _LEFT_OUT

    def _mapping(self, shape: Shape, value: Mapping[str, Any], where: Where) -> Any:
        words = shape.words or {}
        mapping = {}
        for key, item in value.items():
            kind = words.get(key, shape.others)
            if shape.names and not re.fullmatch(shape.names, key):
                self._say((*where, key), "a name has letters, digits, dots, dashes and underscores only, at most 255")
            elif kind is None:
                if not str(key).startswith("x-"):
                    self._say((*where, key), unknown(str(key), words))
            elif (read := self._read(kind, item, (*where, key))) is not _LEFT_OUT:
                mapping[key] = read
        if lacking := [key for key in shape.required if value.get(key) is None]:
            self._say(where, f"{quoted(value)}: needs `{'` and `'.join(lacking)}`; write {shape.write}")
        return mapping if all(key in mapping for key in shape.required) else _LEFT_OUT

    def _say(self, where: Where, text: str) -> None:
        self._wrong(where, f"{called(where)}: {text}" if called(where) else text)


def quoted(value: Any) -> str:
    """A value about as it was written."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else shown(value, 80)


# --- plain values ------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """A text. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"must be a text; put it in quotes: '{quoted(value)}'")
    return value


def plain(value: Any) -> Any:
    """Any plain value."""
    return value


def whole(value: Any) -> int:
    """A whole number; quotes are allowed. Raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,18}", value.strip()):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def count(value: Any) -> int:
    """A whole number from 0. Raises ValueError."""
    number = whole(value)
    if number < 0:
        raise ValueError("must be a whole number from 0")
    return number


def flag(value: Any) -> bool:
    """True or false; the other words of YAML 1.1, too, as Compose takes them for flags. Raises ValueError."""
    word = str(value).lower()
    if isinstance(value, float) or word not in (*_TRUE, *_FALSE):
        raise ValueError("must be true or false")
    return word in _TRUE


_TRUE = ("true", "yes", "y", "on", "1")
_FALSE = ("false", "no", "n", "off", "0")


def duration(value: Any) -> str:
    """A duration. Raises ValueError."""
    scalars.duration_s(text(value))
    return str(value)


def signal(value: Any) -> str:
    """A signal's name. Raises ValueError."""
    word = text(value)
    try:
        scalars.signal_name(word)
    except ValueError:
        raise ValueError("is no signal; write SIGTERM, or 15") from None
    return word


def limit(value: Any) -> int:
    """A limit: a number, or -1 for no limit. Raises ValueError."""
    number = whole(value)
    if number < -1:
        raise ValueError("must be a number from 0, or -1 for no limit")
    return number


def project(value: Any) -> str:
    """A project name, made of a text as Compose does: small letters, digits, dashes. Raises ValueError."""
    word = re.sub(r"[^a-z0-9_-]", "", text(value).lower()).lstrip("_-")
    if not word:
        raise ValueError("a project's name has letters or digits")
    return word


def file_mode(value: Any) -> str:
    """A file's mode as Compose prints it: ``0440``. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_MODE:
        return f"0{value:o}"
    if isinstance(value, str) and re.fullmatch("0?o?[0-7]{1,4}", value):
        return f"0{value.lstrip('0o') or 0}"
    raise ValueError("is no mode; write 0440")


_MOST_MODE = 0o7777


def env_format(value: Any) -> str:
    """The format of a file of variables. Raises ValueError."""
    if (word := text(value)) not in ("", "raw"):
        raise ValueError("must be raw, or left out")
    return word


# --- the file ----------------------------------------------------------------------------------------

ANY = Shape(write="something")
_TEXT = Shape(write="a text", plain=text)
_PLAIN = Shape(write="a text or a number", plain=plain, empty=True)
_WHOLE = Shape(write="a whole number", plain=whole)
_COUNT = Shape(write="a number", plain=count)
_FLAG = Shape(write="true or false", plain=flag)
_DURATION = Shape(write='a duration, as in "1m30s"', plain=duration)
_TEXTS = Shape(write="a list: [A, B]", item=_TEXT)
_TEXT_OR_TEXTS = Shape(write='a text or a list: "A B" or [A, B]', plain=text, item=_TEXT)
_PROGRAM = Shape(write='a text or a list: "A B" or [A, B]', plain=text, item=_TEXT, empty=True)
_PAIRS = Shape(write="a mapping or a list: {NAME: value} or [NAME=value]", item=_TEXT, others=_PLAIN)


_OPTIONS = Shape(write="{NAME: value}", others=_PLAIN)
_MAPPING = Shape(write="a mapping", others=ANY)


def _table(write: str, /, **words: Shape) -> Shape:
    return Shape(write=write, words=words)


def _optional(write: str, /, **words: Shape) -> Shape:
    return Shape(write=write, words=words, empty=True)


def _keys(shape: Shape, names: str) -> dict[str, Shape]:
    """Several keys that take the same."""
    return dict.fromkeys(names.split(), shape)


_DEPENDENCY = Shape(
    write="{condition: service_started}",
    words={"condition": _TEXT, **_keys(_FLAG, "required restart")},
    required=("condition",),
)
_HEALTH_CHECK = _table(
    '{test: ["CMD", "program"]}',
    test=_TEXT_OR_TEXTS,
    retries=_COUNT,
    disable=_FLAG,
    **_keys(_DURATION, "interval timeout start_period start_interval"),
)
_PORT = Shape(
    write='"8080:80" or {target: 80, published: 8080}',
    plain=plain,
    words={
        "target": _WHOLE,
        "published": _PLAIN,
        **_keys(_TEXT, "protocol host_ip mode name app_protocol"),
    },
    required=("target",),
)
_VOLUME = Shape(
    write='"./folder:/data" or {type: bind, source: ./folder, target: /data}',
    plain=text,
    words={
        **_keys(_TEXT, "type source target consistency"),
        "read_only": _FLAG,
        **_keys(_MAPPING, "bind volume tmpfs image"),
    },
    required=("type", "target"),
)
_JOINED = _optional(
    "{aliases: [NAME], ipv4_address: ADDRESS}",
    driver_opts=_OPTIONS,
    **_keys(_TEXTS, "aliases link_local_ips"),
    **_keys(_TEXT, "ipv4_address ipv6_address mac_address interface_name"),
    **_keys(_WHOLE, "priority gw_priority"),
)
_LIMIT = Shape(
    write="a number or {soft: 1024, hard: 2048}",
    plain=limit,
    words=_keys(Shape(write="a number", plain=limit), "soft hard"),
    required=("soft", "hard"),
)
_BUILD = Shape(
    write="a folder, or {context: FOLDER, dockerfile: NAME}",
    plain=text,
    words={**_keys(_TEXT, "context dockerfile"), **_keys(_PAIRS, "args labels"), "tags": _TEXTS},
    others=ANY,
)
_ONE_ENV_FILE = Shape(
    write='"FILE" or {path: FILE, required: false}',
    plain=text,
    words={"path": _TEXT, "required": _FLAG, "format": Shape(write="raw", plain=env_format)},
    required=("path",),
)
_GIVEN = Shape(
    write="a list: [NAME] or [{source: NAME, target: PLACE, mode: 0440}]",
    item=Shape(
        write="NAME or {source: NAME, target: PLACE, mode: 0440}",
        plain=text,
        words={**_keys(_TEXT, "source target uid gid"), "mode": Shape(write="a mode, as in 0440", plain=file_mode)},
        required=("source",),
    ),
)
_ADDRESSES = Shape(write="an address", plain=text, item=_TEXT)
_LOCAL = _table(
    "{path: FOLDER, python: true} or {image: ARCHIVE}",
    path=Shape(write="a folder or a list of folders", plain=text, item=_TEXT),
    python=_FLAG,
    image=_TEXT,
)
_SERVICE = Shape(
    write="a mapping, as in {image: NAME, command: [PROGRAM]}",
    words={
        **_keys(_TEXT, "image working_dir user network_mode hostname container_name restart platform pull_policy"),
        "domainname": _TEXT,
        **_keys(_PROGRAM, "command entrypoint"),
        **_keys(_PAIRS, "environment labels annotations"),
        **_keys(_TEXTS, "cap_add cap_drop profiles"),
        **_keys(_FLAG, "init read_only privileged stdin_open tty attach"),
        "build": _BUILD,
        "env_file": Shape(write='"FILE" or [FILE, {path: FILE, required: false}]', plain=text, item=_ONE_ENV_FILE),
        "networks": Shape(write="a list or a mapping: [lan] or {lan: {aliases: [NAME]}}", item=_TEXT, others=_JOINED),
        "ports": Shape(write='a list: ["8080:80"]', item=_PORT),
        "volumes": Shape(write='a list: ["./folder:/data"]', item=_VOLUME),
        "depends_on": Shape(
            write="a list or a mapping: [db] or {db: {condition: service_healthy}}", item=_TEXT, others=_DEPENDENCY
        ),
        "healthcheck": _HEALTH_CHECK,
        "deploy": Shape(
            write="{replicas: 2}",
            words={"replicas": _COUNT, **_keys(_TEXT, "mode endpoint_mode")},
            others=ANY,
            empty=True,
        ),
        "scale": _COUNT,
        "stop_signal": Shape(write="a signal, as in SIGTERM", plain=signal),
        "stop_grace_period": _DURATION,
        "ulimits": Shape(write="{nofile: 1024}", others=_LIMIT),
        "sysctls": _PAIRS,
        "extra_hosts": Shape(
            write='a mapping or a list: {NAME: ADDRESS} or ["NAME=ADDRESS"]', item=_TEXT, others=_ADDRESSES
        ),
        **_keys(_TEXT_OR_TEXTS, "tmpfs dns dns_search"),
        **_keys(_TEXTS, "links external_links dns_opt volumes_from group_add"),
        **_keys(_PLAIN, "shm_size mem_limit mem_reservation memswap_limit"),
        **_keys(_TEXT, "ipc pid"),
        **_keys(_GIVEN, "secrets configs"),
        "expose": Shape(write="a list: [80]", item=Shape(write="a port", plain=plain)),
        "logging": Shape(write="{driver: NAME}", others=ANY),
        "x-testbed": _optional("{router: true} or {local: {path: FOLDER}}", local=_LOCAL, router=_FLAG),
    },
    others=ANY,
)

_EXTERNAL = Shape(write="true or false", plain=flag, words={"name": _TEXT})
_SUBNET = _table(
    "{subnet: 10.0.0.0/24}",
    aux_addresses=Shape(write="{NAME: ADDRESS}", others=_TEXT),
    **_keys(_TEXT, "subnet gateway ip_range"),
)
_IPAM = _table(
    "{config: [{subnet: 10.0.0.0/24}]}",
    driver=_TEXT,
    options=_OPTIONS,
    config=Shape(write="a list: [{subnet: 10.0.0.0/24}]", item=_SUBNET),
)
_NETWORK = _optional(
    "a mapping, as in {ipam: {config: [{subnet: 10.0.0.0/24}]}}",
    driver_opts=_OPTIONS,
    external=_EXTERNAL,
    labels=_PAIRS,
    ipam=_IPAM,
    **_keys(_TEXT, "name driver"),
    **_keys(_FLAG, "attachable internal enable_ipv4 enable_ipv6"),
)
_STORE = _optional(
    "a mapping, or nothing",
    driver_opts=_OPTIONS,
    external=_EXTERNAL,
    labels=_PAIRS,
    **_keys(_TEXT, "name driver"),
)

_SECRET = _table(
    "{file: FILE}, {environment: NAME}, {content: TEXT} or {external: true}",
    **{
        **_keys(_TEXT, "file environment content name driver template_driver"),
        "external": _EXTERNAL,
        "labels": _PAIRS,
        "driver_opts": _OPTIONS,
    },
)

_NAME = "[a-zA-Z0-9._-]{1,255}"

FILE = Shape(
    write="a mapping with `services:`",
    words={
        "version": _TEXT,
        "name": Shape(write="a text", plain=project),
        "services": Shape(write="a mapping: {NAME: {image: NAME}}", others=_SERVICE, names=_NAME),
        "networks": Shape(write="a mapping: {NAME: {}}", others=_NETWORK, names=_NAME),
        "volumes": Shape(write="a mapping: {NAME: {}}", others=_STORE, names=_NAME),
        **_keys(Shape(write="a mapping: {NAME: {file: FILE}}", others=_SECRET, names=_NAME), "configs secrets"),
        **_keys(ANY, "include models"),
        "x-testbed": _optional("{topology: {chain: 5}}", topology=ANY),
    },
)
"""A Compose file."""
