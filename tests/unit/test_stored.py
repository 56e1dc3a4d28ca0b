"""Results that are read back: their content, and errors of a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from testbed.commands.cli import cli
from testbed.commands.results import load_all
from testbed.errors import InvalidValueError
from testbed.evidence import results, stored
from testbed.evidence.machine import differences, in_words
from testbed.evidence.metric import Metric
from testbed.evidence.verdict import Verdict

MACHINE = {"kernel": "6.1", "processors": 2, "netem": "host", "offloads": {"tso": True}, "versions": {}, "git": None}
HEAD = json.dumps(results.head(started="2026-01-01T00:00:00+00:00", seed=5, machine=MACHINE)) + "\n"
END = json.dumps(results.end(duration_s=1.0, exit_status=0)) + "\n"


def line_of(name: str = "a", outcome: Verdict = Verdict.HOLDS, **changed: Any) -> str:
    metric = Metric(name="upload", values=(1.0, 2.0), unit="s", better="lower")
    attempt = results.Attempt(seed=5, outcome=outcome, metrics=[metric])
    document = {**results.TestResult(id=name, attempts=[attempt]).as_json(), **changed}
    return json.dumps({"test": document}) + "\n"


def problems(*lines: str) -> list[str]:
    with pytest.raises(InvalidValueError) as raised:
        stored.read(lines, name="r.jsonl")
    return list(raised.value.problems)


def test_a_session_is_read_back_as_it_was_written() -> None:
    session = stored.read([HEAD, line_of(), END], name="r.jsonl")
    assert (session.seed, session.machine, session.incomplete) == (5, MACHINE, "")
    assert session.end == {"duration_s": 1.0, "exit_status": 0, "problems": [], "not_up": None}
    (test,) = session.tests
    assert (test.id, test.last.outcome, test.machine) == ("a", Verdict.HOLDS, MACHINE)
    assert test.last.metrics == (Metric(name="upload", values=(1.0, 2.0), unit="s", better="lower"),)
    assert test.last.metric("other") is None


def test_of_a_test_that_was_run_again_the_last_line_counts() -> None:
    session = stored.read([HEAD, line_of("a", Verdict.FAILS), line_of("b"), line_of("a"), END], name="r.jsonl")
    assert [(test.id, test.last.outcome) for test in session.tests] == [("b", Verdict.HOLDS), ("a", Verdict.HOLDS)]


def test_a_session_that_was_killed_has_what_it_had() -> None:
    session = stored.read([HEAD, line_of()], name="r.jsonl")
    assert len(session.tests) == 1
    assert session.incomplete == "r.jsonl: the session did not come to its end"


@pytest.mark.parametrize("length", [1, 40, -2])
def test_a_line_that_breaks_off_is_told_and_what_stands_before_it_is_kept(length: int) -> None:
    session = stored.read([HEAD, line_of(), line_of("b")[:length]], name="r.jsonl")
    assert [test.id for test in session.tests] == ["a"]
    assert re.match(r"r\.jsonl:3: breaks off after \d+ characters, so its test is lost: '\{", session.cut)


@pytest.mark.parametrize(
    ("lines", "printed"),
    [
        ((), ["r.jsonl: is empty; a killed session has at least its first line"]),
        (('{"schema": "testbed-results/1"}\n', line_of()),
         ["r.jsonl:1: schema 'testbed-results/1'; this testbed reads testbed-results/2"]),
        (('{"tests": 3}\n', "other\n"),
         ['r.jsonl:1: no results of testbed: must begin with {"schema": "testbed-results/2", …}']),
        (("[1]\n",), ['r.jsonl:1: no results of testbed: must begin with {"schema": "testbed-results/2", …}']),
        (("schema: 2\n", "x\n"), ["r.jsonl:1: is no JSON: Expecting value: line 1 column 1 (char 0): 'schema: 2'"]),
        ((HEAD[:20],), ["r.jsonl:1: breaks off: '{\"schema\": \"testbed-'"]),
        ((HEAD, '{"tset": 1}\n', "}\n", END),
         ["r.jsonl:2: is neither a machine, a test nor the end: '{\"tset\": 1}'",
          "r.jsonl:3: is no JSON: Expecting value: line 1 column 1 (char 0): '}'"]),
        ((HEAD, line_of(seed="x", flaky=1), line_of().replace('"passed"', '"green"')),
         ["r.jsonl:2: test: flaky 1: must be true or false", "r.jsonl:2: test: seed 'x': must be a whole number",
          "r.jsonl:3: test: outcome 'green': must be one of passed, skipped, failed, invalid"]),
        ((HEAD, line_of(metrics=[{"name": "n", "values": [1, "x"], "unit": "s", "better": "best", "least_effect": 0,
                                    "group": "g"}, {"name": "m"}, 3])),
         ["r.jsonl:2: metric 'n': values [1, 'x']: must be finite numbers, at least one",
          "r.jsonl:2: metric 'n': better 'best': must be lower, higher or null",
          "r.jsonl:2: metric 'n': least_effect 0: must be more than 0",
          *(f"r.jsonl:2: metric 'm': {key} is missing"
            for key in ("values", "unit", "better", "least_effect", "group")),
          "r.jsonl:2: metric 3: must be an object"]),
        ((HEAD, line_of(links=[{"link": "a -> b"}], hosts=[3])),
         ["r.jsonl:2: test: links: {'link': 'a -> b'}: without network, asked, checks, proof, problems, warnings",
          "r.jsonl:2: test: hosts: 3: without host, what, by_test, last_lines"]),
        ((HEAD, '{"test": {"duration_s": NaN}}\n'),
         ["r.jsonl:2: is no JSON: NaN is not a number of JSON: '{\"test\": {\"duration_s\": NaN}}'"]),
        ((HEAD, line_of(), END, HEAD),
         ["r.jsonl:4: another session begins here; give each session's file by itself"]),
        ((HEAD, line_of(), END, HEAD.replace("6.1", "6.18"), "no JSON"),
         ["r.jsonl:4: another session begins here and of another machine (kernel 6.1 and 6.18); give each session's "
          "file by itself"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_with_the_line(lines: tuple[str, ...], printed: list[str]) -> None:
    assert problems(*lines) == printed


def test_a_number_that_no_float_holds_is_told() -> None:
    metric = {"name": "n", "values": [-(10**400)], "unit": "s", "better": None, "least_effect": 0.1, "group": "g"}
    number = "a whole number of about 401 digits"
    assert problems(HEAD, line_of(metrics=[metric])) == [
        f"r.jsonl:2: metric 'n': values [{number}]: must be finite numbers, at least one"
    ]
    assert problems(HEAD, line_of(metrics=[{**metric, "values": [1], "least_effect": 10**400}])) == [
        f"r.jsonl:2: metric 'n': least_effect {number}: must be a finite number"
    ]


def test_an_unknown_fact_speaks_neither_for_nor_against_two_machines_being_alike() -> None:
    other = {**MACHINE, "netem": None, "tc": "tc 6.1", "offloads": {"tso": False}, "git": {"commit": "x"}}
    differing = differences(MACHINE, other)
    assert differing == {"offloads": ({"tso": True}, {"tso": False})}
    assert in_words(differing) == "offloads tso on and tso off"


# --- testbed results ---------------------------------------------------------------------------------


def shown(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["results", *arguments])
    return (1 if done.exception and not isinstance(done.exception, SystemExit) else done.exit_code), done.output


def test_results_shows_a_session_and_gives_it_as_json(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(HEAD + line_of("t::good") + line_of("t::bad", Verdict.FAILS, reason="[red]assert 0") + END)
    status, output = shown(str(file))
    assert status == 0
    assert re.search(r"passed +t::good", output)
    assert re.search(r"t::good +upload +1\.5 s +1 s +2 s", output)
    assert "t::bad: [red]assert 0" in output
    _, output = shown(str(file), "--json")
    assert [test["outcome"] for test in json.loads(output)["tests"]] == ["passed", "failed"]


def test_results_shows_what_a_killed_session_had_and_says_where_it_breaks_off(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(HEAD + line_of("t::good") + '{"test": {"id"')
    done = CliRunner().invoke(cli, ["results", str(file)])
    assert "t::good" in done.output
    assert isinstance(done.exception, InvalidValueError)
    assert "r.jsonl:3: breaks off after 14 characters" in str(done.exception)


def test_the_schema_is_printed() -> None:
    assert json.loads(shown("--schema")[1])["title"] == "One line of a results file"


def test_all_of_a_folder_in_the_order_of_their_begin_and_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jsonl").write_text(HEAD.replace("2026", "2027") + END)
    (tmp_path / "deep" / "b.jsonl").write_text(HEAD + END)
    assert [Path(session.name).name for session in load_all(tmp_path)] == ["b.jsonl", "a.jsonl"]
    for name in ("c", "d"):
        (tmp_path / f"{name}.jsonl").write_text("")
    with pytest.raises(InvalidValueError) as raised:
        load_all(tmp_path)
    assert len(raised.value.problems) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidValueError, match=r"no \.jsonl file in this folder"):
        load_all(tmp_path / "none")


# --- testbed baseline --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are run, with two sessions."""
    monkeypatch.chdir(tmp_path)
    program = {"host": "a", "argv": ["x"], "exit_code": 0, "duration_s": 1.0, "cpu_s": None, "stopped": False,
               "output": "chatter", "output_left_out": 3}  # fmt: skip
    (tmp_path / "runs").mkdir()
    for number in (1, 2):
        lines = HEAD + line_of("t::good", programs=[program]) + line_of("t::bad", Verdict.FAILS) + END
        (tmp_path / "runs" / f"{number}.jsonl").write_text(lines)
    return tmp_path


def run(*arguments: str) -> tuple[str, str]:
    """What a command prints, and the error that it ends with."""
    done = CliRunner().invoke(cli, arguments)
    return done.output, "" if done.exit_code in (0, None) else str(done.exception)


def test_a_baseline_is_what_was_measured_without_what_programs_printed(folder: Path) -> None:
    output, error = run("baseline", "save", "main", "runs")
    assert error == ""
    assert "warning: not passed: t::bad" in " ".join(output.split())
    assert load_all(folder / "baselines" / "main")[1].tests[0].last.content["programs"][0]["output_left_out"] == 10
    assert "chatter" not in (folder / "baselines" / "main" / "001.jsonl").read_text()
    saved, before = load_all(folder / "baselines" / "main"), load_all(folder / "runs")
    assert [[test.last.metrics for test in session.tests] for session in saved] == [
        [test.last.metrics for test in session.tests] for session in before
    ]
    assert [(session.machine, session.seed, session.started, session.end) for session in saved] == [
        (session.machine, session.seed, session.started, session.end) for session in before
    ]


def test_nothing_is_lost_and_every_problem_is_told(folder: Path) -> None:
    run("baseline", "save", "main", "runs")
    before = (folder / "baselines" / "main" / "001.jsonl").read_text()
    (folder / "r.jsonl").write_text(HEAD)
    _, error = run("baseline", "save", "main", "r.jsonl")
    assert error.splitlines() == [
        "r.jsonl: the session did not come to its end",
        "baselines/main is there already; --replace puts this in its place",
        "r.jsonl: has no test",
    ]
    assert run("baseline", "save", "../out", "runs")[1].startswith("name '../out': must be letters")
    assert (folder / "baselines" / "main" / "001.jsonl").read_text() == before
    (folder / "r.jsonl").write_text(HEAD + line_of("t::other") + END)
    assert run("baseline", "save", "--replace", "main", "r.jsonl")[1] == ""
    assert [test.id for session in load_all(folder / "baselines" / "main") for test in session.tests] == ["t::other"]


def test_baselines_are_listed_and_shown(folder: Path) -> None:
    assert run("baseline", "show", "main")[1] == (
        "baseline 'main': not in baselines; there is none; `testbed baseline save NAME` makes one"
    )
    run("baseline", "save", "main", "runs")
    assert re.search(r"main +2026-01-01T00:00:00\+00:00 +— +2 +2 +host, 6\.1", run("baseline", "show")[0])
    assert "t::good" in run("baseline", "show", "main")[0]
    assert [row["tests"] for row in json.loads(run("baseline", "show", "--json")[0])["main"]] == [
        ["t::good", "t::bad"]
    ] * 2
    assert run("baseline", "show", "man")[1] == "baseline 'man': not in baselines; there are: main"
