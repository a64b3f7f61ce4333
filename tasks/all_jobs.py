"""All jobs of a recommender in one mixture, with one shared set of prompts.

    all_jobs   scoring, retrieval, explanations, content and talk, of data to be fetched

All are of parts that the foundation may be followed by (MovieLens by users and time).
"""

from m6rec_jax.pipeline.registration import register_mixture
from tasks import chitchat, movielens

_JOBS = ("ctr", "retrieval", "explanations", "contents", "titles", "queries")

ALL = register_mixture(
    "all_jobs", [*(f"movielens_100k_{job}" for job in _JOBS), "chitchat_generation"]
)

# Imported for the tasks that they register.
__all__ = ["chitchat", "movielens"]
