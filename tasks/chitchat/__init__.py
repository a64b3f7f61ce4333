"""Human dialogues in turns: for language modelling.

    m6rec data fetch chitchat
    m6rec data prepare chitchat

Tasks: chitchat_infilling, chitchat_generation (the next turn), chitchat_pretrain.
"""

from m6rec_jax.pipeline.registration import register_text_tasks

TASKS = register_text_tasks("chitchat", corpus="chitchat")
