"""A command that is written as one text, taken apart as Compose does it (compose-go, through go-shellwords). Pure.

No shell is asked: an operator such as ``&&`` or ``>`` that is not quoted ends the command, and what stands behind it is
left out without a word.
"""

from __future__ import annotations

_BLANKS = " \t\r\n"
_OPERATORS = ";&|<>"


def split(text: str) -> list[str]:
    """The words of a command. Raises ValueError for quotes or brackets without their second."""
    words: list[str] = []
    word: str | None = None
    inside = ""
    """The quote that is open: ``\'``, ``"``, a backtick, or ``(`` for ``$(``."""
    characters = iter(text)
    for each in characters:
        if each == "\\" and inside != "'":
            following = next(characters, None)
            if following is None:
                raise ValueError("ends with a backslash")
            word = (word or "") + following
        elif each in _BLANKS and not inside:
            if word is not None:
                words.append(word)
            word = None
        elif each in "'\"" and inside in ("", each):
            inside = "" if inside else each
            word = word or ""
        elif each == "`" and inside in ("", each):
            inside, word = "" if inside else each, (word or "") + each
        elif each in "()" and inside in ("", "("):
            opens = each == "(" and not inside and word is not None and word.endswith("$")
            if not opens and not (each == ")" and inside):
                raise ValueError(f"{each} without its second, or without a $ before it; quote it")
            inside, word = "(" if opens else "", (word or "") + each
        elif each in _OPERATORS and not inside:
            if each == ">" and word is not None and word[:1].isdigit() and word.isascii():
                word = None  # the descriptor that it redirects
            break
        else:
            word = (word or "") + each
    if inside:
        raise ValueError(f"{inside} without its second")
    return words if word is None else [*words, word]
