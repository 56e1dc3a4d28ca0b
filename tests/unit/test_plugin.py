"""The plugin up to the point where an engine is needed: markers, collection, options. No engine answers here."""

from __future__ import annotations

import fnmatch
from contextlib import nullcontext

import docker
import docker.errors
import pytest

from testbed import LocalLab
from testbed.backends import choice
from testbed.evidence import stored
from testbed.evidence.stored import Session
from testbed.evidence.verdict import Verdict
from testbed.pytest import state
from testbed.pytest.declared import NAMES

COMPOSE = """
services:
  client: {image: nobody/none, networks: [lan]}
  server: {image: nobody/none, networks: [lan]}
  scaled: {image: nobody/none, networks: [lan], deploy: {replicas: 3}}
  hostly: {image: nobody/none, network_mode: host}
  alone: {image: nobody/none, network_mode: none}
  sometimes: {image: nobody/none, networks: [lan], profiles: [rarely]}
networks:
  lan: {}
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project, on a machine where no engine answers."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    pytester.makefile(".yaml", compose=COMPOSE)
    return pytester


def run(project: pytest.Pytester, body: str, *arguments: str) -> pytest.RunResult:
    project.makepyfile("import pytest\n" + body)
    return project.runpytest_inprocess("-p", "no:cacheprovider", "--lab", "compose", *arguments)


def test_values_of_options_that_cannot_be_are_refused_at_once(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("--testbed-seed", "nan", "--up-deadline", "0s")
    assert result.ret == 2
    result.stderr.fnmatch_lines(
        ["Exit: --testbed-seed='nan': not a whole number", "--up-deadline='0s': must be more than 0"], consecutive=True
    )
    assert not [line for line in result.errlines if "usage" in line.lower()]


WRONG = [
    ('impair("client -> srver", "lossy")', "host 'srver': unknown; did you mean 'server'? Known: client, server, *"),
    ('impair("client => server", "lossy")', "link 'client => server': write \"client -> server\" for one *"),
    ('impair("client -> client", "lossy")', "link 'client -> client': a host has no link to itself"),
    (
        'impair("client -> scaled", "lossy")',
        "*'scaled' has 3 replicas; name one, as scaled[[]1[]], or all, scaled[[][*]",
    ),
    ('impair("client -> hostly", "lossy")', "*host 'hostly' has `network_mode: host`, and so no port of its own*"),
    ('impair("client -> alone", "lossy")', "*host 'alone' has `network_mode: none`*"),
    ('impair("client -> sometimes", "lossy")', "*host 'sometimes': belongs to the Compose profile 'rarely'*"),
    ('impair("client -> server on wan", "lossy")', "*network 'wan': unknown; did you mean 'lan'? Known: lan*"),
    ('impair("client -> server", "losy")', "*profile 'losy': unknown; did you mean 'lossy'?*"),
    ('impair("client -> server", loss="120%")', "*loss='120%': a percentage lies between 0% and 100%*"),
    ('impair("client -> server", delay="-1ms")', "*delay='-1ms': a duration cannot be negative*"),
    ('impair("client -> server", delay=5)', '*delay=5: a duration needs a unit; write delay="5ms" or "5s"*'),
    ('impair("client -> server", rate="0mbit")', "*rate='0mbit': a rate must be above 0*"),
    ('impair("client -> server", rate=0)', "*rate=0: a rate must be above 0*"),
    ('impair("client -> server", dealy="5ms")', "*dealy: unknown; did you mean 'delay'?*"),
    ('impair("client -> server")', "*what is it impaired with?*"),
    ('impair("client -> server", "lossy", delay="5ms")', "*give a profile or words such as delay=, not both*"),
    ("impair()", "*write impair(*"),
    ('impair_each("client -> srver", "lossy")', "*host 'srver': unknown; did you mean 'server'?*"),
    ('impair_each("client -> server", "losy")', "*profile 'losy': unknown; did you mean 'lossy'?*"),
    ("impair_each()", "*write impair_each(*"),
    ('impair("client -> server", ["lossy"])', "*[[]'lossy'] is not a profile: give a profile's name, *"),
    ('impair("client -> server", shape={"rate": "8mbit"}, prove=True)', "*cannot be probed: it shares a bottleneck*"),
    ('impair("client -> server", shape={"rate": "8"})', "*shape: rate=8: a rate needs a unit*"),
    ('impair("client -> server", "tunnel", prove=True)', "*client -> server: a timeline cannot be probed: *"),
    ('impair("client -> server", [{"at": "1s", "loss": "1%"}], prove=True)', "*a timeline cannot be probed: *"),
    (
        'impair("client -> server tcp/80", loss="1%", prove=True)',
        "*tcp/80: cannot be probed: probes are UDP datagrams*",
    ),
    ('stack("nowhere.yaml")', "stack: no file 'nowhere.yaml' in *"),
    ("stack()", 'stack: name a Compose file, as in "other/compose.yaml"'),
    ('stack("compose.yaml", profiles="rarely")', "stack: profiles='rarely': must be a list of Compose profiles, *"),
    ('stack("compose.yaml", name="x")', "stack: name: unknown; known: profiles"),
    ("stack_each(5)", "stack_each: 5: must be the path of a Compose file, or a list of paths"),
    ('impair_each("client -> server", ["clean", "lossy"])', "*write impair_each(*"),  # else: unimpaired, and passed
]


def test_every_wrong_marker_fails_at_collection_with_one_clear_error(project: pytest.Pytester) -> None:
    body = "\n\n".join(f"@pytest.mark.{mark}\ndef test_{number:02d}(): pass" for number, (mark, _) in enumerate(WRONG))
    result = run(project, body)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*problem(s) in testbed's markers and options; nothing was started*"])
    for number, (_, message) in enumerate(WRONG):
        lines = [line for line in result.outlines if f"::test_{number:02d}" in line]
        assert fnmatch.filter(lines, f"*{message}*"), f"{WRONG[number]}: told {lines}"


@pytest.mark.parametrize("options", [(), ("-q",), ("-n", "2")], ids=" ".join)
@pytest.mark.parametrize("lab", ["compose", "local"])
def test_a_variable_that_is_not_set_is_told_once_however_pytest_runs(
    lab: str, options: tuple[str, ...], project: pytest.Pytester
) -> None:
    app = "{image: nobody/none, command: [x, $NOT_SET, '${NOT_SET}'], x-testbed: {local: {path: .}}}"
    project.makefile(".yaml", compose=f"services:\n  client: {app}\n  server: {app}\n")
    body = """
@pytest.mark.parametrize("number", range(4))
@pytest.mark.impair("client -> server", "clean")
def test_it(number, request): pass

def pytest_runtest_setup(item): pytest.skip("no stack")
"""
    project.makeconftest("import pytest\n" + body.rpartition("\n\n")[2])
    result = run(project, body, "--lab", lab, *options)
    lines = [line for line in result.outlines + result.errlines if "NOT_SET" in line]
    assert lines == ['The "NOT_SET" variable is not set. Defaulting to a blank string.']


def test_every_problem_is_told_at_once(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
@pytest.mark.impair("clent -> srver", delay=5, loss="120%")
def test_one(): pass

@pytest.mark.impair("client -> server", "losy")
def test_two(): pass
""",
    )
    assert result.ret == 2
    result.stdout.fnmatch_lines(
        [
            "*test_one*'clent'*",
            "*test_one*'srver'*",
            "*test_one*delay=5*",
            "*test_one*loss='120%'*",
            "*test_two*'losy'*",
        ]
    )
    result.stdout.fnmatch_lines(["*5 problem(s)*"])


def test_a_fault_of_the_compose_file_is_told_once(project: pytest.Pytester) -> None:
    (project.path / "compose.yaml").write_text("services: {client: {imag: nobody/none}}\n")
    marked = '@pytest.mark.impair("client -> server", "lossy")\n'
    result = run(project, f"{marked}def test_one(): pass\n{marked}def test_two(): pass")
    assert result.ret == 2
    assert str(result.stdout).count("'imag' not allowed") == 1


def test_why_the_stack_is_not_up_is_not_told_twice_of_a_test(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(lab): pass")
    assert result.ret == 2
    result.stdout.no_fnmatch_line("*During handling of the above exception*")


def test_each_stack_that_is_not_up_has_its_own_reason_even_if_folders_have_one_name(project: pytest.Pytester) -> None:
    compose = (project.path / "compose.yaml").read_text()
    for above in ("api", "web"):
        folder = project.path / above / "test"
        folder.mkdir(parents=True)
        (folder / "compose.yaml").write_text(compose)
    result = run(
        project,
        """
@pytest.mark.stack("api/test/compose.yaml")
def test_one(lab): pass

@pytest.mark.stack("web/test/compose.yaml")
def test_two(lab): pass
""",
    )
    assert result.ret == 2
    assert len([line for line in result.outlines if line.startswith("stack test: ")]) == 2, result.outlines


def test_two_impairments_of_one_link_are_refused(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
@pytest.mark.impair("server -> client", delay="5ms")
@pytest.mark.impair("client <-> server", "lossy")
def test_it(): pass
""",
    )
    assert result.ret == 2
    result.stdout.fnmatch_lines(
        ["*server -> client is impaired twice, by impair('client <-> server', 'lossy') and by *"]
    )


def test_a_profile_with_an_unknown_key_names_its_file_and_the_nearest_key(project: pytest.Pytester) -> None:
    project.mkdir("netem").joinpath("mine.yaml").write_text("both: {dealy: 5ms, loss: 130%}\nbtoh: {}\n")
    result = run(project, '@pytest.mark.impair("client -> server", "mine")\ndef test_it(): pass')
    assert result.ret == 2
    result.stdout.fnmatch_lines(
        [
            "*netem/mine.yaml: btoh: unknown; did you mean 'both'?*",
            "*mine.yaml: both: dealy: unknown; did you mean 'delay'?*",
        ]
    )
    result.stdout.fnmatch_lines(["*mine.yaml: both: loss='130%'*"])


def test_a_broken_file_is_told_to_who_needs_it_and_to_nobody_else(project: pytest.Pytester) -> None:
    folder = project.mkdir("netem")
    (folder / "mine.yaml").write_text("both: {dealy: 40ms}\n")
    (folder / "measured.dist").write_text("one two\n")
    (folder / "folder.yaml").mkdir()
    marked = '@pytest.mark.impair("client -> server", {})\ndef test_{}(): pass\n'
    tests = {
        "unknown": "'nope'",
        "broken": "'mine'",
        "whole": "'lossy'",
        "table": "delay='5ms', jitter='1ms', distribution='measured.dist'",
    }
    result = run(project, "".join(marked.format(words, name) for name, words in tests.items()))
    assert result.ret == 2
    lines = [line.rpartition("::")[2] for line in result.outlines if "::test_" in line]
    assert [line.partition(": ")[0] for line in lines] == ["test_unknown", "test_broken", "test_table", "test_table"]
    assert "netem/mine.yaml: both: dealy: unknown" in lines[1]
    assert "netem/measured.dist:1: 'one' is not a whole number" in lines[2]
    assert run(project, marked.format("'lossy'", "whole"), "--collect-only").ret == 0


def test_a_users_profile_is_found_beside_the_compose_file(project: pytest.Pytester) -> None:
    project.mkdir("netem").joinpath("mine.yaml").write_text("both: {delay: 5ms}\n")
    result = run(project, '@pytest.mark.impair("client -> server", "mine")\ndef test_it(): pass', "--collect-only")
    assert result.ret == 0


MARKED = """
@pytest.mark.impair_each("client <-> server", "clean", "lossy")
def test_each(): pass

@pytest.mark.impair_each("client <-> server")
def test_all(profile): pass

@pytest.mark.impair("client -> server", delay="5ms")
@pytest.mark.impair("server -> client", "awful")
def test_both(lab): pass

def test_plain(): pass
"""


def test_collect_only_needs_no_engine(project: pytest.Pytester) -> None:
    result = run(project, MARKED, "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*::test_each[[]clean]", "*::test_each[[]lossy]", "*::test_all[[]awful]", "*::test_both"]
    )


def test_without_an_engine_tests_that_need_it_fail_alike_and_others_pass(project: pytest.Pytester) -> None:
    result = run(project, MARKED, "-k", "both or plain or clean")
    assert result.ret == 2
    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines(["*no Docker engine answers*Start one*"])


def test_k_leaves_out_the_problems_of_what_is_not_chosen(project: pytest.Pytester) -> None:
    body = '@pytest.mark.impair("client -> srver", "lossy")\ndef test_bad(): pass\n\ndef test_good(): pass'
    assert run(project, body, "-k", "good").ret == 0


def test_last_failed_and_exitfirst_work(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n" + MARKED)
    result = project.runpytest_inprocess("-x")
    result.assert_outcomes(errors=1)
    result = project.runpytest_inprocess("--lf", "--collect-only", "-q")
    result.stdout.fnmatch_lines(
        ["*::test_all[[]awful]" if "test_all" in result.stdout.str() else "*::test_each[[]clean]"]
    )


def test_without_markers_no_compose_file_is_needed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    assert pytester.runpytest_inprocess("-p", "no:cacheprovider").ret == 0


def test_a_missing_compose_file_is_named(project: pytest.Pytester) -> None:
    result = run(project, MARKED, "--compose-file", "stack.yaml")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*Compose file '*stack.yaml' does not exist; name another with --compose-file*"])


def test_a_compose_file_that_is_not_yaml_is_told_in_composes_words(project: pytest.Pytester) -> None:
    project.makefile(".yaml", compose="services:\n  client: [\n")
    result = run(project, MARKED)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*Compose file *yaml*"])


def test_a_compose_file_without_services_is_refused(project: pytest.Pytester) -> None:
    project.makefile(".yaml", compose="services:\n  client: {image: x, profiles: [rarely]}\n")
    result = run(project, MARKED)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*no active service*--compose-profile*"])


def test_a_service_of_an_active_compose_profile_is_known(project: pytest.Pytester) -> None:
    body = '@pytest.mark.impair("client -> sometimes", "lossy")\ndef test_it(): pass'
    assert run(project, body, "--collect-only", "--compose-profile", "rarely").ret == 0


NOT_IN_FORCE = """
from testbed import ImpairmentNotAppliedError
from testbed.lab.ledger import Ledger
from testbed.lab.measuring import Measuring
from testbed.pytest import running

class Lab:
    ledger, seedable, netem_engine = Ledger(), True, "carried"
    lifecycle = verifier = property(lambda self: self)
    def facts(self): return {"netem": "carried"}
    measuring = Measuring(None, None, None)
    def begin_body(self):
        pass
    def end_body(self):
        pass

    def verify(self):
        raise ImpairmentNotAppliedError("asked loss 2%, the kernel reports 0%")

@pytest.fixture
def broken(request):
    running.run_of(request.node).lab = Lab()
"""


@pytest.mark.parametrize(
    ("mark", "body"),
    [("", "pass"), ("", "assert 0"), ("", "pytest.fail('so')"), ("@pytest.mark.xfail", "assert 0")],
)
def test_what_was_not_in_force_makes_any_test_invalid_and_the_run_fail(
    project: pytest.Pytester, mark: str, body: str
) -> None:
    result = run(project, f"{NOT_IN_FORCE}\n{mark}\ndef test_it(broken):\n    {body}\n")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*test_it: asked loss 2%, the kernel reports 0%", "*1 invalid in*"])


LINKED = """
from testbed.lab.ledger import Ledger
from testbed.lab.measuring import Measuring
from testbed.pytest import running
from testbed.evidence.proof import Check, LinkEvidence, Span, Tally
from testbed.evidence.verdict import Verdict
from testbed.pytest import state

from testbed.evidence.hoststate import HostChange, HostState

NONE = Span(low=0, high=0, how="counted")

class Whole:
    before, after = HostState(status="running", id="1f"), HostState(status="exited", id="1f", exit_code=137)
    changes = [HostChange(host="db", what="ended (exit status 137)", by_test=True, before=before, after=after)]

class Succession:
    def look(self): return []

class Lab:
    whole, succession, ledger = Whole(), Succession(), Ledger()
    seedable, netem_engine = True, "carried"
    lifecycle = verifier = property(lambda self: self)
    def facts(self): return {"netem": "carried"}
    measuring = Measuring(None, None, None)
    ledger.evidence = [LinkEvidence(
        link="client -> server", network="lan", asked={"loss": "10%"}, command="tc qdisc replace …",
        checks=[Check(field="loss", asked="10%", kernel="10%", seen="1.8% (18 of 1000)", verdict=Verdict.FAILS)],
        probe=Verdict.FAILS,
        tally=Tally(sent_packets=38, dropped_packets=2, queued_packets=0, tail_drops=Span(0, 0, "counted"),
                    duplicated=NONE, reordered=NONE, corrupted=NONE),
    )]
    def begin_body(self):
        pass
    def end_body(self):
        pass
    def verify(self):
        pass

@pytest.fixture
def linked(request):
    running.run_of(request.node).lab = Lab()
    yield
    running.keep(request.node, Lab())

def test_good(linked): pass
def test_bad(linked): assert 0
@pytest.mark.skip(reason="not today")
def test_skipped(linked): pass
"""


def written(project: pytest.Pytester, file: str = "report/results.jsonl") -> Session:
    with (project.path / file).open() as lines:
        return stored.read(lines, name=file)


def test_the_results_file_has_every_test_of_a_lab_with_what_was_asked_held_and_seen(project: pytest.Pytester) -> None:
    run(project, LINKED, "--testbed-seed", "5", "--testbed-results", "out/of/it.jsonl", "--junitxml", "junit.xml")
    tests = written(project, "out/of/it.jsonl")
    assert tests.end is not None
    assert (tests.seed, tests.end["exit_status"]) == (5, 1)
    assert {test.id.split("::")[1]: test.last.outcome.of("test") for test in tests.tests} == {
        "test_good": "passed",
        "test_bad": "failed",
    }
    good, bad = (test.last.content for test in tests.tests)
    assert bad["reason"].endswith("AssertionError")
    assert good["reason"] is None
    assert good["replay"].startswith("pytest ")
    assert "--testbed-seed 5 --netem carried" in good["replay"]
    (host,) = good["hosts"]
    assert (host["host"], host["by_test"], host["before"]["status"], host["after"]["exit_code"]) == (
        "db",
        True,
        "running",
        137,
    )
    (link,) = good["links"]
    assert link["proof"] == {"read_back": "holds", "counters": "shown", "probe": "fails"}
    assert link["checks"][0]["seen"] == "1.8% (18 of 1000)"
    assert "asked 10%, kernel 10%, seen 1.8% (18 of 1000): fails" in (project.path / "junit.xml").read_text()


def test_a_failed_test_shows_asked_kernel_and_seen_side_by_side(project: pytest.Pytester) -> None:
    result = run(project, LINKED)
    result.stdout.re_match_lines([r"\s+field\s+asked\s+kernel\s+seen\s+verdict", r"\s+loss\s+10%\s+10%\s+1.8% .*FAILS"])


def test_the_line_that_repeats_a_test_has_every_option_that_was_given(project: pytest.Pytester) -> None:
    tests = project.mkdir("deep")
    project.makefile(".ini", pytest="[pytest]")
    (tests / "test_it.py").write_text(f"import pytest\n{LINKED}")
    (tests / "stack.yaml").write_text(COMPOSE)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir(tests)
        result = project.runpytest_inprocess(
            "-p", "no:cacheprovider", "--testbed-seed", "5", "--lab", "compose", "--compose-file", "stack.yaml",
            "--compose-profile", "rarely", "--compose-profile", "never", "--testbed-capture", "never",
        )  # fmt: skip
    result.stdout.fnmatch_lines(
        [
            "pytest test_it.py::test_bad --testbed-seed 5 --netem carried --lab compose --compose-file stack.yaml "
            "--compose-profile rarely --compose-profile never --testbed-capture never",
        ]
    )


def test_where_nothing_is_captured_the_counters_say_how_many_packets_were_lost(project: pytest.Pytester) -> None:
    run(project, LINKED).stdout.fnmatch_lines(["client -> server: lost 2 of 40 packets"])  # here none can be had
    sentence = "client -> server: lost 2 of 40 packets; --testbed-capture on-failure tells which"
    run(project, LINKED, "--testbed-capture", "never").stdout.fnmatch_lines([sentence])


def test_junit_has_an_invalid_test_as_an_error_of_its_own_type(project: pytest.Pytester) -> None:
    run(project, f"{NOT_IN_FORCE}\ndef test_it(broken):\n    pass\n", "--junitxml", "junit.xml")
    junit = (project.path / "junit.xml").read_text()
    assert '<error message="INVALID: asked loss 2%' in junit
    assert ' type="testbed.invalid">' in junit
    assert 'errors="1" failures="0"' in junit
    (test,) = written(project).tests
    assert test.last.outcome is Verdict.INVALID


def test_without_a_lab_no_results_are_written(project: pytest.Pytester) -> None:
    run(project, "def test_it(): pass")
    assert not (project.path / "report").exists()


@pytest.mark.parametrize("text", ["'yes'", "1", "None"])
def test_prove_is_true_or_false(project: pytest.Pytester, text: str) -> None:
    body = f'@pytest.mark.impair("client -> server", loss="1%", prove={text})\ndef test_it(lab): pass'
    result = run(project, body)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*must be True or False*"])


def test_with_xdist_one_results_file_has_what_every_worker_found(project: pytest.Pytester) -> None:
    invalid = NOT_IN_FORCE.replace("Lab", "Broken") + "\ndef test_it(broken): pass\n"
    result = run(project, LINKED + invalid, "-n", "2", "--testbed-seed", "5")
    result.stdout.fnmatch_lines(["*test_it: asked loss 2%, the kernel reports 0%", "*1 invalid*"])
    tests = written(project)
    assert tests.end is not None
    assert (tests.seed, tests.machine["netem"], tests.end["exit_status"]) == (5, "carried", 1)
    assert {test.id.split("::")[1]: test.last.outcome.of("test") for test in tests.tests} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_it": "invalid",
    }
    assert all("--testbed-seed 5 " in test.last.replay for test in tests.tests if test.last.replay)


def test_with_xdist_all_workers_have_the_seed_that_the_controller_drew(project: pytest.Pytester) -> None:
    run(project, LINKED, "-n", "2")
    tests = written(project)
    assert tests.tests
    assert all(f"--testbed-seed {tests.seed} " in str(test.last.replay) for test in tests.tests)


def test_with_xdist_a_wrong_marker_is_told_once_and_nothing_is_run(project: pytest.Pytester) -> None:
    body = '@pytest.mark.impair("client -> srver", "lossy")\ndef test_it(): pass\ndef test_other(): pass\n'
    result = run(project, body, "-n", "2")
    assert result.ret == 2
    assert result.stdout.str().count("host 'srver': unknown; did you mean 'server'?") == 1
    assert "passed" not in result.stdout.str()


def test_with_xdist_a_stack_that_cannot_be_had_is_wrong_use_too(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(lab): pass\ndef test_other(): pass\n", "-n", "2")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*testbed could not start the stack*", "no Docker engine answers*"])


_ALONE = """
services:
  client: {image: nobody/none, ports: ["127.0.0.1:8080:80", "81", "8000-8010:82"]}
  server: {image: nobody/none, container_name: own}
networks: {default: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}
"""
_TWO = "def test_it(lab): pass\ndef test_other(lab): pass\n"


def test_with_xdist_what_only_one_stack_can_have_is_refused_before_anything_starts(project: pytest.Pytester) -> None:
    file = project.makefile(".yaml", compose=_ALONE)
    result = run(project, _TWO, "-n", "2")
    assert result.ret == 2
    text = result.stdout.str()
    port = "service 'client' publishes port 8080: write `ports: ['127.0.0.1::80']` for a free one"
    assert f"2 stacks side by side (-n 2): {port}; or run without -n" in text
    assert text.count("side by side") == 3
    assert "'server' has `container_name: 'own'`: leave it out" in text
    assert "'default' has `subnet: 10.9.0.0/24`: leave it out" in text
    assert "could not start" not in text
    assert LocalLab(file).only_one == (port,), "names and subnets are each local lab's own"


def test_with_xdist_where_groups_may_keep_to_one_worker_its_stack_may_have_all(project: pytest.Pytester) -> None:
    project.makefile(".yaml", compose=_ALONE)
    result = run(project, _TWO, "-n", "2", "--dist", "loadgroup")
    assert "side by side" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*testbed could not start the stack*", "no Docker engine answers*"])


# --- the header ------------------------------------------------------------------------------------

_MARKED = '@pytest.mark.impair("client -> server", "lossy")\ndef test_it(): pass'


def header(project: pytest.Pytester, *arguments: str) -> str:
    """Our line of the header, and that nothing more is said of the lab before a test needs it."""
    project.makepyfile("import pytest\n" + _MARKED)
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "--collect-only", *arguments)
    line, *origins = (line for line in result.outlines if line.startswith("testbed: "))
    nowhere = "testbed: client, server, scaled, hostly, alone: image nobody/none is nowhere"
    assert origins == ([nowhere] if "lab local" in line else [])
    assert result.outlines.index(line) < next(n for n, row in enumerate(result.outlines) if "collected" in row)
    return line


def test_the_header_says_which_lab_was_chosen_and_why(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = header(project)
    assert ", lab compose (no Docker engine answers at DOCKER_HOST='unix:///nowhere/docker.sock' (" in line

    def refuse(*_arguments: object, **_words: object) -> None:
        raise docker.errors.DockerException("nobody there")

    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setattr(docker, "from_env", refuse)
    assert ", lab local (no Docker engine answers (nobody there)" in header(project)
    results = []

    def decide(kind: str) -> tuple[str, str]:
        results.append(kind)
        return "compose", "Docker Engine 99 at the local socket"

    monkeypatch.setattr(choice, "decide", decide)
    assert ", lab compose (Docker Engine 99 at the local socket), netem auto" in header(project)
    assert results == ["auto"]


def test_what_was_asked_for_needs_no_reason_and_where_nothing_is_to_be_chosen_no_engine_is_asked(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ", lab local, netem auto" in header(project, "--lab", "local")
    (project.path / "compose.yaml").write_text("services: {client: {x-testbed: {local: {}}}}\n")
    project.runpytest_inprocess("-p", "no:cacheprovider", "--lab", "local").stdout.fnmatch_lines(
        ["testbed: client: this machine's programs"]
    )
    (project.path / "compose.yaml").unlink()
    monkeypatch.setattr(choice, "decide", lambda _kind: pytest.fail("asked"))
    project.makepyfile("def test_it(): pass")
    result = project.runpytest_inprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["testbed: *, lab auto, *"])
    result.assert_outcomes(passed=1)


def test_workers_take_the_lab_that_the_header_says(project: pytest.Pytester) -> None:
    project.makepyfile(
        "import testbed.pytest.state\ndef test_it(pytestconfig): print(testbed.pytest.state.chosen(pytestconfig))"
    )
    project.makeconftest(
        "import pytest, testbed.backends.choice\n"
        "def decide(kind):\n"
        "    raise AssertionError('asked again')\n"
        "def pytest_configure(config):\n"
        "    if hasattr(config, 'workerinput'):\n"
        "        testbed.backends.choice.decide = decide\n"
    )
    result = project.runpytest_inprocess("-p", "no:cacheprovider", "-n", "1")
    result.assert_outcomes(passed=1)


def test_a_worker_says_what_it_waits_for_on_the_controllers_terminal(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pytestconfig, "workerinput", {"workerid": "gw3"}, raising=False)
    monkeypatch.setattr(pytestconfig.option, "verbose", 0)
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    monkeypatch.setattr(capture, "global_and_fixture_disabled", nullcontext)
    state.sayer(pytestconfig)("starting")
    assert capsys.readouterr().err == "testbed: gw3: starting\n"


def test_what_tests_may_write_is_shown_on_one_page_and_nothing_runs(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(): assert False", "--testbed-help")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*@pytest.mark.impair(*", "Markers:", "  stack_each(*", "  lab", "  delay *"])
    for name in NAMES:
        result.stdout.fnmatch_lines([f"  {name}(*"])
    result.stdout.no_fnmatch_line("*test_it*")
