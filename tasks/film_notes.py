"""Film attributes as text, and what critics agree on: for language modelling.

    m6rec data fetch film-attributes
    m6rec data prepare film-attributes
    m6rec data fetch film-consensus
    m6rec data prepare film-consensus

Tasks: film_attributes_infilling, _generation, _pretrain; film_consensus_..., the same.
"""

from m6rec_jax.pipeline.text_registration import register_text_tasks

ATTRIBUTES = register_text_tasks("film_attributes", corpus="film-attributes")
CONSENSUS = register_text_tasks("film_consensus", corpus="film-consensus")
