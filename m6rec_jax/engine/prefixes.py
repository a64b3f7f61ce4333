"""How texts must begin: tokens that decoding is forced to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m6rec_jax.engine.decoding import FREE
from m6rec_jax.engine.title_trie import TitleTrie
from m6rec_jax.errors import DataError
from m6rec_jax.text.vocabulary import Vocabulary


class Beginnings(NamedTuple):
    """The given tokens of each request.

    Attributes:
      forced: int32 `[requests, length]`, then `FREE`.
      num_before: int32 `[requests]`, how many of them stand before a title of the trie.
    """

    forced: np.ndarray
    num_before: np.ndarray


def beginnings(
    vocabulary: Vocabulary,
    number: int,
    length: int,
    prefixes: Sequence[str] | None = None,
    trie: TitleTrie | None = None,
    lead_ins: Sequence[str] | None = None,
) -> Beginnings:
    """Cuts prefixes into tokens, each by itself.

    Args:
      vocabulary: the model's.
      number: of requests.
      length: tokens that a text has room for, `[EOS]` included.
      prefixes: how texts begin; None: anyhow.
      trie: what titles the prefixes must begin; None: texts may begin in any way.
      lead_ins: what stands before each title, and is no part of it; None: nothing.

    Raises:
      DataError: another number of them than of requests, no room for anything more, or a prefix
        that no title has.
    """
    prefixes = [""] * number if prefixes is None else prefixes
    lead_ins = [""] * number if lead_ins is None else lead_ins
    for name, texts in (("prefixes", prefixes), ("lead-ins", lead_ins)):
        if len(texts) != number:
            raise DataError(f"{len(texts)} {name} for {number} histories")
    forced = np.full((number, length), FREE, np.int32)
    num_before = np.zeros(number, np.int32)
    for request in range(number):
        before, own = vocabulary.encode(lead_ins[request]), vocabulary.encode(prefixes[request])
        if trie is not None and len(before) + trie.length > length:
            raise DataError(
                f"lead-in {request} has {len(before)} tokens and leaves no room in {length} for "
                f"the longest title, of {trie.length}: {lead_ins[request]!r}"
            )
        if len(before) + len(own) >= length:
            raise DataError(
                f"prefix {request} has {len(own)} tokens and leaves no room in "
                f"{length - len(before)}: {prefixes[request]!r}"
            )
        if trie is not None and not trie.has_prefix(own):
            raise DataError(f"no title begins as prefix {request} does: {prefixes[request]!r}")
        tokens = [*before, *own]
        forced[request, : len(tokens)] = tokens
        num_before[request] = len(before)
    return Beginnings(forced, num_before)
