"""`testbed ab` on real links finds a slower server by metric and link; images are compared on an engine."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import ROOT, cli

SHOP = ROOT / "benchmarks" / "shop"
LABS = ("compose",)  # of the test that asks for a kind: a local lab runs no images
_PAIRS = 40  # 16 decide where no answer waits for a processor
_WITHIN_S = 280
# A server that says which image it is of.
_DOCKERFILE = """
FROM debian:trixie-slim
RUN echo {version} > /version
"""
_COMPOSE = """
services:
  client: {image: "debian:trixie-slim", command: [sleep, infinity]}
  server: {image: "nobody/none:0", command: [sleep, infinity]}
"""
_TEST = """
import pytest

@pytest.mark.impair("client -> server", delay="1ms")
def test_version(lab):
    lab.host("client").run(["bash", "-c", "echo > /dev/tcp/server/9 || true"])
    lab.record("version", float(lab.host("server").run(["cat", "/version"]).stdout), unit="s", better="lower")
"""


def git(folder: Path, *words: str) -> str:
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The benchmarks' shop with a slow server, in a repository whose tag ``base`` is without it."""
    folder = tmp_path / "shop"
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "base")
    git(folder, "tag", "base")
    faults = folder / "faults.py"
    faults.write_text(faults.read_text().replace("= ()", '= ("slow server",)'))
    git(folder, "commit", "-q", "-a", "-m", "slow")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_milliseconds_in_the_server_are_found_on_the_local_lab(shop: Path) -> None:
    words = ["--lab", "local", "--testbed-lateness", "warn", "-p", "no:cacheprovider", "test_links.py::test_loss"]
    ab = ["ab", "--base", "base", "--pairs", str(_PAIRS), "--seed", "1", "--json"]
    done = cli(*ab, "--", *words, cwd=shop, within_s=_WITHIN_S)
    assert (done.returncode, bool(done.stdout)) == (1, True), done.stderr
    document = json.loads(done.stdout)
    metrics = {cell["metric"]: cell for cell in document["cells"] if cell["part"] in ("", "median")}
    response = metrics["response"]
    assert response["links"] == "client -> server delay 4ms loss 1%"
    assert response["change"] == "regressed"
    assert response["effect"] > 0.1, "10 ms are added to a round trip of 4 ms, or of 14 ms on a busy machine"
    assert min(response["base"]) < 0.012
    assert min(response["head"]) >= 0.014, "4 ms of the link and 10 ms in the server"
    assert metrics["received"]["change"] != "regressed", "what is as before is not called worse"
    pairs = document["base_runs"] + len(document["thrown_away"])
    assert 16 <= pairs <= _PAIRS, "so few decide no cell; it ends when all are decided"
    assert git(shop, "worktree", "list").count("\n") == 1
    (folder,) = (shop / "report" / "ab").iterdir()
    seeds = [_seeds(folder / side) for side in ("base", "head")]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == pairs
    assert _dropped(folder / "base") > 0, "the link loses packets"


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.jsonl")):
        yield from map(json.loads, file.read_text().splitlines())


def _seeds(folder: Path) -> list[int]:
    return [line["seed"] for line in _lines(folder) if "schema" in line]


def _dropped(folder: Path) -> int:
    links = [link for line in _lines(folder) if "test" in line for link in line["test"]["links"]]
    return sum(int(link["counters"]["dropped_packets"]) for link in links)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("kind")
def test_two_images_of_a_service_are_compared_on_an_engine(tmp_path: Path) -> None:
    for name, text in (("compose.yaml", _COMPOSE), ("test_it.py", _TEST)):
        (tmp_path / name).write_text(text)
    images = [f"testbed-two-versions-{tmp_path.name}:{version}".lower() for version in (1, 2)]
    try:
        for version, image in enumerate(images, start=1):
            argv = ["docker", "build", "-q", "-t", image, "-"]
            subprocess.run(argv, input=_DOCKERFILE.format(version=version), text=True, check=True, capture_output=True)
        words = ["--base-image", f"server={images[0]}", "--head-image", f"server={images[1]}", "--pairs", "1", "--json"]
        lab = ["--lab", "compose", "--testbed-lateness", "warn", "-p", "no:cacheprovider"]
        done = cli("ab", *words, "--", *lab, cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        (cell,) = [cell for cell in json.loads(done.stdout)["cells"] if cell["metric"] == "version"]
        assert (cell["base"], cell["head"]) == ([1.0], [2.0])
    finally:
        subprocess.run(["docker", "image", "rm", "-f", *images], check=False, capture_output=True)
