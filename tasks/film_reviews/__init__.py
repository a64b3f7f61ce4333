"""Film reviews: is a snippet fresh or rotten? Two classes, split by film.

    m6rec data fetch film-reviews
    m6rec data prepare film-reviews

Tasks: film_reviews_sentiment; film_reviews_infilling, _generation, _pretrain.
"""

from m6rec_jax.pipeline.registration import register_text_tasks

TASKS = register_text_tasks("film_reviews", corpus="film-reviews", label_task="sentiment")
