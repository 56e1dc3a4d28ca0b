"""A file from `put` appears complete to the host's programs; `get` reads what they read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed import Lab, LabError
from testbed.lab.host import Program
from testbed.lab.waiting import await_condition
from tests.lab.conftest import HERE, lab_of


@pytest.fixture(scope="module")
def lab(kind: str, pytestconfig: pytest.Config) -> Iterator[Lab]:
    with lab_of(kind, pytestconfig, HERE / "stacks" / "hosts.yaml") as lab:
        made = lab.host("api").run(["sh", "-c", "mkdir -p /scratch/in /run/in /tmp/to && ln -s /scratch/in /tmp/link"])
        assert made.ok, made.stderr
        yield lab


@pytest.mark.parametrize("path", ["/scratch/in/x", "/dev/shm/x", "/tmp/x", "/var/run/in/x", "/tmp/link/y"])
def test_what_is_written_is_what_programs_read_and_the_other_way_round(lab: Lab, path: str) -> None:
    api = lab.host("api")
    api.put(path, "from the test", mode=0o640)
    seen = api.run(["sh", "-c", f"cat {path} && stat -c ' %a %u' {path}"])
    assert seen.stdout == "from the test 640 0\n", seen.stderr
    assert api.run(["sh", "-c", f"printf inside > {path}"]).ok
    assert api.get(path) == b"inside"


def test_a_file_that_is_not_there_and_one_that_is_none_are_told(lab: Lab) -> None:
    api = lab.host("api")
    for folder in ("/scratch", "/tmp"):
        with pytest.raises(FileNotFoundError, match=f"`api`: {folder}/none"):
            api.get(f"{folder}/none")
        with pytest.raises(LabError, match=f"`api`: cannot write {folder}/none/x: .*[Nn]o such file"):
            api.put(f"{folder}/none/x", "")
        with pytest.raises(IsADirectoryError, match=folder):
            api.get(folder)
        with pytest.raises(LabError, match=f"`api`: cannot write {folder}: .*[Ii]s a directory"):
            api.put(folder, "")
        assert api.run(["mkfifo", f"{folder}/fifo"]).ok
        with pytest.raises(LabError, match=r"Not a regular file"):
            api.put(f"{folder}/fifo", "")
        assert api.run(["sh", "-c", f"ls -A {folder} | grep testbed"]).stdout == "", "nothing is left beside"


# Takes each file away the moment it is seen, as a test's program that waits for a word does.
_TAKE = """
import os, sys
path, wanted = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
for taken in range(wanted):
    while True:
        try:
            with open(path, "rb") as file:
                seen = os.fstat(file.fileno())
                content = file.read()
            break
        except FileNotFoundError:
            continue
    assert (seen.st_mode & 0o777, seen.st_uid, len(content)) == (0o751, 0, 300_000), (seen, len(content))
    os.unlink(path)
    print(taken, flush=True)
"""


@pytest.mark.parametrize("path", ["/tmp/word", "/scratch/word"])
def test_who_waits_for_a_file_sees_it_whole_and_may_take_it_away(lab: Lab, path: str) -> None:
    times = 4
    taker = lab.host("api").start(["python3", "-c", _TAKE, path, str(times)], ready="ready")
    for number in range(times):
        lab.host("api").put(path, b"x" * 300_000, mode=0o751)
        _await_printed(taker, str(number))
    assert taker.wait().ok


def _await_printed(program: Program, word: str) -> None:
    await_condition(lambda: program.output.split(), lambda words: word in words or program.ended, deadline_s=10)
    assert word in program.output.split(), program.output
