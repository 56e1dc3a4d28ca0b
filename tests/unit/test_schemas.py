"""The JSON Schemas of profiles and of `x-testbed`: what testbed reads, they take; what it refuses by name, they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from testbed.compose.schema import of_extension
from testbed.errors import InvalidValueError
from testbed.netem.profiles import parse_profile
from testbed.netem.profileschema import schema
from testbed.spec.features import WORDS

PROFILES = sorted((Path(__file__).parents[2] / "netem").glob("*.yaml"))
WRONG = [
    "{both: {dealy: 5ms}}",
    "{both: {delay: 5ms}, forward: {delay: 5ms}}",
    "{down: {delay: 5ms}}",
    "{both: [{at: 1s, outrage: 2s}]}",
    "{both: {trace: x.csv, window: 1s, at: 5s}}",
    "{both: 5}",
    "{both: {ecn: 5}}",
    "[]",
    "{both: {shape: {queue: 5kB}}}",
    "{both: {shape: {rate: 1mbit, qdisc: fqcodel}}}",
    "{both: [{delay: 1ms}, {at: 2s, ramp: {ecn: 1ms -> 2ms, over: 1s}}]}",
]
EXTENSION: dict[str, Any] = {
    "x-testbed": {"topology": {"chain": 5}},
    "services": {
        "a": {"image": "x", "x-testbed": {"local": {"path": ["srv", "lib"], "python": True}}},
        "b": {"x-testbed": {"router": True}},
        "c": None,
    },
}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_of_testbeds_own_is_as_the_schema_says(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())


@pytest.mark.parametrize("text", WRONG)
def test_what_no_profile_is_is_refused_by_both(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_profile("x", text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), schema())


def test_the_schema_has_every_word_with_its_help() -> None:
    parts = schema()["$defs"]
    described = {name: word["description"] for name, word in parts["words"]["properties"].items() if name != "shape"}
    assert described == {name: word.help for name, word in WORDS.items()}


def test_a_bottleneck_of_a_profile_is_as_the_schema_says() -> None:
    text = "{forward: {shape: {rate: 1mbit, queue: 5kB, qdisc: red, ecn: true}}, reverse: [{shape: {rate: 1mbit}}]}"
    parse_profile("x", text)
    jsonschema.validate(yaml.safe_load(text), schema())


def test_what_a_compose_file_says_to_testbed_is_as_the_schema_says() -> None:
    jsonschema.validate(EXTENSION, of_extension())
    wrong_ones: list[Any] = [{"router": True, "locl": {}}, {"local": {"pth": "x"}}, {"router": []}, 5]
    for wrong in wrong_ones:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"services": {"a": {"x-testbed": wrong}}}, of_extension())
