"""Small Compose files, each of a shape met in public ones, and what Compose makes of each (answers.json).

``python -m tests.unit.corpus`` asks Compose again, and says what is new.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from testbed.compose import command
from testbed.compose.command import Composer
from testbed.errors import InvalidComposeError

_HERE = Path(__file__).parent
_ANSWERS = _HERE / "answers.json"
_AROUND, _HOME = "/around", "/home/me"
"""The folder with the folder `stack` of a file, and the user's own, as the answers have them."""
ENVIRONMENT = {"TAG": "1.0", "EMPTY": "", "PORT": "8099", "DB_PASSWORD": "pw"}
"""All variables that are set."""
_BESIDE = {
    ".env": "DOTENV_ONLY=from .env\nTHIRD=3\n",
    ".env.shop": "SECRET_KEY=k\nexport DEBUG=1 # one\n",
    "app.env": "# variables\nA=1\nB='two words'\nC=\"x\\ny\"\nD=$A-${TAG}\nE\n\nF: yaml\n",
    "other.env": "A=from other\nG=${DOTENV_ONLY}\n",
    "raw.env": "A='raw'\nB=$TAG\n",
    "secret.txt": "open sesame\n",
    "app.conf": "listen=80\n",
    "base.yaml": "services: {base: {image: base, environment: {A: '1'}}}\n",
    "Dockerfile": "FROM python:3\nCMD sleep 1\n",
    "app/Dockerfile": "FROM python:3\nCMD sleep 1\n",
}


def files() -> dict[str, str]:
    """Every file, by its name."""
    return {name: text for path in sorted(_HERE.glob("*.yaml")) for name, text in _parts(path.read_text("utf-8"))}


def _parts(text: str) -> Iterator[tuple[str, str]]:
    _, *rest = re.split(r"^=== (\S+)\n", text, flags=re.MULTILINE)
    yield from zip(rest[::2], rest[1::2], strict=True)


def lay_out(text: str, folder: Path) -> Path:
    """Write a file, and what it names, into a new folder `stack` of this one; returns the file."""
    stack = folder / "stack"
    for name, content in {**_BESIDE, "compose.yaml": text}.items():
        (stack / name).parent.mkdir(parents=True, exist_ok=True)
        (stack / name).write_text(content, encoding="utf-8")
    return stack / "compose.yaml"


def answers() -> dict[str, Any]:
    """Compose's version, and by file its ``config`` or its ``error``."""
    known: dict[str, Any] = json.loads(_ANSWERS.read_text("utf-8"))
    return known


def moved(value: Any, old: str, new: str) -> Any:
    """A configuration with another folder in its paths."""
    match value:
        case str():
            return re.sub(re.escape(old) + r"(?=/|$)", lambda _: new, value)
        case Mapping():
            return {key: moved(item, old, new) for key, item in value.items()}
        case list():
            return [moved(item, old, new) for item in value]
    return value


def placed(config: Any, folder: Path) -> Any:
    """A configuration of the answers, as if Compose had read a file laid out in this folder, which is HOME, too."""
    return moved(moved(config, _HOME, str(folder)), _AROUND, str(folder))


def ask(folder: Path) -> dict[str, Any]:
    """What Compose makes of every file; in this process's environment, which is changed."""
    for name in [name for name in os.environ if name.startswith("COMPOSE_")]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)
    os.environ["HOME"] = _HOME

    def of_one(name: str, text: str) -> dict[str, Any]:
        path = lay_out(text, folder / name)
        composer = Composer([path], project="")
        try:
            return {"config": moved(composer.config(), str(folder / name), _AROUND)}
        except InvalidComposeError as error:
            return {"error": str(error).replace(str(folder / name), _AROUND).splitlines()[0]}

    texts = files()
    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(texts, pool.map(of_one, texts, texts.values()), strict=True))
    return {"compose": command.version(), "answers": answers}


def write(answers: dict[str, Any]) -> None:
    """Keep what Compose said."""
    _ANSWERS.write_text(json.dumps(answers, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
