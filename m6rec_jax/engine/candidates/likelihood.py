"""How likely a model finds given tokens: perplexity, and zero-shot scores (paper section 2).

    scorer = LikelihoodScorer(
        model, variables, vocabulary, options, contrast=("liked", "disliked")
    )
    scorer.score_requests([history], [candidates])      # log odds of "liked" per candidate

A candidate's score says by how much one outcome is likelier than another, or how plausible a
sentence about it is. No head is needed and nothing is trained for the task. Histories are encoded
once and candidates packed into rows, as in `engine.candidates.scoring`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Self

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.engine.candidates.rows import PackedTexts, pack
from m6rec_jax.engine.candidates.scorer import CandidateScorer
from m6rec_jax.engine.engine import EngineOptions, Variables
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec
from m6rec_jax.objectives.language_modelling import target_logits, token_cross_entropy
from m6rec_jax.text.questions import Question, question
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


def mean_log_probabilities(
    log_probabilities: Array, weights: Array, decoder_block_ids: Array
) -> Array:
    """Weighted mean over each packed text: the paper's zero-shot score (section 2).

    Args:
      log_probabilities: of the target tokens, `[batch, target]`.
      weights: 1 where a token counts, else 0, `[batch, target]`.
      decoder_block_ids: int32 `[batch, target]`, texts from 1, 0 is padding.

    Returns:
      At every position the mean of its text, `[batch, target]`; 0 where nothing counts.
    """
    length = decoder_block_ids.shape[1]

    def of_row(values: Array, weights: Array, blocks: Array) -> Array:
        sums = jax.ops.segment_sum(
            jnp.where(weights > 0, values * weights, 0.0), blocks, length + 1
        )
        totals = jax.ops.segment_sum(weights, blocks, length + 1)
        return (sums / jnp.maximum(totals, 1e-9))[blocks]

    return jax.vmap(of_row)(log_probabilities, weights, decoder_block_ids)


def question_scores(
    model: M6Rec, variables: Variables, hidden: Array, features: Mapping[str, Array]
) -> Array:
    """Answers to a `text.questions.Question` about each packed text; for use inside jit.

    Args:
      model, variables: the model.
      hidden: the decoder's final states, `[batch, target, embed]`.
      features: of the rows that `Question.lay_out` makes.

    Returns:
      At every position that of its text, in nats, float32 `[batch, target]`: the log odds of the
      tokens that are compared, or the mean log probability of those that count.
    """
    logits = model.apply(variables, hidden, method=model.token_logits)

    def of(tokens: Array) -> Array:
        return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]

    compared = features["decoder_contrast_tokens"]
    others = jnp.where(compared > 0, of(compared), jax.nn.logsumexp(logits, axis=-1))
    return mean_log_probabilities(
        of(features["decoder_target_tokens"]) - others,
        features["decoder_loss_weights"],
        features["decoder_block_ids"],
    )


@gin.configurable(allowlist=["contrast", "sentence", "counted"])
class LikelihoodScorer(CandidateScorer):
    """Answers a question about each candidate, see `question_scores`.

    Args:
      model, variables, vocabulary, options: as `Engine`.
      contrast: two outcomes in words: by how much is the first likelier, in nats?
      sentence: instead, with one field, `{item}` or `{candidate}`, in whose place each text goes:
        the mean log probability of the tokens that count, in nats.
      counted: which parts of it count, see `text.counted_sentences.PARTS`.

    Attributes:
      question: what is asked; None: that is for `asking` to say.

    Raises:
      ConfigError: a question that cannot be asked, lengths that do not fit together, or a model
        that only scores.
    """

    # A job beside others: few programs, for some padding.
    row_growth = 8
    program_name = "likelihood"
    decoder_features = (
        *CandidateScorer.decoder_features,
        "decoder_target_tokens",
        "decoder_contrast_tokens",
        "decoder_loss_weights",
    )

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        options: EngineOptions,
        *,
        contrast: Sequence[str] = (),
        sentence: str = "",
        counted: Collection[str] = ("candidate",),
    ) -> None:
        if model.config.cross_attention_at != "all":
            raise ConfigError(
                "this model was built with ModelConfig.cross_attention_at = 'ends': its words do "
                "not see the history, so their likelihood says nothing of the user"
            )
        self.question = question(contrast, sentence, counted)
        super().__init__(model, variables, vocabulary, options)

    def asking(self, question: Question) -> Self:
        """The same compiled programs for another question."""
        other = copy.copy(self)
        other.question = question
        return other

    def read(self, variables: Variables, hidden: Array, features: Mapping[str, Array]) -> Array:
        return question_scores(self.model, variables, hidden, features)

    def check(self, text: str, task: str | None = None) -> None:
        """See `CandidateScorer.check`.

        Raises:
          DataError: it has no words, or nothing of its sentence counts.
          ConfigError: there is no room for the words around it, or nothing is asked.
        """
        super().check(text, task)
        length = self._tasks.one(task).text_length(self.candidate_length)
        self._asked().lay_out(self.vocabulary, [text], length, candidate_length=length)

    def pack(self, texts: Sequence[str], candidate_length: int) -> PackedTexts:
        asked = self._asked()
        return pack(
            [asked.num_tokens(self.vocabulary, text) for text in texts],
            self.options.target_length,
            candidate_length,
            lambda members, share: asked.lay_out(
                self.vocabulary,
                [texts[i] for i in members],
                self.options.target_length,
                candidate_length=share,
            ),
        )

    def _asked(self) -> Question:
        if self.question is None:
            raise ConfigError(
                "nothing is asked about the candidates: give LikelihoodScorer two outcomes "
                "(contrast) or a sentence"
            )
        return self.question
