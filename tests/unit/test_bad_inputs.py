"""Each bad input is one error of ours, exit status 2, soon and in little memory; nothing is started, nothing is shown.

Most run in this process, which counts its processor time and its largest memory; some as commands, under limits of the
kernel, with Compose asked as well.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import cli
from testbed.labs import local

from .bad_inputs import CASES, GOOD, Case

CPU_S, MEMORY_KIB = 2.0, 200 << 10
LONGEST = 6_000
"""Of a message, in characters: a handful of problems, each of which quotes a few values and what is known."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("COMPOSE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "app").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(folder: Path, case: Case) -> None:
    for name, content in {"compose.yaml": GOOD, **case.files}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        match content:
            case None:
                path.mkdir()
            case "FIFO":
                os.mkfifo(path)
            case str() if content.startswith("-> /") or content in ("-> x.yaml", "-> t.csv"):
                path.symlink_to(content.removeprefix("-> "))
            case str():
                path.write_text(content, encoding="utf-8")
            case _:
                path.write_bytes(content)


def command(case: Case, lab: str) -> list[str]:
    words = case.words if "=" in case.words and ("->" in case.words or case.words[0] == "=") else ""
    said = words or (f"client -> server={case.words}" if case.words else "")
    return ["exec", "--lab", lab, *(("--impair", said) if said else ()), *case.more, "client", "--", "true"]


def check(status: object, said: str, part: str) -> None:
    assert status == 2, said[-2000:]
    assert part in said, said[:2000]
    assert "Traceback" not in said
    assert len(said) <= LONGEST
    assert said.isascii() or "\x1b" not in said
    for secret in Path("/etc/passwd").read_text().splitlines():
        assert secret not in said


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_error_soon_and_in_little_memory(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_arguments: object, **_more: object) -> None:
        raise AssertionError("something was started")

    case = CASES[name]
    prepare(folder, case)
    monkeypatch.setattr(local, "ChildAgent", start)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["testbed", *command(case, "local")])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what there is (proc(5))
    before_kib, before_s = peak_kib(), sum(os.times()[:4])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    took_s, took_kib = sum(os.times()[:4]) - before_s, peak_kib() - before_kib
    check(ended.value.code, capsys.readouterr().err, case.part)
    assert took_s <= CPU_S
    assert took_kib <= MEMORY_KIB


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (8, 8))  # with Python's own start, and Compose's
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))  # Go's programs reserve more than they use


COMMANDS = (
    "profile: aliases in a side", "profile: a FIFO", "profile: a device", "trace: the kernel's log", "compose: a FIFO",
    "compose: a device", "compose: aliases", "compose: scale: 99999999", "compose: includes a device",
    "compose: env_file: /dev/zero", "env: nested variables", "env: a FIFO", "option: a device", "option: secrets",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_as_a_command_on_an_engine_too(name: str, folder: Path, compose: None) -> None:
    case = CASES[name]
    prepare(folder, case)
    done = subprocess.run(
        [sys.executable, "-m", "testbed.cli", *command(case, "compose")], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=180, check=False, preexec_fn=limit,
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere.sock", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout == ""
    if "no Docker engine answers" not in done.stderr:  # said of a file that this command does not come to
        check(done.returncode, done.stderr, case.part)


MARKERS = {
    "no number of a computer": ("delay=10**5000", "a whole number of about 5001 digits: a duration needs a unit"),
    "as a limit": ("limit=10**5000", "limit=a whole number of about 5001 digits: must lie"),
    "as a seed": ("seed=10**5000", "seed=a whole number of about 5001 digits: must lie"),
    "not a number": ("delay=float('nan')", "delay=nan: a duration needs a unit"),
    "a million digits": ("delay='9'*10**6+'ms'", "not a duration"),
    "an object": ("delay=object()", "not a duration"),
    "a text that cannot be shown": ("delay=Sly('5 ms x')", "delay='5 ms x'"),
    "an object that cannot be shown": ("delay=Raises()", "<Raises, whose repr raises ValueError>"),
    "in itself": ("drop_packets=RECURSIVE", "is no number of a packet"),
    "very many": ("drop_packets=list(range(1, 10**6, 2))", "at most 500 are possible"),
    "half a character": ("delay='\\udcff'", "\\udcff"),
    "a long trace": ("trace='x'*5000", "no such file"),
    "a NUL": ("trace='\\0'", "no such file"),
    "no name": ("trace=5", "must be the name of a file"),
    "a foreign key": ("**{'<script>': 1}", "unknown"),
}


@pytest.mark.parametrize("name", MARKERS)
def test_a_marker_of_any_kind_is_told_and_nothing_is_started(name: str, pytester: pytest.Pytester) -> None:
    pytester.makefile(".yaml", compose=GOOD)
    pytester.mkdir("app")
    pytester.makepyfile(
        "import pytest\n"
        "class Sly(str):\n    def __repr__(self): raise ValueError\n"
        "class Raises:\n    def __repr__(self): raise ValueError\n"
        "RECURSIVE = []\nRECURSIVE.append(RECURSIVE)\n"
        f"@pytest.mark.impair('client -> server', {MARKERS[name][0]})\ndef test_it(lab): pass\n"
    )
    result = pytester.runpytest_inprocess("--lab", "local", "-p", "no:cacheprovider")
    assert result.ret == 2
    (told,) = [line for line in result.outlines if "::test_it: " in line]
    assert MARKERS[name][1] in told
    assert len(told) < LONGEST
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
