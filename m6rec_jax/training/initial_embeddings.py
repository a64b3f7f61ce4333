"""Where token embeddings of a new backbone start: random, or from the text itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import gin
import jax
import numpy as np
from jax.experimental import multihost_utils

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.text.token_vectors import (
    Rows,
    composed_vectors,
    count_neighbours,
    neighbour_vectors,
)
from m6rec_jax.training.encoder_vectors import encoder_vectors
from m6rec_jax.training.sentences import encoder_folder
from m6rec_jax.training.task_data import MakeBatches, pieces_of
from m6rec_jax.training.train_state import TrainState

INITIAL_EMBEDDINGS = ("random", "pieces", "neighbours", "encoder")


def check_initial_embeddings(choice: str) -> None:
    """Raises ConfigError where `Start.embeddings` is none of the choices."""
    if choice not in INITIAL_EMBEDDINGS:
        raise ConfigError(
            f"Start.embeddings = {choice!r} is not one of " + ", ".join(INITIAL_EMBEDDINGS)
        )


@gin.configurable(
    allowlist=["rows", "max_distance", "neighbours_share", "encoder", "encoder_share", "sentences"]
)
def with_initial_embeddings(
    state: TrainState,
    config: ModelConfig,
    choice: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    batch_size: int,
    make_batches: MakeBatches | None,
    seed: int,
    *,
    rows: int = 20_000,
    max_distance: int = 6,
    neighbours_share: float = 0.5,
    encoder: str = "sentence-encoder",
    encoder_share: float = 0.8,
    sentences: int = 20_000,
) -> TrainState:
    """Starts token embeddings as `Start.embeddings` says.

    Args:
      state: at step 0, with random embeddings.
      config: of the model.
      choice: 'random'; 'pieces': what pieces are written of (`text.token_vectors`); 'neighbours':
        that, and which pieces stand near each other in the sources of the training data
        (`text.token_vectors`); 'encoder': that, and what a sentence encoder makes of each piece
        (`training.encoder_vectors`).
      mixture_or_task_name, task_feature_lengths, batch_size, make_batches: what is trained on; the
        data are read from their beginning, on every process alike.
      seed: of all random vectors.
      rows: how many training rows are read.
      max_distance: see `count_neighbours`.
      neighbours_share: of the vectors' mean square, for 'neighbours'.
      encoder: its folder, or the name of a fetched one.
      encoder_share: of the vectors' mean square, for 'encoder'; the rest is as in 'neighbours'.
      sentences: blocks of the rows that the encoder reads, at most.

    Raises:
      CheckpointError: no such encoder.
      ConfigError: the task has no vocabulary of this package, or one too large for the model.
    """
    check_initial_embeddings(choice)
    if choice == "random":
        return state
    # A missing one is told before anything is read.
    folder = encoder_folder(encoder) if choice == "encoder" else None
    pieces = pieces_of(mixture_or_task_name)
    vectors = composed_vectors(pieces, config.embedding_width, seed)
    if choice in ("neighbours", "encoder"):
        rows_read = list(
            _sources(mixture_or_task_name, task_feature_lengths, batch_size, make_batches, rows)
        )
        counts = count_neighbours(rows_read, len(pieces), max_distance)
        near = neighbour_vectors(counts, config.embedding_width, seed)
        vectors = _mixed(vectors, near, "neighbours_share", neighbours_share)
    if folder is not None:
        meant = encoder_vectors(folder, pieces, rows_read, config.embedding_width, sentences, seed)
        vectors = _mixed(vectors, meant, "encoder_share", encoder_share)
    return with_piece_vectors(state, config, vectors)


def with_piece_vectors(state: TrainState, config: ModelConfig, vectors: np.ndarray) -> TrainState:
    """Puts vectors into the first rows of the token embeddings.

    Args:
      state: at step 0.
      config: of the model.
      vectors: float32 `[pieces, embed or rank]`, of about unit mean square, in the order of the
        pieces' ids; `ModelConfig.embedding_stddev` scales them. Rows beyond stay as they are.

    Raises:
      ConfigError: more pieces than the model has rows.
    """
    if len(vectors) > config.vocab_size:
        raise ConfigError(
            f"the vocabulary has {len(vectors)} pieces, but ModelConfig.vocab_size is "
            f"{config.vocab_size}"
        )
    scaled = vectors * config.embedding_stddev
    if jax.process_count() > 1:
        # Linear algebra need not give the same last bits on two hosts.
        scaled = multihost_utils.broadcast_one_to_all(scaled)
    table = state.params["token_embedder"]["embedding"]

    def put(table: jax.Array, vectors: jax.Array) -> jax.Array:
        return table.at[: len(vectors)].set(vectors.astype(table.dtype))

    table = jax.jit(put, out_shardings=table.sharding)(table, scaled)
    embedder = {**state.params["token_embedder"], "embedding": table}
    return state.replace(params={**state.params, "token_embedder": embedder})


def _mixed(vectors: np.ndarray, others: np.ndarray, name: str, share: float) -> np.ndarray:
    """The sum of both, `share` of whose mean square is that of the others."""
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"with_initial_embeddings.{name} = {share} must be from 0 to 1")
    return np.asarray((1 - share) ** 0.5 * vectors + share**0.5 * others)


def _sources(
    name: str, lengths: Mapping[str, int], batch_size: int, make: MakeBatches | None, rows: int
) -> Iterator[Rows]:
    """The encoder's side of the first training batches."""
    if make is None:
        from m6rec_jax.pipeline.batches import BatchIterator  # imports tensorflow

        make = BatchIterator
    # One process's view of all data, so that every process counts the same.
    batches = make(name, lengths, batch_size, process_index=0, process_count=1)
    for _ in progress_bar(
        range(-(-rows // batch_size)),
        desc="reading text that embeddings start from",
        unit=" batches",
        delay=2.0,
        disable=jax.process_index() != 0,
    ):
        batch = next(batches)
        yield (
            batch["encoder_input_tokens"],
            batch["encoder_block_ids"],
            batch.get("encoder_segment_ids"),
        )
