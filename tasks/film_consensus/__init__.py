"""What critics agree on: did most of them like the film? Split by film, as the reviews are.

    m6rec data fetch film-consensus
    m6rec data prepare film-consensus

Tasks: film_consensus_verdict, and film_consensus_verdict_in_words, where the answer is written;
film_consensus_infilling, _generation, _pretrain.
"""

from m6rec_jax.pipeline.registration import register_text_tasks

TASKS = register_text_tasks(
    "film_consensus", corpus="film-consensus", label_task="verdict", class_words=("bad", "good")
)
