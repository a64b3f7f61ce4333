"""Zero-shot scoring of requests: how plausible a sentence about a candidate is (paper section 2).

    scorer = LikelihoodScorer(
        model, variables, vocabulary, options, sentence="{item}. liked.", counted=("candidate",)
    )
    scorer.score_requests([history], [candidates])      # a mean log probability per candidate

No head is needed and nothing is trained for the task. Histories are encoded once and candidates
packed into rows, as in `engine.scoring`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import gin
import jax

from m6rec_jax.engine.candidate_rows import PackedTexts, pack
from m6rec_jax.engine.candidate_scoring import CandidateScorer
from m6rec_jax.engine.engine import EngineOptions, Variables
from m6rec_jax.engine.likelihood import mean_target_log_probabilities
from m6rec_jax.errors import DataError
from m6rec_jax.model import M6Rec
from m6rec_jax.text.counted_sentences import CountedSentence, counted_candidates
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array


@gin.configurable(allowlist=["sentence", "counted"])
class LikelihoodScorer(CandidateScorer):
    """Mean log probability, in nats, of the tokens that count in a sentence about a candidate.

    Args:
      model, variables, vocabulary, options: as `Engine`.
      sentence: with one field, `{item}` or `{candidate}`, in whose place each text goes.
      counted: which parts of it count, see `text.counted_sentences.PARTS`.

    Raises:
      ConfigError: a sentence that does not parse, or lengths that do not fit together.
    """

    decoder_features = (
        *CandidateScorer.decoder_features,
        "decoder_target_tokens",
        "decoder_loss_weights",
    )

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        options: EngineOptions,
        *,
        sentence: str = "{item}",
        counted: Collection[str] = ("candidate",),
    ) -> None:
        self.sentence = CountedSentence.parse(sentence, counted)
        super().__init__(model, variables, vocabulary, options)

    def read(self, variables: Variables, hidden: Array, features: Mapping[str, Array]) -> Array:
        return mean_target_log_probabilities(self.model, variables, hidden, features)

    def check(self, text: str, task: str | None = None) -> None:
        """Makes sure that a candidate can be scored.

        Args:
          text: of the candidate.
          task: by whose prompts; None: the default one.

        Raises:
          DataError: it has no words, or nothing of its sentence counts.
          ConfigError: there is no room for the words around it.
        """
        if not len(self.vocabulary.encode_array(text)):
            raise DataError(f"there is no text to score: {text!r}")
        length = self._tasks.one(task).text_length(self.candidate_length)
        counted_candidates(self.vocabulary, [text], self.sentence, length, candidate_length=length)

    def pack(self, texts: Sequence[str], candidate_length: int) -> PackedTexts:
        rendered = [self.sentence.render(text) for text in texts]
        return pack(
            [len(self.vocabulary.encode_array(text)) + 2 for text in rendered],
            self.options.target_length,
            candidate_length,
            lambda members, share: counted_candidates(
                self.vocabulary,
                [texts[i] for i in members],
                self.sentence,
                self.options.target_length,
                candidate_length=share,
            ),
        )
