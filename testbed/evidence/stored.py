"""Results that were written, read back and checked: see `testbed.evidence.results`. Pure: lines in, a value out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from testbed.errors import InvalidValueError
from testbed.evidence.machine import differences, in_words
from testbed.evidence.metric import BETTER, Metric
from testbed.evidence.results import SCHEMA
from testbed.evidence.verdict import Verdict, words
from testbed.text import shortened, shown, visible

_FAMILY = SCHEMA.partition("/")[0]
_OUTCOMES = words("test")
_LINE_CHARACTERS = 60
_Kinds = Mapping[str, Any]
"""By key: the kind that its value must have, or several; None stands for null."""


@dataclass(frozen=True, kw_only=True)
class StoredAttempt:
    """One run of a test."""

    outcome: Verdict
    seed: int
    duration_s: float
    reason: str | None
    replay: str | None
    metrics: tuple[Metric, ...]
    content: Mapping[str, Any]
    """All that the file says of it."""

    @property
    def elapsed_s(self) -> float:
        """Of its set-up, its body and its tear-down; of its body, if the file says no more."""
        return float(self.content.get("elapsed_s", self.duration_s))

    def metric(self, name: str) -> Metric | None:
        """Its metric of that name, if it has one."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True, kw_only=True)
class StoredTest:
    """One test, and its attempts in order: the last one counts."""

    id: str
    profile: str | None
    attempts: tuple[StoredAttempt, ...]
    flaky: bool
    machine: Mapping[str, Any]
    """What it ran on."""

    @property
    def elapsed_s(self) -> float:
        """Of all attempts."""
        return sum(attempt.elapsed_s for attempt in self.attempts)

    @property
    def last(self) -> StoredAttempt:
        """The attempt that counts."""
        return self.attempts[-1]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run of pytest."""

    name: str
    """Of its file, as the user wrote it."""
    started: str
    """ISO 8601, UTC."""
    seed: int
    tests: tuple[StoredTest, ...]
    """In the order in which they ended last."""
    machine: Mapping[str, Any]
    """Of its last test."""
    shard: Mapping[str, Any] | None
    """Which part of a divided session it is."""
    end: Mapping[str, Any] | None
    """What its last line says; None if it did not come to its end."""
    cut: str
    """How its last line breaks off, as a sentence that names the file and the line; empty if it does not."""

    @property
    def incomplete(self) -> str:
        """Why tests may be missing, as a sentence; empty if none is."""
        return self.cut or ("" if self.end is not None else f"{self.name}: the session did not come to its end")


def read(lines: Iterable[str], *, name: str) -> Session:
    """The session that a file's lines describe. A last line that breaks off is left out, and said in `Session.cut`.

    Raises InvalidValueError with every problem, each with the file's name and the line: no results, another schema,
    a line that is none of a results file's, two sessions in one file.
    """
    reader = _Reader(name)
    for number, line in enumerate(lines, start=1):
        reader.take(number, line)
    return reader.session()


class _Reader:
    """One file, line by line."""

    def __init__(self, name: str) -> None:
        self.name = shortened(visible(name))
        self.problems: list[str] = []
        self.head: Mapping[str, Any] | None = None
        self.machine: Mapping[str, Any] = {}
        self.tests: dict[str, StoredTest] = {}
        self.end: Mapping[str, Any] | None = None
        self.cut = ""
        self._stop = False

    def take(self, number: int, line: str) -> None:
        """Take the next line."""
        where = f"{self.name}:{number}"
        if self._stop or not line.strip():
            return
        try:
            content = json.loads(line, parse_constant=lambda word: _refuse(f"{word} is not a number of JSON"))
        except ValueError as error:
            if line.endswith("\n"):
                self.problems.append(f"{where}: is no JSON: {error}: {_begin(line)}")
                self._stop = self.head is None
            elif self.head is None:
                self.problems.append(f"{where}: breaks off: {_begin(line)}")
                self._stop = True
            else:
                self.cut = f"{where}: breaks off after {len(line)} characters, so its test is lost: {_begin(line)}"
            return
        if self.head is None:
            self._take_head(where, content)
            return
        match content:
            case {"schema": _}:
                self._refuse_second(where, content)
            case {"machine": Mapping() as machine}:
                self.machine = machine
            case {"test": Mapping() as test}:
                self._take_test(where, test)
            case {"end": Mapping() as end}:
                self.end = end
            case _:
                self.problems.append(f"{where}: is neither a machine, a test nor the end: {_begin(line)}")

    def _take_head(self, where: str, content: Any) -> None:
        schema = content.get("schema") if isinstance(content, Mapping) else None
        self._stop = True
        if schema != SCHEMA:
            if isinstance(schema, str) and schema.startswith(_FAMILY):
                self.problems.append(f"{where}: schema {shown(schema)}; this testbed reads {SCHEMA}")
            else:
                self.problems.append(f'{where}: no results of testbed: must begin with {{"schema": "{SCHEMA}", …}}')
            return
        self.problems += _wrong(where, "", content, {"started": str, "seed": int, "machine": Mapping})
        if "shard" in content:
            self.problems += _wrong(where, "", content, {"shard": Mapping})
        if not self.problems and "shard" in content:
            known: _Kinds = {"number": int, "count": int, "tests": int, "digest": str}
            self.problems += _wrong(where, "shard: ", content["shard"], known)
        if not self.problems:
            self.head, self.machine, self._stop = content, content["machine"], False

    def _refuse_second(self, where: str, content: Mapping[str, Any]) -> None:
        other = content.get("machine")
        differing = differences(self.machine, other) if isinstance(other, Mapping) else {}
        whose = f" and of another machine ({in_words(differing)})" if differing else ""
        self.problems.append(f"{where}: another session begins here{whose}; give each session's file by itself")
        self._stop = True

    def _take_test(self, where: str, content: Mapping[str, Any]) -> None:
        known: _Kinds = {"id": str, "profile": (str, None), "flaky": bool, "earlier_attempts": list}
        problems = _wrong(where, "test: ", content, known)
        earlier = content.get("earlier_attempts")
        contents = [*(earlier if isinstance(earlier, list) else ()), content]
        attempts = [_attempt(where, item, problems) for item in contents]
        self.problems += problems
        if not problems:
            self.tests.pop(content["id"], None)  # of a test that was run again, the last line counts
            self.tests[content["id"]] = StoredTest(
                id=content["id"],
                profile=content["profile"],
                flaky=content["flaky"],
                machine=self.machine,
                attempts=tuple(attempt for attempt in attempts if attempt is not None),
            )

    def session(self) -> Session:
        """What was read. Raises InvalidValueError."""
        if self.head is None and not self.problems:
            self.problems.append(f"{self.name}: is empty; a killed session has at least its first line")
        if self.problems or self.head is None:
            raise InvalidValueError(self.problems)
        return Session(
            name=self.name,
            started=self.head["started"],
            seed=self.head["seed"],
            machine=self.machine,
            tests=tuple(self.tests.values()),
            shard=self.head.get("shard"),
            end=self.end,
            cut=self.cut,
        )


def _attempt(where: str, content: object, problems: list[str]) -> StoredAttempt | None:
    known: _Kinds = {
        "outcome": str, "seed": int, "duration_s": float, "reason": (str, None), "replay": (str, None), "metrics": list,
        "programs": list, "series": list, "captures": list, "links": list, "hosts": list,
    }  # fmt: skip
    if not isinstance(content, Mapping):
        problems.append(f"{where}: attempt {shown(content)}: must be an object")
        return None
    wrong = _wrong(where, "test: ", content, known)
    if not wrong:
        wrong += [*_incomplete(where, content), *_not_replayed(where, content.get("replayed"))]
    if not wrong and content["outcome"] not in _OUTCOMES:
        wrong.append(f"{where}: test: outcome {shown(content['outcome'])}: must be one of {', '.join(_OUTCOMES)}")
    metrics = [_metric(where, item, wrong) for item in content["metrics"]] if not wrong else []
    problems += wrong
    if wrong:
        return None
    return StoredAttempt(
        **{key: content[key] for key in ("seed", "duration_s", "reason", "replay")},
        outcome=_OUTCOMES[content["outcome"]],
        metrics=tuple(metric for metric in metrics if metric is not None),
        content=content,
    )


_ENTRIES: Mapping[str, Sequence[str]] = {
    "links": ("link", "network", "asked", "checks", "proof", "problems", "warnings"),
    "programs": ("host", "argv", "exit_code", "duration_s", "cpu_s", "stopped", "output", "output_left_out"),
    "series": ("name", "unit", "times_s", "values"),
    "hosts": ("host", "what", "by_test", "last_lines"),
}
"""What reports show of the entries of an attempt's lists."""


def _incomplete(where: str, content: Mapping[str, Any]) -> Iterator[str]:
    for kind, keys in _ENTRIES.items():
        for entry in content[kind]:
            missing = [key for key in keys if not isinstance(entry, Mapping) or key not in entry]
            if missing:
                yield f"{where}: test: {kind}: {shown(entry)}: without {', '.join(missing)}"


def _not_replayed(where: str, content: object) -> Iterator[str]:
    """What is wrong with what is said of a replay."""
    of_both: _Kinds = {"same": bool, "differences": list}
    known: _Kinds = {**of_both, "packets": int, "captures": list, "tcp_info": (Mapping, None)}
    for name, value, kinds in (
        ("replayed", content, known),
        ("tcp_info", content.get("tcp_info") if isinstance(content, Mapping) else None,
         {**of_both, "every_s": float, "series": list}),
    ):  # fmt: skip
        if isinstance(value, Mapping):
            yield from _wrong(where, f"test: {name}: ", value, kinds)
        elif value is not None:
            yield f"{where}: test: {name} {shown(value)}: must be an object"


def _metric(where: str, content: object, problems: list[str]) -> Metric | None:
    known: _Kinds = {
        "name": str,
        "values": list,
        "unit": str,
        "better": (str, None),
        "least_effect": float,
        "group": str,
    }
    if not isinstance(content, Mapping):
        problems.append(f"{where}: metric {shown(content)}: must be an object")
        return None
    whose = f"metric {shown(content.get('name'))}: "
    wrong = _wrong(where, whose, content, known)
    if not wrong:
        if not content["values"] or not all(map(_is_number, content["values"])):
            wrong.append(f"{where}: {whose}values {shown(content['values'])}: must be finite numbers, at least one")
        if content["better"] not in (*BETTER, None):
            wrong.append(f"{where}: {whose}better {shown(content['better'])}: must be {', '.join(BETTER)} or null")
        if content["least_effect"] <= 0:
            wrong.append(f"{where}: {whose}least_effect {shown(content['least_effect'])}: must be more than 0")
    problems += wrong
    if wrong:
        return None
    values = tuple(map(float, content["values"]))
    return Metric(**{**{key: content[key] for key in known}, "values": values})


def _wrong(where: str, whose: str, content: Mapping[str, Any], known: _Kinds) -> list[str]:
    """What is missing in an object, or of another kind than it must be."""
    problems = []
    for key, kinds in known.items():
        several = kinds if isinstance(kinds, tuple) else (kinds,)
        if key not in content:
            problems.append(f"{where}: {whose}{key} is missing")
        elif not any(_is(content[key], kind) for kind in several):
            names = " or ".join(_NAMES[kind] for kind in several)
            problems.append(f"{where}: {whose}{key} {shown(content[key])}: must be {names}")
    return problems


_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    list: "a list",
    Mapping: "an object",
    None: "null",
}


def _is(value: object, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return _is_number(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _begin(line: str) -> str:
    return shown(line.strip(), _LINE_CHARACTERS)


def _refuse(why: str) -> Any:
    raise ValueError(why)
