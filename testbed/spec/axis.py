"""A word of an impairment from a mild value to a bad one, as in ``loss=0..30%``; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from testbed.errors import InvalidValueError
from testbed.spec.features import WORDS
from testbed.spec.words import unknown
from testbed.text import shown

_FALLING = ("rate",)
"""Words of which less is worse."""
_NUMBER = re.compile(r"[+-]?[\d.]+")
_UNIT = re.compile(r"[^\d.]\S*$")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A word and its values, the mildest first."""

    word: str
    texts: tuple[str, ...]
    """The values as the user writes them."""
    values: tuple[float, ...]
    """In SI units."""

    def at(self, level: int) -> str:
        """A value as an impairment has it: ``loss=3%``."""
        return f"{self.word}={self.texts[level]}"

    @classmethod
    def parse(cls, text: str, count: int) -> Axis:
        """The axis of ``count`` evenly spaced values that ``loss=0..30%`` describes; at least 2.

        An end without a unit has that of the other. Raises InvalidValueError if the word is unknown or its value
        is no quantity, or if the range is empty or goes from bad to mild.
        """
        word, _, span = text.partition("=")
        mild, dots, bad = (part.strip() for part in span.partition(".."))
        if not (dots and mild and bad):
            raise InvalidValueError(f"--vary {shown(text)}: write WORD=MILD..BAD, as in loss=0..30% or delay=0..400ms")
        if word not in WORDS:
            raise InvalidValueError(f"--vary {shown(text)}: {word}: {unknown(word, WORDS)}")
        units = [unit[0] for end in (mild, bad) if (unit := _UNIT.search(end))]
        mild, bad = (end + units[0] if units and _NUMBER.fullmatch(end) else end for end in (mild, bad))
        feature = WORDS[word]
        ends = [feature.read(end) for end in (mild, bad)]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
            raise InvalidValueError(f"--vary {shown(text)}: {word} is no quantity that gets worse; vary loss or delay")
        first, last = ends
        if first == last:
            raise InvalidValueError(f"--vary {shown(text)}: an empty range: both ends are {feature.write(first)}")
        if (first > last) != (word in _FALLING):
            order = "falls" if word in _FALLING else "rises"
            raise InvalidValueError(
                f"--vary {shown(text)}: the mild end comes first, and {word} {order} as links get worse; "
                f"write {word}={bad}..{mild}"
            )
        whole = isinstance(first, int) and isinstance(last, int)
        raw = [first + (last - first) * level / (count - 1) for level in range(count)]
        values = tuple(dict.fromkeys(round(value) if whole else float(f"{value:.6g}") for value in raw))
        if problems := [problem for value in ends for problem in feature.problems(value)]:
            raise InvalidValueError(f"--vary {shown(text)}: {problem}" for problem in problems)
        return cls(word=word, texts=tuple(str(feature.write(value)) for value in values), values=values)
