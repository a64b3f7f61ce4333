"""INSPIRED: dialogues in which films are recommended, between a seeker and a recommender.

The files are to be had from the authors (docs/prepared_data.md). A folder with them and a
dialogues.json, then

    m6rec data prepare FOLDER

Tasks: inspired_replies, inspired_titles, inspired_retrieval; inspired_conversation, all three.
"""

from m6rec_jax.pipeline.registration import register_dialogue_tasks

TASKS = register_dialogue_tasks("inspired", dataset="inspired")
