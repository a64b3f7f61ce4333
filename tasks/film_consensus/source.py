"""What critics agree on about films, one sentence each, with the verdict as its class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import CORPUS_FILE
from m6rec_jax.data.sources import PublicDataset, register_dataset
from tasks.films.texts import CONSENSUS_TABLE, VERDICTS, consensus_texts, write_film_corpus


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    texts, without = consensus_texts(sources)
    return write_film_corpus(
        folder,
        "film-consensus",
        texts,
        {"no consensus": without},
        label="verdict",
        classes=VERDICTS,
        question="What do the critics say?",
        description=f"what critics agree on about {len(texts):,} films",
        licence=CONSENSUS_TABLE.licence,
    )


DATASET = register_dataset(
    PublicDataset(
        name="film-consensus",
        description="what critics agree on about films",
        sources=(CONSENSUS_TABLE,),
        build=build,
        version=2,  # with verdicts
        spec_file=CORPUS_FILE,
    )
)
