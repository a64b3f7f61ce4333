"""The foundation's second stage: it reads on, and answers questions about texts in a word.

The questions are others than those of the study of tuning: the verdict of what critics agree on
about a film, the genre of an overview, and how a sentence sounds by a lexicon of words. Sentences
are those of reviews, too, without the critic's verdict. Films are split as in all corpora, so that
it reads no sentence, consensus or overview about films of the validation and test parts of reviews
and plots. `python -m benchmarks.foundation --answers` makes it.

    foundation_answers     what the foundation reads, overviews, and those questions
"""

from m6rec_jax.pipeline.registration import register_mixture
from tasks import film_overviews, film_tones, foundation

_OVERVIEWS = ["film_overviews_infilling", "film_overviews_generation"]
_ANSWERS = [
    "film_consensus_verdict_in_words",
    "film_overviews_genre_in_words",
    "film_tones_tone_in_words",
]
ANSWERS = register_mixture("foundation_answers", [*foundation.ALL, *_OVERVIEWS, *_ANSWERS])

# Imported for the tasks that they register.
__all__ = ["film_overviews", "film_tones"]
