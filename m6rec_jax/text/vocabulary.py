"""Text to token ids and back, with control ids that no text can produce.

The ids are laid out as in T5, so that public T5 weights fit row by row:

    [0, n)            the n tokens of the SentencePiece file: <pad> 0, </s> 1, <unk> 2, then text
    n .. n + 99       the sentinels, the first one highest: sentinel k is n + 99 - k
    n + 100 ..        our own control ids: [BOS'], [EOS'], USER:, SYSTEM:, blank
    .. size           spare rows up to a multiple of 128

With T5's 32,000 tokens sentinel k is 32099 - k and the size is 32,128. A file that brings its own
`<extra_id_k>` (mT5's 250,100, size 250,112) keeps those as its sentinels.

Text is data, whoever wrote it: "</s>", "<extra_id_0>" or "[EOS]" in a title is spelled out in
ordinary tokens. Control ids are not text, so they are only ever placed by `m6rec_jax.text.rows`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from m6rec_jax.errors import ConfigError, DataError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

_CONTROL_NAMES = ("[BOS']", "[EOS']", "USER:", "SYSTEM:", "___")
_NUM_SENTINELS = 100
_LONG = 1_000  # characters of a text that is not remembered
_ROWS_MULTIPLE = 128  # keeps the vocabulary axis divisible over devices and TPU lanes
# Encoded texts that are remembered (0.3 KiB each): titles and behaviours repeat.
_CACHE_SIZE = 65_536
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
BUILT_IN_SENTINEL = re.compile("\u2581?<extra_id_([0-9]+)>")

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


class Vocabulary:
    """A SentencePiece model with control ids beside it. Thread-safe.

    Args:
      model_file: a SentencePiece file made by `train_vocabulary`, or T5's spiece.model.

    Attributes:
      model_file: its absolute path.
      file_content: what it held when it was read.
      num_pieces: how many tokens the file holds.
      size: rows of the embedding table, a multiple of 128; every id is below it.
      pad_id, eos_id, unk_id: 0, 1 and 2, as in T5.
      bos_id: [BOS], what every target starts with: the pad id, as in T5.
      source_bos_id, source_eos_id: [BOS'] and [EOS'] around the user's text (paper, section 1).
      user_id, system_id: open a turn of a dialogue.
      blank_id: the "___" that the model is asked to fill in.
      sentinel_ids: the id of sentinel k at place k; they mark masked spans.
      special_ids: ([BOS'], [EOS'], [BOS], [EOS]): their embeddings can be tuned along with prompts,
        where `PromptConfig.special_token_ids` names them.
      fingerprint: SHA-256 in hex over the model file and the layout; equal fingerprints mean that
        every id means the same.

    Raises:
      ConfigError: the file is missing or no SentencePiece model, or its ids are not T5's (pad 0,
        eos 1, unk 2).
    """

    def __init__(self, model_file: str | os.PathLike[str]) -> None:
        self.model_file = str(Path(model_file).resolve())
        self.pad_id, self.eos_id, self.unk_id, self.bos_id = PAD_ID, EOS_ID, UNK_ID, PAD_ID
        proto, self.file_content = _read_model(self.model_file)
        self.num_pieces = len(proto.pieces)
        matches = [BUILT_IN_SENTINEL.fullmatch(piece.piece) for piece in proto.pieces]
        built_in = {int(match[1]): id_ for id_, match in enumerate(matches) if match}
        first_free = self.num_pieces if built_in else self.num_pieces + _NUM_SENTINELS
        added = range(first_free - 1, self.num_pieces - 1, -1)
        self.sentinel_ids = tuple(built_in[k] for k in sorted(built_in)) or tuple(added)
        control_ids = range(first_free, first_free + len(_CONTROL_NAMES))
        self.source_bos_id, self.source_eos_id, self.user_id = control_ids[:3]
        self.system_id, self.blank_id = control_ids[3:]
        self.size = -(-control_ids.stop // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
        self.special_ids = (self.source_bos_id, self.source_eos_id, self.bos_id, self.eos_id)
        layout = [self.size, *self.special_ids, *control_ids, *self.sentinel_ids]
        hashed = self.file_content + json.dumps(layout).encode()
        self.fingerprint = hashlib.sha256(hashed).hexdigest()

        self._no_text = _neutralise(proto)
        self._names = dict(zip(control_ids, _CONTROL_NAMES, strict=True))
        self._names |= {id_: f"<extra_id_{k}>" for k, id_ in enumerate(self.sentinel_ids)}
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.load_from_serialized_proto(proto.SerializeToString())
        # Per instance, not on the methods: the cache must die with the vocabulary.
        self._encode_cached = functools.lru_cache(maxsize=_CACHE_SIZE)(self._encode)

    @functools.cached_property
    def text_ids(self) -> np.ndarray:
        """Ids that texts are made of, int32, ascending: what generation may produce beside [EOS].

        No control ids, no sentinels, no spare rows, and not the unknown id.
        """
        ids = set(range(self.num_pieces)) - self._no_text
        return np.array(sorted(ids - {self.pad_id, self.eos_id, self.unk_id}), np.int32)

    @property
    def text_model(self) -> bytes:
        """A SentencePiece file that encodes texts as `encode` does: no text gives a control id."""
        return self._processor.serialized_model_proto()

    def frequent_ids(self, most: int) -> np.ndarray:
        """Ids of the most frequent tokens of text by the model file's scores, int32, most frequent
        first; no single bytes.
        """
        ids = [id_ for id_ in self.text_ids.tolist() if not self._processor.is_byte(id_)]
        ids.sort(key=self._processor.get_score, reverse=True)
        return np.array(ids[:most], np.int32)

    def encode(self, text: str) -> list[int]:
        """Encodes any text; see `encode_array`."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """Encodes any text to int32 [num_tokens], without ever giving a control id.

        Lone surrogates, which are not valid Unicode, become U+FFFD. Then the normalisation of the
        model file applies; T5's and our own is NFKC, where every run of whitespace (line breaks and
        U+FFFD too) counts as one space. What no token covers becomes bytes if the model has them,
        else the unknown id.

        The array is read-only: it is shared with the cache.
        """
        # Long texts do not come again, and would fill the memory.
        return self._encode(text) if len(text) > _LONG else self._encode_cached(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Turns ids back into text, leaving out every control id, sentinel and spare row.

        The unknown id gives " ⁇ ", bytes that are no UTF-8 give U+FFFD. Raises DataError for an id
        that is negative or not below `size`.
        """
        kept = []
        for id_ in map(int, ids):
            if not 0 <= id_ < self.size:
                raise DataError(f"token id {id_} is outside the vocabulary's [0, {self.size})")
            if id_ < self.num_pieces and id_ not in self._no_text:
                kept.append(id_)
        return self._processor.decode(kept)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Names every id, control ids too ("[BOS']", "<extra_id_0>"): for reports and debugging."""
        return [
            self._processor.id_to_piece(int(id_))
            if id_ < self.num_pieces and id_ not in self._names
            else self._names.get(int(id_), f"<spare_{id_}>")
            for id_ in ids
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Vocabulary({self.model_file!r}, size={self.size})"

    def _encode(self, text: str) -> np.ndarray:
        ids = np.array(self._processor.encode(_LONE_SURROGATE.sub("\ufffd", text)), np.int32)
        ids.flags.writeable = False
        return ids


def _read_model(path: str) -> tuple[Any, bytes]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the vocabulary {path}: {error.strerror}; "
            "train one (m6rec vocab train) or name T5's spiece.model"
        ) from error
    proto = sentencepiece_model_pb2.ModelProto()
    processor = sentencepiece.SentencePieceProcessor()
    try:
        proto.ParseFromString(content)
        processor.load_from_serialized_proto(content)
    except Exception as error:  # protobuf and pybind each raise types of their own
        raise ConfigError(f"{path} is not a SentencePiece model: {error}") from error
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD_ID, EOS_ID, UNK_ID):
        raise ConfigError(
            f"{path} has pad, eos and unk at {ids}; the model needs them at "
            f"{(PAD_ID, EOS_ID, UNK_ID)} as in T5 (m6rec vocab train makes such a file)"
        )
    return proto, content


def _neutralise(proto: Any) -> frozenset[int]:
    """Makes every special token unmatchable by text, in place; returns their ids.

    SentencePiece never matches CONTROL pieces in text but prefers USER_DEFINED ones to any other
    cut, so those (and sentinels of whatever type) become CONTROL.
    """
    for piece in proto.pieces:
        if piece.type == _Piece.USER_DEFINED or BUILT_IN_SENTINEL.fullmatch(piece.piece):
            piece.type = _Piece.CONTROL
    special = (_Piece.CONTROL, _Piece.UNUSED)
    return frozenset(id_ for id_, piece in enumerate(proto.pieces) if piece.type in special)
