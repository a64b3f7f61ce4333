"""Films never trained on, by what is known of them: a linear model beside ours.

    python -m benchmarks.baselines.contents

Users' and items' factors of the training matrix, the latter regressed on the words of all that the
items table says (title, people and length in minutes, too, which our item tower does not read); an
unseen item's factors are what its words say. Rows go to
`benchmarks/results/movielens_unseen_items.json`. The split must be prepared
(gin_configs/data/movielens-100k/prepare_unseen_items.gin).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge

from benchmarks.command_line import errors_told
from benchmarks.movielens import DATASET, JOBS
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax.jobs.retrieval import RetrievalPredictions, retrieval_metrics
from m6rec_jax.metrics.ranking import ranks_by_score
from m6rec_jax.pipeline import locations, prepared_rows

MODEL = "words to factors, ridge"
JOB = JOBS["unseen_items"]
KS = (1, 5, 10, 50, 100)


def factor_scores(
    texts: Sequence[str],
    train: np.ndarray,
    known: np.ndarray,
    rank: int = 20,
    penalty: float = 10.0,
) -> np.ndarray:
    """Scores of all items for all users, `[users, items]`.

    Args:
      texts: of the items, of `description`; words and pairs of words that two of them have are
        features.
      train: 1 where a user acted on an item in training, else 0, `[users, items]`.
      known: bool `[items]`: items that regression learns from.
      rank: number of factors.
      penalty: of the squared weights.
    """
    words = CountVectorizer(binary=True, min_df=2, ngram_range=(1, 2)).fit_transform(texts)
    users, strengths, items = svds(csr_matrix(train.astype(np.float64)), k=rank, random_state=0)
    factors = items.T * strengths
    said = Ridge(alpha=penalty).fit(words[known], factors[known]).predict(words)
    return np.asarray(users @ said.T)


def description(attributes: Mapping[str, Any]) -> str:
    """All that is known of an item, in the order of the table: lists by element, gaps left out."""
    values = [
        value
        for entry in attributes.values()
        for value in (entry if isinstance(entry, tuple) else (entry,))
    ]
    return ", ".join(str(value) for value in values if value is not None)


def figures() -> dict[str, float]:
    """Figures of the test part, as `m6rec eval` names them.

    Raises:
      DataError: the split is not prepared.
    """
    prepared = locations.prepared(DATASET, JOB.split)
    catalogue, counts = prepared.catalogue(), prepared.manifest.counts
    train = np.zeros((counts["users"], counts["items"]))
    columns = ("user_index", "item_indices")
    for row in prepared_rows.read_rows(prepared, "next_items", "train", columns):
        train[row["user_index"], row["item_indices"]] = 1
    rows = list(prepared_rows.read_rows(prepared, "next_items", "test", columns))
    users = np.array([row["user_index"] for row in rows], np.int64)
    targets = np.array([row["item_indices"][:1] for row in rows], np.int64)
    hidden = np.zeros((len(rows), counts["items"]), bool)
    for place, items in enumerate(prepared_rows.past_items(prepared, "test")):
        hidden[place, items] = True
    hidden[np.arange(len(rows)), targets[:, 0]] = False
    texts = [description(item.attributes) for item in catalogue.items]
    scores = factor_scores(texts, train, ~catalogue.held_out)[users]
    ranks = ranks_by_score(scores, targets, hidden)
    top = np.argsort(np.where(hidden, np.inf, -scores), axis=1, kind="stable")[:, : max(KS)]
    predictions = RetrievalPredictions(
        users=users,
        targets=targets,
        ranks=ranks,
        top_items=top,
        scores=np.take_along_axis(scores, top, axis=1).astype(np.float32),
        num_ranked=(~hidden).sum(axis=1),
    )
    return retrieval_metrics(predictions, counts["items"], KS, catalogue.held_out)


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    started = time.monotonic()
    found = figures()
    rows = metric_rows(
        {name: found[name] for name in JOB.metrics},
        model=MODEL,
        dataset=DATASET,
        split=JOB.split,
        seed=None,
        config="words and pairs of words, 20 factors, λ = 10",
        seconds=time.monotonic() - started,
    )
    add_rows(results_path(JOB.results), rows)
    for row in rows:
        print(f"{row['metric']} {row['value']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
