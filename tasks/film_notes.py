"""Film attributes as text, what critics agree on, overviews: language modelling, what words mean.

    m6rec data fetch film-attributes
    m6rec data prepare film-attributes

and so film-consensus and film-overviews.

Tasks: film_attributes_infilling, _generation, _pretrain, and so of film_consensus and
film_overviews; film_consensus_verdict: did most critics like the film?; film_overviews_genre;
film_consensus_verdict_in_words and film_overviews_genre_in_words, where the answer is written.
"""

from m6rec_jax.pipeline.text_registration import register_text_tasks
from m6rec_jax.tables.film_plots import CLASSES

ATTRIBUTES = register_text_tasks("film_attributes", corpus="film-attributes")
CONSENSUS = register_text_tasks(
    "film_consensus", corpus="film-consensus", label_task="verdict", class_words=("bad", "good")
)
OVERVIEWS = register_text_tasks(
    "film_overviews", corpus="film-overviews", label_task="genre", class_words=CLASSES
)
