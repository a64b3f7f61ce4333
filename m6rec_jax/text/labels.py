"""Candidates followed by their label in words: read in training, asked for when zero-shot.

    input    [BOS] c1 .. cn [EOS]
    target   c1 .. cn [EOS] liked

The label is predicted from the candidate's `[EOS]` on, where scoring has its classes. A model that
has learnt this says, untuned, which of two labels is likelier (`Contrast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from m6rec_jax.errors import ConfigError
from m6rec_jax.text import rows
from m6rec_jax.text.layout import Row
from m6rec_jax.text.vocabulary import Vocabulary


class Contrast(NamedTuple):
    """Two labels in words; a candidate's score is by how much the first is likelier.

    Its text is the candidate's with statistics, laid out as `with_labels` does. Both labels are
    asked at once, by the tokens in which they first differ: what they share before that is read,
    and what is left of them follows from it. The score is the difference of these tokens' log
    probabilities, in nats.
    """

    positive: str
    negative: str

    @classmethod
    def of(cls, labels: Sequence[str]) -> Self:
        """The first of some labels and the last; raises ConfigError where they are not two."""
        if isinstance(labels, str) or len(labels) < 2:
            raise ConfigError(
                f"two outcomes are needed to ask which is likelier, not {labels!r}: the data "
                "set's template lists some in 'outcomes', from the best to the worst. Name two "
                "(contrast = ('liked', 'disliked'))"
            )
        return cls(labels[0], labels[-1])

    def tokens(self, vocab: Vocabulary) -> tuple[np.ndarray, int, int]:
        """Ids that both labels begin with, and the next one of each; raises ConfigError where one
        is the other's beginning.
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

        As `rows.packed_candidates`, and raises as it does. Where a block ends the weight is 1, the
        target the first label's token and `decoder_contrast_tokens` the second's; elsewhere the
        weight is 0.
        """
        read, positive, negative = self.tokens(vocab)
        share = candidate_length or rows.candidate_share(len(texts) or 1, target_length)
        row = rows.packed_candidates(
            *(vocab, texts, target_length, labels, item_ids),
            candidate_length=share - len(read),
            read=[read] * len(texts),
        )
        ends = _block_ends(row)
        row["decoder_loss_weights"] *= 0
        row["decoder_loss_weights"][ends] = 1
        row["decoder_target_tokens"][ends] = positive
        row["decoder_contrast_tokens"][ends] = negative
        return row


def with_labels(
    vocab: Vocabulary,
    candidates: Sequence[str],
    labels: Sequence[str],
    target_length: int,
    *,
    label_weight: float = 1.0,
) -> Row:
    """Lays out `[BOS] candidate [EOS] label` for every candidate, one block each.

    The label is tokenised by itself, so its tokens are the same after every candidate. The last one
    is predicted but never read, so with labels of one token the rows look as scoring's do. A
    candidate too long for its share of the row is cut, never its label.

    Args:
      labels: words for each; a candidate whose label is empty is left out. Where all are, the
        candidates stand there by themselves.
      label_weight: loss weight of the label's words.

    Returns:
      The decoder features of `rows.packed_candidates`, without labels.

    Raises:
      DataError: no candidates.
      ConfigError: the row is too short.
    """
    pairs = [(text, words) for text, words in zip(candidates, labels, strict=True) if words]
    texts = [text for text, _ in pairs] or list(candidates)
    endings = [vocab.encode_array(words) for _, words in pairs]
    longest = max(map(len, endings), default=1)
    share = target_length // max(len(texts), 1)
    if share < longest + 2:
        raise ConfigError(
            f"{len(texts)} candidates with outcomes of {longest} tokens do not fit the target "
            f"length {target_length}; raise it or lower the group size"
        )
    # All but the last token of a label are read, after the `[EOS]` of their candidate.
    read = [ids[:-1] for ids in endings]
    row = rows.packed_candidates(
        vocab, texts, target_length, candidate_length=share - longest + 1, read=read
    )
    row["decoder_loss_weights"] *= 0
    for end, ids in zip(_block_ends(row) + 1, endings, strict=bool(endings)):
        row["decoder_target_tokens"][end - len(ids) : end] = ids
        row["decoder_loss_weights"][end - len(ids) : end] = label_weight
    return row


def _block_ends(row: Row) -> np.ndarray:
    return np.flatnonzero(np.diff(row["decoder_block_ids"], append=0))
