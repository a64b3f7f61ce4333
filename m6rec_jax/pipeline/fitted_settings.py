"""Settings that follow from prepared data and their vocabulary; gin_configs/data/any uses them.

TASK_FEATURE_LENGTHS = @measured_lengths()
VOCAB_SIZE = @vocabulary_rows()
OPTION_WORDS = @outcome_words()
"""

from __future__ import annotations

import itertools
import math

import gin
import numpy as np

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline import locations, prepared_rows
from m6rec_jax.pipeline.locations import DEFAULT_SPLIT

# View -> columns of its rows with what the encoder reads, and the decoder.
_MEASURED = {
    "groups": ("history", "candidates"),
    "next_items": ("history", "items"),
    "documents": ("source", "target"),
}
_HISTORIES_PERCENTILE, _TEXTS_PERCENTILE = 90, 99
_LEAST, _MOST, _MULTIPLE = 32, 512, 8
_ROWS = 400  # of the training split of each view


@gin.configurable
def measured_lengths(dataset: str = gin.REQUIRED, split: str = DEFAULT_SPLIT) -> dict[str, int]:
    """`{"inputs": S, "targets": T}` for nine histories in ten and 99 in a hundred of their targets.

    Multiples of 8, from 32 to 512.

    Raises:
      DataError: the data are not prepared, or are no users, items and events.
      ConfigError: there is no vocabulary.
    """
    prepared = locations.prepared(dataset, split)
    if not has_histories(prepared):
        raise DataError(
            f"{prepared.folder} has neither of the views groups and next_items, whose histories "
            "say how long rows are: set TASK_FEATURE_LENGTHS"
        )
    vocabulary = locations.load_vocabulary(dataset, split)
    histories: list[int] = []
    needed = [0]

    def tokens(text: str) -> int:
        return len(vocabulary.encode_array(text))

    for view in prepared.manifest.views:
        if view not in _MEASURED:
            continue
        read, judged = _MEASURED[view]
        texts: list[int] = []
        most = 1
        all_rows = prepared_rows.read_rows(prepared, view, "train", (read, judged))
        for row in itertools.islice(all_rows, _ROWS):
            source, targets = list(row[read]), row[judged]
            if view == "documents":  # masked spans may be in either
                source, targets = [*source, targets] if source else [], [targets]
            texts += [2 + tokens(text) for text in targets]  # [BOS], [EOS]
            most = max(most, len(targets))
            if source:
                histories.append(2 + sum(map(tokens, source)))
        share = float(np.percentile(texts, _TEXTS_PERCENTILE))
        if view == "groups":  # read with their outcomes in pretraining
            words = [outcome.text for outcome in prepared.template().outcomes]
            words += prepared.outcome_words() or ()
            share += max(map(tokens, words), default=1) - 1
        # Texts of a row have equal shares of it.
        needed.append(most * math.ceil(share))
    return {
        "inputs": _length(float(np.percentile(histories, _HISTORIES_PERCENTILE))),
        "targets": _length(max(needed)),
    }


def _length(needed: float) -> int:
    return min(max(math.ceil(needed / _MULTIPLE) * _MULTIPLE, _LEAST), _MOST)


@gin.configurable
def vocabulary_rows(dataset: str = gin.REQUIRED, split: str = DEFAULT_SPLIT) -> int:
    """Rows of an embedding for a vocabulary; raises ConfigError where there is none."""
    return locations.load_vocabulary(dataset, split).size


@gin.configurable
def outcome_words(dataset: str = gin.REQUIRED, split: str = DEFAULT_SPLIT) -> tuple[str, ...]:
    """Words for negative and positive, where there are some that begin differently: options start
    from them. Raises DataError for data that are not prepared, ConfigError without a vocabulary.
    """
    words = locations.prepared(dataset, split).outcome_words() or ()
    vocabulary = locations.load_vocabulary(dataset, split)
    first = {tuple(vocabulary.encode(word)[:1]) for word in words}
    return words if len(first) == len(words) else ()


def has_histories(prepared: Prepared) -> bool:
    """Whether lengths can be measured: users, items and events, not texts."""
    return not {"groups", "next_items"}.isdisjoint(prepared.manifest.views)
