"""`testbed envelope` on a fake lab: tests that fail beyond a loss, in one and two dimensions, in two versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_versions import change, command, commit, git, repository, trees

__all__ = ["repository"]  # a fixture
COMPOSE = """
services:
  client: {image: "x", networks: [lan]}
  server: {image: "x", networks: [lan]}
  other: {image: "x", networks: [lan]}
networks: {lan: {}}
"""
TEST = """
import re
import pytest

LIMIT = 9.5

@pytest.mark.impair("client -> server", delay="1ms", loss="1%")
def test_upload(lab, request):
    (applied,) = [applied.describe() for applied in lab.ledger.history]
    found = {word: float(value) for word, value in re.findall("([a-z]+)[= ]([0-9.]+)", applied)}
    if False:
        from testbed import ImpairmentNotAppliedError
        raise ImpairmentNotAppliedError("the link is gone")
    assert found.get("loss", 0) + found.get("delay", 0) / 20 < LIMIT, applied
"""
WORDS = ("--testbed-vacuous", "warn", "--lab", "local", "-p", "no:cacheprovider")


@pytest.fixture
def shop(repository: Path) -> Path:
    """A repository whose test fails from a loss of 9.5 % on; with a longer delay, from a smaller one."""
    (repository / "compose.yaml").write_text(COMPOSE)
    (repository / "test_it.py").write_text(TEST)
    commit(repository, "lossy")
    return repository


def envelope(folder: Path, *words: str) -> tuple[int, Any, str]:
    """Status, the document (None without one) and errors."""
    status, out, err = command(folder, "envelope", "--json", "--seed", "1", *words, "--", "test_it.py", *WORDS)
    return status, json.loads(out) if out else None, err


def test_the_worst_loss_is_found_and_every_run_kept(shop: Path) -> None:
    status, result, err = envelope(shop, "--vary", "loss=0..30%", "--probability", "60%")
    assert status == 0, err
    (column,) = result["columns"]
    held, fails = (float(column[key].rstrip("%")) for key in ("held", "fails_from"))
    assert held < 9.5 < fails
    assert fails - held <= 4, "a tenth of the levels, at most, is undecided"
    (folder,) = (shop / "report" / "envelope").iterdir()
    head, *runs = [json.loads(line) for line in (folder / "envelope.jsonl").read_text().splitlines()]
    assert (head["schema"], head["seed"]) == ("testbed-envelope/1", 1)
    assert len({run["seed"] for run in runs}) == len(runs) == sum(column["passed"]) + sum(column["failed"])
    failed = [run for run in runs if run["outcome"] == "failed"]
    assert failed
    for run in failed:
        (again,) = run["again"]
        assert again.startswith(f"pytest test_it.py::test_upload --testbed-seed {run['seed']} ")
        assert f"--testbed-vary {run['vary'][0]}" in again
    files = sorted((folder / "head").glob("*.jsonl"))
    assert [json.loads(file.read_text().splitlines()[0])["seed"] for file in files] == [run["seed"] for run in runs]
    assert json.loads((folder / "envelope.json").read_text()) == result
    assert "held to loss" in (folder / "index.html").read_text()


def test_in_two_dimensions_the_boundary_is_a_staircase(shop: Path) -> None:
    status, result, err = envelope(
        shop, "--vary", "loss=0..30%", "--vary", "delay=0..100ms", "--columns", "3", "--probability", "50%"
    )
    assert status == 0, err
    spans = {column["link"]: (column["held"], column["fails_from"]) for column in result["columns"]}
    assert list(spans) == ["delay=0s", "delay=50ms", "delay=100ms"]
    for (held, fails), limit in zip(spans.values(), (9.5, 7, 4.5), strict=True):
        assert float(held.rstrip("%")) < limit < float(fails.rstrip("%"))


def test_a_version_that_holds_less_is_called_worse(shop: Path) -> None:
    change(shop, "LIMIT = 9.5", "LIMIT = 4.5")
    commit(shop, "frail")
    words = ("--vary", "loss=0..20%", "--levels", "21", "--probability", "50%", "--base", "lossy", "--seed", "2")
    status, out, err = command(shop, "envelope", *words, "--markdown", "out.md", "--", "test_it.py", *WORDS)
    assert status == 0, err
    assert re.search(
        r"\nworse: head fails from loss [5-9]% on; base held to [5-9]% \(head held to loss [1-4]%, fails", out
    )
    assert "a failed run again: pytest test_it.py::test_upload --testbed-seed " in out
    (file,) = (shop / "report" / "envelope").glob("*/envelope.json")
    assert [column.get("change") for column in json.loads(file.read_text())["columns"]] == ["worse", None]
    summary = (shop / "out.md").read_text()
    assert summary.startswith("### testbed: resilience envelope of head (")
    assert "\n* worse: head fails from loss " in summary
    assert "\n| version | loss | passed | failed |\n" in summary
    assert "\n| base | 20% | 0 | " in summary


@pytest.mark.parametrize(
    ("limit", "held", "fails"), [("-1", None, "0%"), ("99", "30%", None)], ids=["mild end", "bad end"]
)
def test_both_ends_are_told(limit: str, held: str | None, fails: str | None, shop: Path) -> None:
    change(shop, "LIMIT = 9.5", f"LIMIT = {limit}")
    words = ("--vary", "loss=0..30%", "--probability", "50%")
    status, result, err = envelope(shop, *words)
    assert status == 0, err
    (column,) = result["columns"]
    assert (column["held"], column["fails_from"]) == (held, fails)


def test_when_the_budget_is_spent_the_interval_so_far_is_told(shop: Path) -> None:
    status, result, err = envelope(shop, "--vary", "loss=0..30%", "--probability", "99.9%", "--budget", "500ms")
    assert status == 3, err
    assert result["ended"].startswith("the budget is spent")
    assert result["columns"][0]["levels_that_hold"][1] >= 10


def test_invalid_runs_are_made_again_and_not_for_ever(shop: Path) -> None:
    change(
        shop, "    if False:", "    from testbed.pytest.state import SEED\n    if request.config.stash[SEED] % 3 == 0:"
    )
    status, result, err = envelope(shop, "--vary", "loss=0..30%", "--levels", "11", "--probability", "50%")
    assert status == 0, err
    assert result["invalid_runs"] > 0
    change(shop, "request.config.stash[SEED] % 3 == 0", "True")
    status, _, err = envelope(shop, "--vary", "loss=0..30%")
    assert status == 2
    assert "none of 5 runs in a row counts: test_it.py::test_upload: INVALID: the link is gone" in err


def test_in_a_github_job_the_summary_is_on_its_page(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = shop.parent / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    status, result, err = envelope(shop, "--vary", "loss=0..30%", "--vary", "delay=0..100ms", "--columns", "2",
                                  "--levels", "4", "--probability", "50%")  # fmt: skip
    assert status == 0, err
    assert result["columns"], "what is printed is JSON as ever"
    before, title, *lines = step.read_text().splitlines()
    assert before == "before"
    assert title == "### testbed: resilience envelope of this checkout"
    assert "| head | delay=100ms | 30% | 0 | " in "\n".join(lines)


WRONG: list[tuple[tuple[str, ...], str]] = [
    ((), "--vary is given 0 times"),
    (("--vary", "loss=0..30%", "--vary", "loss=0..3%"), "loss is varied already"),
    (("--vary", "lose=0..30%"), "lose: unknown; did you mean 'loss'?"),
    (("--vary", "loss=30%..0", "--probability", "100%"), "--probability '100%': must be above 0% and below 100%"),
    (("--vary", "loss=0..30%", "--budget", "0s"), "--budget '0s': must be more than 0"),
    (("--vary", "loss=0..30%", "--base", "nowhere"), "--base 'nowhere': no commit of "),
    (("--vary", "gap=2..5"), "with gap=2: gap"),
    (("--vary", "loss=30%..0"), "--vary 'loss=30%..0': the mild end comes first"),
    (("--vary", "loss=0..30%", "--levels", "1"), "1 is not in the range 2<=x<=1000"),
    (("--vary", "loss"), "--vary 'loss': write WORD=MILD..BAD"),
    (("--vary", "delay=1ms..1ms"), "an empty range: both ends are 1ms"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: " ".join(value) if value else "none")
def test_what_is_wrong_is_told(words: tuple[str, ...], message: str, shop: Path) -> None:
    status, result, err = envelope(shop, *words)
    assert status == 2
    assert result is None
    assert message in err
    assert "Traceback" not in err


def test_a_search_that_finds_no_test_is_an_error(shop: Path) -> None:
    for words in (("nowhere.py",), ("test_it.py", "-k", "nothing")):
        status, out, err = command(shop, "envelope", "--vary", "loss=0..30%", "--", *words, *WORDS)
        assert (status, out) == (2, "")
        assert "this checkout: " in err
        assert "nowhere.py" in err or "finds no test there" in err


def test_versions_with_other_tests_are_not_compared(shop: Path) -> None:
    with (shop / "test_it.py").open("a") as file:
        file.write('\n@pytest.mark.impair("client -> server", loss="1%")\ndef test_new(lab): pass\n')
    commit(shop, "more")
    status, result, err = envelope(shop, "--vary", "loss=0..30%", "--base", "lossy")
    assert (status, result) == (2, None)
    assert "base (lossy, " in err
    assert "does not have test_it.py::test_new, which head (" in err
    git(shop, "mv", "test_it.py", "test_other.py")
    commit(shop, "moved")
    status, _, err = command(
        shop, "envelope", "--vary", "loss=0..30%", "--base", "lossy", "--", "test_other.py", *WORDS
    )
    assert status == 2
    assert "base (lossy, " in err
    assert "test_other.py" in err
    assert not trees(shop)


def test_a_test_that_no_marker_impairs_and_one_that_changes_over_time_are_refused(shop: Path) -> None:
    with (shop / "test_it.py").open("a") as file:
        file.write("\ndef test_plain(lab): pass\n")
        file.write('@pytest.mark.impair("client -> server", [{"at": "1s", "loss": "1%"}])\ndef test_steps(lab): pass\n')
    status, _, err = envelope(shop, "--vary", "loss=0..30%")
    assert status == 2
    assert "test_it.py::test_plain: no marker impairs a link of it" in err
    assert "changes over time, so that loss cannot be varied" in err


def test_a_skipped_test_is_refused(shop: Path) -> None:
    change(shop, "    if False:", '    pytest.skip("not today")\n    if False:')
    status, _, err = envelope(shop, "--vary", "loss=0..30%")
    assert status == 2
    assert "test_it.py::test_upload: skipped: " in err
