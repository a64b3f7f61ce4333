"""One token after the other with a cache: what generation loops over.

    cache = model.apply(variables, encoded, task_ids, max_length=32, method=start_decoding)
    for position in range(32):
        hidden, cache = model.apply(
            variables, cache, tokens, position, task_ids, method=decode_step
        )

Step for step this gives what `M6Rec.decode` gives for the whole target, within float tolerance.
Nothing has a variable of its own here, and every shape is fixed, so the loop may be a
`lax.while_loop` and may be exported.
"""

import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.decoder_cache import DecoderCache
from m6rec_jax.model.m6rec import Encoded, M6Rec

Array = jax.Array


def start_decoding(
    model: M6Rec,
    encoded: Encoded,
    task_ids: Array,
    *,
    max_length: int,
    rows_per_source: int = 1,
) -> DecoderCache:
    """An empty cache for targets of up to max_length input tokens, `[BOS]` included.

    Args:
      model: bound, as `model.apply(..., method=start_decoding)` passes it.
      encoded: one document per row.
      task_ids: int32 `[sources]` or `[sources, 1]`, the tasks whose keys and values are wanted.
      max_length: the cache's length.
      rows_per_source: decoder rows (beams, samples) for each of the encoder's, next to one another.

    Raises:
      ConfigError: packed documents, or a length below 1.
    """
    if encoded.segment_ids is not None:
        raise ConfigError("generation takes one document per row, not packed ones (segment_ids)")
    if max_length < 1 or rows_per_source < 1:
        raise ConfigError(
            f"max_length = {max_length} and rows_per_source = {rows_per_source} must be at least 1"
        )
    num_rows = encoded.mask.shape[0] * rows_per_source
    return model.decoder.start(
        encoded.hidden, encoded.mask, task_ids.reshape(-1), num_rows, max_length
    )


def decode_step(
    model: M6Rec, cache: DecoderCache, tokens: Array, position: Array, task_ids: Array
) -> tuple[Array, DecoderCache]:
    """The state after one more input token per row.

    Args:
      model: bound, as in `start_decoding`.
      cache: holds the positions before.
      tokens: int32 `[rows]`; `[BOS]` at position 0.
      position: int32 scalar, the same for all rows.
      task_ids: int32 `[sources]` or `[sources, 1]`.

    Returns:
      `[rows, embed]` after the final norm, and the cache with this position.
    """
    task_ids = jnp.repeat(task_ids.reshape(-1), cache.rows_per_source)
    x = model.embed(tokens[:, None], task_ids)
    x, cache = model.decoder.step(x, cache, jnp.asarray(position, jnp.int32), task_ids)
    return model.decoder.finish(x, deterministic=True)[:, 0], cache
