"""The decoder's side of the model: packed candidates or target text to states."""

import jax
from flax import linen as nn

from m6rec_jax.model import masks
from m6rec_jax.model.attention import mask_bias
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.embedding import require_equal_shapes
from m6rec_jax.model.source_side import Encoded

Array = jax.Array


class TargetSide(nn.Module):
    """What `M6Rec` does with its decoder."""

    config: ModelConfig

    def decode(
        self,
        encoded: Encoded,
        decoder_input_tokens: Array,
        decoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        use_source: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """The decoder in one pass (teacher forcing).

        Args:
          encoded: of the same rows.
          decoder_input_tokens: int32 `[batch, target]`.
          decoder_block_ids: int32 `[batch, target]`, candidates from 1, contiguous; 0 is padding.
            Candidates do not see one another.
          task_ids: int32 `[batch]` or `[batch, 1]`.
          segment_ids: int32 `[batch, target]` of packed documents, or None.
          use_source: bool `[batch]`; False: the row sees nothing of the encoder. None: all True.
          deterministic: no dropout.

        Returns:
          `[batch, target, embed]`, after the final norm.
        """
        x = self.decode_early(
            decoder_input_tokens,
            decoder_block_ids,
            task_ids,
            segment_ids=segment_ids,
            deterministic=deterministic,
        )
        return self.decode_late(
            encoded,
            x,
            decoder_block_ids,
            task_ids,
            segment_ids=segment_ids,
            use_source=use_source,
            deterministic=deterministic,
        )

    def decode_early(
        self,
        decoder_input_tokens: Array,
        decoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Embedding and the decoder layers without cross attention: cacheable per candidate.

        Returns:
          `[batch, target, embed]`; just the embeddings when late interaction is off.
        """
        require_equal_shapes("decoder", decoder_input_tokens, decoder_block_ids)
        task_ids = task_ids.reshape(-1)
        x = self.embed(decoder_input_tokens, task_ids)
        x = self.dropout(x, deterministic=deterministic)
        stop = self.config.first_cross_layer
        if stop == 0:
            return x
        mask = mask_bias(masks.causal_mask(decoder_block_ids, segment_ids))[:, None]
        return self.decoder.run(
            x, mask, task_ids, None, None, None, start=0, stop=stop, deterministic=deterministic
        )

    def decode_late(
        self,
        encoded: Encoded,
        hidden: Array,
        decoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        use_source: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """The decoder layers with cross attention over `decode_early`'s result; see `decode`."""
        task_ids = task_ids.reshape(-1)
        mask = mask_bias(masks.causal_mask(decoder_block_ids, segment_ids))[:, None]
        cross = masks.cross_mask(encoded.mask, encoded.segment_ids, segment_ids)
        x = self.decoder.run(
            hidden,
            mask,
            task_ids,
            encoded.hidden,
            mask_bias(cross)[:, None],
            use_source,
            start=self.config.first_cross_layer,
            stop=self.config.num_decoder_layers,
            deterministic=deterministic,
        )
        return self.decoder.finish(x, deterministic=deterministic)
