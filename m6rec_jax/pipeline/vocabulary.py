"""`m6rec_jax.text`'s vocabulary in the shape that seqio asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.text.vocabulary import Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """Adapts a text `Vocabulary`, which is loaded when it is first used.

    Registering a task must not read files, so the adapter takes a function, which is called at
    most once. Two adapters are equal when their vocabularies are: seqio compares them when it
    mixes tasks.
    """

    def __init__(self, load: Callable[[], Vocabulary]) -> None:
        super().__init__(extra_ids=0)
        self._load = load

    @functools.cached_property
    def text(self) -> Vocabulary:
        """The vocabulary of `m6rec_jax.text`."""
        return self._load()

    @property
    def _base_vocab_size(self) -> int:
        return self.text.size

    @property
    def pad_id(self) -> int:
        return self.text.pad_id

    @property
    def bos_id(self) -> int:
        return self.text.bos_id

    @property
    def eos_id(self) -> int:
        return self.text.eos_id

    @property
    def unk_id(self) -> int:
        return self.text.unk_id

    def _encode(self, s: str) -> Sequence[int]:
        return list(self.text.encode(s))

    def _decode(self, ids: Iterable[int]) -> str:
        return self.text.decode([int(i) for i in ids])

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            # TensorFlow hands over bytes in graphs, an array of them when run eagerly.
            content: bytes = text if isinstance(text, bytes) else text.item()
            return np.asarray(self._encode(content.decode("utf-8")), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(array: np.ndarray) -> np.ndarray:
            flat = array.reshape(-1, array.shape[-1])
            texts = [self._decode(row).encode("utf-8") for row in flat]
            return np.asarray(texts, object).reshape(array.shape[:-1])

        text = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        text.set_shape(ids.shape[:-1])
        return text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SeqioVocabulary):
            return False
        return self._load is other._load or self.text == other.text

    def __hash__(self) -> int:
        return hash(SeqioVocabulary)  # equality may depend on files, which must not be read here
