"""What a model says of a history and a text: one plain forward pass, with nothing of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special

from m6rec_jax.model import M6Rec
from m6rec_jax.text import rows
from m6rec_jax.text.layout import pad_batch
from m6rec_jax.text.vocabulary import Vocabulary

Tiny = tuple[M6Rec, Any, Vocabulary]


def batch_of_one(row: Mapping[str, Any], source: int, target: int) -> dict[str, np.ndarray]:
    """A batch of one row, of task 0 if it names none, padded to these lengths."""
    row = {"task_ids": np.array([0])} | dict(row)
    row = {name: x for name, x in row.items() if not name.startswith("num_")}
    sizes = {"encoder": source, "decoder": target}
    return dict(pad_batch([row], {name: sizes.get(name[:7], 1) for name in row}))


def _forward(model: M6Rec, variables: Any, features: Any) -> Any:
    outputs: Any = model.apply(variables, features)
    return model.apply(variables, outputs.hidden, method=model.token_logits)


_FORWARD = jax.jit(_forward, static_argnums=0)


def log_probabilities(
    tiny: Tiny,
    history: Sequence[str],
    read: Sequence[int],
    lengths: tuple[int, int],
    task_id: int = 0,
) -> np.ndarray:
    """Log p of every token after [BOS] and after each of those read, `[target, vocabulary]`."""
    model, variables, vocabulary = tiny
    row = rows.source_row(vocabulary, history, lengths[0]) | {"task_ids": np.array([task_id])}
    inputs = np.array([vocabulary.bos_id, *read])
    row |= {"decoder_input_tokens": inputs, "decoder_block_ids": np.ones_like(inputs)}
    logits = np.asarray(_FORWARD(model, variables, batch_of_one(row, *lengths)), np.float64)[0]
    return np.asarray(scipy.special.log_softmax(logits, axis=-1))


def text_log_probability(
    tiny: Tiny, history: Sequence[str], text: str, lengths: tuple[int, int], before: str = ""
) -> float:
    """Of a text and its [EOS], after words that are cut into tokens by themselves."""
    vocabulary = tiny[2]
    given = vocabulary.encode(before)
    tokens = [*given, *vocabulary.encode(text), vocabulary.eos_id]
    log_p = log_probabilities(tiny, history, tokens[:-1], lengths)
    return float(sum(log_p[place, tokens[place]] for place in range(len(given), len(tokens))))
