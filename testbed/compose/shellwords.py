"""Splits a command line into words as Compose does (compose-go, through go-shellwords). Pure.

No shell is run: an unquoted operator such as ``&&`` or ``>`` ends the command, and the rest is dropped silently.
Backticks and ``$(…)`` keep blanks and operators in the word, and stay there themselves; quotes between backticks are
quotes. A single ``)`` is refused, as by go-shellwords since April 2026; the one in Compose 2.40 takes it for a quote.
"""

from __future__ import annotations

import re

# A command is a sequence of these; an unpaired quote or bracket is none of them.
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
    """The words of a command. Raises ValueError for unpaired quotes and brackets."""
    words: list[str] = []
    word: str | None = None
    ticked = False
    at = 0
    while at < len(text):
        part = (_IN_TICKS.match(text, at) if ticked else None) or _PART.match(text, at)
        if part is None:
            raise ValueError(_unpaired(text[at:]))
        at = part.end()
        kind = part.lastgroup
        if kind == "blank" and not ticked:
            words += [] if word is None else [word]
            word = None
        elif kind == "operator" and not ticked:
            # A number before `>` is the descriptor that it redirects.
            word = None if part[0] == ">" and (word or "")[:1] in tuple("0123456789") else word
            break
        else:
            ticked ^= kind == "tick"
            inside = part[kind] if kind in ("escaped", "single", "double", "bracket") else part[0]
            word = (word or "") + (_ESCAPED.sub(r"\1", inside) if kind in ("double", "bracket") else inside)
    if ticked:
        raise ValueError("` without its second")
    return words if word is None else [*words, word]


def _unpaired(rest: str) -> str:
    """What is wrong where no part of a command begins."""
    if rest == "\\":
        return "ends with a backslash"
    if rest[0] in "()":
        return f"{rest[0]} without its second, or without a $ before it; quote it"
    return f"{rest[:2] if rest.startswith('$(') else rest[0]} without its second"
