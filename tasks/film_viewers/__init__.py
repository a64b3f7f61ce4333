"""Made-up viewers of the CC0 film table: pretraining, scoring and retrieval tasks.

    m6rec data fetch film-viewers
    m6rec data prepare film-viewers --gin_file gin_configs/data/film-viewers/prepare.gin

Tasks: film_viewers_ctr, _retrieval and the others of `pipeline.registration`; and film_viewers_box,
a mixture of these two, which the model in the box is trained on (docs/edge.md).
"""

from m6rec_jax.pipeline.registration import register_mixture, register_recommendation_tasks

TASKS = register_recommendation_tasks("film_viewers", dataset="film-viewers")
BOX = register_mixture(
    "film_viewers_box",
    [f"film_viewers_{kind}" for kind in ("ctr", "retrieval")],
)
