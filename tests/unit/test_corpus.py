"""testbed reads small Compose files as Compose does: what differs stands here, with its reason.

Compose's answers are kept; `test_compose_answers_as_it_did` asks it again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from testbed.compose import command, composefile
from testbed.compose.problems import NeedsComposeError
from testbed.errors import EnvironmentUnfitError, InvalidComposeError
from tests.unit import corpus

LEFT_TO_COMPOSE = ("extends-file", "extends-here", "include")
"""Files that our reader hands on to Compose."""

_NOT_KEPT = "the local lab does not keep it and says so with its name alone"
DIFFERENCES = {
    r"services\.\w+\.(devices|gpus|provider|pre_stop|mem_swappiness|deploy)\b": _NOT_KEPT,
    r"services\.\w+\.build\.(args|extra_hosts|shm_size|additional_contexts)\b": "a builder reads the file itself",
    r"services\.\w+\.develop\b": "nothing is watched",
    r"services\.\w+\.label(s|_file)\b": "labels mean nothing to the local lab; it reads no file of labels",
    r"services\.\w+\.volumes_from$": "an empty list is none",
    r"networks\.\w+\.ipam\.options$": "Compose loses the options; the local lab refuses them",
}
"""Patterns of places where the two configurations may differ."""

LATER = {
    "bad-container-name": "the plan says it, with its line",
    "cycle": "the plan",
    "date-value": "a date is a text to us: it was written as one",
    "dependency-on-nothing": "the plan",
    "link-unknown": "the plan",
    "name-with-replicas": "the plan",
    "network-twice": "the second changes nothing",
    "same-container-name": "the plan",
    "secret-missing": "the plan",
    "service-mode-unknown": "the plan",
    "undeclared-network": "the plan",
    "unknown-key": "the plan",
    "volume-undeclared": "the plan",
}
"""Files that Compose refuses and our reader takes."""


def _texts() -> dict[str, str]:
    return corpus.files()


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    known: dict[str, Any] = corpus.answers()["answers"]
    return known


def test_there_are_at_least_150_files_and_an_answer_to_each(answers: dict[str, Any]) -> None:
    assert len(answers) >= 150
    assert answers.keys() == _texts().keys()


def own(name: str, text: str, folder: Path) -> composefile.ComposeFile | str:
    """The file as our reader has it, or why not."""
    path = corpus.lay_out(text, folder)
    try:
        file = composefile.read(path, environment=corpus.ENVIRONMENT)
        file.problems.raise_if_any()
    except InvalidComposeError as error:
        return str(error)
    return file


@pytest.mark.parametrize("name", [name for name in _texts() if name not in LEFT_TO_COMPOSE])
def test_a_file_is_read_as_by_compose(
    name: str, answers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = own(name, _texts()[name], tmp_path)
    if "error" in answers[name]:
        assert isinstance(ours, str) != (name in LATER), f"Compose: {answers[name]['error']}; ours: {ours}"
        return
    assert isinstance(ours, composefile.ComposeFile), ours
    theirs = _theirs(ours, answers[name], tmp_path)
    lines = _differences(ours.config, theirs)
    assert [line for line in lines if not any(re.match(pattern, _place(line)) for pattern in DIFFERENCES)] == []


@pytest.mark.parametrize("name", LEFT_TO_COMPOSE)
def test_a_file_that_only_compose_can_read_is_left_to_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(NeedsComposeError):
        own(name, _texts()[name], tmp_path)


def test_every_difference_on_the_list_is_met(
    answers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []
    for name in set(_texts()) - set(LEFT_TO_COMPOSE):
        monkeypatch.setenv("HOME", str(tmp_path / name))
        ours = own(name, _texts()[name], tmp_path / name)
        if isinstance(ours, composefile.ComposeFile) and "config" in answers[name]:
            places += [
                _place(line) for line in _differences(ours.config, _theirs(ours, answers[name], tmp_path / name))
            ]
    assert [pattern for pattern in DIFFERENCES if not any(re.match(pattern, place) for place in places)] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compose_answers_as_it_did(tmp_path: Path) -> None:
    kept = corpus.answers()
    try:
        version = command.version()
    except EnvironmentUnfitError as error:
        pytest.skip(str(error))
    if version != kept["compose"]:
        pytest.skip(f"the answers are those of Compose {kept['compose']}, and this is {version}")
    with mock.patch.dict(os.environ):
        now = corpus.ask(tmp_path)
    # Of two services in the wrong, Compose names either.
    new, old = (
        {name: answer.get("config", "refused") for name, answer in answers.items()}
        for answers in (now["answers"], kept["answers"])
    )
    assert new == old, "python -m tests.unit.corpus keeps the new ones"


def _theirs(ours: composefile.ComposeFile, answer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of the same file in Compose's answer."""
    config = corpus.placed(answer["config"], folder)
    theirs = composefile.of_compose(ours.path, config, [ours.path], environment=corpus.ENVIRONMENT)
    theirs.problems.raise_if_any()
    return theirs.config


def _place(line: str) -> str:
    return line.partition(": ")[0]


def _differences(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Each place where two configurations differ, with both values. An item's number in its list is ours alone."""
    match ours, theirs:
        case dict(), dict():
            for key in {**ours, **theirs}:
                if key == "item":
                    continue
                at = f"{place}.{key}" if place else str(key)
                if key in ours and key in theirs:
                    yield from _differences(ours[key], theirs[key], at)
                else:
                    yield f"{at}: ours {ours.get(key, 'none')!r}, Compose's {theirs.get(key, 'none')!r}"
        case list(), list() if len(ours) == len(theirs):
            for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                yield from _differences(a, b, f"{place}.{number}")
        case _ if ours != theirs or type(ours) is not type(theirs):
            yield f"{place}: ours {ours!r}, Compose's {theirs!r}"
