"""What is read off the states: vocabulary logits, classes, users and items for retrieval."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.source_side import Encoded

Array = jax.Array


class Heads(nn.Module):
    """What `M6Rec` makes of its towers' states."""

    config: ModelConfig

    def token_logits(self, hidden: Array) -> Array:
        """Vocabulary logits, `[..., embed]` → `[..., vocab]`, float32."""
        if self.config.logits_via_embedding:
            logits = self.token_embedder.logits(hidden)
        else:
            logits = self.logits_head(hidden)
        names = ("batch", "length", "vocab") if hidden.ndim == 3 else None
        return nn.with_logical_constraint(logits, names)

    def option_logits(self, hidden: Array, task_ids: Array) -> Array:
        """Class logits, `[batch, length, embed]` → `[batch, length, classes]`, float32.

        With the option head: hidden · (last C soft prompts) / sqrt(embed) and nothing else (paper
        section 3; the scale is ours). The state that counts is the one at `[EOS]`. Where a task
        has fewer classes than its bank, the others score -1e9.
        """
        return self.bank.option_logits(hidden, task_ids.reshape(-1))

    def num_options(self, task_ids: Array) -> Array | None:
        """Classes of each example's task, `[batch]`; None where all have the bank's capacity."""
        return self.bank.num_options(task_ids.reshape(-1))

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
