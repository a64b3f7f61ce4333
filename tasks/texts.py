"""Tasks of texts, dialogues and reviews: public corpora, and those that authors give out.

    m6rec data fetch film-plots
    m6rec data prepare film-plots

Every corpus of `_CORPORA` has ..._infilling, ..._generation and ..._pretrain; those with classes
have a task that predicts the class, and with words for the classes another one in which it is
written, `film_consensus_verdict_in_words`. Films are split by their titles, the same in all.

INSPIRED, ReDial and reviews in PETER's format come from their authors (docs/prepared_data.md): put
the files and a dialogues.json or reviews.json into a folder and prepare that. Tasks:

    inspired_replies, _titles, _retrieval; inspired_conversation, all three; the same for redial
    tripadvisor_explanations, yelp_explanations, amazon_explanations
"""

from collections.abc import Mapping
from typing import Any

from m6rec_jax.pipeline.registration import (
    register_dialogue_tasks,
    register_generation_tasks,
    register_text_tasks,
)
from tasks.films.source import GENRE_CLASSES

_CORPORA: Mapping[str, Mapping[str, Any]] = {
    "chitchat": {},
    "film-attributes": {},
    "film-consensus": {"label_task": "verdict", "class_words": ("bad", "good")},
    "film-overviews": {"label_task": "genre", "class_words": GENRE_CLASSES},
    "film-plots": {"label_task": "genre"},
    "film-reviews": {"label_task": "sentiment"},
    # A small model has not read enough to know how a word sounds, so that every word counts.
    "film-tones": {"label_task": "tone", "class_words": ("bad", "good"), "every_word_counts": True},
}
for _name, _options in _CORPORA.items():
    register_text_tasks(_name.replace("-", "_"), corpus=_name, **_options)
for _name in ("inspired", "redial"):
    register_dialogue_tasks(_name, dataset=_name)
for _name in ("tripadvisor", "yelp", "amazon"):
    register_generation_tasks(_name, dataset=_name, split="by_group", views=("explanations",))
