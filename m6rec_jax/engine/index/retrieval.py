"""The two towers of retrieval: users and items to vectors of one space (paper section 2).

    retriever = Retriever(model, variables, vocabulary, EngineOptions(256, 64))
    index = retriever.index(catalogue_texts)                    # once
    found = index.top_k(retriever.embed_users(histories), 10, seen)   # ids *and* scores

`catalogue_index` searches, `index_files` keeps a catalogue's embeddings on disk.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.candidates.rows import pack_texts, text_ends
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables, encoded_source
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.engine.programs.runtime import in_buckets, read_back
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.text.layout import Row, pad_batch
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array


class Retriever(Engine):
    """The two towers: users and items to unit vectors.

    Vectors of unlike tasks have nothing to do with each other. Where a bank holds a task whose
    projections are narrower than the bank's, its vectors end in zeros.

    Raises:
      ConfigError: the model has no retrieval projections, or buckets that do not end with S and T.
    """

    needed_part = "retrieval projections"

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        super().__init__(model, variables, vocabulary, options)
        self._users = self._program("user", user_embeddings, model)
        self._items = self._program("item", item_embeddings, model)

    def embed_users(
        self, histories: Sequence[Sequence[str]], tasks: Sequence[str] | None = None
    ) -> np.ndarray:
        """Histories as text segments to unit vectors, float32 `[users, retrieval]`.

        Args:
          histories: per user, segments as `DatasetTemplate.history_segments` gives them.
          tasks: the task of each user; None: the default one.

        Raises:
          DataError: another number of tasks than of histories.
          ConfigError: no such task, or one without projections.
        """
        return self._embed(histories, self.settings_of(tasks, len(histories)))

    def _embed(
        self, histories: Sequence[Sequence[str]], settings: Sequence[TaskSettings]
    ) -> np.ndarray:
        sources = list(map(self._source_row, histories, settings))
        result = np.zeros((len(sources), self.model.config.prompts.retrieval_dim), np.float32)
        lengths = [len(row["encoder_input_tokens"]) for row in sources]
        pending = []
        for length, size, members in in_buckets(lengths, self._source_buckets, self._batch_sizes):
            part, own = [sources[i] for i in members], [settings[i] for i in members]
            with self._segments_held():
                batch = self._history_batch(part, own, length, size)
                pending.append((members, self._users(self.variables, self._placed(batch))))
        for members, vectors in pending:
            result[members] = np.asarray(vectors)[: len(members)]
        return result

    def embed_items(self, texts: Sequence[str], task: str | None = None) -> np.ndarray:
        """Item texts (`DatasetTemplate.item`) to unit vectors, float32 `[items, retrieval]`.

        The task, by whose prompts they are embedded, is the default one where there is none.

        Raises:
          DataError: a text without words. ConfigError: no such task, or one without projections.
        """
        settings = self.settings(task)
        result = np.zeros((len(texts), self.model.config.prompts.retrieval_dim), np.float32)
        item_rows, indices = pack_texts(
            self.vocabulary,
            texts,
            self.options.target_length,
            settings.text_length(self.candidate_length),
        )
        sizes = [len(row["decoder_input_tokens"]) for row in item_rows]
        batches = in_buckets(sizes, self._target_buckets, self._batch_sizes)

        started = (
            self._run_items([item_rows[i] for i in members], length, size, settings.task_id)
            for length, size, members in batches
        )
        # One vector per position: those of a whole catalogue would fill the device.
        for (*_, members), values in zip(batches, read_back(started), strict=True):
            for k, member in enumerate(members):
                ends = text_ends(item_rows[member]["decoder_block_ids"])
                result[indices[member]] = values[k, ends]
        return result

    def _run_items(self, rows: Sequence[Row], length: int, size: int, task_id: int) -> Array:
        """Starts a batch of items, padded to `[size, length]`."""
        names = {"decoder_input_tokens": length, "decoder_block_ids": length}
        batch = pad_batch(rows, names, size)
        batch["task_ids"] = np.full((size, 1), task_id, np.int32)
        vectors: Array = self._items(self.variables, self._runtime.place_shared(batch))
        return vectors

    def warm_up_items(self) -> None:
        """Compiles every shape that `embed_items` can have."""
        for length, size in itertools.product(self._target_buckets, self._batch_sizes):
            self._run_items([], length, size, 0)

    def warm_up(self) -> None:
        """Compiles every shape that `embed_users` can have."""
        if self.options.tasks:
            # The longest histories that any task reads, whichever it is.
            own = dataclasses.replace(next(iter(self.options.tasks.values())), source_length=None)
            for histories in self.warm_up_batches():
                self._embed(histories, [own] * len(histories))

    def index(self, texts: Sequence[str], task: str | None = None) -> CatalogueIndex:
        """Embeds a catalogue (see `embed_items`) and puts it on the devices."""
        return CatalogueIndex(self.embed_items(texts, task), self.options.runtime.mesh)


def user_embeddings(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Array:
    """The user tower over a batch, `[batch, retrieval]` of unit length. For use inside jit."""
    encoded = encoded_source(model, variables, features)
    return model.apply(variables, encoded, features["task_ids"], method=model.user_embedding)


def item_embeddings(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Array:
    """The item tower over packed rows, `[batch, target, retrieval]`; read it at each `[EOS]`.

    The tower sees no source, so an encoder output of one masked-out position stands in for it.
    """
    batch = features["decoder_input_tokens"].shape[0]
    nothing = Encoded(
        jnp.zeros((batch, 1, model.config.embed_dim), model.config.dtype),
        jnp.ones((batch, 1), bool),
    )
    hidden = model.apply(
        variables,
        nothing,
        features["decoder_input_tokens"],
        features["decoder_block_ids"],
        features["task_ids"],
        use_source=jnp.zeros(batch, bool),
        method=model.decode,
    )
    return model.apply(variables, hidden, features["task_ids"], method=model.item_embedding)
