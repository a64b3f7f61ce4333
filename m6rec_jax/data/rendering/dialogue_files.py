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
from typing import Any, NamedTuple

import msgspec

from m6rec_jax.data.rendering.corpora import (
    Turn,
    json_lines,
    merged_turns,
    numbered_lines,
    repaired,
)
from m6rec_jax.dialogue.state import SYSTEM, USER
from m6rec_jax.errors import DataError

_INSPIRED_COLUMNS = ("dialog_id", "speaker", "text", "movies")
_INSPIRED_SPEAKERS = {"SEEKER": USER, "RECOMMENDER": SYSTEM}
_QUOTE = "QUOTATION_MARK"
_MENTION = re.compile(r"@(\d+)")


class Dialogue(NamedTuple):
    """A dialogue.

    Attributes:
      id: of the dialogue.
      turns: at least one; speakers take turns.
      titles: item id to its title, of all items that the turns name.
    """

    id: str
    turns: Sequence[Turn]
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
    messages: dict[str, list[Turn]] = {}
    for number, fields in lines:
        row = dict(zip(header, fields, strict=False))
        if len(fields) != len(header) or row["speaker"] not in _INSPIRED_SPEAKERS:
            raise DataError(
                f"{path}, line {number}: {row} must have the {len(header)} columns of the header, "
                f"and {' or '.join(_INSPIRED_SPEAKERS)} as speaker"
            )
        titles = [title.strip() for title in row["movies"].split(";") if title.strip()]
        text = row["text"].replace(_QUOTE, '"')
        turn = Turn(_INSPIRED_SPEAKERS[row["speaker"]], text, titles)
        messages.setdefault(row["dialog_id"], []).append(turn)
    for identifier, said in messages.items():
        yield from _dialogue(
            identifier, said, {title: title for one in said for title in one.items}
        )


class _Message(msgspec.Struct):
    senderWorkerId: int | str
    text: str


class _Redial(msgspec.Struct):
    conversationId: int | str
    initiatorWorkerId: int | str
    messages: list[_Message]
    # Where no film is named, the files have an empty list in place of an object.
    movieMentions: dict[str, str | None] | list[Any]


def read_redial(path: Path) -> Iterator[Dialogue]:
    """The dialogues of a ReDial file, in its order; films are named by their titles in the text.

    Raises:
      DataError: the file cannot be read, or a line is broken; names the line.
    """
    for _, raw in json_lines(path, _Redial):
        titles = {key: repaired(title or "") for key, title in dict(raw.movieMentions).items()}
        messages = []
        for message in raw.messages:
            speaker = USER if message.senderWorkerId == raw.initiatorWorkerId else SYSTEM
            # Text and keys of films take turns; a film without a title stays a number.
            parts = _MENTION.split(message.text)
            items = [key for key in parts[1::2] if titles.get(key)]
            parts[1::2] = [titles.get(key) or f"@{key}" for key in parts[1::2]]
            messages.append(Turn(speaker, "".join(parts), items))
        yield from _dialogue(str(raw.conversationId), messages, titles)


FORMATS: Mapping[str, Callable[[Path], Iterator[Dialogue]]] = {
    "inspired": read_inspired,
    "redial": read_redial,
}


def _dialogue(
    identifier: str, messages: Sequence[Turn], titles: Mapping[str, str]
) -> Iterator[Dialogue]:
    """The dialogue, unless nothing is said in it."""
    if turns := merged_turns(messages):
        yield Dialogue(
            identifier, turns, {item: titles[item] for turn in turns for item in turn.items}
        )
