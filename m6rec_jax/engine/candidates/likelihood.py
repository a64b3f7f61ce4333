"""How likely a model finds given tokens: perplexity, and zero-shot scores (paper section 2).

    scorer = LikelihoodScorer(
        model, variables, vocabulary, options, contrast=("liked", "disliked")
    )
    scorer.score_requests([history], [candidates])      # log odds of "liked" per candidate

A candidate's score says by how much one label is likelier than another. No head is needed and
nothing is trained for the task. Histories are encoded once and candidates packed into rows, as in
`engine.candidates.scoring`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.engine.candidates.rows import PackedTexts, pack
from m6rec_jax.engine.candidates.scorer import CandidateScorer, as_read
from m6rec_jax.engine.engine import EngineOptions, Variables
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec
from m6rec_jax.objectives.language_modelling import target_logits, token_cross_entropy
from m6rec_jax.text.labels import Contrast
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array


class TokenSums(NamedTuple):
    """Sums over the target tokens of each row, float32 `[batch]`.

    Attributes:
      negative_log_likelihood: Σ weight · -log p, in nats.
      correct: Σ weight where the target is the likeliest token.
      weight: Σ weight.
    """

    negative_log_likelihood: Array
    correct: Array
    weight: Array


def token_sums(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> TokenSums:
    """Sums of the target tokens' likelihood; for use inside jit.

    `features` have `decoder_target_tokens` and `decoder_loss_weights` `[batch, target]`.
    """
    outputs = model.apply(variables, features)
    targets, weights = features["decoder_target_tokens"], features["decoder_loss_weights"]
    logits = model.apply(variables, outputs.hidden, method=model.token_logits)
    losses = token_cross_entropy(logits, targets)
    correct = target_logits(logits, targets) >= jnp.max(logits, axis=-1)
    return TokenSums(
        jnp.sum(jnp.where(weights > 0, losses * weights, 0.0), axis=1),
        jnp.sum(jnp.where(correct, weights, 0.0), axis=1),
        jnp.sum(weights, axis=1),
    )


def contrast_scores(
    model: M6Rec, variables: Variables, hidden: Array, features: Mapping[str, Array]
) -> Array:
    """Answers to a `text.labels.Contrast` about each packed text; for use inside jit.

    Args:
      model, variables: the model.
      hidden: the decoder's final states, `[batch, target, embed]`.
      features: of the rows that `Contrast.lay_out` makes.

    Returns:
      At every position the log odds of the target against the token that it is compared with, in
      nats, float32 `[batch, target]`; they mean something where a text's block ends.
    """
    logits = model.apply(variables, hidden, method=model.token_logits)
    positive = target_logits(logits, features["decoder_target_tokens"])
    return positive - target_logits(logits, features["decoder_contrast_tokens"])


@gin.configurable(allowlist=["contrast"])
class LikelihoodScorer(CandidateScorer):
    """Says by how much one of two labels in words is likelier for each candidate, in nats.

    Args:
      model, variables, vocabulary, options: as `Engine`.
      contrast: the two labels, the better one first; empty: that is for `asking` to say.

    Raises:
      ConfigError: labels that are not two, lengths that do not fit together, or a model that only
        scores.
    """

    # A job beside others: few programs, for some padding.
    row_growth = 8
    program_name = "likelihood"
    read = staticmethod(contrast_scores)
    finish = staticmethod(as_read)
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
        *,
        contrast: Sequence[str] | Contrast = (),
    ) -> None:
        if model.config.cross_attention_at != "all":
            raise ConfigError(
                "this model was built with ModelConfig.cross_attention_at = 'ends': its words do "
                "not see the history, so their likelihood says nothing of the user"
            )
        if isinstance(contrast, Contrast):
            self.contrast: Contrast | None = contrast
        else:
            self.contrast = Contrast.of(contrast) if contrast else None
        super().__init__(model, variables, vocabulary, options)

    def asking(self, contrast: Contrast) -> LikelihoodScorer:
        """One of other labels, by the same programs."""
        return LikelihoodScorer(
            self.model, self.variables, self.vocabulary, self.options, contrast=contrast
        )

    def check(self, text: str, task: str | None = None) -> None:
        """See `CandidateScorer.check`.

        Raises:
          DataError: it has no words.
          ConfigError: there is no room for the labels, or none are given.
        """
        super().check(text, task)
        length = self._tasks.one(task).text_length(self.candidate_length)
        self._labels().lay_out(self.vocabulary, [text], length, candidate_length=length)

    def pack(self, texts: Sequence[str], candidate_length: int) -> PackedTexts:
        labels = self._labels()
        return pack(
            [labels.num_tokens(self.vocabulary, text) for text in texts],
            self.options.target_length,
            candidate_length,
            lambda members, share: labels.lay_out(
                self.vocabulary,
                [texts[i] for i in members],
                self.options.target_length,
                candidate_length=share,
            ),
        )

    def _labels(self) -> Contrast:
        if self.contrast is None:
            raise ConfigError(
                "nothing is asked about the candidates: give LikelihoodScorer.contrast two labels"
            )
        return self.contrast
