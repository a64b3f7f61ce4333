"""`prepare.json`: what lies in a folder of prepared data, and what it was made from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.hashing import hash_files

MANIFEST = "prepare.json"
log = logging.getLogger(__name__)


def fingerprint(*settings: Any, files: Iterable[Path] = ()) -> str:
    """SHA-256 over settings that JSON can hold, and over names and content of files."""
    digest = hash_files(files)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


class SplitEntry(msgspec.Struct, frozen=True):
    """A `splits.Split`."""

    name: str
    kind: str = ""
    options: dict[str, Any] = {}


class ViewEntry(msgspec.Struct, omit_defaults=True):
    """A view that is there.

    Attributes:
      fingerprint: of all that its rows were made from, but for those of updates.
      rows: of each part.
      max_events: behaviours of a history, at most; None for texts.
      negatives: `sampling_rates` of the view 'groups'; empty for logged impressions.
    """

    fingerprint: str = ""
    rows: dict[str, int] = {}
    max_events: int | None = None
    negatives: dict[str, Any] = {}


class UpdateEntry(msgspec.Struct):
    """A part that `m6rec data update` added: new files of events, and how many there were.

    The fingerprint is of all files so far, since rows depend on users and items, too.
    """

    name: str
    files: list[str] = []
    fingerprint: str = ""
    events: int = 0


class Manifest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What `prepare.json` says. Data of texts have only some of it.

    Attributes:
      dataset: name of the data set.
      format, version: of the code that wrote it.
      options: of `PrepareOptions`, or of a corpus.
      source: fingerprint of tables, template and split.
      counts: users, acting_users, items, held_out_items, and `events` of each part.
      files: of each table its files in their order: name, and SHA-256 of what is in it.
      last_time: of the last event, unix seconds.
      shards: number of user shards.
      visible: part of a row -> parts whose events its history may hold.
      corpus_spec, dialogue_spec: of texts, in place of `dataset_spec`.
    """

    dataset: str
    format: int = 0
    version: str = ""
    split: SplitEntry = SplitEntry("")
    options: dict[str, Any] = {}
    views: dict[str, ViewEntry] = {}
    counts: dict[str, Any] = {}
    dataset_spec: dict[str, Any] | None = None
    statistics_options: dict[str, Any] = {}
    source: str = ""
    files: dict[str, list[tuple[str, str]]] = {}
    last_time: float = 0.0
    shards: int = 1
    visible: dict[str, list[str]] = {}
    updates: list[UpdateEntry] = []
    corpus_spec: dict[str, Any] | None = None
    dialogue_spec: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """That of a folder; raises DataError where there is none, or it is damaged."""
        try:
            return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=cls)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no prepared data ({MANIFEST} is missing): name the folder that "
                "`m6rec data prepare` printed"
            ) from error
        except msgspec.DecodeError as error:
            raise DataError(
                f"{folder / MANIFEST} is damaged: {error}; prepare the data set again"
            ) from error

    def view(self, name: str) -> ViewEntry:
        """What is there of a view; of one that is not, no rows."""
        return self.views.get(name, ViewEntry())

    def write(self, folder: Path) -> None:
        """Replaces the manifest of a folder in one step."""
        text = json.dumps(msgspec.to_builtins(self), indent=2, ensure_ascii=False, sort_keys=True)
        write_atomically(folder / MANIFEST, text + "\n")


def earlier_manifest(folder: Path, dataset: str) -> Manifest:
    """What an earlier run says of a folder that is to be prepared; of no views, if nothing.

    Raises DataError where it is of a data set of another name.
    """
    if not (folder / MANIFEST).is_file():
        return Manifest(dataset=dataset)
    try:
        manifest = Manifest.read(folder)
    except DataError as error:
        log.warning("%s", error)
        return Manifest(dataset=dataset)
    if manifest.dataset != dataset:
        raise DataError(
            f"{folder} has another data set, {manifest.dataset!r}: give {dataset!r} another name, "
            "or another output"
        )
    return manifest
