"""T5's vocabulary of 32,000 pieces, which public T5, Flan-T5 and T5 1.1 weights come with.

In gin, `vocabulary_file.shared = 't5-vocabulary'` names it to every task.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.store.prepared import VOCABULARY


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Copies the file."""
    (pieces,) = raw["t5-pieces"].glob("*.model")
    shutil.copyfile(pieces, folder / VOCABULARY)
    return {}
