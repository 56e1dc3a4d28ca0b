"""Each bad input gives one error of testbed and exit status 2, soon and in little memory; nothing is started.

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

from testbed.backends.docker import stack as compose
from testbed.backends.local import localagent as local
from testbed.commands import cli, machine, stack
from testbed.netem.profiles import load_profiles

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
    text = words or (f"client -> server={case.words}" if case.words else "")
    return ["exec", "--lab", lab, *(("--impair", text) if text else ()), *case.more, "client", "--", "true"]


def check(status: object, text: str, part: str) -> None:
    assert status == 2, text[-2000:]
    assert part in text, text[:2000]
    assert "Traceback" not in text
    assert len(text) <= LONGEST
    assert text.isascii() or "\x1b" not in text
    for secret in Path("/etc/passwd").read_text().splitlines():
        assert secret not in text


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def run_command(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """The exit status of a command in this process, under its limits, and what it says; it may start nothing."""

    def start(*_arguments: object, **_more: object) -> None:
        raise AssertionError("something was started")

    for module, name in ((local, "ChildAgent"), (compose, "Engine"), (stack, "Engine"), (machine, "Engine")):
        monkeypatch.setattr(module, name, start)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["testbed", *argv])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what there is (proc(5))
    before_kib, before_s = peak_kib(), sum(os.times()[:4])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    took_s, took_kib = sum(os.times()[:4]) - before_s, peak_kib() - before_kib
    assert took_s <= CPU_S
    assert took_kib <= MEMORY_KIB
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_error_soon_and_in_little_memory(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    prepare(folder, case)
    check(*run_command(command(case, "local"), monkeypatch, capsys), case.part)


ENGINES = (
    "compose: a long name",
    "compose: all addresses",
    "compose: user: '99999999999'",
    "compose: privileged: true",
)
"""What Compose takes, and an engine may; of a tmpfs, a sysctl and a subnet an engine tells as it makes them."""


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CASES
        if name.startswith(("compose:", "env:"))
        and name not in ENGINES
        and not any(word in name for word in ("tmpfs", "sysctls", "subnet"))
    ],
)
def test_a_bad_file_is_one_error_where_compose_reads_it(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compose: None
) -> None:
    prepare(folder, CASES[name])
    status, output = run_command(command(CASES[name], "compose"), monkeypatch, capsys)
    check(status, output, "testbed: ")
    assert "Engine" not in output


ODD_WORDS = ("client -> srver", "delay=5", "lss=1%", "gap=3", "gap=3")
WHAT_IS_ODD = (
    "did you mean 'server'?",
    "delay=5: a duration needs a unit",
    "lss: unknown; did you mean 'loss'?",
    "gap stands twice: '3' and '3'",
)
WITHOUT_A_STACK = {
    ("impair", *ODD_WORDS): WHAT_IS_ODD,
    ("prove", *ODD_WORDS): WHAT_IS_ODD,
    ("impair", "client -> srver", "lossy", "delay=5ms"): (
        "'lossy delay=5ms': give one profile, or words such as delay=40ms, not both",
        "did you mean 'server'?",
    ),
    ("flap", "--up", "5", "--down", "1ms", "client -> srver"): (
        "did you mean 'server'?",
        "up=5: a duration needs a unit",
        "down='1ms': at least 50ms",
    ),
    ("flap", "--up", "-1s", "--down", "nan", "a -> server"): ("up='-1s'", "down='nan'", "host 'a': unknown"),
    ("impair", "a -> server", "loss=5"): ("host 'a': unknown", "loss=5"),
    ("cut", "--reject", "a -> server tcp/0"): ("host 'a': unknown", "'tcp/0'"),
    ("partition", "a", "server,server"): ("host 'a': unknown",),
    ("isolate", "a"): ("host 'a': unknown",),
    ("heal", "a -> b"): ("host 'a': unknown", "host 'b': unknown"),
    ("paper", "--only", "C2,<x>,c99"): ("claim '<x>': unknown", "claim 'c99': unknown"),
}


@pytest.mark.parametrize("argv", WITHOUT_A_STACK, ids=" ".join)
def test_what_is_wrong_with_a_command_is_told_whether_a_stack_is_up_or_not(
    argv: tuple[str, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compose: None,
) -> None:
    (folder / "compose.yaml").write_text(GOOD)
    status, output = run_command(list(argv), monkeypatch, capsys)
    for part in WITHOUT_A_STACK[argv]:
        check(status, output, part)


@pytest.mark.parametrize("lab", ["local", "compose"])
@pytest.mark.parametrize("way", ["env_file", "include", ".env"])
def test_what_stands_in_a_file_of_variables_elsewhere_is_not_quoted(
    way: str,
    lab: str,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compose: None,
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "shadow"
    secret.write_text("root:*:19000\nuser name@host:$6$rounds:19001\nKEY='and so on\n")
    match way:
        case "env_file":
            text = GOOD.replace("{image: none/a,", f"{{image: none/a, env_file: {secret},")
        case "include":
            (folder / "other.yaml").write_text("services: {}\n")
            text = f"include: [{{path: other.yaml, env_file: {secret}}}]\n{GOOD}"
        case _:
            (folder / ".env").symlink_to(secret)
            text = GOOD
    (folder / "compose.yaml").write_text(text)
    status, output = run_command(command(Case(""), lab), monkeypatch, capsys)
    check(status, output, ":2: is no variable; the line is not quoted")
    for word in ("user", "host", "rounds", "19001", "and so on"):
        assert word not in output.replace(str(secret), "").replace(str(folder), "")


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
        [sys.executable, "-m", "testbed.commands.cli", *command(case, "compose")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        preexec_fn=limit,
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere.sock", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == ""
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
    "in itself": ("drop_packets=RECURSIVE", "is neither a packet number"),
    "very many": ("drop_packets=list(range(1, 10**6, 2))", "500000 numbers and ranges; at most 500 are possible"),
    "many": ("drop_packets=list(range(1, 2000, 2))", "1000 numbers and ranges; at most 500 are possible"),
    "half a character": ("delay='\\udcff'", "\\udcff"),
    "a long trace": ("trace='x'*5000", "no such file"),
    "a NUL": ("trace='\\0'", "no such file"),
    "no name": ("trace=5", "must be the name of a file"),
    "a foreign key": ("**{'<script>': 1}", "unknown"),
}


def test_what_is_wrong_of_many_tests_is_told_once(pytester: pytest.Pytester) -> None:
    pytester.makefile(".yaml", compose=GOOD)
    pytester.makepyfile(
        "import pytest\n"
        "@pytest.mark.impair_each('x -> y')\ndef test_each(profile): pass\n"
        "@pytest.mark.impair('client -> server', los='5%')\n"
        "class TestIt:\n    def test_a(self): pass\n    def test_b(self): pass\n"
        "@pytest.mark.impair_each('client -> server', 'lossy', 'nosuch')\ndef test_one(profile): pass\n"
    )
    result = pytester.runpytest_inprocess("--lab", "local", "-p", "no:cacheprovider")
    assert result.ret == 2
    lines = [line for line in result.outlines if ".py::" in line]
    profiles = len(load_profiles(Path("none")))
    assert [line.partition(": ")[0].partition("::")[2] for line in lines] == [
        f"test_each[3g] and {profiles - 1} more",
        f"test_each[3g] and {profiles - 1} more",
        "TestIt::test_a and 1 more",
        "test_one[nosuch]",
    ]
    assert "impair_each('x -> y'): link 'x -> y': host 'x': unknown" in lines[0]
    assert "impair_each('client -> server', 'nosuch'): profile 'nosuch': unknown" in lines[3]


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
    (run_command,) = [line for line in result.outlines if "::test_it: " in line]
    assert MARKERS[name][1] in run_command
    assert len(run_command) < LONGEST
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
