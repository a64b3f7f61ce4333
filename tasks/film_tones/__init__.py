"""Critics' sentences: how do they sound, by a lexicon of words? Split by film, as the reviews are.

    m6rec data fetch film-tones
    m6rec data prepare film-tones

Tasks: film_tones_tone, which a small model has not read enough to know, and
film_tones_tone_in_words, where the answer is written; film_tones_infilling, _generation, _pretrain.
"""

from m6rec_jax.pipeline.registration import register_text_tasks

TASKS = register_text_tasks(
    "film_tones",
    corpus="film-tones",
    label_task="tone",
    class_words=("bad", "good"),
    every_word_counts=True,
)
