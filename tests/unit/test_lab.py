"""What a marker, a call or a command line requests of each link, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest

from testbed.errors import InvalidValueError
from testbed.lab.backend import Backend
from testbed.lab.wanted import LinksWanted, impairments_of, notes, separate_rates
from testbed.spec.bottleneck import Bottleneck
from testbed.spec.impairment import CLEAN, Impairment
from testbed.spec.links import LinkRef, Traffic
from testbed.spec.profile import Profile
from testbed.spec.timeline import Timeline
from testbed.spec.topology import Topology

TOPOLOGY = Topology.from_compose(
    {"services": {name: {"networks": {"lan": None}} for name in ("client", "server")}, "networks": {"lan": None}}
)
DSL = Profile(name="dsl", forward=Impairment(rate_bps=1e6), reverse=Impairment(rate_bps=8e6))
PROFILES = {"dsl": DSL}
THERE, BACK = LinkRef("client", "server", "lan"), LinkRef("server", "client", "lan")


def asks(text: str, profile: str | Profile | None = None, **words: object) -> LinksWanted:
    lab = SimpleNamespace(topology=TOPOLOGY, profiles=PROFILES, tables={}, netem_folder=None)
    return impairments_of(cast("Backend", lab), text, profile, words)


def requested(
    text: str, profile: str | Profile | None = None, **words: object
) -> Mapping[LinkRef, Impairment | Timeline]:
    return asks(text, profile, **words).links


def problems_of(text: str, profile: str | Profile | None = None, **words: object) -> tuple[str, ...]:
    with pytest.raises(InvalidValueError) as refused:
        requested(text, profile, **words)
    return refused.value.problems


def test_one_direction_takes_the_forward_half() -> None:
    assert requested("client -> server", "dsl") == {THERE: DSL.forward}


def test_forward_is_the_direction_that_is_written_first() -> None:
    assert requested("server -> client", "dsl") == {BACK: DSL.forward}
    assert requested("client <-> server", "dsl") == {THERE: DSL.forward, BACK: DSL.reverse}
    assert requested("server <-> client", "dsl") == {BACK: DSL.forward, THERE: DSL.reverse}


def test_words_are_said_of_every_direction_that_is_named() -> None:
    slow = Impairment(delay_s=0.04)
    assert requested("client -> server", delay="40ms") == {THERE: slow}
    assert requested("client <-> server", delay="40ms") == {THERE: slow, BACK: slow}


def test_a_profile_may_be_given_as_a_value() -> None:
    mine = Profile(name="not in any folder", forward=Impairment(loss_ratio=1))
    assert requested("client <-> server", mine) == {THERE: mine.forward, BACK: CLEAN}


def test_links_of_one_direction_share_its_bottleneck_and_the_others_have_theirs() -> None:
    up, down = Bottleneck(rate_bps=1e6), Bottleneck(rate_bps=8e6, qdisc="fq_codel")
    cable = Profile(name="cable", forward_shape=up, reverse_shape=down)
    assert asks("client <-> server", cable).shapes == [((THERE,), up), ((BACK,), down)]
    assert asks("client -> server", cable).shapes == [((THERE,), up)]
    assert asks("client <-> server", "dsl").shapes == []
    both = asks("client <-> server", delay="5ms", shape={"rate": "1mbit"})
    assert both.links[THERE] == Impairment(delay_s=0.005)
    assert both.shapes == [((THERE,), up), ((BACK,), up)]


def test_what_is_beyond_the_stack_shares_no_bottleneck() -> None:
    (problem,) = problems_of("localhost -> server", shape={"rate": "1mbit"})
    assert problem.startswith("localhost -> server: a bottleneck is shared by hosts of the stack")


@pytest.mark.parametrize(
    ("profile", "words", "problem"),
    [
        ("dsl", {"delay": "40ms"}, "'client -> server': give a profile or words such as delay=, not both"),
        (DSL, {"dealy": "40ms"}, "'client -> server': give a profile or words such as delay=, not both"),
        (
            None,
            {},
            "'client -> server': what is it impaired with? Give a profile's name or words such as delay=\"40ms\"",
        ),
        ("dls", {}, "profile 'dls': unknown; did you mean 'dsl'? Known: dsl"),
        ("", {}, "profile '': unknown; known: dsl"),
        (None, {"delay": "5"}, 'delay=5: a duration needs a unit; write delay="5ms" or "5s"'),
    ],
)
def test_what_cannot_be_asked_is_refused(profile: str | Profile | None, words: dict[str, object], problem: str) -> None:
    assert problems_of("client -> server", profile, **words) == (problem,)


def test_the_problems_of_the_link_and_of_the_words_are_named_at_once() -> None:
    assert problems_of("cleint -> client", delay="5", loss="2") == (
        "link 'cleint -> client': host 'cleint': unknown; did you mean 'client'? Known: client, server",
        'delay=5: a duration needs a unit; write delay="5ms" or "5s"',
        'loss=2: a percentage needs its sign; write loss="2%"',
    )


def test_a_good_profile_does_not_save_a_bad_link() -> None:
    assert problems_of("client -> client", "dsl") == ("link 'client -> client': a host has no link to itself",)


def test_senders_that_one_could_take_for_sharing_a_rate_are_told_with_their_sum() -> None:
    def links(*ends: tuple[str, str], rate_bps: float | None = 8e6) -> dict[LinkRef, Impairment | Timeline]:
        return {LinkRef(src, dst, "lan"): Impairment(rate_bps=rate_bps, delay_s=0.001) for src, dst in ends}

    assert separate_rates(links(("a", "s"), ("b", "s"), ("c", "s"), ("s", "a"))) == [
        "3 senders do not share a rate, each has its own: up to 24mbit together reach `s` on `lan`"
    ]
    assert separate_rates(links(("a", "s"), ("s", "a"))) == []
    assert separate_rates(links(("a", "s"), ("b", "s"), rate_bps=None)) == []
    assert notes(links(("a", "s"), ("b", "s")), machine_is_ours=True) == separate_rates(links(("a", "s"), ("b", "s")))
    narrowed = {LinkRef("a", "s", "lan", Traffic("tcp", port)): Impairment(rate_bps=8e6) for port in (1, 2)}
    assert separate_rates(dict(narrowed)) == []
