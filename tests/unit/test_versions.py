"""Two versions of a small repository on a fake lab: worktrees, a pytest that runs on command, pairs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click import UsageError
from click.testing import CliRunner
from rich.console import Console

from testbed.commands import noise
from testbed.commands.ab import ab
from testbed.commands.cli import cli
from testbed.errors import EnvironmentUnfitError, UserError
from testbed.lab.waiting import await_condition
from testbed.versions import worktrees
from testbed.versions.arm import Arm, ArmError, BudgetSpentError

ROOT = Path(__file__).parents[2]
CONFTEST = """
import atexit, os
import pytest
from tests.unit.fakes import FakeLab

@pytest.fixture(scope="session")
def stack():
    print("session begins")
    yield FakeLab()
    print("session ends")

@pytest.fixture(scope="module", autouse=True)
def module():
    print("module begins")
    yield
    print("module ends")
"""
TEST = """
import os
import random

def test_upload(lab, request):
    from testbed.pytest.state import SEED
    seed = request.config.stash[SEED]
    lab.record("upload", FACTOR * (2 + random.Random(seed).random()), unit="s", better="lower")
    lab.record("seed", float(seed % 1000 + 1), unit="ms", better="lower")
"""


NOISY = """
import random

def test_upload(lab):
    lab.record("noisy", random.lognormvariate(0, 0.1), unit="s", better="lower")
    lab.record("still", 5, unit="s", better="lower")
"""


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a test; what is in it has been committed, with the tag ``base``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(f"FACTOR = 1\n{TEST}")
    (folder / ".gitignore").write_text("report\n__pycache__\n.pytest_cache\n")
    git(folder, "init", "-q")
    commit(folder, "base")
    return folder


def commit(folder: Path, tag: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", tag)
    git(folder, "tag", tag)


def change(folder: Path, old: str, new: str, *, file: str = "test_it.py") -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "testbed.commands.cli", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has what it starts in the background ignore this signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def command(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit status, output, errors of a command that is run in this process, which starts the sooner."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli, words, standalone_mode=False)
    match done.exception:
        case None:
            return done.return_value, done.stdout, done.stderr
        case UserError() | EnvironmentUnfitError() | UsageError():
            return 2, done.stdout, f"{done.stderr}{done.exception}"
    raise done.exception


def trees(repository: Path) -> list[str]:
    """The worktrees that git knows, other than the checkout itself."""
    return git(repository, "worktree", "list", "--porcelain").split("worktree ")[2:]


# --- ab ----------------------------------------------------------------------------------------------


def test_a_regression_is_found_and_everything_kept_and_cleared(repository: Path) -> None:
    change(repository, "FACTOR = 1", "FACTOR = 1.2")
    commit(repository, "slower")
    status, out, err = command(repository, "ab", "--base", "base", "--seed", "7", "--markdown", "out.md", "test_it.py")
    assert status == 1, out + err
    assert "test_it.py::test_upload: upload (no impaired link): regressed: +20.0%" in out
    assert "every cell is decided" in err
    assert trees(repository) == []
    assert list((repository.parent / "cache" / "testbed" / "worktrees").iterdir()) == []

    (folder,) = (repository / "report" / "ab").iterdir()
    plan, *pairs = [json.loads(line) for line in (folder / "ab.jsonl").read_text().splitlines()]
    assert (plan["schema"], plan["seed"], plan["base"][:11]) == ("testbed-ab/1", 7, "base (base,")
    assert len({pair["seed"] for pair in pairs}) == len(pairs) >= 12, "a new seed each pair"
    assert {pair["first"] for pair in pairs} == {"base", "head"}, "a coin draws the order"
    for side in ("base", "head"):
        seeds = [
            json.loads(file.read_text().splitlines()[0])["seed"] for file in sorted((folder / side).glob("*.jsonl"))
        ]
        assert seeds == [pair["seed"] for pair in pairs], "both runs of a pair have its seed"
    assert list(folder.rglob("*.html")) == [folder / "index.html"], "one report of all pairs"
    assert (repository / "out.md").read_text().startswith("### testbed: head (")

    again, out, _ = command(repository, "compare", f"{folder}/base", f"{folder}/head", "--json")
    judged = {(cell["metric"]): cell["change"] for cell in json.loads(out)["cells"]}
    assert (again, judged) == (1, {"failed": "same", "upload": "regressed", "seed": "same"})


def test_a_quantile_is_a_cell_of_its_own(repository: Path) -> None:
    change(repository, "    seed = ", "    lab.record('waits', range(1, 51), unit='s', better='lower')\n    seed = ")
    commit(repository, "waits")
    words = ("--pairs", "1", "--quantile", "0.9", "--quantile", "0.95", "--json")
    status, out, err = command(repository, "ab", "--aa", *words, "test_it.py")
    assert (status, "the 0.95-quantile of 50 samples: needs 100 a run" in out) == (2, True), out + err
    parts = {cell["part"]: cell["base"] for cell in json.loads(out)["cells"] if cell["metric"] == "waits"}
    assert parts == {"median": [25.5], "beyond 76.5 s": [0.0], "quantile 0.9": [45.0]}


def test_results_of_an_earlier_run_of_pytest_are_kept(repository: Path) -> None:
    files = [repository / "report" / name for name in ("results.jsonl", "index.html")]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("of another run")
    commit_ = git(repository, "rev-parse", "base")
    assert command(repository, "ab", "--base", commit_, "--pairs", "1", "test_it.py")[0] == 3
    assert [file.read_text() for file in files] == ["of another run"] * 2
    (plan,) = repository.glob("report/ab/*/ab.jsonl")
    assert json.loads(plan.read_text().splitlines()[0])["base"] == f"base ({commit_[:8]})", "a commit is named once"


def test_a_test_that_fails_on_head_is_told_first_with_its_replay(repository: Path) -> None:
    change(repository, "    lab.record(", '    assert FACTOR == 1 or seed % 2, "odd"\n    lab.record(')
    commit(repository, "checked")
    change(repository, "FACTOR = 1\n", "FACTOR = 1.01\n")
    commit(repository, "broken")
    status, out, err = command(repository, "ab", "--base", "checked", "--pairs", "9", "--seed", "1", "test_it.py")
    assert status == 3, out + err
    assert "after 9 pairs, as asked" in err
    lines = out.splitlines()[1]
    assert lines.startswith("test_it.py::test_upload (no impaired link): failed in ")
    assert " of 9 runs of head, 0 of 9 of base (undecided)" in lines
    assert "again: pytest test_it.py::test_upload --testbed-seed " in lines
    assert "--testbed-results" not in lines
    assert (
        command(repository, "ab", "--base", "checked", "--pairs", "1", "--fail-on", "regressed", "test_it.py")[0] == 0
    )


def test_against_itself_nothing_regresses_and_changes_need_not_be_committed(repository: Path) -> None:
    change(repository, "FACTOR = 1", "FACTOR = 3")
    status, out, err = command(repository, "ab", "--aa", "test_it.py")
    assert status == 0, out + err
    assert out.startswith("SAME: 3 same (")


def test_each_run_can_have_a_stack_of_its_own(repository: Path) -> None:
    status, _, err = command(repository, "ab", "--aa", "--fresh", "--pairs", "1", "--", "test_it.py", "-s")
    assert status == 3, err
    (folder,) = (repository / "report" / "ab").iterdir()
    log = (folder / "head.log").read_text()
    # A session that collects alone, one to warm up, one for the pair.
    assert log.count("session begins") == log.count("session ends") == 2


def test_pairs_with_an_invalid_test_are_thrown_away_and_no_use_is_made_of_them(repository: Path) -> None:
    text = """
import pytest

def test_upload(lab):
    from testbed import ImpairmentNotAppliedError
    raise ImpairmentNotAppliedError("the link is gone")
"""
    (repository / "test_it.py").write_text(text)
    status, _, err = command(repository, "ab", "--aa", "test_it.py")
    assert status == 2
    assert "none of 5 pairs counts: test_it.py::test_upload: INVALID: the link is gone" in err
    (folder,) = (repository / "report" / "ab").iterdir()
    assert len((folder / "ab.jsonl").read_text().splitlines()) == 6


WRONG: list[tuple[tuple[str, ...], str]] = [
    (("--base", "nowhere"), "--base 'nowhere': no commit of "),
    (("--base", "--evil"), "no commit of "),
    (("--budget", "5"), "what head is compared with: say --base REV, --base-image SERVICE=IMAGE, or --aa for itself"),
    (("--aa", "--base", "base"), "--aa compares this checkout with itself: leave out --base"),
    (("--aa", "--budget", "0s"), "--budget '0s': must be more than 0"),
    (("--aa", "--", "-n", "2"), "-n: `testbed ab` runs one test at a time; leave it out"),
    (("--aa", "--", "--testbed-seed=3"), "--testbed-seed=3: `testbed ab` gives it to pytest itself; leave it out"),
    (("--aa", "--budget", "100ms"), "--budget 100ms: too small for one pair, which takes about "),
    (("--aa", "--", "test_none.py"), "file or directory not found: test_none.py"),
    (("--base", "base", "--", "test_new.py"), "base (base, "),
]


@pytest.mark.parametrize(
    ("words", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_what_is_wrong_is_told_and_nothing_is_left(
    words: tuple[str, ...], message: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "test_new.py" in words:
        (repository / "test_new.py").write_text(TEST)
        commit(repository, "new")
    if words[-1] == "100ms":
        change(repository, "    seed =", "    import time; time.sleep(1)\n    seed =")
    monkeypatch.chdir(repository)
    with pytest.raises((UserError, EnvironmentUnfitError)) as caught:
        CliRunner().invoke(ab, words, standalone_mode=False, catch_exceptions=False)
    assert message in str(caught.value)
    assert trees(repository) == []


def test_a_checkout_with_changes_is_compared_only_if_asked(repository: Path) -> None:
    change(repository, "FACTOR = 1", "FACTOR = 2")
    status, _, err = command(repository, "ab", "--base", "base", "test_it.py")
    assert status == 2
    assert "this checkout has changes that are not committed, in 'test_it.py' and 1 files in all" in err
    status, _, err = command(repository, "ab", "--base", "base", "--dirty", "--pairs", "1", "test_it.py")
    assert status == 3, err


def test_outside_of_a_repository_there_is_no_base(tmp_path: Path) -> None:
    status, _, err = command(tmp_path, "ab", "--base", "main")
    assert status == 2
    assert f"{tmp_path} is in no git repository" in err


def test_a_base_whose_tests_do_not_import_is_told_with_pytests_words(repository: Path) -> None:
    change(repository, "import random", "import nowhere_to_be_found")
    commit(repository, "unfit")
    change(repository, "import nowhere_to_be_found", "import random")
    commit(repository, "fit")
    status, _, err = command(repository, "ab", "--base", "unfit", "test_it.py")
    assert status == 2
    assert "base (unfit, " in err
    assert "No module named 'nowhere_to_be_found'" in err


def test_a_base_whose_stack_does_not_start_is_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "conftest.py").unlink()  # and the lab is testbed's own
    (repository / "compose.yaml").write_text("services: {api: {image: shop/api}}\n")
    commit(repository, "unfit")
    monkeypatch.chdir(repository)
    message = r"(?s)base \(unfit, .*its stack does not start: .*`image: shop/api` is not found"
    words = ["--base", "unfit", "--", "--lab", "local", "test_it.py"]
    with pytest.raises(EnvironmentUnfitError, match=message):
        CliRunner().invoke(ab, words, standalone_mode=False, catch_exceptions=False)
    assert trees(repository) == []


def test_images_that_are_compared_are_given_to_each_versions_pytest(repository: Path) -> None:
    (repository / "compose.yaml").write_text("services: {api: {image: shop/api}}\n")
    status, _, err = command(
        repository, "ab", "--base-image", "api=shop/api:1", "--head-image", "api=shop/api:2", "--", "--lab", "local",
        "test_it.py",
    )  # fmt: skip
    assert status == 2
    why = "--testbed-image: a local lab runs the images of its Compose file alone"
    assert f"base (api=shop/api:1): its tests cannot be run: {why}" in err
    status, _, err = command(repository, "ab", "--base-image", "api", "--", "test_it.py")
    assert (status, "'api': write SERVICE=IMAGE, as in api=shop/api:1.5" in err) == (2, True)


def test_the_noise_of_a_machine_is_measured_by_tests_against_themselves(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr(noise, "BUDGET_S", 4)
    (repository / "test_it.py").write_text(NOISY)
    comparison, pair_s = noise.measure(["test_it.py"])
    assert comparison.base_runs >= 3
    assert pair_s < 4
    rows = {row["metric"]: row for row in noise.effects(comparison)}
    assert rows["still"]["spread"] == 0
    assert rows["still"]["findable"][30] == pytest.approx(0.05, abs=0.001)
    assert 0.005 < rows["noisy"]["spread"] < 0.4
    assert rows["noisy"]["findable"][120] > 0.05
    noise.show(Console(width=200), comparison, pair_s)
    out = capsys.readouterr().out
    assert "test_it.py::test_upload" in out
    assert f"from {comparison.base_runs} pairs of these tests against themselves on this machine now" in out


def test_tests_without_a_lab_and_links_that_are_others_on_head_are_not_compared(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "test_plain.py").write_text("def test_plain(): pass\n")
    change(repository, "    seed =", '    lab.impair("client -> server", loss="2%")\n    seed =')
    commit(repository, "lossy")
    change(repository, "2%", "5%")
    commit(repository, "lossier")
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match="no test uses `lab` or a marker of testbed"):
        CliRunner().invoke(ab, ["--aa", "test_plain.py"], standalone_mode=False, catch_exceptions=False)
    message = (
        r"not compared: links of .*test_upload: client -> server loss 2% in base, client -> server loss 5% in head"
    )
    words = ["--base", "lossy", "--keep", "kept", "test_it.py"]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(ab, words, standalone_mode=False, catch_exceptions=False)


# --- after an interrupt, after a kill ----------------------------------------------------------------


def _await_pair(repository: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not list((repository / "report").glob("ab/*/head/*.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no pair after 200 s"
        time.sleep(0.05)


def test_what_was_found_before_an_interrupt_is_told(repository: Path) -> None:
    change(repository, "    seed =", "    import time; time.sleep(1)\n    seed =")
    commit(repository, "slow")
    process = start(repository, "ab", "--base", "base", "test_it.py")
    _await_pair(repository, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; all results are in " in err
    assert out.startswith("UNDECIDED")
    assert trees(repository) == []


def test_after_a_kill_the_worktree_goes_with_the_next_run(repository: Path) -> None:
    change(repository, "    seed =", "    import time; time.sleep(1)\n    seed =")
    commit(repository, "slow")
    process = start(repository, "ab", "--base", "base", "test_it.py")
    _await_pair(repository, process)
    process.kill()
    process.communicate(timeout=60)
    assert len(trees(repository)) == 1
    messages: list[str] = []
    assert worktrees.clear_stale(messages.append) == 1
    assert messages[0].startswith("removed a worktree that a killed run left: ")
    assert trees(repository) == []
    assert worktrees.clear_stale(messages.append) == 0


def test_a_cache_in_which_nothing_can_be_made_is_one_clear_error(repository: Path) -> None:
    (repository.parent / "cache").write_text("a file")
    status, _, errors = command(repository, "ab", "--base", "base", "--", "test_it.py")
    assert status == 2
    assert "no worktree can be made in " in errors
    assert "XDG_CACHE_HOME may name another folder" in errors


def test_a_worktree_whose_maker_lives_is_left_alone(repository: Path) -> None:
    here = worktrees.checkout(repository)
    with worktrees.worktree(here, here.commit) as folder:
        assert (folder / "test_it.py").is_file()
        assert worktrees.clear_stale(lambda _text: None) == 0
        assert folder.is_dir()
    assert not folder.exists()


def test_a_worktree_begins_in_the_folder_that_corresponds_to_the_users(repository: Path) -> None:
    (repository / "deep").mkdir()
    here = worktrees.checkout(repository / "deep")
    assert here.prefix == "deep/"
    with (
        pytest.raises(UserError, match="has no folder 'deep/', in which this command was started"),
        worktrees.worktree(here, here.commit),
    ):
        pass
    assert trees(repository) == []
    (repository / "deep" / "file").touch()
    commit(repository, "deep")
    here = worktrees.checkout(repository / "deep")
    with worktrees.worktree(here, here.commit) as folder:
        assert (folder / "file").is_file()


# --- one process, many passes ------------------------------------------------------------------------


@pytest.fixture
def arm(repository: Path, request: pytest.FixtureRequest) -> Callable[..., Arm]:
    def make(*words: str) -> Arm:
        log = repository.parent / "log"
        made = Arm(name="head", folder=repository, words=("-s", *words), log=log, fresh=False)
        request.addfinalizer(made.close)
        made.start()
        return made

    return make


def _outcomes(file: Path) -> list[Any]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line["test"]["outcome"] for line in lines if "test" in line]


def test_the_stack_stays_up_from_pass_to_pass_and_all_else_begins_anew(
    repository: Path, arm: Callable[..., Arm]
) -> None:
    (repository / "test_more.py").write_text(TEST.replace("FACTOR * ", ""))
    (repository / "pytest.ini").write_text("[pytest]\naddopts = -n 2\n")  # which a pass has no use for
    ours = arm()
    assert ours.tests == ("test_it.py::test_upload", "test_more.py::test_upload")
    for number in range(3):
        ours.run(seed=number, results=repository / f"{number}.jsonl", until=time.monotonic() + 30)
    ours.close()
    log = (repository.parent / "log").read_text()
    assert (log.count("session begins"), log.count("session ends")) == (1, 1)
    assert (log.count("module begins"), log.count("module ends")) == (6, 6)
    for number in range(3):
        first, *lines = [json.loads(line) for line in (repository / f"{number}.jsonl").read_text().splitlines()]
        assert first["seed"] == number
        assert [list(line) for line in lines] == [["test"], ["test"], ["end"]]
        for result in (line["test"] for line in lines[:2]):
            assert (result["outcome"], result["earlier_attempts"]) == ("passed", [])
    assert not (repository / "report" / "results.jsonl").exists()


def test_a_test_that_failed_in_one_pass_may_pass_in_the_next(repository: Path, arm: Callable[..., Arm]) -> None:
    change(repository, "    lab.record(", "    assert seed % 2\n    lab.record(")
    (repository / "test_more.py").write_text(TEST.replace("FACTOR * ", ""))
    ours = arm("-x")
    seen: list[Sequence[str]] = []
    for number in range(3):
        ours.run(seed=number, results=repository / f"{number}.jsonl", until=time.monotonic() + 30)
        seen.append(_outcomes(repository / f"{number}.jsonl"))
    assert seen == [["failed"], ["passed", "passed"], ["failed"]]


def test_a_pass_that_is_not_over_in_time_is_told(repository: Path, arm: Callable[..., Arm]) -> None:
    change(repository, "    lab.record(", "    import time; time.sleep(60)\n    lab.record(")
    ours = arm()
    with pytest.raises(BudgetSpentError, match="head: not over in time"):
        ours.run(seed=1, results=repository / "1.jsonl", until=time.monotonic() + 0.5)
    begun = time.monotonic()
    ours.close()
    assert time.monotonic() - begun < 30
    assert "session ends" in (repository.parent / "log").read_text(), "its stack was taken down"


def test_a_pytest_that_dies_is_told_with_its_last_lines(repository: Path, arm: Callable[..., Arm]) -> None:
    change(repository, "    lab.record(", "    os.write(1, b'good night\\n'); os._exit(9)\n    lab.record(")
    ours = arm()
    with pytest.raises(ArmError, match=r"(?s)head: pytest ended during its tests: .*good night"):
        ours.run(seed=1, results=repository / "1.jsonl", until=time.monotonic() + 30)


def test_a_pytest_whose_master_dies_in_the_middle_of_a_test_takes_its_stack_down_at_once(
    repository: Path, arm: Callable[..., Arm]
) -> None:
    change(repository, "    lab.record(", "    import time; open('begun', 'w'); time.sleep(60)\n    lab.record(")
    # As `nohup` does: what is ignored is inherited.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ours = arm()
    finally:
        signal.signal(signal.SIGINT, before)
    process, channel = ours.process, ours.connected
    assert process is not None
    channel.sendall(json.dumps({"seed": 1, "results": str(repository / "1.jsonl"), "vary": []}).encode() + b"\n")
    await_condition((repository / "begun").exists, bool, deadline_s=30)
    os.close(channel.detach())
    assert process.wait(30) == pytest.ExitCode.INTERRUPTED
    assert "session ends" in (repository.parent / "log").read_text()


def test_a_pytest_whose_master_dies_ends(repository: Path, arm: Callable[..., Arm]) -> None:
    ours = arm()
    process = ours.process
    assert process is not None
    os.close(ours.connected.detach())
    assert process.wait(30) == 0


def test_an_interrupt_finds_all_imported_that_its_verdict_needs() -> None:
    code = "import sys; from testbed.versions.arms import Arms; Arms({}); sys.exit('numpy' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
