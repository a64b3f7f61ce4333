"""Titles of a catalogue, which programs of an export generate and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m6rec_jax import configuration
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.jobs.titles import MAX_K, NAMING, trie_of_items

TITLES = "titles.json"


class Titles(NamedTuple):
    """A catalogue as a task writes it: what `jobs.titles` searches, with the ids of its items."""

    task: str
    trie: TitleTrie
    ids: Sequence[str]

    @property
    def num_beams(self) -> int:
        """Of the server's beam search."""
        return min(configuration.bound("TitlesAnswers.max_k", MAX_K), len(self.trie))

    def ask(self, generator: Generator, rows: Sequence[Mapping[str, Any]]) -> None:
        """Greedily, then by beam search for others than what came out.

        Args:
          generator: that records its programs.
          rows: of the task's view.
        """
        requests = [TextRequest(row["source"], row["prefix"], self.task) for row in rows]
        others = [
            request._replace(seen=() if text.entry is None else self.trie.indices(text.entry))
            for request, text in zip(
                requests, generator.write(requests, trie=self.trie), strict=True
            )
        ]
        generator.recommend(others, self.trie, self.num_beams)

    def write(self, folder: Path) -> None:
        """Writes `titles.json`: what `entries` and `seen` of the programs number."""
        rows = [
            {"title": title, "ids": [self.ids[index] for index in self.trie.indices(entry)]}
            for entry, title in enumerate(self.trie.titles)
        ]
        text = json.dumps({"task": self.task, "titles": rows}, ensure_ascii=False, indent=1)
        (folder / TITLES).write_text(text + "\n", "utf-8")


def open_titles(model: LoadedModel) -> Titles | None:
    """The catalogue of the first task that writes titles; None: no task does.

    Raises:
      ConfigError, DataError: as `TitlesAnswers`.
    """
    for task, settings in model.settings.tasks.items():
        template = model.template(task) if settings.kind == "generation" else None
        if template is not None and settings.writing in NAMING:
            writing = template.writing[settings.writing]
            data = open_serving_data(model, task, with_statistics=False)
            trie = trie_of_items(writing, list(data.items.values()), model.generator(task))
            return Titles(task, trie, list(data.items))
    return None
