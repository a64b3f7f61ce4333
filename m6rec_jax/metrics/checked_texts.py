"""Lists of texts as the text metrics take them: not empty, of one length, texts throughout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m6rec_jax.errors import DataError


def checked(texts: Sequence[str], metric: str, name: str = "texts") -> Sequence[str]:
    """The texts, unchanged.

    Raises:
      DataError: one text instead of a list, nothing at all, or an entry that is not a text.
    """
    if isinstance(texts, str):
        # A str is a sequence of texts of one letter: without this, metrics would come out.
        raise DataError(f"{metric}: {name} must be a list of texts, got one text")
    if len(texts) == 0:
        raise DataError(f"{metric}: there are no {name}; is the split empty?")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{metric}: {name} must be texts, but the one at position {place} is a "
                f"{type(text).__name__}"
            )
    return texts


def same_length(texts: Sequence[str], others: Sequence[Any], metric: str, name: str) -> None:
    """Checks that there is one of `others` for every text.

    Raises:
      DataError: their numbers differ.
    """
    if len(texts) != len(others):
        raise DataError(f"{metric}: {len(texts)} texts, but {len(others)} {name}")
