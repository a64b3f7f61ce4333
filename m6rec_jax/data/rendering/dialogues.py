"""Corpora of dialogues: replies to write, and items to recommend.

A folder with the files and a `dialogues.json`:

    {"name": "inspired", "format": "inspired",
     "files": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}}

Without a file for 'validation' it is drawn from the training dialogues; `"files": "dev.tsv"`, one
file for everything, draws all splits. A dialogue is in one split as a whole, by a hash of its id.
Optional: `description`, `licence`, and `splits`, the options of these draws.

The format `inspired` (Hayati et al., 2020) is a tab-separated file with a row per message
(`dialog_id`, `speaker`, `text`, `movies`), `redial` (Li et al., 2018) JSON lines with a dialogue
each. Whoever seeks is USER, whoever recommends SYSTEM. Which items a message names is taken from
the files' annotation: in INSPIRED titles were found by their words, so that "the future" may be
"The Future (2011)". What SYSTEM names is what it recommends. The catalogue holds every item that
any dialogue names. Attributes of items come from another data set, where gin names one:

    DialogueOptions.attributes = 'film-viewers'
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gin
import msgspec
import numpy as np
import pyarrow as pa

from m6rec_jax.data.dataset.joined_attributes import JoinedAttributes
from m6rec_jax.data.dataset.schema import load_json, parsed
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.data.rendering.corpora import (
    Corpus,
    Record,
    ViewRow,
    json_lines,
    numbered_lines,
    repaired,
)
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.data.store.prepared import CATALOGUE, write_catalogue
from m6rec_jax.data.store.views import DIALOGUE_VIEWS
from m6rec_jax.dialogue.catalogue import DialogueCatalogue
from m6rec_jax.dialogue.reading import DialogueReader
from m6rec_jax.dialogue.state import RECOMMENDS, SYSTEM, USER, DialogueState
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.records import Item

DIALOGUES_FILE = "dialogues.json"
_TITLE = re.compile(r"^(?P<title>.*\S)\s*\((?P<year>\d{4})\)$")
_INSPIRED_COLUMNS = ("dialog_id", "speaker", "text", "movies")
_INSPIRED_SPEAKERS = {"SEEKER": USER, "RECOMMENDER": SYSTEM}
_MENTION = re.compile(r"@(\d+)")


class Turn(NamedTuple):
    """What one side of a dialogue says until the other one answers; `items` are the ids of those
    that it names, in order.
    """

    speaker: str
    text: str
    items: Sequence[str] = ()


class Dialogue(NamedTuple):
    """A dialogue; `titles` are those of all items that its turns name, by id."""

    id: str
    turns: Sequence[Turn]
    titles: Mapping[str, str]


def merged_turns(messages: Iterable[Turn]) -> list[Turn]:
    """Turns of messages: those of one speaker that follow each other are one.

    Texts are repaired, and messages without words left out. A turn names each item once.
    """
    said = [turn for one in messages if (turn := one._replace(text=repaired(one.text))).text]
    turns = []
    for speaker, of_speaker in itertools.groupby(said, key=lambda turn: turn.speaker):
        _, texts, items = zip(*of_speaker, strict=True)
        named = dict.fromkeys(itertools.chain.from_iterable(items))
        turns.append(Turn(speaker, " ".join(texts), tuple(named)))
    return turns


def read_inspired(path: Path) -> Iterator[Dialogue]:
    """The dialogues of an INSPIRED file, in its order; an item's id is its title. Raises DataError,
    with the row, where the file or a row is broken.
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
        text = row["text"].replace("QUOTATION_MARK", '"')
        turn = Turn(_INSPIRED_SPEAKERS[row["speaker"]], text, titles)
        messages.setdefault(row["dialog_id"], []).append(turn)
    for id_, said in messages.items():
        if turns := merged_turns(said):
            yield Dialogue(id_, turns, {item: item for turn in turns for item in turn.items})


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
    Raises DataError, with the line, where the file or a line is broken.
    """
    for raw in json_lines(path, _Redial):
        titles = {key: repaired(title or "") for key, title in dict(raw.movieMentions).items()}
        messages = []
        for message in raw.messages:
            speaker = USER if message.senderWorkerId == raw.initiatorWorkerId else SYSTEM
            # Text and keys of films take turns; a film without a title stays a number.
            parts = _MENTION.split(message.text)
            items = [key for key in parts[1::2] if titles.get(key)]
            parts[1::2] = [titles.get(key) or f"@{key}" for key in parts[1::2]]
            messages.append(Turn(speaker, "".join(parts), items))
        if turns := merged_turns(messages):
            named = {item: titles[item] for turn in turns for item in turn.items}
            yield Dialogue(str(raw.conversationId), turns, named)


FORMATS = {"inspired": read_inspired, "redial": read_redial}


@dataclasses.dataclass(frozen=True, slots=True)
class DialogueSpec:
    """The object of `dialogues.json`. See the module's docstring."""

    name: str
    format: Literal["inspired", "redial"]
    files: Mapping[str, str] | str  # by split, or one of all splits
    description: str = ""
    licence: str = ""
    splits: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {"by_group": {...}}

    def __post_init__(self) -> None:
        if not isinstance(self.files, str) and not {"train", "test"} <= {*self.files} <= {*PARTS}:
            raise ValueError(
                "'files' must be a file, or an object with a file for 'train', for 'test' and, "
                f"where there is one, for 'validation', not {self.files!r}"
            )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DialogueOptions:
    """How dialogues are rendered. Set in gin: `DialogueOptions.max_turns = 10`.

    Attributes:
      max_turns: turns before a reply, at most; the latest ones.
      attributes: the name of a fetched data set, or a folder, of which attributes of items are
        taken (`JoinedAttributes`), those of gin's `DialogueWords`; empty: only titles and years
        are there, and turns are not read.
      named_items: of how many items that a dialogue has named attributes are read, at most; the
        latest ones (`DialogueCatalogue.segments`).

    Raises:
      ConfigError: impossible numbers.
    """

    max_turns: int = 20
    attributes: str = ""
    named_items: int = 3

    def __post_init__(self) -> None:
        if self.max_turns < 1 or self.named_items < 0:
            raise ConfigError(
                f"DialogueOptions.max_turns = {self.max_turns} must be at least 1, and named_items "
                f"= {self.named_items} at least 0"
            )


class Dialogues(Corpus):
    """A folder of dialogues; `options` None for gin's. Raises DataError where the description does
    not fit, or a file is missing.
    """

    kind = "dialogues"

    def __init__(self, directory: str | Path, options: DialogueOptions | None = None) -> None:
        path = Path(directory) / DIALOGUES_FILE
        self.options = options or DialogueOptions()
        self.spec = parsed(load_json(path), DialogueSpec, str(path))
        files = self.spec.files
        files = {"": files} if isinstance(files, str) else files
        self._files = {split: path.parent / file for split, file in files.items()}
        self.manifest = {"dialogue_spec": dataclasses.asdict(self.spec)}
        self.split_options, self.settings = self.spec.splits, dataclasses.asdict(self.options)
        self._words: DialogueWords | None = None
        self._attributes: JoinedAttributes | None = None
        joined: Sequence[Path] = ()
        if self.options.attributes:
            self._words = DialogueWords()
            self.settings |= {"words": msgspec.to_builtins(self._words)}
            named = Path(self.options.attributes).expanduser()
            folder = named if named.is_dir() else default_cache_dir() / named
            self._attributes = JoinedAttributes(folder, self._words.attributes)
            joined = self._attributes.files
        super().__init__(self.spec.name, [path, *self._files.values(), *joined], DIALOGUE_VIEWS)

    @functools.cached_property
    def records(self) -> Sequence[Record]:
        """All dialogues; raises DataError for a broken row, no dialogue, or one that is in two
        splits.
        """
        read, splits = FORMATS[self.spec.format], dict[str, str]()
        records = [
            Record(one, one.id, split) for split, file in self._files.items() for one in read(file)
        ]
        for _, name, split in records:
            if (other := splits.setdefault(name, split)) != split:
                raise DataError(
                    f"{self.files[0]}: dialogue {name!r} is in the files of {other!r} and "
                    f"{split!r}; a test must not be trained on"
                )
        if not any(record.content.titles for record in records):
            raise DataError(
                f"{self.files[0]}: the files hold no dialogue that names an item, so there is "
                "nothing to recommend"
            )
        return records

    @functools.cached_property
    def _titles(self) -> dict[str, str]:
        """Item id -> title, in the order in which items are first named."""
        titles: dict[str, str] = {}
        for record in self.records:
            titles |= {id_: t for id_, t in record.content.titles.items() if id_ not in titles}
        return titles

    @functools.cached_property
    def _items(self) -> tuple[list[Item], int]:
        """Items, and of how many another data set has attributes."""
        items = []
        for id_, title in self._titles.items():
            match = _TITLE.match(title)
            name, year = (match[1], int(match[2])) if match else (title, None)
            items.append(Item(id_, {"title": name, "year": year}))
        if self._attributes is None:
            return items, 0
        items, number = self._attributes.joined(items)
        if not number:
            raise DataError(
                f"{self._attributes.files[0].parent} has none of the {len(items):,} items by title "
                "and year; DialogueOptions.attributes names a data set of such items"
            )
        return items, number

    def write_items(self, record_splits: Sequence[str], folder: Path) -> dict[str, int]:
        items, with_attributes = self._items
        places = {item.id: place for place, item in enumerate(items)}
        named = [
            (number, places[item])
            for number, record in enumerate(self.records)
            if record_splits[number] == "train"
            for turn in record.content.turns
            for item in turn.items
        ]
        counts = np.bincount([place for _, place in named], minlength=len(items))
        types: dict[str, pa.DataType] = {"title": pa.string(), "year": pa.int64()}
        types |= self._attributes.types if self._attributes is not None else {}
        rows = [dict(item.attributes) for item in items]
        attributes = pa.Table.from_pylist(rows, pa.schema(types))
        texts = list(self._titles.values())
        write_catalogue(folder / CATALOGUE, items, attributes, texts, counts == 0, counts)
        # Each item counts once in a dialogue.
        numbers, members = np.array([*dict.fromkeys(named)], np.int64).reshape(-1, 2).T
        CoOccurrence.counted(numbers, members, len(items)).save(folder)
        Ease.fitted(numbers, members, len(items)).save(folder)
        return {"items": len(items), "items_with_attributes": with_attributes}

    def rows(self, record_splits: Sequence[str]) -> Iterator[ViewRow]:
        items, _ = self._items
        places = {item.id: place for place, item in enumerate(items)}
        reader: DialogueReader | None = None
        if self._words is not None:
            names = [str(item.attributes["title"]) for item in items]
            reader = DialogueReader(DialogueCatalogue(items, names, self._words))
        turn_index, replies, recommendations = (
            itertools.count(),
            itertools.count(),
            itertools.count(),
        )
        for (dialogue, _, _), split in zip(self.records, record_splits, strict=True):
            state = DialogueState(reader)
            for number, turn in enumerate(dialogue.turns):
                named = [places[item] for item in turn.items]
                source = state.source(self.options.max_turns, self.options.named_items)
                row: dict[str, Any] = {
                    "text_id": f"{dialogue.id}/{number}",
                    "turn_index": next(turn_index),
                    "user_id": dialogue.id,
                    "item_indices": named,
                    "seen_indices": list(state.mentioned),
                    "source": source,
                    "prefix": f"{SYSTEM}:",
                    "target": turn.text,
                    "features": [],
                }
                state.hear(turn.speaker, turn.text, named)
                if turn.speaker != SYSTEM:
                    continue
                yield ViewRow("replies", split, row | {"text_index": next(replies)})
                for item in turn.items:
                    of_item = {
                        "text_id": f"{row['text_id']}/{item}",
                        "text_index": next(recommendations),
                        "item_indices": [places[item]],
                        "source": [*source, RECOMMENDS],
                        "prefix": "",
                        "target": self._titles[item],
                    }
                    yield ViewRow("recommendations", split, row | of_item)
