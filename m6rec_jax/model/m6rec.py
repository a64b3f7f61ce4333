"""The whole model: one encoder-decoder that scores, retrieves and generates (paper section 1).

    model = M6Rec(ModelConfig(vocab_size=8192, ...))
    variables = jax.jit(model.init)(key, features)          # {'params': ..., 'prompts': ...}
    outputs = model.apply(variables, features)               # states of both towers
    logits = model.apply(variables, outputs.hidden, task_ids, method=model.option_logits)

`variables` come boxed with logical axis names (`nn.LogicallyPartitioned`); `nn.meta.unbox` gives
plain arrays, and `apply` takes either.

Positions. Relative position bias knows only index differences. In the early layers of late
interaction attention stays inside one block, whose tokens are contiguous, so the plain index in the
row gives every block the same bias as if it stood alone. In the late layers (and in all layers when
L' = 0) positions are those of the concatenation: soft prompts at 0 … P-1, tokens from P on. The
decoder's packed candidates are contiguous blocks too, so their positions restart by themselves.
"""

import dataclasses
from collections.abc import Mapping

import gin
import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import masks
from m6rec_jax.model.attention import mask_bias
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.decoder import Decoder
from m6rec_jax.model.dropout import dropout
from m6rec_jax.model.embedding import TokenEmbedding, logits_head
from m6rec_jax.model.encoder import Encoder
from m6rec_jax.model.prompts import PromptBank

Array = jax.Array
Features = Mapping[str, Array]


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """Final states of both towers.

    Attributes:
      encoded: the encoder's.
      hidden: the decoder's, `[batch, target, embed]`, after the final norm.
    """

    encoded: Encoded
    hidden: Array


@gin.configurable
class M6Rec(nn.Module):
    """Encoder, decoder, heads and the task bank; see the module's docstring."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.token_embedder = TokenEmbedding(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.bank = PromptBank(config)
        if not config.logits_via_embedding:
            self.logits_head = logits_head(config)
        self.dropout = dropout(config)

    def __call__(self, features: Features, *, deterministic: bool = True) -> Outputs:
        """Both towers over a batch.

        Args:
          features: int32 arrays. `encoder_input_tokens`, `encoder_block_ids` `[batch, source]`;
            `decoder_input_tokens`, `decoder_block_ids` `[batch, target]`; optional `task_ids`
            `[batch, 1]` (default 0), `retrieval` `[batch, 1]` (1: the decoder must not see the
            source), `encoder_segment_ids` and `decoder_segment_ids` (packed documents),
            `num_prompts` `[batch, 1]` (of a task smaller than its bank).
          deterministic: no dropout; otherwise pass `rngs={'dropout': key}`.
        """
        tokens = features["encoder_input_tokens"]
        task_ids = features.get("task_ids", jnp.zeros((tokens.shape[0], 1), jnp.int32))
        retrieval = features.get("retrieval")
        encoded = self.encode(
            tokens,
            features["encoder_block_ids"],
            task_ids,
            segment_ids=features.get("encoder_segment_ids"),
            num_prompts=features.get("num_prompts"),
            deterministic=deterministic,
        )
        hidden = self.decode(
            encoded,
            features["decoder_input_tokens"],
            features["decoder_block_ids"],
            task_ids,
            segment_ids=features.get("decoder_segment_ids"),
            use_source=None if retrieval is None else retrieval.reshape(-1) == 0,
            deterministic=deterministic,
        )
        if self.is_initializing():
            self._touch_heads(encoded, hidden[:, :1], task_ids)
        return Outputs(encoded, hidden)

    def _touch_heads(self, encoded: Encoded, hidden: Array, task_ids: Array) -> None:
        self.token_logits(hidden)
        if self.config.prompts.head != "none":
            self.option_logits(hidden, task_ids)
        if self.config.prompts.retrieval_dim:
            self.user_embedding(encoded, task_ids)

    # --- encoder -------------------------------------------------------------------------------

    def encode(
        self,
        encoder_input_tokens: Array,
        encoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        num_prompts: Array | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """The encoder in one pass, soft prompts in front.

        Args:
          encoder_input_tokens: int32 `[batch, source]`.
          encoder_block_ids: int32 `[batch, source]`, blocks from 1, contiguous; 0 is padding.
          task_ids: int32 `[batch]` or `[batch, 1]`.
          segment_ids: int32 `[batch, source]` of packed documents from 1; None: one per row.
          num_prompts: int32 `[batch]` or `[batch, 1]`, soft prompts that each example's task has
            (its last ones) where that is fewer than the bank's capacity; None: all.
          deterministic: no dropout.
        """
        _require_equal_shapes("encoder", encoder_input_tokens, encoder_block_ids)
        task_ids = task_ids.reshape(-1)
        capacity, late_start = self.config.prompts.num_prompts, self.config.late_layers_start
        tokens = self.embed(encoder_input_tokens, task_ids)
        x = jnp.concatenate([self.bank.prompt_embeddings(task_ids), tokens], axis=1)
        x = self.dropout(x, deterministic=deterministic)
        blocks = masks.with_prompt_blocks(encoder_block_ids, capacity, _flat(num_prompts))
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

    def encode_prompts(
        self, task_ids: Array, *, num_prompts: Array | None = None, deterministic: bool = True
    ) -> Array:
        """The early layers over the soft prompts alone: `[batch, prompts, embed]`."""
        task_ids = task_ids.reshape(-1)
        x = self.bank.prompt_embeddings(task_ids)
        if not x.shape[1]:
            return x
        x = self.dropout(x, deterministic=deterministic)
        no_tokens = jnp.zeros((x.shape[0], 0), jnp.int32)
        blocks = masks.with_prompt_blocks(no_tokens, x.shape[1], _flat(num_prompts))
        return self._early(x, blocks, None, task_ids, deterministic=deterministic)

    def encode_late(
        self,
        prompt_hidden: Array,
        segment_hidden: Array,
        encoder_block_ids: Array,
        task_ids: Array,
        *,
        num_prompts: Array | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """The late layers over cached segments; equals `encode` within float tolerance.

        Args:
          prompt_hidden: `[batch, prompts, embed]` of `encode_prompts`.
          segment_hidden: `[batch, source, embed]`, the blocks of a row one after the other, of
            `encode_segments`.
          encoder_block_ids: int32 `[batch, source]`, as `encode` would get them.
          task_ids: int32 `[batch]` or `[batch, 1]`.
          num_prompts: as in `encode`.
        """
        _require_equal_shapes("encoder", segment_hidden[..., 0], encoder_block_ids)
        task_ids = task_ids.reshape(-1)
        capacity = prompt_hidden.shape[1]
        blocks = masks.with_prompt_blocks(encoder_block_ids, capacity, _flat(num_prompts))
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

    # --- decoder -------------------------------------------------------------------------------

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
        _require_equal_shapes("decoder", decoder_input_tokens, decoder_block_ids)
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

    # --- heads ---------------------------------------------------------------------------------

    def token_logits(self, hidden: Array) -> Array:
        """Vocabulary logits, `[..., embed]` → `[..., vocab]`, float32."""
        if self.config.logits_via_embedding:
            logits = self.token_embedder.logits(hidden)
        else:
            logits = self.logits_head(hidden)
        names = ("batch", "length", "vocab") if hidden.ndim == 3 else None
        return nn.with_logical_constraint(logits, names)

    def option_logits(
        self, hidden: Array, task_ids: Array, num_options: Array | None = None
    ) -> Array:
        """Class logits, `[batch, length, embed]` → `[batch, length, classes]`, float32.

        With the option head: hidden · (last C soft prompts) / sqrt(embed) and nothing else (paper
        section 3; the scale is ours). The state that counts is the one at `[EOS]`.

        Args:
          num_options: int32 `[batch]` or `[batch, 1]`, classes of each example's task where that is
            fewer than the bank's capacity; the rest then score -1e9. None: all.
        """
        return self.bank.option_logits(hidden, task_ids.reshape(-1), _flat(num_options))

    def user_embedding(self, encoded: Encoded, task_ids: Array) -> Array:
        """Users for retrieval: the state at `[EOS']`, the last token of each row, projected.

        Returns:
          `[batch, retrieval]` of unit length, float32.
        """
        length = encoded.mask.shape[1]
        last = jnp.max(jnp.where(encoded.mask, jnp.arange(length), 0), axis=1)
        state = jnp.take_along_axis(encoded.hidden, last[:, None, None], axis=1)
        return self.bank.user_projection(state, task_ids.reshape(-1))[:, 0]

    def item_embedding(self, hidden: Array, task_ids: Array) -> Array:
        """Items for retrieval: decoder states `[batch, length, embed]`, projected.

        Meaningful at `[EOS]`, in rows decoded with `use_source` False.

        Returns:
          `[batch, length, retrieval]` of unit length, float32.
        """
        return self.bank.item_projection(hidden, task_ids.reshape(-1))

    def embed(self, tokens: Array, task_ids: Array) -> Array:
        """Tokens of either tower, `[batch, length]`, as the task sees them: `[..., embed]`."""
        x = self.token_embedder(tokens)
        deltas = self.bank.special_token_deltas(tokens, task_ids)
        if deltas is not None:
            x = x + deltas
        x = x.astype(self.config.dtype)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


def _flat(per_example: Array | None) -> Array | None:
    return None if per_example is None else per_example.reshape(-1)


def _require_equal_shapes(side: str, tokens: Array, block_ids: Array) -> None:
    if tokens.shape != block_ids.shape:
        raise ConfigError(
            f"{side} tokens are {list(tokens.shape)} but {side}_block_ids are "
            f"{list(block_ids.shape)}; both are [batch, length]"
        )


def initial_features() -> dict[str, Array]:
    """The smallest batch with which `M6Rec.init` makes every variable; sizes do not matter."""
    ones = jnp.ones((1, 2), jnp.int32)
    return {
        "encoder_input_tokens": ones,
        "encoder_block_ids": ones,
        "decoder_input_tokens": ones,
        "decoder_block_ids": ones,
    }
