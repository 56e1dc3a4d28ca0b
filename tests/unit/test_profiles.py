"""Profiles: what a file may contain, which file wins, and that the built-in ones are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import InvalidValueError
from testbed.netem.profiles import find_profile, load_profiles, parse_profile
from testbed.reading import yamltree
from testbed.resources import resource
from testbed.spec.bottleneck import Bottleneck
from testbed.spec.features import WORDS
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.profile import Profile
from testbed.spec.timeline import Timeline

SHIPPED = sorted(resource("netem").glob("*.yaml"))


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        parse_profile("x", text)
    return refused.value.problems


# --- one file --------------------------------------------------------------------------------------


def test_both_is_said_of_the_two_directions() -> None:
    slow = Impairment(delay_s=0.05)
    assert parse_profile("slow", "description: slow\nboth: {delay: 50ms}\n") == Profile(
        name="slow", description="slow", forward=slow, reverse=slow
    )


def test_forward_and_reverse_may_differ() -> None:
    dsl = parse_profile("dsl", "forward: {delay: 15ms, rate: 1mbit}\nreverse: {delay: 15ms, rate: 8mbit}\n")
    assert dsl.forward == Impairment(delay_s=0.015, rate_bps=1e6)
    assert dsl.reverse == Impairment(delay_s=0.015, rate_bps=8e6)


def test_a_side_may_have_a_bottleneck_that_its_links_share() -> None:
    cable = parse_profile("x", "forward: {delay: 5ms, shape: {rate: 1mbit, qdisc: fq_codel}}\nreverse: {loss: 1%}")
    assert cable.forward == Impairment(delay_s=0.005)
    assert cable.forward_shape == Bottleneck(rate_bps=1e6, qdisc="fq_codel")
    assert cable.reverse_shape is None
    both = parse_profile("x", "both: {shape: {rate: 1mbit}}")
    assert (both.forward, both.reverse) == (CLEAN, CLEAN)
    assert both.forward_shape == both.reverse_shape == Bottleneck(rate_bps=1e6)


@pytest.mark.parametrize(
    ("first", "at_first"),
    [("shape: {rate: 1mbit}", CLEAN), ("delay: 5ms, shape: {rate: 1mbit}", Impairment(delay_s=0.005))],
)
def test_the_bottleneck_of_a_timeline_stands_in_its_first_step(first: str, at_first: Impairment) -> None:
    profile = parse_profile("x", f"both: [{{{first}}}, {{at: 1s, loss: 1%}}]")
    assert isinstance(profile.forward, Timeline)
    assert profile.forward.phases[0].impairment == at_first
    assert profile.forward_shape == Bottleneck(rate_bps=1e6)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("both: {shape: 8mbit}", ["both: shape='8mbit': must be a mapping such as {rate: 8mbit, queue: 200kB}"]),
        ("both: {shape: {qdisc: fifo}, dealy: 1ms}", ["both: shape: rate: missing", "both: dealy: unknown"]),
        (
            "both: [{delay: 1ms}, {at: 1s, shape: {rate: 1mbit}, loss: 2%}]",
            ["both: step 2 (line 1): shape: only the first step may have it"],
        ),
    ],
)
def test_a_wrong_bottleneck_is_refused_beside_all_else(text: str, problems: list[str]) -> None:
    refused = problems_of(text)
    assert len(refused) == len(problems), refused
    assert all(problem.startswith(start) for problem, start in zip(refused, problems, strict=True)), refused


def test_the_direction_that_is_not_mentioned_is_clean() -> None:
    assert parse_profile("up", "forward: {loss: 1%}").reverse == CLEAN


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "both:", "both: {}", "forward:\nreverse:", "description:"])
def test_a_file_that_asks_nothing_is_a_clean_profile(text: str) -> None:
    assert parse_profile("x", text) == Profile(name="x")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- both", "must be a mapping with keys description, both, forward, reverse; found list"),
        ("lossy", "must be a mapping with keys description, both, forward, reverse; found str"),
        ("0", "must be a mapping with keys description, both, forward, reverse; found int"),
        (
            "bth: {}",
            "bth: unknown; did you mean 'both'? Known: description, both, forward, reverse",
        ),
        ("7: {}", "line 1: key 7 must be a text: write '7'"),
        ("both: {}\nforward: {}", "`both` excludes `forward` and `reverse`: remove one or the other"),
        ("both:\nreverse:", "`both` excludes `forward` and `reverse`: remove one or the other"),
        ("both: 40ms", "both: must be a mapping such as {delay: 40ms, loss: 2%}; found '40ms'"),
        ("both: false", "both: must be a mapping such as {delay: 40ms, loss: 2%}; found False"),
        ("both: []", "both: must be a mapping such as {delay: 40ms, loss: 2%}; found []"),
        ("forward: {delay: 40}", 'forward: delay=40: a duration needs a unit; write delay="40ms" or "40s"'),
        ("reverse: {delay: }", 'reverse: delay=None: not a duration; write for example delay="40ms"'),
        ("forward: {}\nforward: {}", "line 2: 'forward' is here a second time; line 1 has it already"),
        (
            "both:\n  delay: 1ms\n  loss: 1%\n  delay: 2ms",
            "line 4: 'delay' is here a second time; line 2 has it already",
        ),
        ("? [a]\n: 1", "line 1: a key must be a text"),
        ("both:\n  <<: 5", "line 2: `<<: '5'`: write a mapping or a list of mappings, as in `<<: *name`"),
        ("both: {<<: [[1]]}", "line 1: `<<: […]`: write a mapping or a list of mappings, as in `<<: *name`"),
        ("--- {}\n--- {}", "line 2: a second document: only a Compose file may have this"),
        ("both: &a {delay: *a}", "line 1: an alias of something that it is a part of"),
        ("2024-13-45", "must be a mapping with keys description, both, forward, reverse; found str"),
        ("both: {delay: 1:30}", "both: delay='1:30': not a duration; write for example delay=\"40ms\""),
        ("both: {delay: 5ms, reorder_by_jitter: yes}", "both: reorder_by_jitter='yes': must be true or false"),
        ("both: {<<: {delay: 1ms}, <<: {loss: 1%}}", "line 1: '<<' is here a second time; line 1 has it already"),
    ],
)
def test_a_file_that_says_something_else_is_refused(text: str, problem: str) -> None:
    assert problems_of(text) == (problem,)


@pytest.mark.parametrize(
    "text",
    [
        "both: {",
        "a: b: c",
        "\x01",
        "*a",
    ],
)
def test_what_is_not_yaml_is_refused_in_one_line(text: str) -> None:
    (problem,) = problems_of(text)
    assert ": not YAML: " in problem
    assert "\n" not in problem


def test_a_direction_takes_in_another_and_its_own_words_count() -> None:
    merged = yamltree.read("forward: &there {delay: 5ms, loss: 1%}\nreverse: {loss: 2%, <<: *there}").value
    assert merged["reverse"] == {"delay": "5ms", "loss": "2%"}


def test_every_problem_of_a_file_is_named_at_once() -> None:
    assert problems_of("frward: {}\nforward: {delay: 5, los: 1%}\nreverse: 3") == (
        "frward: unknown; did you mean 'forward'? Known: description, both, forward, reverse",
        'forward: delay=5: a duration needs a unit; write delay="5ms" or "5s"',
        "forward: los: unknown; did you mean 'loss'? Known: " + ", ".join(WORDS),
        "reverse: must be a mapping such as {delay: 40ms, loss: 2%}; found 3",
    )


# --- folders ---------------------------------------------------------------------------------------


def test_the_first_folder_that_has_a_name_wins_and_ours_come_last(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, text in ((first, "both: {delay: 1ms}"), (second, "both: {delay: 2ms}")):
        folder.mkdir()
        (folder / "mine.yaml").write_text(text)
    (second / "lossy.yaml").write_text("both: {loss: 50%}")
    profiles = load_profiles(first, second)
    assert profiles["mine"].forward == Impairment(delay_s=0.001)
    assert profiles["lossy"].forward == Impairment(loss_ratio=0.5)
    assert profiles["latency"] == load_profiles()["latency"]


def test_a_folder_that_is_not_there_has_no_profiles(tmp_path: Path) -> None:
    assert load_profiles(tmp_path / "none") == load_profiles()


def test_what_does_not_end_in_yaml_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("{")
    (tmp_path / "sub").mkdir()
    assert load_profiles(tmp_path) == load_profiles()


def test_the_problems_of_every_file_stand_behind_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("both: {delay: 5}")
    (tmp_path / "b.yaml").write_text("both: {loss: 5}")
    (tmp_path / "c.yaml").write_bytes(b"description: gr\xfc\xdfe")
    with pytest.raises(InvalidValueError) as refused:
        load_profiles(tmp_path).checked()
    assert refused.value.problems == (
        f'{tmp_path}/a.yaml: both: delay=5: a duration needs a unit; write delay="5ms" or "5s"',
        f'{tmp_path}/b.yaml: both: loss=5: a percentage needs its sign; write loss="5%"',
        f"{tmp_path}/c.yaml:1: is not UTF-8: byte 0xfc; save it as UTF-8",
    )


# --- ours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_profile_is_sound_and_described(path: Path) -> None:
    profile = parse_profile(path.stem, path.read_text(encoding="utf-8"))
    assert profile.description
    assert profile == load_profiles()[path.stem]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_profile_says_first_where_its_figures_are_from(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_shipped_profiles_are_all_that_a_lab_knows_of_itself() -> None:
    assert set(load_profiles()) == {path.stem for path in SHIPPED}
    assert {"clean", "latency", "lossy", "lossy-latency", "awful", "lan"} <= set(load_profiles())


def test_the_control_is_clean_and_no_other_profile_is() -> None:
    clean = {name for name, profile in load_profiles().items() if profile.forward.is_clean and profile.reverse.is_clean}
    assert clean == {"clean"}


def test_a_profile_is_found_by_its_name() -> None:
    assert find_profile(load_profiles(), "lossy").forward == Impairment(loss_ratio=0.05)


def test_an_unknown_profile_is_refused_with_the_nearest() -> None:
    profiles = {name: Profile(name=name) for name in ("clean", "lossy")}
    with pytest.raises(InvalidValueError) as refused:
        find_profile(profiles, "losy")
    assert str(refused.value) == "profile 'losy': unknown; did you mean 'lossy'? Known: clean, lossy"


def test_an_empty_name_is_an_unknown_profile() -> None:
    with pytest.raises(InvalidValueError, match="unknown; known: clean"):
        find_profile({"clean": Profile(name="clean")}, "")


@pytest.mark.parametrize("name", [None, 5, [], ["clean"], [1, 2]])
def test_what_is_no_name_at_all_is_refused_with_what_may_be_written(name: object) -> None:
    with pytest.raises(InvalidValueError) as refused:
        find_profile({"clean": Profile(name="clean")}, name)
    assert str(refused.value) == (
        f"{name!r} is not a profile: give a profile's name, as in lossy; words, as in delay=40ms; "
        "or a list of steps, as in [{delay: 40ms}, {at: 5s, outage: 2s}]"
    )
