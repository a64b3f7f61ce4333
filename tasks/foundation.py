"""The foundation: one language model of all text that may be used, for every job and study.

Of MovieLens-100k and Book-Crossing it reads the training rows of the per-user split, with the
labels of candidates, the two towers' rows and the texts to write (which is how it learns to take
over what stands in the input); of films their attributes, plots, reviews and what critics agree on;
and human dialogues. Films are split by their titles, the same in all corpora, so that it reads no
plot, review or consensus of the films of their validation and test rows. Attributes of such films
it does read, where MovieLens has them: that is split by users, and its documents describe every
film. It reads no class of a review or a plot.

A second stage reads on, and answers questions about texts in a word. They are others than those of
the study of tuning: the verdict of what critics agree on about a film, the genre of an overview,
and how a sentence sounds by a lexicon of words, sentences of reviews without the critic's verdict
among them. `python -m benchmarks.foundation [--answers]` makes both.

    foundation             all of the first stage, mixed at the rates of `mixture_rates`
    foundation_language    its language tasks alone, for the perplexity of each source
    foundation_books       the texts, and what readers thought of books; no rating of a film
    foundation_answers     what the foundation reads, overviews, and those questions
"""

from m6rec_jax.pipeline.registration import register_mixture
from tasks import book_crossing, movielens, texts

# Imported for the tasks that they register.
__all__ = ["book_crossing", "texts"]

_BEHAVIOUR = ("movielens_100k", "book_crossing_small")
_TEXTS = ("film_attributes", "film_consensus", "film_plots", "film_reviews", "chitchat")
_KINDS = ("infilling", "generation")
_OF_TEXTS = [f"{source}_{kind}" for source in _TEXTS for kind in _KINDS]
_OF_BEHAVIOUR = [f"{source}_{kind}" for source in _BEHAVIOUR for kind in _KINDS]
_OUTCOMES = [f"{source}_outcomes" for source in _BEHAVIOUR]
_RETRIEVAL = [f"{source}_retrieval" for source in _BEHAVIOUR]
_ALL = [*_OF_BEHAVIOUR, *_OUTCOMES, *_RETRIEVAL, *movielens.WRITING, *_OF_TEXTS]
_ANSWERS = [
    *(f"film_overviews_{kind}" for kind in _KINDS),
    "film_consensus_verdict_in_words",
    "film_overviews_genre_in_words",
    "film_tones_tone_in_words",
]

register_mixture("foundation_language", [*_OF_BEHAVIOUR, *_OUTCOMES, *_OF_TEXTS])
register_mixture("foundation", _ALL)
register_mixture("foundation_books", [*_OF_TEXTS, "book_crossing_rated_outcomes"])
register_mixture("foundation_answers", [*_ALL, *_ANSWERS])
