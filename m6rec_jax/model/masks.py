"""Who may see whom: the boolean attention masks of both towers.

Two kinds of ids partition a row. *Segment ids* (seqio's meaning) separate documents packed into one
row for pretraining, from 1. *Block ids* separate the segments of one user's text in the encoder
and the packed candidates in the decoder, from 1. In both, 0 is padding.

Soft prompts stand in front of the encoder's tokens and belong to no document:

- Every token may see them, in the layers that look across blocks.
- They see the tokens of their row when it holds one document. In a row that packs several, they see
  only each other: otherwise documents would leak into one another through them.
- In the early layers of late interaction they are a block of their own, `PROMPT_BLOCK`.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# Distinct from every token's block and from padding. In segment embeddings it takes row 0.
PROMPT_BLOCK = -1


def with_prompt_blocks(block_ids: Array, capacity: int, num_prompts: Array | None = None) -> Array:
    """Block ids of prompts and tokens: `[batch, length]` → `[batch, capacity + length]`.

    num_prompts `[batch]` is how many of its last soft prompts each example's task has; the others
    count as padding. In front of the real ones they change no distance, so such a task computes
    what it would in a bank of its own size. None: all are real.
    """
    shape = (block_ids.shape[0], capacity)
    prompts = jnp.full(shape, PROMPT_BLOCK, block_ids.dtype)
    if num_prompts is not None:
        real = jnp.arange(capacity) >= capacity - num_prompts[:, None]
        prompts = jnp.where(real, prompts, 0)
    return jnp.concatenate([prompts, block_ids], axis=1)


def block_mask(blocks: Array, segment_ids: Array | None) -> Array:
    """Early encoder layers: each block sees itself only.

    Args:
      blocks: `[batch, length]`, prompts (if any) marked `PROMPT_BLOCK`, padding 0.
      segment_ids: `[batch, length]` over the same positions (prompts 0), or None.

    Returns:
      `[batch, length, length]` bool, True where query (axis 1) sees key (axis 2).
    """
    mask = (blocks[:, :, None] == blocks[:, None, :]) & (blocks != 0)[:, None, :]
    if segment_ids is not None:
        mask &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return mask


def source_mask(blocks: Array, segment_ids: Array | None) -> Array:
    """Late encoder layers: a document sees itself and the soft prompts. As `block_mask`."""
    present = (blocks != 0)[:, None, :]
    if segment_ids is None:
        return jnp.broadcast_to(present, (*blocks.shape, blocks.shape[1]))
    prompts = blocks == PROMPT_BLOCK
    single = jnp.max(segment_ids, axis=1, keepdims=True) <= 1
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    prompt_sees = prompts[:, :, None] & (single[:, :, None] | prompts[:, None, :])
    token_sees = ~prompts[:, :, None] & (same | prompts[:, None, :])
    return present & (prompt_sees | token_sees)


def causal_mask(block_ids: Array, segment_ids: Array | None) -> Array:
    """Decoder: each candidate sees its own past. block_ids `[batch, target]` (0: padding).

    Returns:
      `[batch, target, target]` bool.
    """
    length = block_ids.shape[1]
    past = jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
    return past & block_mask(block_ids, segment_ids)


def cross_mask(
    visible: Array, source_segment_ids: Array | None, target_segment_ids: Array | None
) -> Array:
    """Decoder to encoder: everything present, of the same document when rows are packed.

    Args:
      visible: `[batch, source]` bool, not padding.
      source_segment_ids: `[batch, source]` (soft prompts 0: seen from every document), or None.
      target_segment_ids: `[batch, target]`, or None.

    Returns:
      `[batch, 1 or target, source]` bool.
    """
    mask = visible[:, None, :]
    if source_segment_ids is None or target_segment_ids is None:
        return mask
    source = source_segment_ids[:, None, :]
    return mask & ((source == target_segment_ids[:, :, None]) | (source == 0))


def block_ends(block_ids: Array, segment_ids: Array | None = None) -> Array:
    """Where blocks end: bool `[batch, length]`, True at the last position of each one.

    Args:
      block_ids: `[batch, length]` (0: padding).
      segment_ids: of that shape, where rows are packed: each document counts its own blocks.
    """

    def changes(ids: Array) -> Array:
        return ids != jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))

    ends = changes(block_ids)
    if segment_ids is not None:
        ends |= changes(segment_ids)
    return (block_ids != 0) & ends
