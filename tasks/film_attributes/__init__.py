"""What is known of films: attributes in sentences.

    m6rec data fetch film-attributes
    m6rec data prepare film-attributes

Tasks: film_attributes_infilling, _generation, _pretrain.
"""

from m6rec_jax.pipeline.registration import register_text_tasks

TASKS = register_text_tasks("film_attributes", corpus="film-attributes")
