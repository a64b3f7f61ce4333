"""`m6rec_jax.text`'s vocabulary in the shape that seqio asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import seqio
import tensorflow as tf

from m6rec_jax.text.vocabulary import Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """Adapts a text `Vocabulary`, which is loaded when it is used.

    Registering a task must not read files, so the adapter takes a function, such as
    `locations.load_vocabulary`: it knows whether the file has changed. Whoever reads rows asks for
    `text` once, when the data set is built. Two adapters are equal when their vocabularies are:
    seqio compares them when it mixes tasks.
    """

    pad_id = property(lambda self: self.text.pad_id)
    bos_id = property(lambda self: self.text.bos_id)
    eos_id = property(lambda self: self.text.eos_id)
    unk_id = property(lambda self: self.text.unk_id)
    _base_vocab_size = property(lambda self: self.text.size)

    def __init__(self, load: Callable[[], Vocabulary]) -> None:
        super().__init__(extra_ids=0)
        self._load = load

    @property
    def text(self) -> Vocabulary:
        """The vocabulary of `m6rec_jax.text`."""
        return self._load()

    def _encode(self, s: str) -> Sequence[int]:
        return list(self.text.encode(s))

    def _decode(self, ids: Iterable[int]) -> str:
        return self.text.decode([int(i) for i in ids])

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError  # rows are made by `row_layout`

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SeqioVocabulary):
            return False
        return self._load is other._load or self.text == other.text

    def __hash__(self) -> int:
        return hash(SeqioVocabulary)  # equality may depend on files, which must not be read here
