"""Critics' sentences whose words sound good or bad, with the tone as their class.

Whatever the critic thought of the film: the sum of the words' ratings in VADER's lexicon decides.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from tasks.films.texts import consensus_texts, review_texts, write_texts

_WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")
# Sums nearer to 0 have no tone.
_LEAST = 0.5


def read_lexicon(path: Path) -> dict[str, float]:
    """Rating of every word, by its last entry; signs and emoticons are no words."""
    entries = (line.split("\t")[:2] for line in path.read_text(encoding="utf-8").splitlines())
    return {entry: float(rating) for entry, rating in entries if _WORD.fullmatch(entry)}


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    ratings = read_lexicon(raw["tone-lexicon"] / "vader_lexicon.txt")
    sentences = [*review_texts(raw), *consensus_texts(raw)]
    texts = []
    for sentence in sentences:
        words = _WORD.findall(sentence.turns[0].lower())
        rating = sum(ratings.get(word, 0.0) for word in words)
        if abs(rating) >= _LEAST:
            texts.append(dataclasses.replace(sentence, about="", label=int(rating > 0)))
    counts = write_texts(folder, texts)
    return {"sentences without a tone left out": len(sentences) - len(texts), **counts}
