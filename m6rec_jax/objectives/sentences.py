"""Relations between the sentences of a row, learnt from a sentence encoder with other tokens.

A behaviour is a block of the source, and a sentence for the encoder. Of each, the student's vector
is the mean of its last states over the block's tokens. How alike a row's blocks are to one another
needs no common vocabulary or width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.attention import MASKED
from m6rec_jax.model.attention_states import watch
from m6rec_jax.model.bert import BertConfig, sentence_vectors, unit
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives.distillation import divergence
from m6rec_jax.objectives.sums import Features, Metrics, nonzero, weighted_sum
from m6rec_jax.objectives.total import loss_denominators

Array = jax.Array
# The collection of the encoder's weights, the entry of its fingerprint in a manifest, the feature
# with its tokens, int32 `[batch, sentences, tokens]` (0: padding), and the denominator.
SENTENCE_ENCODER, SENTENCE_TOKENS, SENTENCES = "sentence_encoder", "sentence_tokens", "sentences"


@gin.configurable
@dataclass(frozen=True)
class SentenceDistillation:
    """From which sentence encoder, and how much.

    Attributes:
      encoder: folder of a BERT-like model: config.json, model.safetensors and vocab.txt.
      weight: of the divergence, a mean over blocks.
      temperature: divides cosines of both.
      max_sentences: blocks of a row that count, the first ones.
      max_tokens: of the encoder for a block; longer ones are cut.
    """

    encoder: str
    weight: float = 1.0
    temperature: float = 0.07
    max_sentences: int = 24
    max_tokens: int = 32

    def __post_init__(self) -> None:
        for name in ("weight", "temperature", "max_sentences", "max_tokens"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"SentenceDistillation.{name} = {getattr(self, name)} must be positive"
                )


class SentenceLoss:
    """A loss function: another one, and the divergence from the encoder's relations.

    Args:
      settings: of the distillation.
      objectives: the other loss function.
      encoder: whose weights are the collection `SENTENCE_ENCODER` of those that are passed.
    """

    def __init__(
        self, settings: SentenceDistillation, objectives: Any, encoder: BertConfig
    ) -> None:
        self._settings, self._objectives, self._encoder = settings, objectives, encoder

    def denominators(self, features: Features) -> dict[str, Array]:
        """Those of the other loss, and the blocks that have another one beside them."""
        others = getattr(self._objectives, "denominators", loss_denominators)(features)
        related = _visible(features).any(axis=-1)
        return {**others, SENTENCES: jnp.sum(related.astype(jnp.float32))}

    def __call__(
        self,
        model: M6Rec,
        variables: Any,
        features: Features,
        *,
        rngs: Mapping[str, Array] | None = None,
        deterministic: bool = True,
        denominators: Mapping[str, Array] | None = None,
        jobs: Sequence[int] = (),
    ) -> tuple[Array, Metrics]:
        """As `total_loss`."""
        given = self.denominators(features) if denominators is None else denominators
        own = {name: tree for name, tree in variables.items() if name != SENTENCE_ENCODER}
        with watch() as seen:
            loss, metrics = self._objectives(
                model,
                own,
                features,
                rngs=rngs,
                deterministic=deterministic,
                denominators=given,
                jobs=jobs,
            )
        tokens, settings = features[SENTENCE_TOKENS], self._settings
        flat = tokens.reshape(-1, tokens.shape[-1])
        weights = jax.lax.stop_gradient(variables[SENTENCE_ENCODER])
        wanted = sentence_vectors(self._encoder, weights, flat, flat != 0)
        hidden = seen.outputs.encoded.hidden[:, model.config.prompts.num_prompts :]
        of_blocks = _blocks(features).astype(jnp.float32)
        means = jnp.einsum("bsl,ble->bse", of_blocks, hidden.astype(jnp.float32))
        visible = _visible(features)

        def log_relations(vectors: Array) -> Array:
            cosines = jnp.einsum("bse,bte->bst", vectors, vectors, precision="highest")
            masked = jnp.where(visible, cosines / settings.temperature, MASKED)
            return jax.nn.log_softmax(masked, axis=-1)

        losses = divergence(
            log_relations(wanted.reshape(*tokens.shape[:2], -1)), log_relations(unit(means))
        )
        found = weighted_sum(losses, visible.any(axis=-1))
        loss += settings.weight * found.total / nonzero(given[SENTENCES])
        return loss, {**metrics, "distillation/sentences": jax.lax.stop_gradient(found)}


def _blocks(features: Features) -> Array:
    """Where blocks are: bool `[batch, sentences, source]`."""
    numbers = 1 + jnp.arange(features[SENTENCE_TOKENS].shape[1])
    return features["encoder_block_ids"][:, None, :] == numbers[None, :, None]


def _visible(features: Features) -> Array:
    """Which blocks of a document are compared with which: bool `[batch, sentences, sentences]`."""
    number = features[SENTENCE_TOKENS].shape[1]
    present = (features[SENTENCE_TOKENS] != 0).any(axis=-1)
    ones = jnp.ones_like(features["encoder_block_ids"])
    documents = features.get("encoder_segment_ids", ones)[:, None, :]
    own = jnp.max(jnp.where(_blocks(features), documents, 0), axis=-1)
    pairs = present[:, :, None] & present[:, None, :] & (own[:, :, None] == own[:, None, :])
    return pairs & ~jnp.eye(number, dtype=bool)
