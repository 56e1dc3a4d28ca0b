"""Which blocking structure is preferable, by hand."""

from __future__ import annotations

import math

from testbed.paper.structures import Served, preferable


def served(structure: str, clients: int, *waits_s: float) -> Served:
    return Served(structure=structure, clients=clients, waits_s=waits_s)


def test_who_answers_more_is_preferable_however_long_it_takes() -> None:
    assert preferable([served("quick", 2, 0.1), served("patient", 2, 0.1, 9.0)]) == ("patient",)


def test_of_those_who_answer_as_many_the_last_client_decides_up_to_a_factor_of_two() -> None:
    choice = preferable([served("a", 1, 1.0), served("b", 1, 2.0), served("c", 1, 2.1)])
    assert choice == ("a", "b")


def test_what_nobody_notices_makes_none_preferable() -> None:
    assert preferable([served("a", 1, 0.001), served("b", 1, 0.05), served("c", 1, 0.06)]) == ("a", "b")


def test_where_nobody_answers_none_is_preferable() -> None:
    assert preferable([served("a", 3), served("b", 3)]) == ()
    assert preferable([]) == ()


def test_who_was_not_answered_waited_for_ever() -> None:
    half = served("a", 4, 1.0, 2.0).wait(0.5)
    most = served("a", 4, 1.0, 2.0).wait(0.75)
    assert half is not None
    assert most is not None
    assert (half.value, most.value) == (2.0, math.inf)
    assert served("a", 0).wait(0.5) is None
    assert (served("a", 4).last_s, served("a", 4).all_answered, served("a", 1, 0.1).all_answered) == (None, False, True)


def test_it_says_how_many_and_how_late() -> None:
    assert str(served("a", 4, 1.0, 2.0)) == "2 in 2.00 s"
    assert str(served("a", 2, 1.0, 2.0)) == "all in 2.00 s"
    assert str(served("a", 4)) == "none"


def test_an_answer_costs_its_share_and_nothing_is_known_of_none() -> None:
    assert Served(structure="a", clients=4, waits_s=(1.0, 2.0), cpu_s=0.5).answer_cpu_s == 0.25
    assert Served(structure="a", clients=4, waits_s=(), cpu_s=0.5).answer_cpu_s is None
    assert served("a", 1, 1.0).answer_cpu_s is None
