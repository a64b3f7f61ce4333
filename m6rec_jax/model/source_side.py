"""The encoder's side of the model: source text and soft prompts to states, at once or in parts."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model import masks
from m6rec_jax.model.attention import mask_bias
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.embedding import require_equal_shapes

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """What the decoder attends to.

    Attributes:
      hidden: `[batch, prompts + source, embed]`, after the final norm.
      mask: `[batch, prompts + source]` bool, False at padding.
      segment_ids: `[batch, prompts + source]` int32 of packed documents (soft prompts 0), or None.
    """

    hidden: Array
    mask: Array
    segment_ids: Array | None = None


class SourceSide(nn.Module):
    """What `M6Rec` does with its encoder."""

    config: ModelConfig

    def encode(
        self,
        encoder_input_tokens: Array,
        encoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """The encoder in one pass, soft prompts in front.

        Args:
          encoder_input_tokens: int32 `[batch, source]`.
          encoder_block_ids: int32 `[batch, source]`, blocks from 1, contiguous; 0 is padding.
          task_ids: int32 `[batch]` or `[batch, 1]`.
          segment_ids: int32 `[batch, source]` of packed documents from 1; None: one per row.
          deterministic: no dropout.
        """
        require_equal_shapes("encoder", encoder_input_tokens, encoder_block_ids)
        task_ids = task_ids.reshape(-1)
        capacity, late_start = self.config.prompts.num_prompts, self.config.late_layers_start
        tokens = self.embed(encoder_input_tokens, task_ids)
        x = jnp.concatenate([self.bank.prompt_embeddings(task_ids), tokens], axis=1)
        x = self.dropout(x, deterministic=deterministic)
        blocks = masks.with_prompt_blocks(
            encoder_block_ids, capacity, self.bank.num_prompts(task_ids)
        )
        if segment_ids is not None:
            segment_ids = jnp.pad(segment_ids, ((0, 0), (capacity, 0)))
        x = self._early(x, blocks, segment_ids, task_ids, deterministic=deterministic)
        return self._late(x, blocks, segment_ids, task_ids, late_start, deterministic=deterministic)

    def encode_segments(
        self,
        encoder_input_tokens: Array,
        encoder_block_ids: Array,
        task_ids: Array,
        *,
        deterministic: bool = True,
    ) -> Array:
        """The early layers alone, without soft prompts: what a segment cache holds.

        Each block is computed by itself, whether it has a row of its own or shares one, and
        whatever its id.

        Returns:
          `[batch, source, embed]`, to be gathered into rows and given to `encode_late`.
        """
        task_ids = task_ids.reshape(-1)
        x = self.embed(encoder_input_tokens, task_ids)
        x = self.dropout(x, deterministic=deterministic)
        return self._early(x, encoder_block_ids, None, task_ids, deterministic=deterministic)

    def encode_prompts(self, task_ids: Array, *, deterministic: bool = True) -> Array:
        """The early layers over the soft prompts alone: `[batch, prompts, embed]`."""
        task_ids = task_ids.reshape(-1)
        x = self.bank.prompt_embeddings(task_ids)
        if not x.shape[1]:
            return x
        x = self.dropout(x, deterministic=deterministic)
        no_tokens = jnp.zeros((x.shape[0], 0), jnp.int32)
        blocks = masks.with_prompt_blocks(no_tokens, x.shape[1], self.bank.num_prompts(task_ids))
        return self._early(x, blocks, None, task_ids, deterministic=deterministic)

    def encode_late(
        self,
        prompt_hidden: Array,
        segment_hidden: Array,
        encoder_block_ids: Array,
        task_ids: Array,
        *,
        deterministic: bool = True,
    ) -> Encoded:
        """The late layers over cached segments; equals `encode` within float tolerance.

        Args:
          prompt_hidden: `[batch, prompts, embed]` of `encode_prompts`.
          segment_hidden: `[batch, source, embed]`, the blocks of a row one after the other, of
            `encode_segments`.
          encoder_block_ids: int32 `[batch, source]`, as `encode` would get them.
          task_ids: int32 `[batch]` or `[batch, 1]`.
        """
        require_equal_shapes("encoder", segment_hidden[..., 0], encoder_block_ids)
        task_ids = task_ids.reshape(-1)
        capacity = prompt_hidden.shape[1]
        blocks = masks.with_prompt_blocks(
            encoder_block_ids, capacity, self.bank.num_prompts(task_ids)
        )
        x = jnp.concatenate([prompt_hidden, segment_hidden], axis=1)
        start = self.config.late_layers_start
        return self._late(x, blocks, None, task_ids, start, deterministic=deterministic)

    def _early(
        self,
        x: Array,
        blocks: Array,
        segment_ids: Array | None,
        task_ids: Array,
        *,
        deterministic: bool,
    ) -> Array:
        stop = self.config.late_layers_start
        if stop == 0:
            return x
        mask = mask_bias(masks.block_mask(blocks, segment_ids))[:, None]
        return self.encoder.run(x, mask, task_ids, start=0, stop=stop, deterministic=deterministic)

    def _late(
        self,
        x: Array,
        blocks: Array,
        segment_ids: Array | None,
        task_ids: Array,
        start: int,
        *,
        deterministic: bool,
    ) -> Encoded:
        if start > 0:
            segment_embeddings = self.bank.segment_embeddings(blocks, task_ids)
            if segment_embeddings is not None:
                x = x + segment_embeddings.astype(x.dtype)
        mask = mask_bias(masks.source_mask(blocks, segment_ids))[:, None]
        stop = self.config.num_encoder_layers
        x = self.encoder.run(x, mask, task_ids, start=start, stop=stop, deterministic=deterministic)
        hidden = self.encoder.finish(x, deterministic=deterministic)
        return Encoded(hidden, blocks != 0, segment_ids)
