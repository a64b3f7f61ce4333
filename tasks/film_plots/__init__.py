"""Film plots: which of 20 genres? Split by film, in the same way as the reviews.

    m6rec data fetch film-plots
    m6rec data prepare film-plots

Tasks: film_plots_genre; film_plots_infilling, _generation, _pretrain. A film's class is the rarest
of its genres (`tasks.film_plots.source`).
"""

from m6rec_jax.pipeline.registration import register_text_tasks

TASKS = register_text_tasks("film_plots", corpus="film-plots", label_task="genre")
