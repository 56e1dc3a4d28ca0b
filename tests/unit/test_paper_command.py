"""`testbed paper` on made-up claims without a lab: which are run, stored and printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from testbed import paper
from testbed.commands import cli
from testbed.commands import paper as paper_command
from testbed.commands.labs import OwnStack
from testbed.evidence.verdict import Verdict
from testbed.lab.ledger import Ledger
from testbed.paper import Claim
from testbed.paper.context import ExperimentContext
from testbed.paper.outcomes import ClaimOutcome, Condition


class NoLab:
    """What the command needs of a lab."""

    ledger = Ledger()

    def __enter__(self) -> NoLab:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def lifecycle(self) -> NoLab:
        """Its tests."""
        return self

    def begin(self, seeds_from: str | None) -> None:
        pass

    def end(self) -> None:
        pass


class Claims:
    """Three claims, and how often each was put to the test."""

    def __init__(self) -> None:
        self.sought: list[str] = []
        self.findings = {"C1": Verdict.HOLDS, "C2": Verdict.FAILS, "C3": Verdict.HOLDS}
        self.interrupted_at: str | None = None

    def claim(self, name: str) -> Claim:
        def experiment(context: ExperimentContext) -> ClaimOutcome:
            """Do it."""
            if name == self.interrupted_at:
                raise KeyboardInterrupt
            self.sought.append(name)
            context.keep(f"{name}.txt", "seen")
            finding = self.findings[name]
            return ClaimOutcome(
                finding=finding, sentence=f"{name} it is.", rows=[Condition(name="a", held=True, values={})]
            )

        return Claim(id=name, name=name.lower(), text="so", section="there", experiment=experiment)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Claims:
    made = Claims()
    monkeypatch.setattr(paper, "CLAIMS", {name: made.claim(name) for name in made.findings})
    monkeypatch.setattr(OwnStack, "lab", lambda _: NoLab())
    monkeypatch.setattr(paper_command, "decide", lambda _: ("local", ""))
    return made


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, claims: Claims) -> Command:
    def run(*words: str) -> Result:
        return CliRunner().invoke(cli.cli, ["paper", "--report", str(tmp_path), *words], standalone_mode=False)

    return run


def test_each_claim_is_put_to_the_test_and_a_page_written(command: Command, claims: Claims, tmp_path: Path) -> None:
    result = command()
    assert (result.return_value, claims.sought) == (0, ["C1", "C2", "C3"]), result
    assert {path.name for path in tmp_path.glob("*.html")} == {"index.html", "C1.html", "C2.html", "C3.html"}
    assert "[2/3] C2 c2: so" in result.stderr


def test_an_interrupted_run_is_taken_up_where_it_stopped(command: Command, claims: Claims, tmp_path: Path) -> None:
    claims.interrupted_at = "C3"
    command()
    assert (tmp_path / "C2.html").exists(), "what was found is to be read at once"
    claims.interrupted_at = None
    result = command()
    assert claims.sought == ["C1", "C2", "C3"]
    assert "2 of 3 claims are decided already" in result.stderr
    assert result.return_value == 0


def test_only_those_named_are_sought_and_what_was_found_before_stays(
    command: Command, claims: Claims, tmp_path: Path
) -> None:
    command("--only", "C1")
    command("--only", "c3")
    assert claims.sought == ["C1", "C3"]
    assert {path.name for path in tmp_path.glob("C*.html")} == {"C1.html", "C3.html"}


def test_again_seeks_what_is_decided(command: Command, claims: Claims) -> None:
    command()
    command("--only", "C2", "--again")
    assert claims.sought == ["C1", "C2", "C3", "C2"]


def test_a_claim_that_is_invalid_is_status_1_and_is_sought_the_next_time(command: Command, claims: Claims) -> None:
    claims.findings["C2"] = Verdict.INVALID
    assert command().return_value == 1
    claims.findings["C2"] = Verdict.HOLDS
    assert command().return_value == 0
    assert claims.sought == ["C1", "C2", "C3", "C2"]


def test_json_is_all_that_is_printed(command: Command) -> None:
    document: dict[str, Any] = json.loads(command("--json", "--only", "C1,C2").stdout)
    assert {name: result["finding"] for name, result in document.items()} == {"C1": "HOLDS", "C2": "BREAKS"}
    assert document["C1"]["evidence"] == ["C1.txt"]


def test_an_unknown_claim_is_refused_before_anything_is_sought(command: Command, claims: Claims) -> None:
    result = command("--only", "C1,C33")
    assert "claim 'C33'" in str(result.exception)
    assert claims.sought == []
