"""Where token embeddings of a new backbone start: random, or from the text itself."""

from __future__ import annotations

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
from m6rec_jax.training.data_state import next_batch
from m6rec_jax.training.initialization import Variables
from m6rec_jax.training.options import TrainingData
from m6rec_jax.training.task_data import text_vocabulary, training_batches


@gin.configurable(allowlist=["rows"])
def with_initial_embeddings(
    variables: Variables,
    config: ModelConfig,
    choice: str,
    data: TrainingData,
    seed: int,
    rows: int = 20_000,
) -> Variables:
    """Starts token embeddings as `Start.embeddings` says.

    Args:
      variables: of the new run, with random embeddings.
      config: of the model.
      choice: 'random'; 'neighbours': what tokens are written of, and which stand near each other in
        the sources of the training data (`text.token_vectors`).
      data: what is trained on; it is read from its beginning, on every process alike.
      seed: of all random vectors.
      rows: how many training rows are read.

    Raises:
      ConfigError: the task has no vocabulary of this package, or one too large for the model.
    """
    if choice == "random":
        return variables
    vocabulary, width = text_vocabulary(data.mixture_or_task_name), config.embedding_width
    tokens = list(vocabulary.pieces(range(vocabulary.num_pieces)))
    near = neighbour_vectors(count_neighbours(_sources(data, rows), len(tokens)), width, seed)
    vectors = 0.5**0.5 * composed_vectors(tokens, width, seed) + 0.5**0.5 * near
    return with_token_vectors(variables, config, vectors)


def with_token_vectors(variables: Variables, config: ModelConfig, vectors: np.ndarray) -> Variables:
    """Puts vectors into the first rows of the token embeddings.

    Args:
      variables: of the new run.
      config: of the model.
      vectors: float32 `[tokens, embed or rank]`, of about unit mean square, in the order of the
        tokens' ids; `ModelConfig.embedding_stddev` scales them. Rows beyond stay as they are.

    Raises:
      ConfigError: more tokens than the model has rows.
    """
    if len(vectors) > config.vocab_size:
        raise ConfigError(
            f"the vocabulary has {len(vectors)} tokens, but ModelConfig.vocab_size is "
            f"{config.vocab_size}"
        )
    scaled = vectors * config.embedding_stddev
    if jax.process_count() > 1:
        # Linear algebra need not give the same last bits on two hosts.
        scaled = multihost_utils.broadcast_one_to_all(scaled)
    params = variables["params"]
    table = params["token_embedder"]["embedding"]

    def put(table: jax.Array, vectors: jax.Array) -> jax.Array:
        return table.at[: len(vectors)].set(vectors.astype(table.dtype))

    table = jax.jit(put, out_shardings=table.sharding)(table, scaled)
    embedder = {**params["token_embedder"], "embedding": table}
    return {**variables, "params": {**params, "token_embedder": embedder}}


def _sources(data: TrainingData, rows: int) -> list[Rows]:
    """The encoder's side of the first training batches."""
    # One process's view of all data, so that every process counts the same.
    batches = training_batches(data, stream=(0, 1))
    bar = progress_bar(
        range(-(-rows // data.batch_size)),
        desc="reading text that embeddings start from",
        unit=" batches",
        delay=2.0,
        disable=jax.process_index() != 0,
    )
    read = (next_batch(batches) for _ in bar)
    return [
        (
            batch["encoder_input_tokens"],
            batch["encoder_block_ids"],
            batch.get("encoder_segment_ids"),
        )
        for batch in read
    ]
