"""Programs without a journal: exit statuses, and the bytes that came."""

from __future__ import annotations

import pytest

from testbed.evidence.observed import Evidence, difference
from testbed.evidence.verdict import Verdict
from testbed.judge.output import Digest, judge_output

OK = {"client": 0}


@pytest.mark.parametrize(
    ("expected", "received", "reason"),
    [
        (b"x" * 1025, b"x" * 1024, "1,024 of 1,025 bytes arrived: it was cut off there"),
        (b"abc", b"", "0 of 3 bytes arrived: it was cut off there"),
        (b"abc", b"abcabc", "3 bytes too many arrived after the 3 expected"),
        (b"abc", b"aXc", "other bytes arrived from byte 1 on (of 3 expected, 3 came)"),
        (Digest.of(b"abc"), Digest.of(b"ab"), "2 bytes arrived, 3 were expected"),
        (Digest.of(b"abc"), b"abd", "other bytes: SHA-256 a52d159f262b2c6d…, expected ba7816bf8f01cfea…"),
    ],
)
def test_what_came_is_told_from_what_was_to_come(
    expected: bytes | Digest, received: bytes | Digest, reason: str
) -> None:
    account = judge_output(expected, received, exit_codes=OK)
    assert account.verdict is Verdict.FAILS
    assert account.reasons == (reason, "and nobody was told: exit status 0 at client")


def test_the_same_bytes_pass_as_bytes_and_as_digest() -> None:
    assert judge_output(b"abc", b"abc", exit_codes=OK).passed
    assert judge_output(b"abc", Digest.of(b"abc"), exit_codes={}).passed


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        (1, Verdict.FAILS, "the program of client failed: exit status 1"),
        (127, Verdict.INVALID, "the program of client is not there, or cannot do this: exit status 127"),
        (None, Verdict.UNKNOWN, "the program of client did not end"),
    ],
)
def test_an_exit_status_has_its_verdict(code: int | None, verdict: Verdict, reason: str) -> None:
    account = judge_output(b"", b"", exit_codes={"client": code, "server": 0})
    assert (account.verdict, account.reasons) == (verdict, (reason,))


def test_a_client_that_failed_was_told() -> None:
    account = judge_output(b"abc", b"", exit_codes={"client": 1})
    assert not any("told" in reason for reason in account.reasons)


def test_counters_of_the_receiver_explain_missing_bytes_and_are_not_asked_where_none_is_missing() -> None:
    evidence = Evidence(kernel={"server": {"TcpExt": {"TCPAbortOnClose": 1, "TCPAbortOnData": 0}}})
    account = judge_output(b"abc", b"ab", exit_codes=OK, evidence=evidence, receiver="server")
    assert account.reasons[-1].endswith("(TCPAbortOnClose 1)")
    assert len(account.reasons) == 3
    assert judge_output(b"abc", b"abc", exit_codes=OK, evidence=evidence, receiver="server").reasons == ()


def test_a_counter_that_was_not_there_before_counts_from_zero() -> None:
    assert difference({"Tcp": {"a": 2}}, {"Tcp": {"a": 5, "b": 1}, "Udp": {"c": 4}}) == {
        "Tcp": {"a": 3, "b": 1}, "Udp": {"c": 4},
    }  # fmt: skip
