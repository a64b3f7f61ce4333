"""All jobs of a recommender in one mixture, with one shared set of prompts.

    all_jobs            scoring, retrieval, explanations, content and talk, of data to be fetched
    all_jobs_inspired   the same with INSPIRED's replies, titles and retrieval in place of the talk

All are of parts that the foundation may be followed by (MovieLens by users and time).
"""

from m6rec_jax.pipeline.registration import register_mixture
from tasks import chitchat, inspired, movielens

_JOBS = ("ctr", "retrieval", "explanations", "contents", "titles", "queries")
_MOVIELENS = [f"movielens_100k_{job}" for job in _JOBS]
_TALK = [f"inspired_{job}" for job in ("replies", "titles", "retrieval")]

ALL = register_mixture("all_jobs", [*_MOVIELENS, "chitchat_generation"])
ALL_INSPIRED = register_mixture("all_jobs_inspired", [*_MOVIELENS, *_TALK])

# Imported for the tasks that they register.
__all__ = ["chitchat", "inspired", "movielens"]
