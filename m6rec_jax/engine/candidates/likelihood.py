"""How likely a model finds given tokens: perplexity, and zero-shot scores (paper section 2).

    contrast = Contrast("liked", "disliked")
    scorer = LikelihoodScorer(model, variables, vocabulary, options, contrast)
    scorer.score_requests([history], [candidates])      # log odds of "liked" per candidate

A candidate's score says by how much one label is likelier than another. No head is needed and
nothing is trained for the task. Histories are encoded once and candidates packed into rows, as in
`engine.candidates.scoring`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from m6rec_jax.engine.candidates.scoring import CandidateScorer
from m6rec_jax.engine.engine import EngineOptions, Variables
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec
from m6rec_jax.objectives.language_modelling import target_logits, token_cross_entropy
from m6rec_jax.text.labels import Contrast
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array


def token_sums(
    model: M6Rec, variables: Variables, features: Mapping[str, Array]
) -> dict[str, Array]:
    """Sums over the target tokens of each row, float32 `[batch]`; for use inside jit.

    `features` have `decoder_target_tokens` and `decoder_loss_weights` `[batch, target]`.

    Returns:
      `negative_log_likelihood`, Σ weight · -log p, in nats; `correct`, Σ weight where the target is
      the likeliest token; `weight`, Σ weight.
    """
    outputs = model.apply(variables, features)
    targets, weights = features["decoder_target_tokens"], features["decoder_loss_weights"]
    logits = model.apply(variables, outputs.hidden, method=model.token_logits)
    losses = token_cross_entropy(logits, targets)
    correct = target_logits(logits, targets) >= jnp.max(logits, axis=-1)
    return {
        "negative_log_likelihood": jnp.sum(jnp.where(weights > 0, losses * weights, 0.0), axis=1),
        "correct": jnp.sum(jnp.where(correct, weights, 0.0), axis=1),
        "weight": jnp.sum(weights, axis=1),
    }


def contrast_scores(
    model: M6Rec, variables: Variables, hidden: Array, features: Mapping[str, Array]
) -> Array:
    """`Read`: log odds of the target tokens against those that they are compared with, in nats.

    They mean something where a text's block ends, in rows of `text.labels.Contrast.lay_out`.
    """
    logits = model.apply(variables, hidden, method=model.token_logits)
    positive = target_logits(logits, features["decoder_target_tokens"])
    return positive - target_logits(logits, features["decoder_contrast_tokens"])


class LikelihoodScorer(CandidateScorer):
    """Says by how much one of two labels in words is likelier for each candidate, in nats.

    Args:
      model, variables, vocabulary, options: as `Engine`.
      contrast: the labels.

    Raises:
      ConfigError: lengths that do not fit together, or a model that only scores.
    """

    # A job beside others: few programs, for some padding.
    row_growth = 8
    program_name = "likelihood"
    read = staticmethod(contrast_scores)
    decoder_features = (
        *CandidateScorer.decoder_features,
        "decoder_target_tokens",
        "decoder_contrast_tokens",
    )

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        options: EngineOptions,
        contrast: Contrast,
    ) -> None:
        if model.config.cross_attention_at != "all":
            raise ConfigError(
                "this model was built with ModelConfig.cross_attention_at = 'ends': its words do "
                "not see the history, so their likelihood says nothing of the user"
            )
        super().__init__(model, variables, vocabulary, options)
        self.contrast = contrast
