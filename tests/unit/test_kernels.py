"""A session spread over several kernels, which are ordinary processes here: what is told, and what comes of crashes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from testbed.lab.waiting import await_condition
from testbed.pytest.share import Share

STAND_IN = """
import os, subprocess
from testbed.errors import EnvironmentUnfitError
from testbed.kernel import variables, virtual

def run(argv, *, seed, cwd, outputs, environment, say, stdout, stderr, spin_limit_s, stop=None, facts=None):
    if "FAULT" in os.environ:
        raise RuntimeError("a fault")
    additions = {} if outputs.event is None else {variables.EVENTS: f"{cwd}/events-{id(outputs)}"}
    for file in additions.values():
        open(file, "w").close()
    words = {**os.environ, variables.INSIDE: "1", "KERNEL_SEED": str(seed), **environment, **additions}
    with subprocess.Popen(argv, cwd=cwd, env=words, stdout=stdout, stderr=stderr) as process:
        read = ""
        while True:
            over = process.poll() is not None
            for file in additions.values():
                with open(file) as events:
                    *lines, _ = events.read()[len(read):].split("\\n")
                for line in lines:
                    read += f"{line}\\n"
                    outputs.event(line)
            if over:
                break
            if stop is not None and stop.wait(0.02):
                process.kill()
    if process.returncode == 77:
        raise EnvironmentUnfitError("the kernel died")
    return process.returncode

virtual.run, virtual.prepare = run, lambda say: None
"""
SUITE = """
import os, pytest, warnings
from testbed.pytest.state import SEED

def test_one(worker_id):
    print("printed by", worker_id)
    assert os.environ["PYTEST_XDIST_WORKER"] == worker_id

def test_two(record_property):
    record_property("worker", os.environ["PYTEST_XDIST_WORKER"])
    warnings.warn(ResourceWarning("left open"))

def test_three():
    assert 1 == 2, os.environ["KERNEL_SEED"]

def test_four():
    pytest.skip("not today")
"""
SEEDS = """
import os
from pathlib import Path
from testbed.pytest.state import SEED

def test_seed(pytestconfig, at_most):
    seed = pytestconfig.stash[SEED]
    if seed == 5 and os.environ.get("KILLS"):
        os._exit(int(os.environ["KILLS"]))
    if seed == 6 and os.environ.get("WAITS"):
        Path("waits").touch()
        __import__("time").sleep(60)
    assert "PYTEST_XDIST_WORKER" not in os.environ
    assert seed % 4 or at_most(20, "messages") < 3

def test_another(pytestconfig):
    with open("ran", "a") as file:
        file.write(f"{pytestconfig.stash[SEED]} ")
"""
WITHIN_S = 60


def command(folder: Path, *arguments: str, suite: str) -> tuple[list[str], dict[str, str]]:
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "test_suite.py").write_text(suite)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "stand_in", "--virtual-time", *arguments]
    return argv, {**environment, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "default"}


def run(
    folder: Path, *arguments: str, suite: str = SUITE, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    argv, usual = command(folder, *arguments, suite=suite)
    return subprocess.run(
        argv, cwd=folder, env={**usual, **(environment or {})}, capture_output=True, text=True, timeout=WITHIN_S
    )


def junit(folder: Path) -> ElementTree.Element:
    return ElementTree.fromstring((folder / "junit.xml").read_text())  # noqa: S314  # pytest wrote it


def test_output_and_junit_are_as_with_workers_of_xdist(tmp_path: Path) -> None:
    argv = ("-v", "-rs", "--junitxml", "junit.xml", "--testbed-seed", "7")
    done = run(tmp_path, "-n", "2", *argv)
    assert done.returncode == 1, done.stderr
    assert sorted(re.findall(r"\[gw(\d)\] \[ *\d+%\] (\w+) test_suite.py::test_(\w+)", done.stdout)) == [
        ("0", "PASSED", "one"),
        ("0", "PASSED", "two"),
        ("1", "FAILED", "three"),
        ("1", "SKIPPED", "four"),
    ]
    assert "lab local" in done.stdout
    assert "netem host, seed 7\n" in done.stdout
    assert "[100%]" in done.stdout
    assert "SKIPPED [1] test_suite.py" in done.stdout
    assert "ResourceWarning: left open" in done.stdout
    assert str(7 + (1 << 64)) in done.stdout, "the second kernel has random numbers of its own"
    assert "1 failed, 2 passed, 1 skipped, 1 warning in " in done.stdout
    cases = {case.attrib["name"]: [child.tag for child in case] for case in junit(tmp_path).iter("testcase")}
    assert cases == {"test_one": [], "test_two": ["properties"], "test_three": ["failure"], "test_four": ["skipped"]}


def test_a_test_that_is_run_again_in_a_kernel_is_told_by_the_plugin_that_did_so(tmp_path: Path) -> None:
    suite = "tries = []\n\ndef test_it():\n    tries.append(1)\n    assert len(tries) == 2, 'at first'\n"
    done = run(tmp_path, "-n", "2", "--reruns", "1", "-rR", suite=suite)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RERUN test_suite.py::test_it" in done.stdout
    assert "1 passed, 1 rerun in " in done.stdout


def test_files_that_are_written_outside_of_folders_are_there_from_the_first_run_on(tmp_path: Path) -> None:
    suite = "from pathlib import Path\n\ndef test_it():\n    assert Path('new/junit.xml').read_text() == ''\n"
    done = run(tmp_path, "--junitxml", "new/junit.xml", suite=suite)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "new" / "junit.xml").stat().st_size
    done = run(tmp_path, "--junitxml", "none/junit.xml", suite=suite, environment={"FAULT": "1"})
    assert "a fault" in done.stderr
    assert not (tmp_path / "none").exists(), "nothing was written"


def test_tests_are_divided_as_dist_says() -> None:
    class Item:
        def __init__(self, nodeid: str) -> None:
            self.nodeid = nodeid

        def iter_markers(self, _name: str) -> list[object]:
            return []

    def parts(dist: str) -> list[list[str]]:
        shares = [Share(worker=f"gw{number}", number=number, count=2, dist=dist) for number in range(2)]
        return [[item.nodeid for item in share.of_tests(items)] for share in shares]  # type: ignore[arg-type]

    items = [Item(name) for name in ("a.py::one", "a.py::two", "a.py::three", "b.py::one")]
    assert parts("load") == [["a.py::one", "a.py::two"], ["a.py::three", "b.py::one"]]
    assert parts("loadfile") == [["a.py::one", "a.py::two", "a.py::three"], ["b.py::one"]]
    three = [Share(worker="master", number=number, count=3).of_seeds(range(1, 8)) for number in range(3)]
    assert [[*seeds] for seeds in three] == [[1, 4, 7], [2, 5], [3, 6]]


def test_seeds_are_divided_and_their_results_put_together(tmp_path: Path) -> None:
    done = run(tmp_path, "--testbed-seeds", "1..9", "--testbed-jobs", "2", suite=SEEDS)
    assert done.returncode == 1, done.stderr
    assert "2 failed, 16 passed" in done.stdout
    assert "test_suite.py::test_seed: 2 of 9 seeds fail; 95% interval " in done.stdout
    assert "  failing seeds: 4, 8\n" in done.stdout
    assert "    at_most(3, 'messages'), not 20\n" in done.stdout
    kept = json.loads((tmp_path / "report" / "seeds.json").read_text())["tests"]["test_suite.py::test_seed"]
    assert (kept["shrunk"]["seed"], kept["shrunk"]["at_most"]) == (4, {"messages": 3})
    assert "test_suite.py::test_another: 0 of 9 seeds fail" in done.stdout
    assert sorted((tmp_path / "ran").read_text().split()) == [*"123456789"]


def test_a_kernel_that_dies_fails_its_test_and_the_rest_of_its_share_is_run(tmp_path: Path) -> None:
    for status, why in (("3", "status 3"), ("77", "the kernel died")):
        arguments = ("-q", "--testbed-seeds", "1..9", "--testbed-jobs", "2")
        done = run(tmp_path, *arguments, suite=SEEDS, environment={"KILLS": status})
        assert done.returncode == 1, done.stderr
        assert f"kernel gw0 ended early ({why}); another runs the rest of its share" in done.stderr
        assert f"kernel gw0 ended while it ran this test: {why}" in done.stdout
        assert "  failing seeds: 4, 5, 8\n" in done.stdout
        assert "not run to their end" not in done.stdout
        assert sorted((tmp_path / "ran").read_text().split()) == [*"123456789"]
        (tmp_path / "ran").unlink()
        assert (tmp_path / "report" / "results.jsonl").read_text().count('"test_suite.py::test_seed (seed 5)"') == 1


def test_the_first_failure_ends_all_kernels(tmp_path: Path) -> None:
    suite = """
import signal
from pathlib import Path
from testbed.lab.waiting import await_condition

def test_waits():
    Path("waits").touch()
    signal.pause()

def test_later():
    Path("later").touch()

def test_fails():
    await_condition(Path("waits").exists, bool, deadline_s=50)
    assert 0

def test_last():
    Path("last").touch()
"""
    done = run(tmp_path, "-x", "-n", "2", suite=suite)  # or the first test would wait for ever
    assert (done.returncode, "stopping after 1 failures" in done.stdout) == (1, True), done.stdout
    assert {file for file in ("waits", "later", "last") if (tmp_path / file).exists()} == {"waits"}


def test_what_cannot_be_collected_is_told_once(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "2", suite="import nothing_of_the_kind\n")
    assert done.returncode == 2
    assert "ModuleNotFoundError: No module named 'nothing_of_the_kind'" in done.stdout
    assert done.stdout.count("_ ERROR collecting test_suite.py _") == 1, "where CI is set, a summary quotes it, too"
    assert "Interrupted: 1 error during collection" in done.stdout


def test_a_kernel_that_dies_at_once_ends_the_session(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "2", suite="import os\nif 'TESTBED_SHARE' in os.environ:\n    os._exit(77)\n")
    assert done.returncode == 2
    assert re.search(r"kernel gw[01] ended before it ran a test: the kernel died", done.stdout + done.stderr)


def test_ctrl_c_ends_all_kernels_and_what_was_run_is_told(tmp_path: Path) -> None:
    argv, environment = command(tmp_path, "--testbed-seeds", "1..9", "--testbed-jobs", "3", suite=SEEDS)
    starts = "import pytest, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    argv = [sys.executable, "-c", f"{starts}sys.exit(pytest.main(sys.argv[1:]))", *argv[3:]]
    with subprocess.Popen(
        argv, cwd=tmp_path, env={**environment, "WAITS": "1"}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            ran = tmp_path / "ran"
            await_condition(
                lambda: ((tmp_path / "waits").exists(), ran.exists() and len(ran.read_text().split())),
                lambda seen: seen == (True, 7),
                deadline_s=WITHIN_S,
            )
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=WITHIN_S)
        finally:
            process.kill()
    assert process.returncode == 2
    failed = re.search(r"test_suite.py::test_seed: [12] of (\d) seeds fail", output)
    left = re.search(r"^  seeds that were not run to their end: (\d)$", output, re.MULTILINE)
    assert failed is not None, output
    assert left is not None, output
    # What has run may not have been reported yet.
    assert (int(failed[1]) + int(left[1]), 4 <= int(failed[1]) <= 7) == (9, True), output
    assert "KeyboardInterrupt" in output


def test_problems_of_markers_end_it_once(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {a: {image: none, x-testbed: {local: {path: .}}}}\n")
    suite = "import pytest\n@pytest.mark.impair('a -> nobody', loss='1%')\ndef test_a(lab): pass\n"
    done = run(tmp_path, "-n", "2", suite=suite)
    assert done.returncode == 2
    output = done.stdout + done.stderr
    assert output.count("the tests ask for what cannot be") == 1
    assert output.count("host 'nobody': unknown") == 1


def test_numbers_of_jobs_and_kernels_that_make_no_sense_are_told_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "--testbed-jobs", "0", "-n", "2", "--dist", "each")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "testbed: --testbed-jobs='0': write a number of kernels, as in 2",
        "--dist each: a kernel of each worker runs tests of its own; leave it out",
    ]
    done = run(tmp_path, "--testbed-jobs", "2")
    assert "--testbed-jobs='2': it divides seeds among kernels; add --testbed-seeds" in done.stderr


def test_a_fault_of_ours_is_told_and_not_waited_for(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "2", environment={"FAULT": "1"})
    assert done.returncode == 3, done.stderr
    assert "RuntimeError: a fault" in done.stdout
