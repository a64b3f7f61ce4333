"""Corpora of dialogues: replies to write, and items to recommend.

A folder with the files and a `dialogues.json`:

    {"name": "inspired", "format": "inspired",
     "files": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}}

Without a file for 'validation' it is drawn from the training dialogues; `"files": "dev.tsv"`, one
file for everything, draws all splits. A dialogue is in one split as a whole, by a hash of its id.
Optional: `description`, `licence`, and `splits`, the options of these draws.

Two formats are read, `inspired` and `redial` (`dialogue_files`). What SYSTEM names is what it
recommends. The catalogue holds every item that any dialogue names. Attributes of items come from
another data set, where gin names one:

    DialogueOptions.attributes = 'film-viewers'
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import msgspec
import numpy as np
import pyarrow as pa

from m6rec_jax.data.dataset.joined_attributes import JoinedAttributes
from m6rec_jax.data.dataset.schema import load_json, parsed
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.data.rendering.corpora import Corpus, Turn, ViewRow
from m6rec_jax.data.rendering.dialogue_files import FORMATS, Dialogue
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.data.store.prepared import CATALOGUE, write_catalogue
from m6rec_jax.data.store.views import DIALOGUE_VIEWS
from m6rec_jax.dialogue.catalogue import DialogueCatalogue
from m6rec_jax.dialogue.reading import DialogueReader
from m6rec_jax.dialogue.state import RECOMMENDS, SYSTEM, DialogueState
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.records import Item, Value

DIALOGUES_FILE = "dialogues.json"
_TITLE = re.compile(r"^(.*\S)\s*\((\d{4})\)$")


@dataclasses.dataclass(frozen=True, slots=True)
class DialogueSpec:
    """The object of `dialogues.json`. See the module's docstring.

    Attributes:
      format: one of `FORMATS`.
      files: split to file name; "" for one file of all splits.
      splits: options of splits by name, such as `{"by_group": {"train": 0.5}}`.
    """

    name: str
    format: str
    files: Mapping[str, str]
    description: str = ""
    licence: str = ""
    splits: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"'format' is {self.format!r}{did_you_mean(self.format, FORMATS)} (known: "
                f"{', '.join(FORMATS)})"
            )
        if {*self.files} != {""} and not {"train", "test"} <= {*self.files} <= {*PARTS}:
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
        taken (`JoinedAttributes`); empty: only titles and years are there.
      named_items: of how many items that a dialogue has named attributes are read, at most; the
        latest ones (`DialogueCatalogue.segments`).
      words: of the columns that are taken, and by which turns are read; None: gin's, where there
        are attributes.

    Raises:
      ConfigError: impossible numbers.
    """

    max_turns: int = 20
    attributes: str = ""
    named_items: int = 3
    words: DialogueWords | None = None

    def __post_init__(self) -> None:
        if self.max_turns < 1 or self.named_items < 0:
            raise ConfigError(
                f"DialogueOptions.max_turns = {self.max_turns} must be at least 1, and named_items "
                f"= {self.named_items} at least 0"
            )
        if self.attributes:
            object.__setattr__(self, "words", self.words or DialogueWords())


class Dialogues(Corpus):
    """A folder of dialogues.

    Args:
      directory: with `dialogues.json`.
      options: None for gin's `DialogueOptions` or the defaults.

    Raises:
      DataError: the description does not fit, or a file is missing.
    """

    records = "dialogues"

    def __init__(self, directory: str | Path, options: DialogueOptions | None = None) -> None:
        directory = Path(directory)
        self.options = options or DialogueOptions()
        raw = load_json(path := directory / DIALOGUES_FILE)
        if isinstance(raw, dict) and isinstance(raw.get("files"), str):
            raw = {**raw, "files": {"": raw["files"]}}
        self.spec = parsed(raw, DialogueSpec, str(path))
        self._files = {split: directory / file for split, file in self.spec.files.items()}
        self.split_options, self.settings = self.spec.splits, msgspec.to_builtins(self.options)
        self.manifest = {"dialogue_spec": dataclasses.asdict(self.spec)}
        files = [path, *self._files.values()]
        self._attributes: JoinedAttributes | None = None
        if self.options.words is not None:
            named = Path(self.options.attributes).expanduser()
            folder = named if named.is_dir() else default_cache_dir() / named
            self._attributes = JoinedAttributes(folder, self.options.words.attributes)
            files += self._attributes.files
        super().__init__(self.spec.name, files, DIALOGUE_VIEWS)

    @functools.cached_property
    def dialogues(self) -> list[tuple[str, Dialogue]]:
        """All dialogues, with the split that their file is of, "" where one file is of all.

        Raises:
          DataError: a broken row, no dialogue, or one that is in two splits.
        """
        read = FORMATS[self.spec.format]
        dialogues = [(split, one) for split, file in self._files.items() for one in read(file)]
        splits: dict[str, str] = {}
        for split, dialogue in dialogues:
            if (other := splits.setdefault(dialogue.id, split)) != split:
                raise DataError(
                    f"{self.files[0]}: dialogue {dialogue.id!r} is in the files of {other!r} and "
                    f"{split!r}; a test must not be trained on"
                )
        if not any(dialogue.titles for _, dialogue in dialogues):
            raise DataError(
                f"{self.files[0]}: the files hold no dialogue that names an item, so there is "
                "nothing to recommend"
            )
        return dialogues

    def split_names(self) -> Iterator[tuple[str, str]]:
        return ((dialogue.id, split) for split, dialogue in self.dialogues)

    @functools.cached_property
    def _titles(self) -> dict[str, str]:
        """Item id -> title, in the order in which items are first named."""
        titles: dict[str, str] = {}
        for _, dialogue in self.dialogues:
            titles |= {item: t for item, t in dialogue.titles.items() if item not in titles}
        return titles

    @functools.cached_property
    def _items(self) -> tuple[list[Item], int]:
        """Items, and of how many another data set has attributes."""
        items = [Item(item, _title_and_year(title)) for item, title in self._titles.items()]
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
            for number, (_, dialogue) in enumerate(self.dialogues)
            if record_splits[number] == "train"
            for turn in dialogue.turns
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
        counts: Counter[str] = Counter()
        reader: DialogueReader | None = None
        if (words := self.options.words) is not None:
            names = [str(item.attributes["title"]) for item in items]
            reader = DialogueReader(DialogueCatalogue(items, names, words))

        def view_row(view: str, split: str, row: dict[str, Any]) -> ViewRow:
            row |= {"text_index": counts[view], "features": []}
            counts[view] += 1
            return ViewRow(view, split, row)

        for (_, dialogue), split in zip(self.dialogues, record_splits, strict=True):
            state = DialogueState(reader)
            for number, turn in enumerate(dialogue.turns):
                here = [places[item] for item in turn.items]
                source = state.source(self.options.max_turns, self.options.named_items)
                shared = {"user_id": dialogue.id, "seen_indices": list(state.mentioned)}
                text_id = f"{dialogue.id}/{number}"
                row: dict[str, Any]
                if turn.speaker == SYSTEM:
                    row = {
                        "text_id": text_id,
                        "item_indices": here,
                        "source": source,
                        "prefix": f"{SYSTEM}:",
                        "target": turn.text,
                    }
                    yield view_row("replies", split, row | shared)
                for item in _recommended(turn):
                    row = {
                        "text_id": f"{text_id}/{item}",
                        "turn_index": counts["turns"],
                        "item_indices": [places[item]],
                        "source": [*source, RECOMMENDS],
                        "prefix": "",
                        "target": self._titles[item],
                    }
                    yield view_row("recommendations", split, row | shared)
                counts["turns"] += 1
                state.hear(turn.speaker, turn.text, here)

    def summary(self) -> str:
        dialogues = [dialogue for _, dialogue in self.dialogues]
        turns = [turn for dialogue in dialogues for turn in dialogue.turns]
        items = {item for dialogue in dialogues for item in dialogue.titles}
        return (
            f"{self.name}: {len(dialogues):,} dialogues, {len(turns):,} turns; {len(items):,} "
            f"items, recommended {sum(len(_recommended(turn)) for turn in turns):,} times"
        )


def _recommended(turn: Turn) -> Sequence[str]:
    return turn.items if turn.speaker == SYSTEM else ()


def _title_and_year(title: str) -> dict[str, Value]:
    match = _TITLE.match(title)
    return {"title": match[1], "year": int(match[2])} if match else {"title": title, "year": None}
