"""Sentences of which some tokens count: what zero-shot scoring takes the likelihood of.

The paper scores a candidate by the mean log probability of its sentence's tokens given the user's
text (section 2). Which tokens count is a choice: those of the item ask how plausible the item is,
those of "liked" after it how plausible it is that the user likes it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.layout import Row, decoder_features
from m6rec_jax.text.rows import candidate_share, check_room
from m6rec_jax.text.vocabulary import Vocabulary

PARTS = ("before", "candidate", "after", "end")
_FIELD = re.compile(r"\{(\w*)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class CountedSentence:
    """A sentence about a candidate, and which of its tokens count. Make it with `parse`.

    Attributes:
      before, after: the words around the candidate's text.
      as_item: that text is the item's own, as in the catalogue, not the candidate with statistics.
      counted: which of `PARTS` count; 'end' is `[EOS]`.
    """

    before: str
    after: str
    as_item: bool
    counted: frozenset[str]

    @classmethod
    def parse(cls, sentence: str, counted: Collection[str]) -> CountedSentence:
        """Reads a sentence such as "{item}. liked.", with one field, `{item}` or `{candidate}`.

        Raises:
          ConfigError: no field or several, an unknown one, or parts that do not exist.
        """
        fields = _FIELD.findall(sentence)
        if len(fields) != 1 or fields[0] not in ("item", "candidate"):
            raise ConfigError(
                f"the sentence {sentence!r} needs exactly one field, {{item}} or {{candidate}}"
            )
        before, after = _FIELD.sub("{}", sentence).split("{}")
        if isinstance(counted, str) or not counted or not set(counted) <= set(PARTS):
            raise ConfigError(
                f"counted = {counted!r} must name some of {', '.join(PARTS)}, as in ('candidate',)"
            )
        for name, words in (("before", before), ("after", after)):
            if name in counted and not words.strip():
                raise ConfigError(f"counted names {name!r}, but {sentence!r} has no words there")
        return cls(before, after, fields[0] == "item", frozenset(counted))

    def render(self, text: str) -> str:
        """The sentence about a candidate."""
        return f"{self.before}{text}{self.after}"

    def tokens(self, vocab: Vocabulary, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of the sentence, and the part of `PARTS` that each belongs to, `[n]` both.

        The sentence is encoded as a whole; a token that reaches from one part into the next belongs
        to the later one.
        """
        ids, places = vocab.encode_with_places(self.render(text))
        # A lone surrogate is read as U+FFFD, which takes as many bytes.
        start = len(self.before.encode("utf-8", "surrogatepass"))
        end = start + len(text.encode("utf-8", "surrogatepass"))
        return ids, np.searchsorted([start, end], places, side="right")

    def num_tokens(self, vocab: Vocabulary, text: str) -> int:
        """How many tokens of a row the sentence takes."""
        return len(vocab.encode_array(self.render(text))) + 2

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
        """Packs the sentences about candidates into one decoder row, one block each.

        A sentence too long for its share of the row loses the end of the candidate's text, never
        the words around it.

        Args:
          vocab: the vocabulary.
          texts: of the candidates.
          target_length: the most tokens the row may have.
          labels, item_ids, candidate_length: as in `rows.packed_candidates`.

        Returns:
          What `rows.packed_candidates` returns, with weight 1 at the tokens that count and 0
          elsewhere.

        Raises:
          DataError: no texts, or a sentence without a token that counts.
          ConfigError: the row is too short for the words around the candidates.
        """
        if not texts:
            raise DataError("a row needs at least one candidate")
        share = candidate_length or candidate_share(len(texts), target_length)
        counts = np.array([part in self.counted for part in PARTS], np.float32)
        kept: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        num_truncated = 0
        for text in texts:
            ids, parts = self.tokens(vocab, text)
            excess = len(ids) - (share - 2)
            if excess > 0:
                of_candidate = np.flatnonzero(parts == PARTS.index("candidate"))
                if len(of_candidate) < excess + 1:
                    raise ConfigError(
                        f"{len(texts)} sentences {self.render('...')!r} do not fit the target "
                        f"length {target_length} with a word of each candidate; raise it"
                    )
                ids, parts = (np.delete(values, of_candidate[-excess:]) for values in (ids, parts))
                num_truncated += 1
            counted = np.concatenate([counts[parts], counts[-1:]])
            if not counted.any():
                raise DataError(f"nothing counts in the sentence {self.render(text)!r}")
            kept.append(ids)
            # Where the input is [EOS] nothing is predicted.
            weights += [counted, np.zeros(1, np.float32)]
        row, ends = decoder_features(vocab.special_ids, kept)
        check_room(row, len(texts), target_length)
        row["decoder_loss_weights"] = np.concatenate(weights)
        for name, values in (("decoder_labels", labels), ("decoder_item_ids", item_ids)):
            if values is not None:
                row[name][ends] = values
        return row | {"num_truncated": np.array([num_truncated], np.int32)}

    def describe(self) -> Mapping[str, Any]:
        """For JSON: what an answer depends on."""
        said = self.render("{item}" if self.as_item else "{candidate}")
        return {"sentence": said, "counted": sorted(self.counted)}
