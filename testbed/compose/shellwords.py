"""A command that is written as one text, taken apart as Compose does it (compose-go, through go-shellwords). Pure.

No shell is asked: an operator such as ``&&`` or ``>`` that is not quoted ends the command, and what stands behind it is
left out without a word. Backticks and ``$(…)`` keep blanks and operators together, and stay in the word; in a pair of
backticks, quotes are quotes all the same. A ``)`` alone is refused, as by go-shellwords since April 2026; the one in
Compose 2.40 takes it for a quote.
"""

from __future__ import annotations

import re

# A command is a row of these; what stands alone, a quote or a bracket without its second, is none of them.
_PLAIN = r"""[^\s\\'"`()$;&|<>]|[^\S \t\r\n]|\$(?!\()"""
_PART = re.compile(
    rf"""(?P<blank>[ \t\r\n]+)
    | \\(?P<escaped>.)
    | '(?P<single>[^']*)'
    | "(?P<double>(?:\\.|[^"\\])*)"
    | (?P<tick>`)
    | (?P<bracket>\$\((?:\\.|[^()\\])*\))
    | (?P<operator>[;&|<>])
    | (?P<plain>(?:{_PLAIN})+)""",
    re.DOTALL | re.VERBOSE,
)
_IN_TICKS = re.compile(r"[()]|\$")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def split(text: str) -> list[str]:
    """The words of a command. Raises ValueError for quotes or brackets without their second."""
    words: list[str] = []
    word: str | None = None
    ticked = False
    at = 0
    while at < len(text):
        found = (_IN_TICKS.match(text, at) if ticked else None) or _PART.match(text, at)
        if found is None:
            raise ValueError(_alone(text[at:]))
        at = found.end()
        kind = found.lastgroup
        if kind == "blank" and not ticked:
            words += [] if word is None else [word]
            word = None
        elif kind == "operator" and not ticked:
            # A number before it is the descriptor that it redirects.
            word = None if found[0] == ">" and (word or "")[:1] in tuple("0123456789") else word
            break
        else:
            ticked ^= kind == "tick"
            said = found[kind] if kind in ("escaped", "single", "double", "bracket") else found[0]
            word = (word or "") + (_ESCAPED.sub(r"\1", said) if kind in ("double", "bracket") else said)
    if ticked:
        raise ValueError("` without its second")
    return words if word is None else [*words, word]


def _alone(rest: str) -> str:
    """What is wrong where no part of a command begins."""
    if rest == "\\":
        return "ends with a backslash"
    if rest[0] in "()":
        return f"{rest[0]} without its second, or without a $ before it; quote it"
    return f"{rest[:2] if rest.startswith('$(') else rest[0]} without its second"
