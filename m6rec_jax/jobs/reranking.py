"""Reranking: scoring of candidates that stand near the last items of a history.

Its rows name that co-occurrence in words; `engine.reranking` orders a retriever's best items by it.
"""

from __future__ import annotations

from m6rec_jax.jobs.job import TaskRows, register
from m6rec_jax.jobs.scoring import ScoringJob


@register
class RerankingJob(ScoringJob):
    """The probability that a candidate comes next; everything else as scoring."""

    kind = "reranking"
    tasks = (TaskRows("reranking", "reranking", "scoring_rows"),)
