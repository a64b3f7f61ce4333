"""Relations between texts, learnt from a sentence encoder with other tokens.

A block of the source, such as a behaviour or a review, is a sentence for the encoder. Of each, the
student's vector is the mean of its last states over the block's tokens. How alike the blocks of a
batch are to one another needs no common vocabulary or width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.attention import MASKED
from m6rec_jax.model.attention_states import watch
from m6rec_jax.model.bert import unit
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives.distillation import divergence
from m6rec_jax.objectives.sums import Features, Loss, Metrics, Sum, Terms, weighted_sum

Array = jax.Array
# The entry of the encoder's fingerprint in a manifest, and the feature with its vectors, float32
# `[batch, sentences, width]` (zeros: no sentence).
SENTENCE_ENCODER, SENTENCE_VECTORS = "sentence_encoder", "sentence_vectors"
# Of texts with a higher cosine neither is an example of something else.
_SAME = 0.999
_TEMPERATURE = 0.07  # divides cosines of both
_TERM = "distillation/sentences"


@gin.configurable
@dataclass(frozen=True)
class SentenceDistillation:
    """From which sentence encoder, and of how much text.

    Attributes:
      encoder: folder of a BERT-like model: config.json, model.safetensors and vocab.txt.
      max_sentences: blocks of a row that are sentences, the first ones.
      max_tokens: of the encoder for a sentence; longer ones are cut.
    """

    encoder: str
    max_sentences: int = 24
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if self.max_sentences < 1 or self.max_tokens < 3:
            raise ConfigError(
                f"SentenceDistillation.max_sentences = {self.max_sentences} must be at least 1 and "
                f"max_tokens = {self.max_tokens} at least 3: two of them are the encoder's marks"
            )


def sentence_numbers(features: Mapping[str, Any]) -> Any:
    """Which sentence of its row each token of the source is of, int32 `[batch, length]`.

    From 1 on; 0 is padding. Blocks of packed documents, each of which counts its own, follow each
    other. Of numpy arrays a numpy array.
    """
    blocks = features["encoder_block_ids"]
    documents = features.get("encoder_segment_ids", blocks)
    xp = np if isinstance(blocks, np.ndarray) else jnp
    begins = (blocks[:, 1:] != blocks[:, :-1]) | (documents[:, 1:] != documents[:, :-1])
    numbers = xp.cumsum(xp.pad(begins, ((0, 0), (1, 0)), constant_values=True), axis=1)
    return xp.where(blocks > 0, numbers, 0).astype(xp.int32)


def with_sentences(loss: Loss) -> Loss:
    """Another loss, and that of the encoder's relations, a mean over all sentences."""

    def extended(
        model: M6Rec, variables: Any, features: Features, **options: Any
    ) -> tuple[Terms, Metrics]:
        with watch() as seen:
            terms, metrics = loss(model, variables, features, **options)
        wanted = features[SENTENCE_VECTORS]
        numbers = 1 + jnp.arange(wanted.shape[1])
        blocks = sentence_numbers(features)[:, None, :] == numbers[None, :, None]
        hidden = seen.outputs.encoded.hidden[:, model.config.prompts.num_prompts :]
        means = jnp.einsum("bsl,ble->bse", blocks.astype(jnp.float32), hidden.astype(jnp.float32))

        def cosines(vectors: Array) -> Array:
            flat = unit(vectors.reshape(-1, vectors.shape[-1]))
            return jnp.einsum("se,te->st", flat, flat, precision="highest")

        of_teacher = cosines(wanted)
        present = jnp.any(wanted != 0, axis=-1).reshape(-1)
        compared = present[:, None] & present[None] & (of_teacher < _SAME)

        def log_relations(alike: Array) -> Array:
            masked = jnp.where(compared, alike / _TEMPERATURE, MASKED)
            return jax.nn.log_softmax(masked, axis=-1)

        losses = divergence(log_relations(of_teacher), log_relations(cosines(means)))
        summed = weighted_sum(losses, compared.any(axis=-1))
        terms[_TERM] = Sum(summed.total, jnp.sum(present.astype(jnp.float32)))
        return terms, {**metrics, _TERM: jax.lax.stop_gradient(summed)}

    return extended
