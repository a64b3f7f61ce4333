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
from m6rec_jax.io.hashing import file_sha256, sha256

MANIFEST = "prepare.json"
log = logging.getLogger(__name__)


def fingerprint(*settings: Any, files: Iterable[Path] = ()) -> str:
    """SHA-256 over settings that JSON can hold, and over names and content of files."""
    contents = [f"{path.name}\0{file_sha256(path)}" for path in files]
    return sha256("".join([*contents, json.dumps(settings, sort_keys=True)]))


class ViewEntry(msgspec.Struct, omit_defaults=True):
    """A view that is there.

    Attributes:
      fingerprint: of all that its rows were made from, but for those of updates.
      rows: of each split.
      max_events: behaviours of a history, at most; None for texts.
      negatives: `sampling_rates` of the view 'groups'; empty for logged impressions.
    """

    fingerprint: str = ""
    rows: dict[str, int] = {}
    max_events: int | None = None
    negatives: dict[str, Any] = {}


class UpdateEntry(msgspec.Struct):
    """A split that `m6rec data update` added, and the fingerprint of all files up to its own."""

    name: str
    fingerprint: str


class Manifest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What `prepare.json` says. Data of texts have only some of it.

    Attributes:
      dataset, split: names of the data set and of its split.
      version: of the code that wrote it.
      options: of `PrepareOptions`, or of a corpus.
      settings: fingerprint of what is said of tables, template and split.
      source: fingerprint of that and of the files that were prepared first.
      counts: users, acting_users, items, held_out_items, and `events` of each split.
      files: of each table its files in their order: name, and SHA-256 of the content.
      last_time: of the last event, unix seconds.
      shards: number of user shards.
      visible: split of a row -> splits whose events its history may hold.
      corpus_spec, dialogue_spec: of texts, in place of `dataset_spec`.
    """

    dataset: str
    split: str = ""
    version: str = ""
    options: dict[str, Any] = {}
    views: dict[str, ViewEntry] = {}
    counts: dict[str, Any] = {}
    dataset_spec: dict[str, Any] | None = None
    statistics_options: dict[str, Any] = {}
    settings: str = ""
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
    """That of an earlier preparation into a folder; one without views, if there is none.

    Raises DataError where it is of a data set of another name.
    """
    manifest = Manifest(dataset=dataset)
    if (folder / MANIFEST).is_file():
        try:
            manifest = Manifest.read(folder)
        except DataError as error:
            log.warning("%s", error)
    if manifest.dataset != dataset:
        raise DataError(
            f"{folder} has another data set, {manifest.dataset!r}: give {dataset!r} another name, "
            "or another output"
        )
    return manifest
