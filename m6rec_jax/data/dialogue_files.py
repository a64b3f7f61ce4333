"""Files of dialogues: INSPIRED and ReDial.

`inspired` (Hayati et al., 2020) is a tab-separated file with a row per message (`dialog_id`,
`speaker`, `text`, `movies`), `redial` (Li et al., 2018) JSON lines with a dialogue each. Whoever
seeks is USER, whoever recommends SYSTEM. Which items a message names is taken from the files' own
annotation: in INSPIRED titles were found by their words, so that "the future" may be "The Future
(2011)".
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from m6rec_jax.data.corpora import numbered_lines, repaired
from m6rec_jax.errors import DataError
from m6rec_jax.text.dialogue import SYSTEM, USER

_INSPIRED_COLUMNS = ("dialog_id", "speaker", "text", "movies")
_INSPIRED_SPEAKERS = {"SEEKER": USER, "RECOMMENDER": SYSTEM}
_QUOTE = "QUOTATION_MARK"
_MENTION = re.compile(r"@(\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """What one side says until the other one answers.

    Attributes:
      speaker: `USER` or `SYSTEM`.
      text: its messages, joined by spaces.
      items: ids of the items that it names, each once, in order.
    """

    speaker: str
    text: str
    items: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Dialogue:
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
    messages: dict[str, list[tuple[str, str, list[str]]]] = {}
    header: list[str] = []
    for number, line in numbered_lines(path):
        fields = line.split("\t")
        if not header:
            header = fields
            missing = [name for name in _INSPIRED_COLUMNS if name not in header]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]!r}; is it a file of INSPIRED, with its "
                    "header?"
                )
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(fields)} columns, where the header has {len(header)}"
            )
        row = dict(zip(header, fields, strict=True))
        speaker = _INSPIRED_SPEAKERS.get(row["speaker"])
        if speaker is None:
            raise DataError(
                f"{path}, line {number}: the speaker is {row['speaker']!r}, not "
                f"{' or '.join(_INSPIRED_SPEAKERS)}"
            )
        titles = [title.strip() for title in row["movies"].split(";") if title.strip()]
        text = row["text"].replace(_QUOTE, '"')
        messages.setdefault(row["dialog_id"], []).append((speaker, text, titles))
    for identifier, said in messages.items():
        names = {title: title for _, _, named in said for title in named}
        dialogue = _dialogue(identifier, said, names)
        if dialogue is not None:
            yield dialogue


def read_redial(path: Path) -> Iterator[Dialogue]:
    """The dialogues of a ReDial file, in its order; films are named by their titles in the text.

    Raises:
      DataError: the file cannot be read, or a line is broken; names the line.
    """
    for number, line in numbered_lines(path):
        try:
            raw = json.loads(line)
            json.dumps(raw, ensure_ascii=False).encode()  # a ValueError for half a character
            # Where no film is named, the files have an empty list in place of an object.
            named_films = dict(raw["movieMentions"] or {})
            mentions = {str(key): repaired(title or "") for key, title in named_films.items()}
            seeker = raw["initiatorWorkerId"]
            said = []
            for message in raw["messages"]:
                speaker = USER if message["senderWorkerId"] == seeker else SYSTEM
                named = [key for key in _MENTION.findall(message["text"]) if mentions.get(key)]
                text = message["text"]
                for key in named:
                    # In two steps: a title must not be read as a pattern's replacement.
                    text = mentions[key].join(re.split(rf"@{key}(?!\d)", text))
                said.append((speaker, text, named))
            identifier = str(raw["conversationId"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}, line {number} is no dialogue of ReDial ({reason})") from error
        dialogue = _dialogue(identifier, said, mentions)
        if dialogue is not None:
            yield dialogue


FORMATS: Mapping[str, Callable[[Path], Iterator[Dialogue]]] = {
    "inspired": read_inspired,
    "redial": read_redial,
}


def _dialogue(
    identifier: str, said: list[tuple[str, str, list[str]]], titles: Mapping[str, str]
) -> Dialogue | None:
    """Messages of one side that follow each other are one turn; None where nothing is said."""
    turns: list[Turn] = []
    for speaker, raw, items in said:
        text = repaired(raw)
        if not text:
            continue
        if turns and turns[-1].speaker == speaker:
            last = turns.pop()
            text, items = f"{last.text} {text}", [*last.items, *items]
        turns.append(Turn(speaker, text, tuple(dict.fromkeys(items))))
    if not turns:
        return None
    named = {item: titles[item] for turn in turns for item in turn.items}
    return Dialogue(identifier, tuple(turns), named)
