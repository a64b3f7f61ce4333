"""Zero-shot scoring of requests: how plausible a sentence about a candidate is (paper section 2).

    scorer = LikelihoodScorer(
        model, variables, vocabulary, source_length=112, target_length=72,
        sentence="{item}. liked.", counted=("candidate",),
    )
    scorer.score_requests([history], [candidates])      # a mean log probability per candidate

No head is needed and nothing is trained for the task. Histories are encoded once and candidates
packed into rows, as in `engine.scoring`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gin
import jax
from jax.sharding import Mesh

from m6rec_jax.engine.candidate_rows import PackedTexts, pack
from m6rec_jax.engine.candidate_scoring import DEFAULT_BATCH_SIZES, CandidateScorer
from m6rec_jax.engine.likelihood import mean_log_probabilities, target_log_probabilities
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import DataError
from m6rec_jax.model import M6Rec
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.text.counted_sentences import CountedSentence, counted_candidates
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
Variables = Mapping[str, Any]


@gin.configurable(denylist=["model", "variables", "vocabulary", "mesh", "tasks"])
class LikelihoodScorer(CandidateScorer):
    """Mean log probability, in nats, of the tokens that count in a sentence about a candidate.

    Args:
      model, variables, vocabulary: as `CandidateScorer`, which has the other arguments, too.
      sentence: with one field, `{item}` or `{candidate}`, in whose place each text goes.
      counted: which parts of it count, see `text.counted_sentences.PARTS`.
      task_id: row of the prompt bank, for rows that name none.
      tasks: settings of tasks that requests may name; they take the place of `task_id`.
      task: which of `tasks` a request has that names none; empty: the only one.

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
        *,
        source_length: int,
        target_length: int,
        sentence: str = "{item}",
        counted: Collection[str] = ("candidate",),
        task_id: int = 0,
        tasks: Mapping[str, TaskSettings] | None = None,
        task: str = "",
        candidate_length: int | None = None,
        batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
        source_buckets: Sequence[int] | None = None,
        target_buckets: Sequence[int] | None = None,
        mesh: Mesh | None = None,
        rules: LogicalRules = (),
    ) -> None:
        self.sentence = CountedSentence.parse(sentence, counted)
        super().__init__(
            model,
            variables,
            vocabulary,
            source_length=source_length,
            target_length=target_length,
            tasks={"": TaskSettings(task_id)} if tasks is None else tasks,
            task=task,
            candidate_length=candidate_length,
            batch_sizes=batch_sizes,
            source_buckets=source_buckets,
            target_buckets=target_buckets,
            mesh=mesh,
            rules=rules,
        )

    def read(self, variables: Variables, hidden: Array, features: Mapping[str, Array]) -> Array:
        targets = features["decoder_target_tokens"]
        log_p, _ = target_log_probabilities(self.model, variables, hidden, targets)
        return mean_log_probabilities(
            log_p, features["decoder_loss_weights"], features["decoder_block_ids"]
        )

    def check(self, text: str) -> None:
        """Makes sure that a candidate can be scored.

        Args:
          text: of the candidate.

        Raises:
          DataError: it has no words, or nothing of its sentence counts.
          ConfigError: there is no room for the words around it.
        """
        if not len(self.vocabulary.encode_array(text)):
            raise DataError(f"there is no text to score: {text!r}")
        length = self._tasks.one().text_length(self.candidate_length)
        counted_candidates(self.vocabulary, [text], self.sentence, length, candidate_length=length)

    def pack(self, texts: Sequence[str], candidate_length: int) -> PackedTexts:
        rendered = [self.sentence.render(text) for text in texts]
        return pack(
            [len(self.vocabulary.encode_array(text)) + 2 for text in rendered],
            self.target_length,
            candidate_length,
            lambda members, share: counted_candidates(
                self.vocabulary,
                [texts[i] for i in members],
                self.sentence,
                self.target_length,
                candidate_length=share,
            ),
        )
