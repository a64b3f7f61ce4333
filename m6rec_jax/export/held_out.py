"""Held-out rows of a model's tasks: its engines' answers, and through a recorder their programs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.engine.computed_folder import read_manifest
from m6rec_jax.engine.decoding.generation import TextRequest
from m6rec_jax.engine.index.index_files import INDEX_COMMAND, catalogue_fingerprint, open_index
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.errors import CheckpointError, DataError
from m6rec_jax.export.recording import Recorder
from m6rec_jax.export.titles import Titles
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.jobs.answering import title_of
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.metrics.baselines import UserItemCounts
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.pipeline.prepared_rows import past_events, read_rows
from m6rec_jax.pipeline.seqio_tasks import TextToTextTask
from m6rec_jax.pipeline.task_rows import find_provider, tasks_with
from m6rec_jax.text.rows import without_end

# The sizes of batches that every program is checked with.
BATCH_SIZES = (1, 7, 64)
KINDS = ("scoring", "retrieval", "generation")
# Items that are recommended of a catalogue.
TOP_K = 20
# What an export's `recommend` does, for `export.json` and whoever exports.
RANKED_BY = "the two towers alone, not the hybrid that a server ranks by"


class Catalogue(NamedTuple):
    """What a task of retrieval recommends: unit vectors `[items, retrieval]`, ids and titles."""

    task: str
    vectors: np.ndarray
    ids: Sequence[str]
    titles: Sequence[str]


def open_catalogue(model: LoadedModel, index: str | Path) -> Catalogue:
    """The catalogue of a folder of `m6rec index build`.

    Args:
      model: the one that built it.
      index: the folder.

    Raises:
      CheckpointError: none of the model's tasks built it, it is damaged, or items' texts have
        changed since.
      DataError: an item of the index is not in the catalogue.
    """
    built_by = read_manifest(index, INDEX_COMMAND).model
    tasks = [name for name, own in model.settings.tasks.items() if own.kind == "retrieval"]
    task = next((name for name in tasks if model.fingerprint(name) == built_by), "")
    if not task:
        raise CheckpointError(
            f"{index} was built by another model than this one, or for another task than "
            f"{', '.join(tasks) or 'any of this one (none retrieves)'}"
        )
    found = open_index(index, model.fingerprint(task))
    data = open_serving_data(model, task, with_statistics=False)
    items, texts = data.items, data.item_texts()
    if missing := [id_ for id_ in found.ids if id_ not in items]:
        raise DataError(f"{index} has item {missing[0]!r}, which the catalogue has not")
    if found.manifest.content != catalogue_fingerprint({id_: texts[id_] for id_ in found.ids}):
        raise CheckpointError(
            f"{index} was built of other texts than the catalogue has now: build it anew"
        )
    titles = [title_of(items[id_]) for id_ in found.ids]
    return Catalogue(task, np.array(found.search.embeddings), found.ids, titles)


class Answered(NamedTuple):
    """One request in text, and what the model answered.

    Attributes:
      signature: 'score', 'user', 'item', 'recommend' or 'generate'.
      task: that was asked.
      inputs: `history` (segments), `candidates`, `repeats` and `labels` (lists), `text`, `prefix`.
      output: scores, a vector or a text; of 'recommend' the scores of the best items.
    """

    signature: str
    task: str
    inputs: Mapping[str, Any]
    output: Any

    def to_json(self) -> dict[str, Any]:
        """For files of held-out requests."""
        output = self.output if isinstance(self.output, str) else self.output.tolist()
        return self._asdict() | {"output": output}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an export is made of.

    Attributes:
      model: that it is of.
      recorder, answered: what the model's engines were asked, in the export's precision.
      platforms: of StableHLO and SavedModel: of 'cpu', 'cuda', 'tpu', 'rocm'.
      catalogue: that it recommends items of; None: it has none.
      precision: see `command.export`.
      runtime: of the page, see `web_page.find_runtime`.
      titles: that StableHLO's programs generate; None: they generate any text.
    """

    model: LoadedModel
    recorder: Recorder
    answered: Sequence[Answered]
    platforms: Sequence[str] = ()
    catalogue: Catalogue | None = None
    precision: str | None = None
    runtime: Path | None = None
    titles: Titles | None = None


def recommended(catalogue: Catalogue, answered: Sequence[Answered]) -> list[Answered]:
    """Requests of 'recommend': those of 'user', searched for in numpy."""
    found = []
    for one in answered:
        if one.signature == "user" and one.task == catalogue.task:
            scores = np.sort(catalogue.vectors @ one.output)[::-1][:TOP_K]
            found.append(one._replace(signature="recommend", output=scores))
    return found


def ask(
    model: LoadedModel,
    task: str,
    recorder: Recorder,
    *,
    split: str = "test",
    rows: int = 500,
    num_beams: int,
    titles: Titles | None = None,
) -> list[Answered]:
    """Answers the first rows of a part of what a task was trained on.

    Args:
      model, task: name of one of the model's tasks, of `KINDS`.
      recorder: keeps programs and calls.
      split, rows: which rows, at most.
      num_beams: of beam search; 0: none is asked for.
      titles: of the catalogue, which the programs of their task are to generate, too.

    Raises:
      DataError: the part has no rows, or the data are not on this machine.
    """
    settings = model.settings.tasks[task]
    if settings.reads_text:
        found = _texts(model, task, split, rows)
    else:
        dataset, _, name = settings.prepared.rpartition(".")
        prepared = Prepared.open(data_dir(), dataset, name)
        found = list(itertools.islice(read_rows(prepared, settings.view, split), rows))
        if settings.repeat_sampling_rate is not None:
            had = UserItemCounts.fit(*past_events(prepared, split))
            for row in found:
                users = np.full(len(row["item_indices"]), row["user_index"])
                row["repeats"] = had.of(users, row["item_indices"]) > 0
    if not found:
        raise DataError(f"'{task}' has no rows in {split!r} to check an export with")
    answered: list[Answered] = []
    with progress_bar(desc=f"{task}: the model's own answers", total=len(found)) as bar:
        for part in _parts(found):
            answered += answer(model, task, settings.kind, part, recorder, num_beams, titles)
            bar.update(len(part))
    return answered


def _texts(model: LoadedModel, task: str, split: str, rows: int) -> list[dict[str, Any]]:
    """The first inputs of a seqio task, as rows to be written about; raises as `find_provider`."""
    provider = find_provider(task)
    assert isinstance(provider, TextToTextTask)
    lengths = {"inputs": model.settings.source_length, "targets": model.settings.target_length}
    tasks_with(provider, split)  # raises where it has no such split
    return [
        {"source": [model.vocabulary.decode(without_end(row["inputs"]))], "prefix": ""}
        for row in provider.examples(split, lengths, rows)
    ]


def answer(
    model: LoadedModel,
    task: str,
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    recorder: Recorder,
    num_beams: int = 4,
    titles: Titles | None = None,
) -> list[Answered]:
    """Answers rows as the task's view has them; arguments as `ask`."""
    settings = model.settings
    options: dict[str, Any] = {
        "batch_sizes": BATCH_SIZES,
        "source_buckets": (settings.source_length,),
        "target_buckets": (settings.target_length,),
        "segments": None,
        "programs": recorder,
    }
    if kind == "scoring":
        columns = [r["history"] for r in rows], [r["candidates"] for r in rows]
        repeats = [list(map(bool, r.get("repeats", [False] * len(r["candidates"])))) for r in rows]
        scores = model.scorer(task, **options).score_requests(*columns, repeats=repeats)
        return [
            Answered(
                "score",
                task,
                {
                    "history": row["history"],
                    "candidates": row["candidates"],
                    "repeats": had,
                    "labels": [int(label > 0) for label in row.get("labels", ())],
                },
                own,
            )
            for row, had, own in zip(rows, repeats, scores, strict=True)
        ]
    if kind == "retrieval":
        retriever = model.retriever(task, **options)
        histories = [r["history"] for r in rows]
        texts = list(dict.fromkeys(text for r in rows for text in r["items"]))
        users, items = retriever.embed_users(histories), retriever.embed_items(texts)
        return [
            *(
                Answered("user", task, {"history": h}, u)
                for h, u in zip(histories, users, strict=True)
            ),
            *(Answered("item", task, {"text": t}, i) for t, i in zip(texts, items, strict=True)),
        ]
    # One room for texts of all tasks.
    generator = model.generator(**options)
    requests = [TextRequest(row["source"], row["prefix"], task) for row in rows]
    texts, decode = generator.write(requests), generator.vocabulary.decode
    if num_beams:
        generator.beam_search(requests, num_beams=num_beams)
    if titles is not None and titles.task == task:
        titles.ask(generator, rows)
    return [
        Answered(
            "generate", task, {"history": one.source, "prefix": one.prefix}, decode(text.tokens)
        )
        for one, text in zip(requests, texts, strict=True)
    ]


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """One row, then seven, then the rest in the largest batches."""
    start = 0
    for size in itertools.chain(BATCH_SIZES, itertools.repeat(BATCH_SIZES[-1])):
        if start >= len(rows):
            return
        yield rows[start : start + size]
        start += size
