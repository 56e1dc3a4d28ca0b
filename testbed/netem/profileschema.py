"""JSON Schema of a profile's file, made of the table of words. Pure.

An editor checks names and forms by it. What a value means, and which words go together, `parse_profile` checks.
"""

from __future__ import annotations

from typing import Any

from testbed.spec.bottleneck import MARKS
from testbed.spec.features import WORDS
from testbed.spec.timeline import RAMPED
from testbed.spec.words import DISTRIBUTIONS, MEAN, NUMBERS, RATE, SHAPE, SHAPE_WORD, SIZE, TRUTH, WHOLE, ValueKind

_TEXT: dict[str, Any] = {"type": "string"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_OF_STEPS: dict[str, dict[str, Any]] = {
    "at": {"description": "when the step begins, from the timeline's start; the first begins at once", **_TEXT},
    "ramp": {
        "description": "what changes little by little, and over how long",
        "examples": ["40ms -> 400ms over 10s"],
        "anyOf": [
            _TEXT,
            {
                "type": "object",
                "properties": dict.fromkeys((*RAMPED, "over"), _TEXT),
                "additionalProperties": False,
                "required": ["over"],
                "minProperties": 2,
            },
        ],
    },
    "outage": {"description": "a time in which every packet is lost; the steps beneath it go on", **_TEXT},
    "clean": {"description": "whether the words of earlier steps end here", **_FLAG},
    "repeat": {
        "description": "when the timeline begins again; a step of its own, the last",
        **_TEXT,
    },
}
_OF_TRACES: dict[str, dict[str, Any]] = {
    "trace": {"description": "a file of samples, CSV or Mahimahi, beside the profile", **_TEXT},
    "repeat": {"description": "the time after which a CSV trace begins again", **_TEXT},
    "window": {"description": "the time over which a Mahimahi trace is averaged", **_TEXT},
}
_SHAPE: dict[str, Any] = {
    "description": "the bottleneck that all links of the direction share, behind their own impairments",
    "type": ["object", "null"],
    "properties": {
        "rate": {"description": "of all of them together", "examples": ["8mbit"], **_TEXT},
        "queue": {"description": "how much may wait", "examples": ["200kB"], **_TEXT},
        "qdisc": {"description": "which packet leaves next, and which is dropped", "enum": list(MARKS)},
        "ecn": {"description": "whether packets of flows that know ECN are marked instead of dropped", **_FLAG},
    },
    "additionalProperties": False,
    "required": ["rate"],
}
_FORMS: dict[ValueKind, dict[str, Any]] = {
    TRUTH: _FLAG,
    WHOLE: {"type": ["integer", "string"]},
    MEAN: {"type": ["number", "string"]},
    NUMBERS: {"anyOf": [{"type": ["integer", "string"]}, {"type": "array", "items": {"type": ["integer", "string"]}}]},
    SHAPE: {"type": "string", "anyOf": [{"enum": list(DISTRIBUTIONS)}, {"pattern": r"\.dist$"}]},
    RATE: {"type": "string", "examples": ["10mbit"]},
    SIZE: {"type": "string", "examples": ["16kB"]},
}


def schema() -> dict[str, Any]:
    """Of a profile."""
    words = {
        name: {"description": word.help, **_FORMS.get(word.kind, {"type": ["string", "integer", "number"]})}
        for name, word in WORDS.items()
    }
    words[SHAPE_WORD] = {"$ref": "#/$defs/shape"}
    side = {"anyOf": [{"$ref": "#/$defs/words"}, {"$ref": "#/$defs/steps"}, {"$ref": "#/$defs/trace"}]}
    described = {
        "description": {"description": "one line, for `testbed profiles`", "type": "string"},
        "forward": {"description": "toward the second host that a link names", **side},
        "reverse": {"description": "back", **side},
        "both": {"description": "the same for both directions, in place of the two", **side},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A profile of testbed: netem/NAME.yaml",
        "type": "object",
        "properties": described,
        "additionalProperties": False,
        "dependentSchemas": {"both": {"properties": {"forward": False, "reverse": False}}},
        "$defs": {
            "shape": _SHAPE,
            "words": {"type": ["object", "null"], "properties": words, "additionalProperties": False},
            "steps": {
                "type": "array",
                "items": {"type": "object", "properties": {**_OF_STEPS, **words}, "additionalProperties": False},
                "minItems": 1,
            },
            "trace": {
                "type": "object",
                "properties": {**_OF_TRACES, **words},
                "additionalProperties": False,
                "required": ["trace"],
            },
        },
    }
