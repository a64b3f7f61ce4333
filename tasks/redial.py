"""ReDial: dialogues in which films are recommended.

The files are to be had from the authors (docs/prepared_data.md). A folder with them and a
dialogues.json, then

    m6rec data prepare FOLDER

Tasks: redial_replies, redial_titles, redial_retrieval; redial_conversation, all three.
"""

from m6rec_jax.pipeline.registration import register_dialogue_tasks

TASKS = register_dialogue_tasks("redial", dataset="redial")
