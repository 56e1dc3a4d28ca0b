"""`testbed schema`: JSON Schema of the files that users write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from testbed.commands.console import write
from testbed.commands.options import command, example
from testbed.compose.schema import of_extension
from testbed.netem.profileschema import schema as of_profile

SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {"profile": of_profile, "compose": of_extension}


@command()
@click.argument("file", type=click.Choice(tuple(SCHEMAS)))
@example("""testbed schema profile > netem/profile.schema.json
             testbed schema compose""")
def schema(file: str) -> int:
    """Print the JSON Schema of a profile's file, or of `x-testbed` in a Compose file, for editors.

    An editor with a YAML language server takes it from the file's first line:
    `# yaml-language-server: $schema=profile.schema.json`.
    """
    write(json.dumps(SCHEMAS[file](), indent=1, ensure_ascii=False))
    return 0


COMMANDS = (schema,)
