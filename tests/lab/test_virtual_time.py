"""Virtual time, from end to end: waiting takes no time, a seed decides everything, and what goes wrong is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from testbed.kernel import building, bytecode, progress, virtual
from testbed.lab.waiting import await_condition
from tests import archives
from tests.archives import entry, layer, link
from tests.lab.programs import exchange_project, farewell_project

pytestmark = [
    pytest.mark.skipif(
        building.find() is None, reason="no kernel with a simulated clock: `testbed kernel build` builds one"
    ),
    pytest.mark.timeout(800),
]

REPOSITORY = Path(__file__).parents[2]
SUITE = """
import os, random, time

def test_a_day():
    began = time.time()
    time.sleep(86400)
    assert 86400 <= time.time() - began < 86401

def test_random_numbers(record_property):
    record_property("drawn", f"{os.urandom(8).hex()} {random.random()} {hash('word')}")
    with open("written.txt", "w") as file:
        file.write("vanishes")

def test_that_fails():
    assert False, os.environ["HOME"]
"""
SPINS = """
def spin():
    while True:
        pass

def test_first():
    pass

def test_that_spins():
    spin()
"""

PYTEST = """
import pytest, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in the background inherits that it is ignored
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project."""
    bytecode.ensure(print)  # which a first run tells
    exchange_project.lay_out(tmp_path)
    (tmp_path / "test_suite.py").write_text(exchange_project.test_of(count=30, every_s=60) + SUITE)
    (tmp_path / "test_spins.py").write_text(SPINS)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--virtual-time", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )


def kept(folder: Path) -> dict[str, bytes]:
    """What a run wrote, by path; it is moved away."""
    files = [folder / "junit.xml", *(path for path in (folder / "report").rglob("*") if path.is_file())]
    content = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    shutil.rmtree(folder / "report")
    (folder / "junit.xml").unlink()
    return content


def test_two_runs_of_a_seed_are_the_same_to_the_last_bit_and_another_seed_differs(folder: Path) -> None:
    began = time.monotonic()
    runs = {}
    for name, seed in (("first", "7"), ("second", "7"), ("other", "8")):
        arguments = ("--testbed-seed", seed, "--testbed-capture", "always", "--junitxml", "junit.xml", "test_suite.py")
        done = run(folder, *arguments)
        assert (done.returncode, done.stderr) == (1, f"testbed: virtual time, seed {seed}\n"), done.stdout
        assert re.search(r"1 failed, 3 passed.* in 88\d\d\d\.\d\ds \(1 day", done.stdout)
        runs[name] = {"output": done.stdout.encode(), **kept(folder)}
    assert runs["first"].keys() >= {"report/results.jsonl", "report/index.html", "junit.xml"}
    assert [path for path in runs["first"] if runs["first"][path] != runs["second"].get(path)] == []
    frames = re.search(
        rb'"lateness": {"carrier": "this machine.s timer", "frames": (\d+)', runs["first"]["report/results.jsonl"]
    )
    assert frames is not None
    assert 1 <= int(frames[1]) < 30 * 60 / 30  # each look at the timer costs as much as a packet
    packets = next(path for path in runs["first"] if path.endswith(".pcapng"))
    assert len(runs["first"][packets]) > 30 * 4 * 60  # four packets or more a message
    assert runs["first"][packets] != runs["other"][packets]
    drawn = [re.search(rb'name="drawn" value="(.+)"', runs[name]["junit.xml"]) for name in ("first", "other")]
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert drawn[0][1] != drawn[1][1]
    assert not (folder / "written.txt").exists()
    assert time.monotonic() - began < 3 * 86400 / 100


def test_a_seed_that_fails_in_one_of_two_kernels_fails_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is lost and sent again takes 200 ms more; so does the same one in the same seed.

    And a kernel that dies, because a test spins, fails that seed alone.
    """
    spins = "    while os.environ.get('SPINS') and pytestconfig.stash[SEED] == 3:\n        pass\n"
    suite = exchange_project.test_of(count=4, every_s=5).replace("(lab):\n", f"(lab, pytestconfig):\n{spins}")
    suite = f"import os\nfrom testbed.pytest.state import SEED\n{suite}"
    (folder / "test_seeds.py").write_text(f"{suite}    assert max(map(int, done.stdout.split())) < 200_000_000\n")
    monkeypatch.setenv("SPINS", "1")
    seeds = ("--testbed-seeds", "1..10", "--testbed-jobs", "2", "--testbed-shrink", "0", "--virtual-time-spin", "2s")
    done = run(folder, *seeds, "--junitxml", "junit.xml", "test_seeds.py")
    monkeypatch.delenv("SPINS")
    assert "kernel gw0 ended while it ran this test: a program spun: " in done.stdout
    (named,) = re.findall(r"failing seeds: (.+)\n", done.stdout)
    failing = named.split(", ")
    assert f"{len(failing)} of 10 seeds fail" in done.stdout
    assert (folder / "junit.xml").read_text().count("<testcase ") == 10
    failing.remove("3")
    assert 0 < len(failing) < 9
    assert len([*(folder / "report" / "captures").iterdir()]) == len(failing)
    assert f"pytest test_seeds.py::test_messages --testbed-seed {failing[0]} --virtual-time " in done.stdout
    passing = next(seed for seed in map(str, range(1, 11)) if seed not in failing)
    alone = ("--testbed-replays=0", "test_seeds.py", "--testbed-seed")
    assert [run(folder, *alone, seed).returncode for seed in (failing[0], passing)] == [1, 0]


def test_a_bug_of_one_seed_in_two_hundred_is_found_and_made_as_small_as_one_lost_packet(tmp_path: Path) -> None:
    """What is told is put into the test: it fails ten times of ten, and under another seed, too."""
    farewell_project.lay_out(tmp_path)
    failing = farewell_project.FAILING_SEED
    done = run(tmp_path, "--testbed-seeds", f"{failing - 1}..{failing}", "test_bye.py")
    assert f"  failing seeds: {failing}\n" in done.stdout, done.stdout + done.stderr
    kept = json.loads((tmp_path / "report" / "seeds.json").read_text())["tests"]["test_bye.py::test_bye"]
    shrunk = kept["shrunk"]
    assert (shrunk["lost_packets"], shrunk["at_most"]) == ({"found": 3, "by_number": 1}, {"messages": 1})
    assert shrunk["complete"]
    assert shrunk["tries"] <= 20
    line = re.search(
        r"  made smaller .*\n    no impairment of client -> server on default\n    (@pytest.*)\n", done.stdout
    )
    assert line is not None, done.stdout
    body = farewell_project.TEST.partition("def test_bye(lab")[2].replace("at_most(20,", "at_most(1,")
    (tmp_path / "test_told.py").write_text(
        f"import pytest\n@pytest.mark.parametrize('again', range(10))\n{line[1]}\ndef test_bye(again, lab{body}"
    )
    assert "10 failed" in run(tmp_path, "--testbed-seed", "5", "--tb=no", "--testbed-replays=0", "test_told.py").stdout


def test_a_version_is_identical_to_itself_and_another_is_told_apart_from_the_first_seed_on(folder: Path) -> None:
    """Although the folder has files that git does not know."""
    (folder / "test_ab.py").write_text(exchange_project.test_of(count=4, every_s=5))

    def compared() -> tuple[int, dict[str, Any]]:
        argv = [sys.executable, "-m", "testbed.commands.cli", "ab", "--virtual-time", "--base", "base", "--json"]
        done = subprocess.run(
            [*argv, "--pairs", "2", "--keep", f"ab-{uuid4().hex}", "--", "test_ab.py", "-p", "no:cacheprovider"],
            cwd=folder, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def commit(*tag: str) -> None:
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(folder)]
        for words in (["add", "-A"], ["commit", "-q", "-m", "x"], *([["tag", *tag]] if tag else [])):
            subprocess.run([*git, *words], check=True)

    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("ab-*\n__pycache__\n")
    commit("base")
    (folder / "ab-notes").write_text("Not in the other checkout.")
    status, alike = compared()
    assert (status, alike["change"], alike["identical"]) == (0, "same", ["test_ab.py::test_messages"])
    client = folder / "programs" / "client.py"
    client.write_text(client.read_text().replace("time.sleep(every_s)", "time.sleep(every_s * 1.5)"))
    commit()
    status, other = compared()
    assert (status, other["identical"]) == (3, []), "two seeds are too few for a verdict on all"
    (parting,) = other["parted"]
    assert (parting["seed"], parting["differing"]) == (1, 2)
    assert parting["what"].startswith("metric programs: client: ")
    first, *around = parting["packets"]
    assert re.match(r"(client|server)@default: packet \d+ differs, by \d+\.\d+ s; the first \d+ are the same", first)
    assert [line[0] for line in around] == [" ", " ", ">", " ", " ", " "], "the second message comes later"
    (runs,) = (cell["seeds"] for cell in other["cells"] if cell["metric"].startswith("programs: client"))
    assert runs == {"of": 2, "identical": 0, "worse": 2, "better": 0}


def test_a_command_runs_itself_again_and_its_report_comes_back(tmp_path: Path) -> None:
    report = tmp_path / "report"
    argv = [sys.executable, "-m", "testbed.commands.cli", "demo", "--virtual-time", "--messages", "2"]
    done = subprocess.run(
        [*argv, "--report", str(report), "clean", "awful"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "testbed: virtual time, seed 1\n" in done.stderr
    assert "Message Test message 02 (awful)" in done.stdout
    demo = json.loads((report / "demo.json").read_text())
    assert demo["started"].startswith("2027-01-15T"), "by the simulated clock"
    assert "awful" in json.dumps(demo)
    assert "awful" in (report / "index.html").read_text()


def test_hosts_run_in_their_images_which_are_unpacked_outside(tmp_path: Path) -> None:
    mark = uuid4().hex
    folders = [
        entry("etc"),
        entry("etc/issue", f"{mark}\n".encode()),
        *(entry(name) for name in ("usr", "lib", "lib64")),
    ]
    layers = [layer(*folders, link("bin", "usr/bin"))]
    archive = archives.archive(archives.docker_files(layers, archives.configuration(layers, Cmd=["sleep", "infinity"])))
    (tmp_path / "image.tar").write_bytes(archive)
    (tmp_path / "compose.yaml").write_text(
        "services: {a: {x-testbed: {local: {image: ./image.tar}}, volumes: "
        "['/usr:/usr:ro', '/lib:/lib:ro', '/lib64:/lib64:ro']}}\n"
    )
    (tmp_path / "test_image.py").write_text(
        "def test_image(lab):\n    print(lab.host('a').run(['/bin/cat', '/etc/issue']).stdout)\n"
    )
    done = run(tmp_path, "-s", "test_image.py")
    assert (done.returncode, done.stdout.count(mark)) == (0, 1), done.stdout + done.stderr
    assert (done.stderr.count("unpacking "), done.stdout.count("unpacking ")) == (1, 0)


def test_the_kernels_random_numbers_follow_the_seed_alone(tmp_path: Path) -> None:
    """The same program with the same words: nothing else differs that could change them."""

    def drawn(seed: int) -> str:
        with (tmp_path / "output").open("w+b") as output:
            status = virtual.run(
                [sys.executable, "-S", "-E", "-c", "import os; print(os.urandom(16).hex())"],
                seed=seed,
                cwd=tmp_path,
                outputs=virtual.Outputs(),
                environment={},
                say=print,
                stdout=output,
                stderr=output,
                spin_limit_s=60,
            )
            output.seek(0)
            text = output.read().decode()
        assert (status, len(text)) == (0, 33), text
        return text

    first, second, other = map(drawn, (7, 7, 8))
    assert first == second != other


def test_a_program_that_spins_is_ended_and_named(folder: Path) -> None:
    done = run(folder, "--virtual-time-spin", "1s", "test_spins.py")
    assert done.returncode == 128 + signal.SIGFPE
    assert "a program spun: " in done.stderr
    assert re.search(r'test_spins\.py", line [34] in spin\n', done.stderr)
    assert "test_spins.py ." in done.stdout


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda process, kernel: os.kill(kernel, signal.SIGKILL), "did not run to its end; its last lines: "),
        (lambda process, kernel: process.send_signal(signal.SIGINT), "interrupted; the kernel with the simulated"),
    ],
    ids=["killed", "interrupted"],
)
def test_a_kernel_that_ends_early_is_told(
    folder: Path, end: Callable[[subprocess.Popen[str], int], object], message: str
) -> None:
    known = building.find()
    assert known is not None
    argv = [sys.executable, "-c", PYTEST, *command()[3:], "test_spins.py"]
    printed = folder / "printed"
    with (
        printed.open("wb") as stdout,
        subprocess.Popen(argv, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            await_condition(printed.read_text, lambda text: "test_spins.py" in text, deadline_s=90)
            family = progress.family(process.pid, progress.usages())
            (processors,) = {frozenset(os.sched_getaffinity(pid)) for pid in family if pid != process.pid}
            assert len(processors) == 1
            end(process, next(pid for pid in family if progress.runs(pid, known.path)))
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 2, stderr
    assert message in stderr
    assert "test_spins.py" in printed.read_text(), "what was printed until then"
    await_condition(
        lambda: [pid for pid in family if progress.runs(pid, known.path)], lambda left: not left, deadline_s=10
    )
