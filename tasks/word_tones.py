"""Lists of words that sound good or bad: what a small model has not read enough to know.

    m6rec data fetch word-tones
    m6rec data prepare word-tones

Tasks: word_tones_tone; word_tones_tone_in_words, where the answer is written. The lists are split,
not the words, which are the same in all parts.
"""

from m6rec_jax.pipeline.text_registration import register_text_tasks
from m6rec_jax.tables.word_tones import CLASSES

TASKS = register_text_tasks(
    "word_tones",
    corpus="word-tones",
    label_task="tone",
    class_words=CLASSES,
    every_word_counts=True,
)
