"""Overviews of films: which of the genres of plots? Split by film, as the reviews are.

    m6rec data fetch film-overviews
    m6rec data prepare film-overviews

Tasks: film_overviews_genre, and film_overviews_genre_in_words, where the answer is written;
film_overviews_infilling, _generation, _pretrain.
"""

from m6rec_jax.pipeline.registration import register_text_tasks
from tasks.films.texts import GENRE_CLASSES

TASKS = register_text_tasks(
    "film_overviews", corpus="film-overviews", label_task="genre", class_words=GENRE_CLASSES
)
