"""The foundation: one language model of all text that may be used, for every job and study.

Of MovieLens-100k and Book-Crossing it reads the training part of the per-user split, with the
outcomes of candidates, the two towers' rows and the texts to write (which is how it learns to take
over what stands in the input); of films their attributes, plots, reviews and what critics agree on;
and human dialogues. Films are split by their titles, the same in all corpora, so that it reads no
plot, review or consensus of the films of their validation and test parts. Attributes of such films
it does read, where MovieLens has them: that is split by users, and its documents describe every
film. It reads no class of a review or a plot. `python -m benchmarks.foundation` makes it from
nothing; `tasks/foundation_answers.py` is its second stage.

    foundation             all of that, mixed at the rates of `mixture_rates`
    foundation_language    its language tasks alone, for the perplexity of each source
    foundation_books       the texts, and what readers thought of books; no rating of a film
"""

import importlib

from m6rec_jax.pipeline.registration import register_mixture
from tasks import movielens

_BEHAVIOUR = ("movielens_100k", "book_crossing_small")
_TEXTS = ("film_attributes", "film_consensus", "film_plots", "film_reviews", "chitchat")
for _module in ("book_crossing", *_TEXTS):
    importlib.import_module(f"tasks.{_module}")  # registers the tasks
_KINDS = ("infilling", "generation")
_OF_TEXTS = [f"{source}_{kind}" for source in _TEXTS for kind in _KINDS]
_OF_BEHAVIOUR = [f"{source}_{kind}" for source in _BEHAVIOUR for kind in _KINDS]
_OUTCOMES = [f"{source}_outcomes" for source in _BEHAVIOUR]
_RETRIEVAL = [f"{source}_retrieval" for source in _BEHAVIOUR]

LANGUAGE = register_mixture("foundation_language", [*_OF_BEHAVIOUR, *_OUTCOMES, *_OF_TEXTS])
ALL = [*_OF_BEHAVIOUR, *_OUTCOMES, *_RETRIEVAL, *movielens.WRITING, *_OF_TEXTS]
FOUNDATION = register_mixture("foundation", ALL)
BOOKS = register_mixture("foundation_books", [*_OF_TEXTS, "book_crossing_rated_outcomes"])
