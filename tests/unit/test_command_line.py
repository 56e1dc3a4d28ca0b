"""How the command line reads impairments of links; no engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from testbed.commands import hosts, words
from testbed.commands.cli import cli
from testbed.errors import ImpairmentNotAppliedError, InvalidValueError
from testbed.spec.impairment import Impairment
from testbed.spec.links import LinkRef
from testbed.spec.profile import Profile
from testbed.spec.topology import Topology

TOPOLOGY = Topology.from_compose(
    {"services": {name: {"networks": {"lan": None}} for name in ("a", "b", "c")}, "networks": {"lan": None}}
)
THERE, BACK = LinkRef("a", "b", "lan"), LinkRef("b", "a", "lan")


class StandIn(AbstractContextManager["StandIn"]):
    """A lab that notes what is done to it."""

    topology = TOPOLOGY
    netem_folder = None

    def __init__(self, wrong: str = "") -> None:
        self.done: list[str] = []
        self.impairer = SimpleNamespace(clear=lambda ref: self.done.append(f"clear {ref}"))
        self.profiles = {"slow": Profile(name="slow", forward=Impairment(delay_s=1))}
        self.tables: dict[str, Path] = {}
        self._wrong = wrong

    def __enter__(self) -> StandIn:
        self.done.append("up")
        return self

    def __exit__(self, *_error: object) -> None:
        self.done.append("down")

    def host(self, _name: str) -> Any:
        return SimpleNamespace(interact=self._interact)

    def _interact(self, argv: Sequence[str]) -> int:
        self.done.append(f"run {argv}")
        return 0

    def impair(self, link: str, profile: object, **words: object) -> list[Any]:
        if link == self._wrong:
            raise ImpairmentNotAppliedError(link)
        self.done.append(f"{link}: {profile or words}")
        return [SimpleNamespace(link=ref) for ref in TOPOLOGY.links(link)]


def requested(link: str, *what: str) -> Any:
    return words.link_request(StandIn(), link, what)  # type: ignore[arg-type]  # what the function needs of a lab


def problems_of(link: str, *what: str) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        requested(link, *what)
    return refused.value.problems


def execute(lab: StandIn, impaired: Sequence[str], host: str = "a") -> int:
    """`testbed exec` on a lab that stands in; its status."""
    return hosts.in_host(lab, impaired, host, "true")  # type: ignore[arg-type]  # what the function needs of a lab


def test_a_profile_or_words_or_steps_are_read_with_the_link() -> None:
    assert requested("a <-> b", "slow").wanted == {THERE: Impairment(delay_s=1), BACK: Impairment()}
    assert requested("a -> b", "delay=5ms", "drop_packets=[3, 17-20]").wanted == {
        THERE: Impairment(delay_s=0.005, drop_packets=((3, 3), (17, 20)))
    }
    assert requested("a -> b", "[{delay: 5ms}]").profile == [{"delay": "5ms"}]


@pytest.mark.parametrize("what", [("delay=5ms", "loss=1%", "delay=5ms"), ("delay=5ms", "delay=6ms", "loss=1%")])
def test_a_word_given_twice_is_refused(what: tuple[str, ...]) -> None:
    (problem,) = problems_of("a -> b", *what)
    assert problem.startswith("delay stands twice: '5ms' and '")


def test_the_link_and_its_words_are_told_of_at_once() -> None:
    twice, link, word, value = problems_of("a -> z", "gap=1", "gap=2", "foo=1", "delay=5")
    assert twice == "gap stands twice: '1' and '2'"
    assert link.startswith("link 'a -> z': host 'z': unknown")
    assert word.startswith("foo: unknown")
    assert value.startswith("delay=5: a duration needs a unit")
    for what in (("slow", "delay=5ms"), ("slow", "slower"), ("[{",)):
        wrong, link = problems_of("a -> z", *what)
        assert "not both" in wrong or "not YAML" in wrong
        assert link.startswith("link 'a -> z': host 'z': unknown")


@pytest.mark.parametrize("word", ["text", "prove", "profile", "self"])
def test_what_the_lab_calls_its_arguments_is_no_word(word: str) -> None:
    (problem,) = problems_of("a -> b", f"{word}=slow")
    assert problem.startswith(f"{word}: unknown; ")


def test_a_link_to_impair_first_ends_at_the_first_sign_and_a_value_before_the_next_word() -> None:
    lab = StandIn()
    options = [
        "a -> b = slow ",
        "b -> a=delay=5ms gemodel=1% 25% drop_packets=3, 17-20 seed=4",
        "b -> c=[{delay: 5ms}]",
    ]
    assert execute(lab, options) == 0
    words = {"delay": "5ms", "gemodel": "1% 25%", "drop_packets": "3, 17-20", "seed": "4"}
    assert lab.done == ["up", "a -> b: slow", f"b -> a: {words}", "b -> c: [{'delay': '5ms'}]", "run true", "down"]


def test_what_is_described_can_be_asked_for_again() -> None:
    lab = StandIn()
    described = Impairment(delay_s=0.005, loss_gemodel=(0.01, 0.25, 1, 0), drop_packets=((3, 3), (17, 20))).describe()
    execute(lab, [f"a -> b={described}"])
    assert lab.done[1] == "a -> b: {'delay': '5ms', 'gemodel': '1% 25% 100% 0%', 'drop_packets': '3, 17-20'}"


def test_what_is_wrong_with_any_of_them_or_the_host_is_told_before_anything_is_started() -> None:
    lab = StandIn()
    with pytest.raises(InvalidValueError) as refused:
        execute(lab, ["a -> b=slow", "a <-> b=slow", "a -> b", "=slow", "b -> c=slower", "b -> z=delay=5"], "zz")
    begins = [
        "host 'zz': unknown; known: a, b, c",
        "a -> b is impaired twice, by --impair 'a -> b=slow' and by --impair 'a <-> b=slow'; a link has one impairment",
        "--impair 'a -> b': what is it impaired with? Write \"a -> b=lossy\", or words: ",
        "--impair '=slow': which link? Write ",
        "profile 'slower': unknown; did you mean 'slow'?",
        "link 'b -> z': host 'z': unknown; ",
        "delay=5: a duration needs a unit; ",
    ]
    for problem, begin in zip(refused.value.problems, begins, strict=True):
        assert problem.startswith(begin)
    assert lab.done == []


def test_of_links_to_impair_first_none_stays_impaired_if_one_cannot_be() -> None:
    lab = StandIn(wrong="b -> c")
    with pytest.raises(ImpairmentNotAppliedError):
        execute(lab, ["a <-> b=slow", "b -> c=slow"])
    assert lab.done == ["up", "a <-> b: slow", "clear b -> a", "clear a -> b", "down"]


@pytest.mark.parametrize(
    "command",
    [["up"], ["down"], ["show"], ["impair", "client -> server", "lossy"], ["cut", "client -> server"],
     ["partition", "client", "server"], ["isolate", "server"], ["flap", "--up=1s", "--down=1s", "client -> server"],
     ["heal"], *([verb, "server"] for verb in ("stop", "start", "restart", "kill", "pause", "resume"))],
    ids=" ".join,
)  # fmt: skip
def test_what_needs_a_running_stack_refuses_the_local_lab_and_says_why(command: list[str]) -> None:
    """Every command takes --lab; one that cannot work with a lab of a kind names those that can."""
    done = CliRunner().invoke(cli, [*command, "--lab", "local"])
    assert done.exit_code == 2
    assert "a local lab ends with the command that started it" in done.stderr
    assert "`testbed prove` start one" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_our_words_by_what_we_print(shell: str) -> None:
    printed = CliRunner().invoke(cli, ["completion", shell], standalone_mode=False)
    assert f"_TESTBED_COMPLETE={shell}_complete" in printed.stdout
    environment = {"_TESTBED_COMPLETE": "bash_complete", "COMP_WORDS": "testbed pro", "COMP_CWORD": "1"}
    completed = CliRunner().invoke(cli, [], prog_name="testbed", env=environment)
    assert completed.stdout.splitlines() == ["plain,profiles", "plain,prove"]
