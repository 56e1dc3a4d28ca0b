"""The corpus of Compose files, each with a stand-in for every image: how many come up in a local lab, and why not.

A stand-in waits, whatever its command, and is healthy. Ports of the machine are its kernel's choice, and what is bound
from outside the file's folder and is missing here is a folder of the test: the machine must not matter.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed import LocalLab
from testbed.compose.composefile import ComposeFile
from testbed.errors import TestbedError
from tests.unit import corpus

LABS = ("local",)
_LEAST_SHARE = 0.8
_WAITS = ["sh", "-c", "exec sleep 1000000", "stand-in"]
_ENDS = ["sh", "-c", "exit 0", "stand-in"]
NO_ENGINE_RUNS = {
    "bad-cidr": "the engine knows no such subnet",
    "container-mode": "it names a container of nobody",
    "extends-here": "no service is active",
    "external-links": "it names a container of nobody",
    "restart-wrong": "the engine knows no such policy",
    "same-subnet": "the engine refuses networks that overlap",
    "secret-external": "Compose refuses it",
    "volume-named": "Compose takes it for a path of Windows",
}
"""Files that Compose reads, and that come up nowhere."""


class _StandIns(LocalLab):
    def _read(self) -> ComposeFile:
        file = super()._read()
        bodies = file.config["services"]
        done = {
            name
            for body in bodies.values()
            for name, dependency in body["depends_on"].items()
            if dependency["condition"] == "service_completed_successfully"
        }
        services = {
            name: {**self._stood_in(body, file.path.parent), "entrypoint": _ENDS if name in done else _WAITS}
            for name, body in bodies.items()
        }
        return replace(file, config={**file.config, "services": services})

    def _stood_in(self, body: dict[str, Any], folder: Path) -> dict[str, Any]:
        kept = {key: value for key, value in body.items() if key not in ("build", "image")}
        check = kept.get("healthcheck")
        if check and not check.get("disable"):
            kept["healthcheck"] = {**check, "test": ["CMD", "true"]}
        ports = [port if "-" in port["published"] else {**port, "published": ""} for port in kept["ports"]]
        volumes = [self._placed(volume, folder) for volume in kept["volumes"]]
        own = {"ports": ports, "volumes": volumes, "x-testbed": {"local": {"python": False}}}
        return {**kept, **own}

    @staticmethod
    def _placed(volume: dict[str, Any], folder: Path) -> dict[str, Any]:
        source = str(volume.get("source") or "")
        if volume["type"] != "bind" or os.path.exists(source) or source.endswith(".sock"):
            return volume
        if not (volume.get("bind") or {}).get("create_host_path"):
            (folder / "missing").mkdir(exist_ok=True)
            return {**volume, "source": str(folder / "missing")}
        return {**volume, "source": str(folder / "missing" / source.strip("/").replace("/", "-"))}


def why_not(text: str, folder: Path) -> str:
    """Why a file does not come up; empty if it does."""
    path = corpus.lay_out(text, folder)
    try:
        with _StandIns(path, up_deadline="60s"):
            return ""
    except TestbedError as error:
        return str(error).replace(f"{path.parent}/", "")


@pytest.mark.by_hand
@pytest.mark.timeout(1500)
def test_most_files_come_up_and_each_of_the_rest_has_its_reason(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in corpus.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    answers = corpus.answers()["answers"]
    texts = {
        name: text for name, text in corpus.files().items() if "config" in answers[name] and name not in NO_ENGINE_RUNS
    }
    reasons = {name: why_not(text, tmp_path / name) for name, text in texts.items()}
    refused = {name: reason for name, reason in reasons.items() if reason}
    with capsys.disabled():
        share = 1 - len(refused) / len(texts)
        print(f"\n{share:.0%} of {len(texts)} files come up")  # noqa: T201  # what it is called for
        for name, reason in refused.items():
            print(f"{name}: {reason}")  # noqa: T201  # likewise
    assert share >= _LEAST_SHARE
