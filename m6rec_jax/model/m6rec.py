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

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.decoder import Decoder
from m6rec_jax.model.dropout import dropout
from m6rec_jax.model.embedding import TokenEmbedding, logits_head
from m6rec_jax.model.encoder import Encoder
from m6rec_jax.model.heads import Heads
from m6rec_jax.model.prompts import PromptBank
from m6rec_jax.model.source_side import Encoded, SourceSide
from m6rec_jax.model.target_side import TargetSide

Array = jax.Array
Features = Mapping[str, Array]


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
class M6Rec(SourceSide, TargetSide, Heads):
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
            source), `encoder_segment_ids` and `decoder_segment_ids` (packed documents).
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

    def embed(self, tokens: Array, task_ids: Array) -> Array:
        """Tokens of either tower, `[batch, length]`, as the task sees them: `[..., embed]`."""
        x = self.token_embedder(tokens)
        for of_task in (self.bank.embedding_updates, self.bank.special_token_deltas):
            deltas = of_task(tokens, task_ids)
            if deltas is not None:
                x = x + deltas
        x = x.astype(self.config.dtype)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))


def initial_features() -> dict[str, Array]:
    """The smallest batch with which `M6Rec.init` makes every variable; sizes do not matter."""
    ones = jnp.ones((1, 2), jnp.int32)
    return {
        "encoder_input_tokens": ones,
        "encoder_block_ids": ones,
        "decoder_input_tokens": ones,
        "decoder_block_ids": ones,
    }
