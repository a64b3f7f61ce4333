"""What critics agree on about films, one sentence each, with the verdict as its class."""

from collections.abc import Mapping
from pathlib import Path

from tasks.films.texts import consensus_texts, write_texts


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    return write_texts(folder, consensus_texts(raw))
