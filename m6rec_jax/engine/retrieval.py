"""The two towers of retrieval: users and items to vectors of one space (paper section 2).

    retriever = Retriever(model, variables, vocabulary, source_length=256, target_length=64)
    index = retriever.index(catalogue_texts)                    # once
    found = index.top_k(retriever.embed_users(histories), 10, seen)   # ids *and* scores

`catalogue_index` searches, `index_files` keeps a catalogue's embeddings on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.engine.candidate_rows import pack_texts, text_ends
from m6rec_jax.engine.catalogue_index import CatalogueIndex
from m6rec_jax.engine.runtime import Runtime, checked_buckets, in_buckets, read_back
from m6rec_jax.engine.task_settings import RequestedTasks, TaskSettings
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
Variables = Mapping[str, Any]


@gin.configurable(denylist=["model", "variables", "vocabulary", "mesh", "tasks"])
class Retriever:
    """The two towers: users and items to unit vectors.

    Vectors of unlike tasks have nothing to do with each other. Where a bank holds a task whose
    projections are narrower than the bank's, its vectors end in zeros.

    Args:
      model: with retrieval projections.
      variables: its parameters and prompts; may be replaced between calls.
      vocabulary: the one it was trained with.
      source_length: most tokens of a history, S.
      target_length: most tokens of a decoder row, T; several items share one.
      task_id: row of the prompt bank.
      tasks: settings of tasks that requests may name; they take the place of `task_id`.
      task: which of `tasks` a request has that names none; empty: the only one.
      item_length: most tokens of an item's text; None: T.
      batch_sizes: numbers of rows to pad to, ascending.
      source_buckets, target_buckets: lengths to pad to; None: S, S/2, S/4 and T, T/2, T/4.
      mesh: devices to spread rows over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      ConfigError: the model has no retrieval projections, or buckets that do not end with S and T.
    """

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        *,
        source_length: int,
        target_length: int,
        task_id: int = 0,
        tasks: Mapping[str, TaskSettings] | None = None,
        task: str = "",
        item_length: int | None = None,
        batch_sizes: Sequence[int] = (1, 8, 32),
        source_buckets: Sequence[int] | None = None,
        target_buckets: Sequence[int] | None = None,
        mesh: Mesh | None = None,
        rules: LogicalRules = (),
    ) -> None:
        if not model.config.prompts.retrieval_dim:
            raise ConfigError(
                "retrieval needs a model with PromptConfig.retrieval_dim > 0 (128 in the paper)"
            )
        self.model, self.variables, self.vocabulary = model, variables, vocabulary
        self.source_length, self.target_length = source_length, target_length
        self._item_length = min(item_length or target_length, target_length)
        if tasks is None:
            tasks = {"": TaskSettings(task_id)}
        self._tasks = RequestedTasks(tasks, task, part="retrieval projections")
        self._mesh = mesh
        self._runtime = Runtime(mesh, rules)
        self._batch_sizes = self._runtime.batch_sizes(batch_sizes)
        self._source_buckets = checked_buckets(
            "Retriever.source_buckets", source_buckets, source_length
        )
        self._target_buckets = checked_buckets(
            "Retriever.target_buckets", target_buckets, target_length
        )
        self.num_compilations = 0

        def users(variables: Variables, features: Mapping[str, Array]) -> Array:
            self.num_compilations += 1
            return user_embeddings(model, variables, features)

        def items(variables: Variables, features: Mapping[str, Array]) -> Array:
            self.num_compilations += 1
            return item_embeddings(model, variables, features)

        self._users, self._items = self._runtime.jit(users), self._runtime.jit(items)

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
        variables, settings = self._tasks.with_variables(self.variables, tasks, len(histories))
        lengths = [
            min(own.source_length or self.source_length, self.source_length) for own in settings
        ]
        user_rows = [
            rows.source_row(self.vocabulary, segments, length)
            for segments, length in zip(histories, lengths, strict=True)
        ]
        return self._embed_user_rows(variables, user_rows, settings)

    def embed_user_rows(
        self, user_rows: Sequence[Row], tasks: Sequence[str] | None = None
    ) -> np.ndarray:
        """Rows of `text.rows.source_row` to unit vectors; the rest as in `embed_users`."""
        variables, settings = self._tasks.with_variables(self.variables, tasks, len(user_rows))
        return self._embed_user_rows(variables, user_rows, settings)

    def _embed_user_rows(
        self, variables: Variables, user_rows: Sequence[Row], settings: Sequence[TaskSettings]
    ) -> np.ndarray:
        result = np.zeros((len(user_rows), self.model.config.prompts.retrieval_dim), np.float32)
        lengths = [len(row["encoder_input_tokens"]) for row in user_rows]
        pending = []
        for length, size, members in in_buckets(lengths, self._source_buckets, self._batch_sizes):
            names = {"encoder_input_tokens": length, "encoder_block_ids": length}
            batch = rows.pad_batch([user_rows[i] for i in members], names, size)
            batch["task_ids"] = np.zeros((size, 1), np.int32)
            batch["task_ids"][: len(members), 0] = [settings[i].task_id for i in members]
            pending.append((members, self._users(variables, self._runtime.place_shared(batch))))
        for members, vectors in pending:
            result[members] = np.asarray(vectors)[: len(members)]
        return result

    def embed_items(self, texts: Sequence[str], task: str | None = None) -> np.ndarray:
        """Item texts (`DatasetTemplate.item`) to unit vectors, float32 `[items, retrieval]`.

        Args:
          texts: of the items.
          task: by whose prompts; None: the default one.

        Raises:
          DataError: a text without words. ConfigError: no such task, or one without projections.
        """
        variables, (settings,) = self._tasks.with_variables(self.variables, [task or ""], 1)
        result = np.zeros((len(texts), self.model.config.prompts.retrieval_dim), np.float32)
        item_rows, places = pack_texts(
            self.vocabulary, texts, self.target_length, settings.text_length(self._item_length)
        )
        sizes = [len(row["decoder_input_tokens"]) for row in item_rows]
        batches = in_buckets(sizes, self._target_buckets, self._batch_sizes)

        def started() -> Iterator[Array]:
            for length, size, members in batches:
                names = {"decoder_input_tokens": length, "decoder_block_ids": length}
                batch = rows.pad_batch([item_rows[i] for i in members], names, size)
                batch["task_ids"] = np.full((size, 1), settings.task_id, np.int32)
                yield self._items(variables, self._runtime.place_shared(batch))

        # One vector per position: those of a whole catalogue would fill the device.
        for (*_, members), values in zip(batches, read_back(started()), strict=True):
            for k, member in enumerate(members):
                ends = text_ends(item_rows[member]["decoder_block_ids"])
                result[places[member]] = values[k, ends]
        return result

    def index(self, texts: Sequence[str], task: str | None = None) -> CatalogueIndex:
        """Embeds a catalogue (see `embed_items`) and puts it on the devices."""
        return CatalogueIndex(self.embed_items(texts, task), self._mesh)


def user_embeddings(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Array:
    """The user tower over a batch, `[batch, retrieval]` of unit length. For use inside jit."""
    encoded = model.apply(
        variables,
        features["encoder_input_tokens"],
        features["encoder_block_ids"],
        features["task_ids"],
        method=model.encode,
    )
    vectors: Array = model.apply(
        variables, encoded, features["task_ids"], method=model.user_embedding
    )
    return vectors


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
    vectors: Array = model.apply(
        variables, hidden, features["task_ids"], method=model.item_embedding
    )
    return vectors
