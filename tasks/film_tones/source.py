"""Sentences about films that sound good or bad by their words, as a corpus with two classes.

The lexicon of VADER (Hutto and Gilbert, ICWSM 2014) has a rating of each of its words, the mean of
ten people's from -4 to 4. A critic's sentence sounds good where the ratings of its words sum to
more than 0; what the critic's verdict is does not count. So a small model that has read little
still learns what a large one knows from all it has read: the tone of words, of those that critics
use and in their usual surroundings.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import CORPUS_FILE
from m6rec_jax.data.sources import PackageRoute, PublicDataset, Source, register_dataset
from m6rec_jax.errors import DataError
from tasks.films.texts import (
    CONSENSUS_TABLE,
    REVIEW_SNIPPETS,
    consensus_texts,
    review_texts,
    write_film_corpus,
)

_FILE = "vader_lexicon.txt"
_LEXICON_SHA256 = "1ec9c6e9ee19aade328f8beb393a6afa71a5bb3acf7d3cc22d4ef568df374bf5"
LEXICON = Source(
    name="tone-lexicon",
    title="Ratings of words (VADER lexicon)",
    licence="MIT",
    terms=(
        "Keep its licence with it. Acknowledge the use: Hutto and Gilbert, 'VADER: A Parsimonious "
        "Rule-based Model for Sentiment Analysis of Social Media Text', ICWSM 2014."
    ),
    routes=(
        PackageRoute(
            "vaderSentiment",
            "3.3.2",
            "3bf1d243b98b1afad575b9f22bc2cb1e212b94ff89ca74f8a23a588d024ea311",
            {f"vaderSentiment/{_FILE}": _LEXICON_SHA256},
        ),
    ),
)
CLASSES = ("bad", "good")
_WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")
# Sums nearer to 0 have no tone.
_LEAST = 0.5


def read_lexicon(path: Path) -> tuple[dict[str, float], Counter[str]]:
    """(rating of every word, how many entries are left out and why).

    Signs, emoticons and what holds digits are no words; of a word's entries the last one counts.

    Raises:
      DataError: the file is not this lexicon.
    """
    ratings: dict[str, float] = {}
    left_out: Counter[str] = Counter()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        entry, _, rest = line.partition("\t")
        try:
            rating = float(rest.partition("\t")[0])
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {line[:40]!r} is no word and its rating"
            ) from error
        if not _WORD.fullmatch(entry):
            left_out["signs that are no words"] += 1
            continue
        if entry in ratings:
            left_out["words repeated"] += 1
        ratings[entry] = rating
    return ratings, left_out


def rating_of(text: str, ratings: Mapping[str, float]) -> float:
    """The sum of the ratings of a text's words; words outside the lexicon add nothing."""
    return sum(ratings.get(word, 0.0) for word in _WORD.findall(text.lower()))


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    ratings, left_out = read_lexicon(sources[LEXICON.name] / _FILE)
    snippets, of_snippets = review_texts(sources)
    sentences, without = consensus_texts(sources)
    left_out.update({f"snippets {why}": count for why, count in of_snippets.items()})
    left_out.update({"films without consensus": without} if without else {})
    texts = []
    for sentence in [*snippets, *sentences]:
        rating = rating_of(sentence.parts[0], ratings)
        if abs(rating) < _LEAST:
            left_out["sentences without a tone"] += 1
        else:
            texts.append(dataclasses.replace(sentence, about="", label=int(rating > 0)))
    return write_film_corpus(
        folder,
        "film-tones",
        texts,
        left_out,
        about=None,
        label="tone",
        classes=CLASSES,
        question="How does it sound?",
        description=f"{len(texts):,} sentences of critics whose words sound good or bad",
        licence=", ".join(source.licence for source in DATASET.sources),
    )


DATASET = register_dataset(
    PublicDataset(
        name="film-tones",
        description="critics' sentences whose words sound good or bad",
        sources=(LEXICON, REVIEW_SNIPPETS, CONSENSUS_TABLE),
        build=build,
        spec_file=CORPUS_FILE,
    )
)
