"""The jobs of the study: what each trains, how it is tested, which figures are kept.

A job is a recipe of `m6rec train`, whose run is evaluated. Jobs that are
not trained are asked of the foundation as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.foundation import BOOKS_NAME, NAME, RECIPES
from benchmarks.runs import Recipe
from m6rec_jax.metrics.baselines import MEAN_BASELINES

ZERO_SHOT = "the foundation, untuned"
TUNED = "option-adapter tuning"
# A baseline of the hybrid: what the towers add is the rest.
WITHOUT_TOWERS = "hybrid without the towers"


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is trained (or not) and tested on one task.

    Attributes:
      title: as the table calls it.
      recipe: of the training; of the foundation, where that is tested as it is.
      dataset, task: what it is tested on.
      metrics: figures that are kept; the first is the main one.
      model: what its rows are called.
      is_trained: False where the foundation is tested as it is, with probabilities that are learnt
        on validation rows.
      bindings: gin bindings of its evaluation.
      measured: (result file, split, models): baselines that stand there already.
      has_baselines: whether `job_baselines` measures some.
      in_figures: baselines that the evaluation itself gives, as `<baseline>/<figure>`.
      untuned: whether the foundation, untuned, is one of the baselines.
      is_retrieval: also evaluated as the hybrid, once its weights are learnt, beside the hybrid
        without the towers; its figures by the two towers alone are a further row.
      foundation: which one it begins with, as `benchmarks.foundation` calls it.
    """

    title: str
    recipe: Recipe
    dataset: str
    task: str
    metrics: tuple[str, ...]
    model: str = TUNED
    is_trained: bool = True
    bindings: tuple[str, ...] = ()
    measured: tuple[str, str, tuple[str, ...]] | None = None
    has_baselines: bool = False
    in_figures: tuple[str, ...] = ()
    untuned: bool = False
    is_retrieval: bool = False
    foundation: str = NAME


_SCORING = ("auc", "user_averaged_auc", "log_loss")
_RETRIEVAL = ("hit_rate@10", "ndcg@10", "hit_rate@50", "mrr")
_EXPLANATION = (
    *("bleu_4", "bleu_1", "rouge_1", "rouge_2", "usr", "fmr", "fcr", "div"),
    *("true_share", "true_citations", "all_true_share", "silent_share", "perplexity"),
)
_RECALL = tuple(f"{new}recall@{k}" for new in ("", "new/") for k in (1, 10, 50))
_LIKES, _CONVERSION, _NEXT = "ranking: likes", "ranking: conversion", "retrieval"
_UNTUNED = "zero-shot: two outcomes"

MOVIELENS, BOOKS, INSPIRED = "movielens-100k", "book-crossing-small", "inspired"


# Of which jobs of behaviours need few, on a foundation that has learnt outcomes.
_FEW_STEPS = ("TRAIN_STEPS=240", "EVAL_PERIOD=120", "WARMUP_STEPS=20")


def _tuned(recipe: str, dataset: str, *bindings: str) -> Recipe:
    return Recipe(recipe, "foundation", dataset, "option_adapter", bindings)


def _zero_shot(dataset: str, task: str, targets: int, foundation: str = NAME) -> Job:
    of_books = "the foundation of books, untuned"
    return Job(
        _UNTUNED,
        RECIPES[foundation],
        dataset,
        task,
        _SCORING,
        model=f"{ZERO_SHOT if foundation == NAME else of_books}, asked for outcomes",
        is_trained=False,
        bindings=(
            f"--gin.MIXTURE_OR_TASK_NAME='{task}'",
            f"--gin.TASK_FEATURE_LENGTHS={{'inputs': 112, 'targets': {targets}}}",
        ),
        in_figures=(*MEAN_BASELINES, "chance"),
        foundation=foundation,
    )


JOBS: Mapping[str, Job] = {
    "movielens_ctr": Job(
        _LIKES,
        _tuned("scoring", MOVIELENS, *_FEW_STEPS),
        MOVIELENS,
        "movielens_100k_ctr_ratings",
        _SCORING,
        measured=(
            "movielens_ctr",
            "per_user_temporal",
            ("LR", "FM", "WideDeep", "DeepFM"),
        ),
        in_figures=MEAN_BASELINES,
    ),
    "book_crossing_conversion": Job(
        _CONVERSION,
        _tuned("scoring", BOOKS),
        BOOKS,
        "book_crossing_small_ctr",
        _SCORING,
        in_figures=MEAN_BASELINES,
    ),
    "movielens_retrieval": Job(
        _NEXT,
        _tuned("retrieval", MOVIELENS, "TRAIN_STEPS=200", "EVAL_PERIOD=100", "WARMUP_STEPS=20"),
        MOVIELENS,
        "movielens_100k_leave_one_out_retrieval",
        _RETRIEVAL,
        measured=(
            "movielens_retrieval",
            "leave_one_out",
            ("popularity", "ItemKNN", "EASE", "SASRec", "co_occurrence"),
        ),
        untuned=True,
        is_retrieval=True,
    ),
    "book_crossing_retrieval": Job(
        _NEXT,
        _tuned("retrieval", BOOKS),
        BOOKS,
        "book_crossing_small_leave_one_out_retrieval",
        _RETRIEVAL,
        has_baselines=True,
        untuned=True,
        is_retrieval=True,
    ),
    "movielens_zero_shot": _zero_shot(MOVIELENS, "movielens_100k_zero_shot", 96),
    "book_crossing_zero_shot": _zero_shot(BOOKS, "book_crossing_small_zero_shot", 144),
    "movielens_zero_shot_books": _zero_shot(MOVIELENS, "movielens_100k_zero_shot", 96, BOOKS_NAME),
    "explanation": Job(
        "explanation",
        _tuned("generation", MOVIELENS),
        MOVIELENS,
        "movielens_100k_explanations",
        _EXPLANATION,
        bindings=("--gin.evaluate.limit=1000",),
        has_baselines=True,
        untuned=True,
    ),
    "conversation": Job(
        "conversation: recommended films",
        _tuned("generation", INSPIRED),
        INSPIRED,
        "inspired_retrieval",
        _RECALL,
        # The run trains on replies, too.
        bindings=("--gin.MIXTURE_OR_TASK_NAME='inspired_retrieval'",),
        has_baselines=True,
        untuned=True,
        is_retrieval=True,
    ),
}
