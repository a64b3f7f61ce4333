"""Snippets of film reviews as a corpus with two classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import CORPUS_FILE
from m6rec_jax.data.sources import PublicDataset, register_dataset
from tasks.films.texts import REVIEW_SNIPPETS, VERDICTS, review_texts, write_film_corpus


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    texts, left_out = review_texts(sources)
    return write_film_corpus(
        folder,
        "film-reviews",
        texts,
        left_out,
        label="verdict",
        classes=VERDICTS,
        question="What does the critic say?",
        description=f"{len(texts):,} snippets of film reviews, fresh or rotten",
        licence=REVIEW_SNIPPETS.licence,
    )


DATASET = register_dataset(
    PublicDataset(
        name="film-reviews",
        description="snippets of film reviews, fresh or rotten",
        sources=(REVIEW_SNIPPETS,),
        build=build,
        spec_file=CORPUS_FILE,
    )
)
