"""Whom something is for: people of a group, by what they are called and by their age.

"My grandson", "a niece of six", "for a six-year-old" and "she is 6" speak of children, "my son, who
is 30" does not. Which people a group has, and up to what age, is set with its words
(`GroupWords`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from m6rec_jax.dialogue.words import GroupWords
from m6rec_jax.metrics.phrases import phrase_key

_NAMES, _ANYBODY = (
    names.split()
    for names in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
        "eighty ninety",
        # People of whom an age alone says something.
        "he she who someone somebody boy girl brother sister cousin friend",
    )
)
# From twenty on in tens, which are enough for ages.
NUMBERS = {name: n if n <= 20 else 10 * (n - 18) for n, name in enumerate(_NAMES)}
_NUMBER = rf"(?:\d{{1,2}}|{'|'.join(NUMBERS)})"
# Of several people, too: "14 and 6".
_AGE = rf"(?P<age>{_NUMBER}(?:(?: ,| and| or| , and| , or) {_NUMBER})*)"
# Between somebody and their age: "who is", "of".
_LINKS = r"(?P<link>(?:(?: ,)? (?:of|is|s|are|who|turns|turned|turning|just|only|about|aged?))*)"
# Pieces of a turn that are looked at.
_REACH = 12


class People:
    """Finds people in turns.

    Args:
      groups: by name.
    """

    def __init__(self, groups: Mapping[str, GroupWords]) -> None:
        self._groups = groups
        self._group_of = dict.fromkeys(_ANYBODY, "") | {
            " ".join(phrase_key(called)): name
            for name, group in groups.items()
            for called in group.people
        }
        called = "|".join(map(re.escape, sorted(self._group_of, key=len, reverse=True)))
        who = rf"(?P<who>{called})(?!\S)"
        self._patterns = (
            re.compile(
                rf"{who}{_LINKS}(?: ,)? {_AGE}(?P<unit> (?:year|month)s? old)?(?!\S)(?! of)"
            ),
            re.compile(rf"{who}"),
            re.compile(
                rf"(?P<link>aged?|ages)? ?{_AGE}(?P<unit> year olds?| months? old| ?yo)?(?!\S)"
                rf"(?: {who})?"
            ),
        )

    def at(self, folded: Sequence[str], start: int) -> tuple[str, int, bool] | None:
        """Who is spoken of at a place of a turn's folded pieces, by the longest phrase for it: the
        name of their group, empty for none, how many pieces they are, and whether an age says it.
        """
        text = " ".join(folded[start : start + _REACH])
        for found in filter(None, (pattern.match(text) for pattern in self._patterns)):
            told = found.groupdict()
            if "age" in told and not told["link"] and not told["unit"]:
                continue  # a number by itself
            length = found[0].count(" ") + 1
            own = self._group_of[told["who"]] if told["who"] else ""
            age = self._years(told["age"], told["unit"]) if "age" in told else None
            if age is None and not own:
                continue
            return self._group(own, age), length, age is not None
        return None

    def _group(self, own: str, age: int | None) -> str:
        """The group of somebody who is called as those of `own` are."""
        if age is None or (own and not self._groups[own].under):
            return own
        return next((name for name, group in self._groups.items() if age < group.under), "")

    @staticmethod
    def _years(age: str, unit: str | None) -> int:
        """The age of the youngest."""
        if unit and "month" in unit:
            return 0
        every = re.findall(rf"\b{_NUMBER}\b", age)
        return min(int(one) if one.isdigit() else NUMBERS[one] for one in every)
