"""The jobs of the study: what each trains, how it is tested, which figures are kept.

A job is a gin file of `gin_configs/examples/` and one that evaluates its runs. Jobs without the
first are asked of the foundation as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.foundation import BOOKS_NAME, NAME
from benchmarks.movielens import EXAMPLES
from m6rec_jax.metrics.baselines import MEAN_BASELINES

ZERO_SHOT = "the foundation, untuned"
TUNED = "option-adapter tuning"
ALONE = "a run of its own"
# A baseline of the hybrid: what the towers add is the rest.
WITHOUT_TOWERS = "hybrid without the towers"


@dataclass(frozen=True, slots=True)
class TaskTest:
    """What is kept of an evaluation of one task.

    Attributes:
      job: as the table calls it.
      dataset: name of the data set.
      metrics: figures that are kept; the first is the job's main one.
    """

    job: str
    dataset: str
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is trained (or not) and tested.

    Attributes:
      gin_file: of the training; None: the foundation is tested as it is.
      eval_gin_file: of the evaluation.
      tests: task name to what is kept of it.
      model: what our rows are called, see `model_of`.
      bindings, eval_bindings: gin bindings beside the files.
      measured: (result file, split, models): baselines that stand there already.
      own_baselines: whether `job_baselines` measures some.
      in_figures: baselines that the evaluation itself gives, as `<baseline>/<figure>`.
      untuned: whether the foundation, untuned, is one of the baselines.
      compared_with: task to the run of `SINGLES` whose figure, of the same seed, is the baseline.
      hybrid: task of retrieval, of `tests`, that is also evaluated as the hybrid, once its weights
        are learnt, beside the hybrid without the towers; its figures by the two towers alone are a
        further row.
      scaled: zero-shot, with probabilities that are learnt on validation rows.
      foundation: which one it begins with, as `benchmarks.foundation` calls it.
    """

    gin_file: str | None
    eval_gin_file: str
    tests: Mapping[str, TaskTest]
    model: str = TUNED
    bindings: tuple[str, ...] = ()
    eval_bindings: tuple[str, ...] = ()
    measured: tuple[str, str, tuple[str, ...]] | None = None
    own_baselines: bool = True
    in_figures: tuple[str, ...] = ()
    untuned: bool = False
    compared_with: Mapping[str, str] = field(default_factory=dict)
    hybrid: str = ""
    scaled: bool = False
    foundation: str = NAME

    def model_of(self, task: str, *, is_hybrid: bool = False) -> str:
        """What rows of a task are called."""
        if task != self.hybrid:
            return self.model
        return f"{self.model}; {'hybrid' if is_hybrid else 'the two towers alone'}"


_SCORING = ("auc", "user_averaged_auc", "log_loss")
_RETRIEVAL = ("hit_rate@10", "ndcg@10", "hit_rate@50", "mrr")
_EXPLANATION = (
    *("bleu_4", "bleu_1", "rouge_1", "rouge_2", "usr", "fmr", "fcr", "div"),
    *("true_share", "true_citations", "all_true_share", "silent_share", "perplexity"),
)
_CONTENT = (
    *("rouge_1", "bleu_2", "bleu_4", "exact_match", "distinct_1", "distinct_2", "novelty"),
    "perplexity",
)
# A search query of this data set is two or three words.
_QUERIES = ("rouge_1", "bleu_2", "exact_match", "distinct_1", "distinct_2", "novelty", "perplexity")
_REPLIES = (
    *("perplexity", "bleu_2", "kgsf_bleu_2", "distinct_3", "distinct_4"),
    *("kgsf_distinct_3", "kgsf_distinct_4"),
)
_RECALL = tuple(f"{new}recall@{k}" for new in ("", "new/") for k in (1, 10, 50))

MOVIELENS, BOOKS, INSPIRED = "movielens-100k", "book-crossing-small", "inspired"


def _example(name: str) -> tuple[str, str]:
    return f"{EXAMPLES}/{name}.gin", f"{EXAMPLES}/{name}_eval.gin"


JOBS: dict[str, Job] = {
    "movielens_ctr": Job(
        f"{EXAMPLES}/movielens_ctr_shared.gin",
        f"{EXAMPLES}/movielens_ctr_shared.gin",
        {"movielens_100k_ctr_ratings": TaskTest("ranking: likes", MOVIELENS, _SCORING)},
        measured=(
            "movielens_ctr",
            "per_user_temporal",
            ("LR", "FM", "WideDeep", "DeepFM", "DIN"),
        ),
        own_baselines=False,
        in_figures=MEAN_BASELINES,
    ),
    "book_crossing_conversion": Job(
        f"{EXAMPLES}/book_crossing_conversion_option_adapter.gin",
        f"{EXAMPLES}/book_crossing_conversion_option_adapter.gin",
        {"book_crossing_small_ctr": TaskTest("ranking: conversion", BOOKS, _SCORING)},
        own_baselines=False,
        in_figures=MEAN_BASELINES,
    ),
    "movielens_retrieval": Job(
        f"{EXAMPLES}/movielens_retrieval_shared.gin",
        f"{EXAMPLES}/movielens_retrieval_shared.gin",
        {"movielens_100k_leave_one_out_retrieval": TaskTest("retrieval", MOVIELENS, _RETRIEVAL)},
        measured=(
            "movielens_retrieval",
            "leave_one_out",
            ("popularity", "ItemKNN", "EASE", "SASRec", "co_occurrence"),
        ),
        own_baselines=False,
        untuned=True,
        hybrid="movielens_100k_leave_one_out_retrieval",
    ),
    "book_crossing_retrieval": Job(
        f"{EXAMPLES}/book_crossing_retrieval.gin",
        f"{EXAMPLES}/book_crossing_retrieval.gin",
        {"book_crossing_small_leave_one_out_retrieval": TaskTest("retrieval", BOOKS, _RETRIEVAL)},
        untuned=True,
        hybrid="book_crossing_small_leave_one_out_retrieval",
    ),
    "movielens_zero_shot": Job(
        None,
        f"{EXAMPLES}/movielens_zero_shot.gin",
        {"movielens_100k_zero_shot": TaskTest("zero-shot: two outcomes", MOVIELENS, _SCORING)},
        model=f"{ZERO_SHOT}, asked for outcomes",
        own_baselines=False,
        in_figures=(*MEAN_BASELINES, "chance"),
        scaled=True,
    ),
    "book_crossing_zero_shot": Job(
        None,
        f"{EXAMPLES}/book_crossing_zero_shot.gin",
        {"book_crossing_small_zero_shot": TaskTest("zero-shot: two outcomes", BOOKS, _SCORING)},
        model=f"{ZERO_SHOT}, asked for outcomes",
        own_baselines=False,
        in_figures=(*MEAN_BASELINES, "chance"),
        scaled=True,
    ),
    "movielens_zero_shot_books": Job(
        None,
        f"{EXAMPLES}/movielens_zero_shot.gin",
        {"movielens_100k_zero_shot": TaskTest("zero-shot: two outcomes", MOVIELENS, _SCORING)},
        model="the foundation of books, untuned, asked for outcomes",
        own_baselines=False,
        in_figures=(*MEAN_BASELINES, "chance"),
        scaled=True,
        foundation=BOOKS_NAME,
    ),
    "explanation": Job(
        *_example("movielens_explanations"),
        {"movielens_100k_explanations": TaskTest("explanation", MOVIELENS, _EXPLANATION)},
        untuned=True,
    ),
    "content": Job(
        *_example("movielens_content"),
        {
            "movielens_100k_contents": TaskTest("content: category and title", MOVIELENS, _CONTENT),
            "movielens_100k_titles": TaskTest("content: title", MOVIELENS, _CONTENT),
            "movielens_100k_queries": TaskTest("content: search query", MOVIELENS, _QUERIES),
        },
        untuned=True,
    ),
    "conversation": Job(
        *_example("inspired_conversation"),
        {
            "inspired_replies": TaskTest("conversation: replies", INSPIRED, _REPLIES),
            "inspired_retrieval": TaskTest("conversation: recommended films", INSPIRED, _RECALL),
        },
        untuned=True,
        hybrid="inspired_retrieval",
    ),
}

# Of the run of all jobs: each task's main figure, and the mixture or task that is its single run.
# Beside that of written texts stands their perplexity, which depends less on single words.
_ALL_JOBS = _example("all_jobs")
_IN_MIXTURE: Mapping[str, tuple[str, str, str]] = {
    "movielens_100k_ctr": ("movielens_100k_ctr", MOVIELENS, "auc"),
    "movielens_100k_retrieval": ("movielens_100k_retrieval", MOVIELENS, "ndcg@10"),
    "movielens_100k_explanations": ("movielens_100k_explanations", MOVIELENS, "bleu_4"),
    "movielens_100k_contents": ("movielens_100k_content", MOVIELENS, "rouge_1"),
    "movielens_100k_titles": ("movielens_100k_content", MOVIELENS, "rouge_1"),
    "movielens_100k_queries": ("movielens_100k_content", MOVIELENS, "rouge_1"),
    "chitchat_generation": ("chitchat_generation", "chitchat", "perplexity"),
}
_OF_TEXTS = ("bleu_4", "rouge_1")
# Steps of a single run: it reads as many rows of its job as the run of all five jobs does.
SINGLE_STEPS = 150


def _single(mixture: str) -> Job:
    task = (f"--gin.MIXTURE_OR_TASK_NAME='{mixture}'",)
    steps = (f"--gin.TRAIN_STEPS={SINGLE_STEPS}", f"--gin.EVAL_PERIOD={SINGLE_STEPS}")
    return Job(*_ALL_JOBS, {}, bindings=(*task, *steps), eval_bindings=task, own_baselines=False)


# What the run of all jobs is compared with; they have no rows of their own.
SINGLES: dict[str, Job] = {own: _single(own) for own, _, _ in _IN_MIXTURE.values()}
JOBS["all_jobs"] = Job(
    *_ALL_JOBS,
    {
        task: TaskTest(
            "all jobs in one run",
            dataset,
            (metric, "perplexity") if metric in _OF_TEXTS else (metric,),
        )
        for task, (_, dataset, metric) in _IN_MIXTURE.items()
    },
    model="one run of all jobs",
    own_baselines=False,
    compared_with={task: own for task, (own, _, _) in _IN_MIXTURE.items()},
)
