"""Files of dialogues: INSPIRED and ReDial.

`inspired` (Hayati et al., 2020) is a tab-separated file with a row per message (`dialog_id`,
`speaker`, `text`, `movies`), `redial` (Li et al., 2018) JSON lines with a dialogue each. Whoever
seeks is USER, whoever recommends SYSTEM. Which items a message names is taken from the files'
annotation: in INSPIRED titles were found by their words, so that "the future" may be "The Future
(2011)".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.data.corpora import json_lines, merged_turns, numbered_lines, repaired
from m6rec_jax.errors import DataError
from m6rec_jax.text.dialogue import SYSTEM, USER

_INSPIRED_COLUMNS = ("dialog_id", "speaker", "text", "movies")
_INSPIRED_SPEAKERS = {"SEEKER": USER, "RECOMMENDER": SYSTEM}
_QUOTE = "QUOTATION_MARK"
_MENTION = re.compile(r"@(\d+)")
# Speaker, text and the ids of the items that it names.
Message = tuple[str, str, Sequence[str]]


class Turn(NamedTuple):
    """What one side says until the other one answers.

    Attributes:
      speaker: `USER` or `SYSTEM`.
      text: its messages, joined by spaces.
      items: ids of the items that it names, each once, in order.
    """

    speaker: str
    text: str
    items: tuple[str, ...] = ()


class Dialogue(NamedTuple):
    """A dialogue.

    Attributes:
      id: of the dialogue.
      turns: at least one; speakers take turns.
      titles: item id to its title, of all items that the turns name.
    """

    id: str
    turns: tuple[Turn, ...]
    titles: Mapping[str, str]


def read_inspired(path: Path) -> Iterator[Dialogue]:
    """The dialogues of an INSPIRED file, in its order; an item's id is its title.

    Raises:
      DataError: the file cannot be read, lacks a column, or a row is broken; names the row.
    """
    lines = ((number, line.split("\t")) for number, line in numbered_lines(path))
    _, header = next(lines, (0, []))
    if missing := [name for name in _INSPIRED_COLUMNS if name not in header]:
        raise DataError(
            f"{path} has no column {missing[0]!r}; is it a file of INSPIRED, with its header?"
        )
    messages: dict[str, list[Message]] = {}
    for number, fields in lines:
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(fields)} columns, where the header has {len(header)}"
            )
        row = dict(zip(header, fields, strict=True))
        if row["speaker"] not in _INSPIRED_SPEAKERS:
            raise DataError(
                f"{path}, line {number}: the speaker is {row['speaker']!r}, not "
                f"{' or '.join(_INSPIRED_SPEAKERS)}"
            )
        titles = [title.strip() for title in row["movies"].split(";") if title.strip()]
        message = _INSPIRED_SPEAKERS[row["speaker"]], row["text"].replace(_QUOTE, '"'), titles
        messages.setdefault(row["dialog_id"], []).append(message)
    for identifier, said in messages.items():
        yield from _dialogue(identifier, said, lambda title: title)


def read_redial(path: Path) -> Iterator[Dialogue]:
    """The dialogues of a ReDial file, in its order; films are named by their titles in the text.

    Raises:
      DataError: the file cannot be read, or a line is broken; names the line.
    """
    for number, raw in json_lines(path, "dialogue of ReDial"):
        try:
            # Where no film is named, the files have an empty list in place of an object.
            named_films = dict(raw["movieMentions"] or {})
            titles = {str(key): repaired(title or "") for key, title in named_films.items()}
            messages: list[Message] = []
            for message in raw["messages"]:
                is_seeker = message["senderWorkerId"] == raw["initiatorWorkerId"]
                text = message["text"]
                named = [key for key in _MENTION.findall(text) if titles.get(key)]
                for key in named:
                    # In two steps: a title must not be read as a pattern's replacement.
                    text = titles[key].join(re.split(rf"@{key}(?!\d)", text))
                messages.append((USER if is_seeker else SYSTEM, text, named))
            identifier = str(raw["conversationId"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}, line {number} is no dialogue of ReDial ({reason})") from error
        yield from _dialogue(identifier, messages, titles.__getitem__)


FORMATS: Mapping[str, Callable[[Path], Iterator[Dialogue]]] = {
    "inspired": read_inspired,
    "redial": read_redial,
}


def _dialogue(
    identifier: str, messages: Sequence[Message], title_of: Callable[[str], str]
) -> Iterator[Dialogue]:
    """The dialogue, unless nothing is said in it."""
    turns = [Turn(who, text, tuple(items)) for who, text, items in merged_turns(messages)]
    if turns:
        titles = {item: title_of(item) for turn in turns for item in turn.items}
        yield Dialogue(identifier, tuple(turns), titles)
