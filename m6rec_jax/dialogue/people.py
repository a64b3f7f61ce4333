"""Whom something is for: people of a group, by what they are called and by their age.

"My grandson", "a niece of six", "for a six-year-old" and "she is 6" speak of children, "my son, who
is 30" does not. Which people a group has, and up to what age, is set with its words (`GroupWords`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from m6rec_jax.dialogue.english import NUMBERS, WORDS
from m6rec_jax.dialogue.words import GroupWords
from m6rec_jax.metrics.phrases import phrase_key

_NUMBER = rf"(?:\d{{1,2}}|{'|'.join(NUMBERS)})"
# Of several people, too: "14 and 6".
_AGE = rf"(?P<age>{_NUMBER}(?:(?: ,| and| or| , and| , or) {_NUMBER})*)"
# Between somebody and their age: "who is", "of".
_LINKS = r"(?P<link>(?:(?: ,)? (?:of|is|s|are|who|turns|turned|turning|just|only|about|aged?))*)"
# Words and signs of a turn that are looked at.
_REACH = 12


class People:
    """Finds people in turns.

    Args:
      groups: by name.
    """

    def __init__(self, groups: Mapping[str, GroupWords]) -> None:
        self._groups = groups
        self._group_of = dict.fromkeys(WORDS["anybody"], "") | {
            " ".join(phrase_key(called)): name
            for name, group in groups.items()
            for called in group.people
        }
        called = "|".join(map(re.escape, sorted(self._group_of, key=len, reverse=True)))
        who = rf"(?P<who>{called})(?!\S)"
        unit = r"(?P<unit> year olds?| months? old| ?yo)?(?!\S)"
        self._patterns = (
            re.compile(
                rf"{who}{_LINKS}(?: ,)? {_AGE}(?P<unit> (?:year|month)s? old)?(?!\S)(?! of)"
            ),
            re.compile(rf"{who}(?P<link>)(?P<age>)?(?P<unit>)"),
            re.compile(rf"(?P<link>aged?|ages)? ?{_AGE}{unit}(?: {who})?"),
        )

    def at(self, folded: Sequence[str], start: int) -> tuple[str, int, bool] | None:
        """Who is spoken of at a place of a turn's folded words, by the longest phrase for it: the
        name of their group, empty for none, how many words they are, and whether an age says it.
        """
        text = " ".join(folded[start : start + _REACH])
        for match in filter(None, (pattern.match(text) for pattern in self._patterns)):
            link, age, unit = match["link"], match["age"], match["unit"]
            if age and not link and not unit:
                continue  # a number by itself
            group = self._group_of.get(match["who"] or "", "")
            length = match[0].count(" ") + 1
            if age:
                return self._group(group, _years(age, unit or "")), length, True
            if group:
                return group, length, False
        return None

    def _group(self, called: str, age: int) -> str:
        """The group of somebody of an age who is called as those of a group are."""
        if called and not self._groups[called].under:
            return called
        return next((name for name, group in self._groups.items() if age < group.under), "")


def _years(age: str, unit: str) -> int:
    """The age of the youngest."""
    if "month" in unit:
        return 0
    ages = re.findall(rf"\b{_NUMBER}\b", age)
    return min(int(one) if one.isdigit() else NUMBERS[one] for one in ages)
