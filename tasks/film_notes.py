"""What is known and said of films: attributes, what critics agree on, overviews, tones.

    m6rec data fetch film-attributes
    m6rec data prepare film-attributes

and so film-consensus, film-overviews and film-tones.

Tasks: film_attributes_infilling, _generation, _pretrain, and so of the others;
film_consensus_verdict: did most critics like the film?; film_overviews_genre; film_tones_tone: what
a lexicon says of a sentence's words, which a small model has not read enough to know; and each of
the three with `_in_words`, where the answer is written.
"""

from m6rec_jax.pipeline.text_registration import register_text_tasks
from m6rec_jax.tables.film_plots import CLASSES
from m6rec_jax.tables.film_tones import CLASSES as TONES

ATTRIBUTES = register_text_tasks("film_attributes", corpus="film-attributes")
CONSENSUS = register_text_tasks(
    "film_consensus", corpus="film-consensus", label_task="verdict", class_words=("bad", "good")
)
OVERVIEWS = register_text_tasks(
    "film_overviews", corpus="film-overviews", label_task="genre", class_words=CLASSES
)
SENTENCES = register_text_tasks(
    "film_tones", corpus="film-tones", label_task="tone", class_words=TONES, every_word_counts=True
)
