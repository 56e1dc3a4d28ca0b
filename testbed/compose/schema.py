"""JSON Schema of what testbed reads in a Compose file beside Compose: ``x-testbed``. Pure."""

from __future__ import annotations

from typing import Any

from testbed.compose.shapes import FILE, Shape

_KEY = "x-testbed"
_PLAIN = ["string", "number", "boolean"]


def of_extension() -> dict[str, Any]:
    """Of a Compose file, as far as ``x-testbed`` goes, at its top and in services; all else is Compose's."""
    service = of_shape(_part((FILE.words or {})["services"].others))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "x-testbed in a Compose file",
        "type": "object",
        "properties": {
            _KEY: of_shape(_part(FILE)),
            "services": {
                "type": "object",
                "additionalProperties": {
                    "type": ["object", "null"],
                    "properties": {_KEY: service},
                },
            },
        },
    }


def _part(shape: Shape | None) -> Shape:
    """The extension in a part of the file."""
    return shape.words[_KEY] if shape is not None and shape.words is not None else Shape(write="")


def of_shape(shape: Shape) -> dict[str, Any]:
    """Of what a place may contain."""
    forms: list[dict[str, Any]] = []
    if shape.plain is not None:
        forms.append({"type": _PLAIN})
    if shape.item is not None:
        forms.append({"type": "array", "items": of_shape(shape.item)})
    if shape.words is not None or shape.others is not None:
        others: bool | dict[str, Any] = False if shape.others is None else of_shape(shape.others)
        known = {name: of_shape(part) for name, part in (shape.words or {}).items()}
        required = {"required": list(shape.required)} if shape.required else {}
        forms.append({"type": "object", "properties": known, "additionalProperties": others, **required})
    if shape.empty:
        forms.append({"type": "null"})
    described = {"description": shape.write} if shape.write else {}
    return {**described, **(forms[0] if len(forms) == 1 else {"anyOf": forms} if forms else {})}
