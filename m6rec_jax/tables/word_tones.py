"""A lexicon of words that sound good or bad, as a corpus of lists of words.

The lexicon of VADER (Hutto and Gilbert, ICWSM 2014) has a rating of each of its words, the mean of
ten people's from -4 to 4. A list of words is good where its ratings sum to more than 0. So a small
model that has read little still learns what a large one knows from all it has read: the tone of
words.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.errors import DataError
from m6rec_jax.tables.corpora import CORPUS_FILE, CorpusSpec, Text, write_corpus
from m6rec_jax.tables.routes import Member, PackageRoute
from m6rec_jax.tables.sources import PublicDataset, Source

_FILE = "vader_lexicon.txt"
LEXICON = Source(
    name="word-tones-lexicon",
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
            (
                Member(
                    f"vaderSentiment/{_FILE}",
                    _FILE,
                    "1ec9c6e9ee19aade328f8beb393a6afa71a5bb3acf7d3cc22d4ef568df374bf5",
                ),
            ),
        ),
    ),
)
CLASSES = ("bad", "good")
_WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")
# Each word stands in so many lists, of up to so many words.
_PASSES, _LONGEST = 10, 8
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
            left_out["signs"] += 1
            continue
        if entry in ratings:
            left_out["repeated"] += 1
        ratings[entry] = rating
    return ratings, left_out


def drawn_lists(ratings: Mapping[str, float], seed: int = 0) -> list[tuple[str, ...]]:
    """Lists of words: all of them in another order in each pass, cut at random.

    Args:
      ratings: of each word.
      seed: of the draw.
    """
    draw = random.Random(seed)
    lists = []
    for _ in range(_PASSES):
        words = sorted(ratings)
        draw.shuffle(words)
        while words:
            length = draw.randint(1, _LONGEST)
            lists.append(tuple(words[:length]))
            del words[:length]
    return lists


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    ratings, left_out = read_lexicon(sources[LEXICON.name] / _FILE)
    texts = []
    for number, words in enumerate(drawn_lists(ratings)):
        rating = sum(ratings[word] for word in words)
        if abs(rating) < _LEAST:
            left_out["lists without a tone"] += 1
            continue
        identifier = f"w{number}"
        texts.append(Text(identifier, identifier, "", (" ".join(words),), int(rating > 0)))
    spec = CorpusSpec(
        name="word-tones",
        id="text_id",
        group="list",
        text="text",
        label="tone",
        classes=CLASSES,
        question="What do the words say?",
        description=f"{len(texts):,} lists of {len(ratings):,} words that sound good or bad",
        licence=LEXICON.licence,
        provenance={"left_out": dict(left_out)},
    )
    write_corpus(folder, spec, texts)
    counts = Counter(CLASSES[text.label] for text in texts if text.label is not None)
    missing = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
    return (
        f"word-tones: {len(texts):,} lists of {len(ratings):,} words, {counts['good']:,} good, "
        f"{counts['bad']:,} bad; left out: {missing or 'none'}"
    )


DATASET = PublicDataset(
    name="word-tones",
    description="lists of words that sound good or bad",
    sources=(LEXICON,),
    build=build,
    spec_file=CORPUS_FILE,
)
