"""Snippets of film reviews as a corpus with two classes."""

from collections.abc import Mapping
from pathlib import Path

from tasks.films.texts import review_texts, write_texts


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    return write_texts(folder, review_texts(raw))
