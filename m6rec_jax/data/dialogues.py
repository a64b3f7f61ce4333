"""`m6rec data prepare` for dialogues: replies to write, and items to recommend.

A folder with the files and a `dialogues.json`:

    {"name": "inspired", "format": "inspired",
     "files": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}}

Without a file for 'validation' it is drawn from the training dialogues; `"files": "dev.tsv"`, one
file for everything, draws all parts. A dialogue is in one part as a whole, by a hash of its id.
Optional: `description`, `licence`, and `splits`, the options of these draws.

Two formats are read, `inspired` and `redial` (`dialogue_files`). What SYSTEM names is what it
recommends. The catalogue holds
every item that any dialogue names. What is known of items comes from another data set, where gin
names one:

    DialogueOptions.attributes = 'film-viewers'
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pyarrow as pa

from m6rec_jax.data import co_occurrence, ease, splits
from m6rec_jax.data.co_occurrence import CoOccurrence
from m6rec_jax.data.dialogue_files import FORMATS, Dialogue, Turn
from m6rec_jax.data.ease import Ease
from m6rec_jax.data.joined_attributes import JoinedAttributes
from m6rec_jax.data.prepared import CATALOGUE, Prepared, write_catalogue
from m6rec_jax.data.schema import load_json, parsed
from m6rec_jax.data.sources import default_cache_dir
from m6rec_jax.data.splits import PARTS, TRAIN, VALIDATION, Split
from m6rec_jax.data.text_views import ViewRow, prepare_texts
from m6rec_jax.data.views import DIALOGUE_VIEWS
from m6rec_jax.dialogue.attributes import ItemAttributes
from m6rec_jax.dialogue.named_items import NamedItems
from m6rec_jax.dialogue.reading import DialogueReader
from m6rec_jax.dialogue.state import DialogueState
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import in_bucket, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.dialogue import RECOMMENDS, SYSTEM
from m6rec_jax.text.records import Item, Value

DIALOGUES_FILE = "dialogues.json"
log = logging.getLogger(__name__)
_TITLE = re.compile(r"^(.*\S)\s*\((\d{4})\)$")


@dataclasses.dataclass(frozen=True, slots=True)
class DialogueSpec:
    """The parsed `dialogues.json`.

    Attributes:
      name: of the data set.
      format: one of `FORMATS`.
      files: part to file name; "" for one file of all parts.
      splits: options of splits by name, such as `{"by_group": {"train": 0.5}}`.
    """

    name: str
    format: str
    files: Mapping[str, str]
    description: str = ""
    licence: str = ""
    splits: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, directory: str | Path) -> DialogueSpec:
        """Reads `directory/dialogues.json`; raises DataError where it does not fit."""
        path = Path(directory) / DIALOGUES_FILE
        raw = load_json(path)
        if isinstance(raw, dict) and isinstance(raw.get("files"), str):
            raw = {**raw, "files": {"": raw["files"]}}
        return parsed(raw, cls, str(path))

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"'format' is {self.format!r}{did_you_mean(self.format, FORMATS)} (known: "
                f"{', '.join(FORMATS)})"
            )
        parts = set(self.files)
        if parts != {""} and not {"train", "test"} <= parts <= set(PARTS):
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
      attributes: a data set that knows the items (`JoinedAttributes`), its name or folder; empty:
        nothing is known of them but titles and years.
      named_items: of how many items that a dialogue has named it is read what is known, at most;
        the latest ones (`NamedItems`).
      words: of the columns that are taken, and by which turns are read; None: gin's, where there
        are attributes.

    Raises:
      ConfigError: impossible numbers, or words of no column.
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
            words = self.words or DialogueWords()
            words.check_attributes()
            object.__setattr__(self, "words", words)


def dialogue_summary(folder: str | Path) -> str:
    """Reads all dialogues and says what is in them; raises DataError at the first broken row."""
    spec = DialogueSpec.load(folder)
    found = _read(Path(folder), spec)
    turns = sum(len(dialogue.turns) for _, dialogue in found)
    items = {item for _, dialogue in found for item in dialogue.titles}
    named = sum(
        len(turn.items) for _, dialogue in found for turn in dialogue.turns if _recommends(turn)
    )
    return (
        f"{spec.name}: {len(found):,} dialogues, {turns:,} turns; {len(items):,} items, "
        f"recommended {named:,} times"
    )


@gin.configurable
def prepare_dialogues(
    folder: str | Path,
    out: str | Path,
    split: str = "by_group",
    options: DialogueOptions | None = None,
    progress: bool = True,
) -> Prepared:
    """Renders dialogues.

    Args:
      folder: with `dialogues.json`.
      out: the TFDS data_dir to write to.
      split: 'by_group', with options where wanted (`by_group:seed=1`); it decides where the files
        do not.
      options: None for gin's `DialogueOptions` or the defaults.
      progress: whether to show bars.

    Returns:
      what was written: the views 'replies' and 'recommendations', and the catalogue.

    Raises:
      DataError: something is wrong with the folder, or a part is empty; or nothing is known of any
        item where attributes are asked for.
    """
    folder, options = Path(folder), options or DialogueOptions()
    spec = DialogueSpec.load(folder)
    parsed = Split.parse(split, spec.splits)
    if parsed.kind != "by_group":
        raise DataError(f"split {split!r} needs users and times; dialogues have 'by_group'")
    paths = [folder / file for file in spec.files.values()]
    known: JoinedAttributes | None = None
    if options.words is not None:
        # Beside what is prepared, where that is on a local disk, as other data sets.
        tables = default_cache_dir() if in_bucket(out) else path_of(out)
        named = Path(options.attributes).expanduser()
        where = named if named.is_dir() else tables.expanduser() / named
        known = JoinedAttributes(where, options.words.attributes)

    def render(prepared: Path) -> tuple[Iterator[ViewRow], dict[str, Any]]:
        found = _read(folder, spec)
        parts, dialogues = _parts(found, parsed), [dialogue for _, dialogue in found]
        items = _Items(dialogues, parts, known)
        items.write(prepared / CATALOGUE)
        items.write_pairs(prepared, dialogues, parts)
        counts = {"dialogues": dict(Counter(parts)), "items": len(items.index)}
        if known is not None:
            counts["items_with_attributes"] = items.num_known
            log.info(
                "%s knows %d of %d items", options.attributes, items.num_known, len(items.index)
            )
        manifest = {"dialogue_spec": dataclasses.asdict(spec), "counts": counts}
        return _rows(dialogues, parts, items, options), manifest

    files = [folder / DIALOGUES_FILE, *paths, *(() if known is None else known.files)]
    return prepare_texts(
        out,
        spec.name,
        parsed,
        DIALOGUE_VIEWS,
        files,
        dataclasses.asdict(options),
        render,
        progress,
        made_with=(co_occurrence.FORMAT, ease.FORMAT),
    )


class _Items:
    """Every item that any dialogue names, in the order in which they are first named."""

    def __init__(
        self, dialogues: list[Dialogue], parts: list[str], known: JoinedAttributes | None
    ) -> None:
        self.titles: dict[str, str] = {}
        self.trained: set[str] = set()
        self.counts: Counter[str] = Counter()
        for dialogue, part in zip(dialogues, parts, strict=True):
            self.titles |= {k: v for k, v in dialogue.titles.items() if k not in self.titles}
            if part != "train":
                continue
            self.trained |= set(dialogue.titles)
            for turn in dialogue.turns:
                self.counts.update(turn.items)
        if not self.titles:
            raise DataError("no dialogue names an item: there is nothing to recommend")
        self.index = {item: index for index, item in enumerate(self.titles)}
        self.items = [Item(item, _title_and_year(title)) for item, title in self.titles.items()]
        self._types: dict[str, pa.DataType] = {"title": pa.string(), "year": pa.int64()}
        self.num_known = 0
        if known is not None:
            self._types |= known.types
            self.items, self.num_known = known.joined(self.items)
            if not self.num_known:
                raise DataError(
                    f"{known.files[0].parent} knows none of the {len(self.items):,} items by title "
                    "and year; DialogueOptions.attributes names a data set of such items"
                )

    def write_pairs(self, folder: Path, dialogues: list[Dialogue], parts: list[str]) -> None:
        """Writes which items the training dialogues name together."""
        pairs = [
            (number, self.index[item])
            for number, (dialogue, part) in enumerate(zip(dialogues, parts, strict=True))
            if part == PARTS[TRAIN]
            for item in dialogue.titles
        ]
        numbers, named = np.array(pairs, np.int64).reshape(-1, 2).T
        CoOccurrence.counted(numbers, named, len(self.index)).save(folder)
        Ease.fitted(numbers, named, len(self.index)).save(folder)

    def write(self, path: Path) -> None:
        columns = {
            name: pa.array([item.attributes[name] for item in self.items], kind)
            for name, kind in self._types.items()
        }
        write_catalogue(
            path,
            self.items,
            pa.table(columns),
            list(self.titles.values()),
            np.array([item not in self.trained for item in self.titles], bool),
            np.array([self.counts[item] for item in self.titles], np.int64),
        )


def _title_and_year(title: str) -> dict[str, Value]:
    found = _TITLE.match(title)
    return {"title": found[1], "year": int(found[2])} if found else {"title": title, "year": None}


def _rows(
    dialogues: list[Dialogue], parts: list[str], items: _Items, options: DialogueOptions
) -> Iterator[ViewRow]:
    counts: Counter[str] = Counter()
    reader: DialogueReader | None = None
    told: NamedItems | None = None
    if (words := options.words) is not None:
        names = [str(item.attributes["title"]) for item in items.items]
        attributes = ItemAttributes(items.items, words.attributes, words.year)
        reader = DialogueReader(names, attributes, words)
        told = NamedItems(names, attributes, words, options.named_items)
    for dialogue, part in zip(dialogues, parts, strict=True):
        state = DialogueState(reader)
        for number, turn in enumerate(dialogue.turns):
            here = [items.index[item] for item in turn.items]
            shared = {"user_id": dialogue.id, "seen_indices": list(state.told), "features": []}
            source = state.source(options.max_turns, told)
            if turn.speaker == SYSTEM:
                row = {
                    "text_id": f"{dialogue.id}/{number}",
                    "text_index": counts["replies"],
                    "item_indices": here,
                    "source": source,
                    "prefix": f"{SYSTEM}:",
                    "target": turn.text,
                }
                counts["replies"] += 1
                yield ViewRow("replies", part, row | shared)
            for item, index in zip(turn.items if _recommends(turn) else (), here, strict=False):
                row = {
                    "text_id": f"{dialogue.id}/{number}/{item}",
                    "text_index": counts["recommendations"],
                    "turn_index": counts["turns"],
                    "item_indices": [index],
                    "source": [*source, RECOMMENDS],
                    "prefix": "",
                    "target": items.titles[item],
                }
                counts["recommendations"] += 1
                yield ViewRow("recommendations", part, row | shared)
            counts["turns"] += 1
            state.hear(turn.speaker, turn.text, here)


def _recommends(turn: Turn) -> bool:
    return bool(turn.speaker == SYSTEM and turn.items)


def _read(folder: Path, spec: DialogueSpec) -> list[tuple[str, Dialogue]]:
    """(part that the file is of, dialogue) of all files."""
    found = [
        (part, dialogue)
        for part, file in spec.files.items()
        for dialogue in FORMATS[spec.format](folder / file)
    ]
    if not found:
        raise DataError(f"{folder}: the files of {DIALOGUES_FILE} hold no dialogue")
    seen: dict[str, str] = {}
    for part, dialogue in found:
        if seen.setdefault(dialogue.id, part) != part:
            raise DataError(
                f"{folder}: dialogue {dialogue.id!r} is in the files of {seen[dialogue.id]!r} and "
                f"{part!r}, which lets a test be learnt by heart"
            )
    return found


def _parts(found: list[tuple[str, Dialogue]], split: Split) -> list[str]:
    drawn = splits.by_name([dialogue.id for _, dialogue in found], **split.arguments())
    given = {part for part, _ in found}
    parts = []
    for (part, _), code in zip(found, drawn.tolist(), strict=True):
        if not part:
            part = PARTS[code]
        elif part == PARTS[TRAIN] and PARTS[VALIDATION] not in given and code == VALIDATION:
            part = PARTS[VALIDATION]
        parts.append(part)
    splits.check_parts(np.array([PARTS.index(part) for part in parts]), split.name, "dialogues")
    return parts
