"""Candidates followed by what came of them, in words: read in training, asked for when zero-shot.

    input    [BOS] c1 .. cn [EOS]
    target   c1 .. cn [EOS] liked

The outcome is predicted from the candidate's `[EOS]` on, where scoring has its classes. A model
that has learnt this says, untuned, which of two outcomes is likelier (`Contrast`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from m6rec_jax.errors import ConfigError
from m6rec_jax.text import rows
from m6rec_jax.text.layout import Row
from m6rec_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, slots=True)
class Contrast:
    """Two outcomes in words; a candidate's score is by how much the first is likelier.

    Its text is the candidate's with statistics, laid out as `with_outcomes` does. Both outcomes are
    asked at once, by the tokens in which they first differ: what they share before that is read,
    and what is left of them follows from it. The score is the difference of these tokens' log
    probabilities, in nats.
    """

    positive: str
    negative: str

    @classmethod
    def of(cls, outcomes: Sequence[str]) -> Self:
        """The first of some outcomes and the last.

        Raises:
          ConfigError: they are not two.
        """
        if isinstance(outcomes, str) or len(outcomes) < 2:
            raise ConfigError(
                f"two outcomes are needed to ask which is likelier, not {outcomes!r}: the data "
                "set's template lists some in 'outcomes', from the best to the worst. Name two "
                "(contrast = ('liked', 'disliked'))"
            )
        return cls(outcomes[0], outcomes[-1])

    def tokens(self, vocab: Vocabulary) -> tuple[np.ndarray, int, int]:
        """Ids that both outcomes begin with, and the next one of each.

        Raises:
          ConfigError: one is the other's beginning, so nothing tells them apart.
        """
        ids, others = vocab.encode_array(self.positive), vocab.encode_array(self.negative)
        for place, (one, other) in enumerate(zip(ids.tolist(), others.tolist(), strict=False)):
            if one != other:
                return ids[:place], one, other
        raise ConfigError(
            f"the outcomes {self.positive!r} and {self.negative!r} do not differ before one of "
            "them ends, so that the model cannot be asked which it is; give them other words"
        )

    def num_tokens(self, vocab: Vocabulary, text: str) -> int:
        """How many tokens of a row a candidate takes, with all that is read."""
        return len(vocab.encode_array(text)) + 2 + len(self.tokens(vocab)[0])

    def lay_out(
        self,
        vocab: Vocabulary,
        texts: Sequence[str],
        target_length: int,
        labels: Sequence[int] | np.ndarray | None = None,
        item_ids: Sequence[int] | np.ndarray | None = None,
        *,
        candidate_length: int | None = None,
    ) -> Row:
        """Packs candidates into one decoder row, each to be judged where its block ends.

        As `rows.packed_candidates`. Where a block ends the weight is 1, the target the first
        outcome's token and `decoder_contrast_tokens` the second's; elsewhere both are 0.

        Raises:
          DataError: no texts, or one without words.
          ConfigError: the row is too short, or see `tokens`.
        """
        read, positive, negative = self.tokens(vocab)
        share = candidate_length or rows.candidate_share(len(texts) or 1, target_length)
        row = rows.packed_candidates(
            vocab, texts, target_length, candidate_length=share - len(read)
        )
        row = _continued(row, [read] * len(texts))
        rows.check_room(row, len(texts), target_length)
        ends = np.flatnonzero(np.diff(row["decoder_block_ids"], append=0))
        row["decoder_loss_weights"] *= 0
        for name, values in (
            ("decoder_loss_weights", 1),
            ("decoder_target_tokens", positive),
            ("decoder_contrast_tokens", negative),
            ("decoder_labels", labels),
            ("decoder_item_ids", item_ids),
        ):
            if values is not None:
                row[name][ends] = values
        return row


def with_outcomes(
    vocab: Vocabulary,
    candidates: Sequence[str],
    outcomes: Sequence[str],
    target_length: int,
    *,
    outcome_weight: float = 1.0,
) -> Row:
    """Lays out `[BOS] candidate [EOS] outcome` for every candidate, one block each.

    The outcome is tokenised by itself, so its tokens are the same after every candidate. The last
    one is predicted but never read, so with outcomes of one token the rows look as scoring's do.
    A candidate too long for its share of the row is cut, never its outcome.

    Args:
      outcomes: words for each; a candidate whose outcome is empty is left out. Where all are, the
        candidates stand there by themselves.
      outcome_weight: loss weight of the outcome's words.

    Returns:
      The decoder features of `rows.packed_candidates`, without labels.

    Raises:
      DataError: no candidates.
      ConfigError: the row is too short.
    """
    pairs = [(text, words) for text, words in zip(candidates, outcomes, strict=True) if words]
    if not pairs:
        row = rows.packed_candidates(vocab, candidates, target_length)
        row["decoder_loss_weights"] *= 0
        return row
    endings = [vocab.encode_array(words) for _, words in pairs]
    longest = max(map(len, endings))
    share = target_length // len(pairs)
    if share < longest + 2:
        raise ConfigError(
            f"{len(pairs)} candidates with outcomes of {longest} tokens do not fit the target "
            f"length {target_length}; raise it or lower the group size"
        )
    texts = [text for text, _ in pairs]
    row = rows.packed_candidates(vocab, texts, target_length, candidate_length=share - longest + 1)
    row["decoder_loss_weights"] *= 0
    # All but the last token of an outcome are read, after the `[EOS]` of their candidate.
    row = _continued(row, [ids[:-1] for ids in endings])
    ends = np.flatnonzero(np.diff(row["decoder_block_ids"], append=0)) + 1
    for end, ids in zip(ends, endings, strict=True):
        row["decoder_target_tokens"][end - len(ids) : end] = ids
        row["decoder_loss_weights"][end - len(ids) : end] = outcome_weight
    return row


def _continued(row: Row, read: Sequence[np.ndarray]) -> Row:
    """A row of packed candidates without labels, in which each is followed by ids that are read."""
    ends = np.flatnonzero(np.diff(row["decoder_block_ids"], append=0))
    lengths = [len(ids) for ids in read]
    places = np.arange(len(row["decoder_input_tokens"]))
    # Copies of the last position of each block, whose ids are then replaced.
    taken = np.insert(places, np.repeat(ends + 1, lengths), np.repeat(ends, lengths))
    found = {name: v[taken] if name.startswith("decoder_") else v for name, v in row.items()}
    added = np.append(False, taken[1:] == taken[:-1])
    found["decoder_input_tokens"][added] = np.concatenate(read)
    return found
