"""Evaluates one task: predictions over a split, and the metrics of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m6rec_jax.errors import DataError
from m6rec_jax.evaluation import programs
from m6rec_jax.evaluation.baselines import MeanBaselines
from m6rec_jax.evaluation.predictions import (
    ClassificationPredictions,
    LanguagePredictions,
    LikelihoodPredictions,
    RetrievalPredictions,
    ScoringPredictions,
)
from m6rec_jax.inference.catalogue_index import CatalogueIndex
from m6rec_jax.inference.runtime import Runtime
from m6rec_jax.metrics import classification, generation, ranking

DEFAULT_KS = (1, 5, 10, 50)
Variables = Mapping[str, Any]
# Results of a program, `{name: [rows, ...]}`.
Found = Mapping[str, np.ndarray]


def predict_scoring(
    program: programs.Program,
    variables: Variables,
    batches: Any,
    runtime: Runtime,
    *,
    positive_classes: tuple[int, ...] = (1,),
) -> ScoringPredictions:
    """Scores every labelled candidate of the batches.

    Where negatives were sampled these are the probabilities among the rows as sampled, as their
    labels are; what is served is corrected (`tables.negatives.corrected_probability`).

    Args:
      program: of `programs.scoring_program`.
      variables: of the model.
      batches: of `pipeline.EvaluationBatches`.
      runtime: where to run.
      positive_classes: as the program has them; decides which labels count as 1.

    Raises:
      DataError: no candidate has a label.
    """
    found = programs.run_program(program, variables, batches, runtime)
    return scoring_predictions(found, positive_classes)


def scoring_predictions(
    found: Found, positive_classes: tuple[int, ...] = (1,)
) -> ScoringPredictions:
    """The labelled candidates among what `programs.scoring_program` gives.

    Args:
      found: `probability`, `decoder_labels`, `decoder_item_ids` `[rows, target]`, `user_ids`
        `[rows, 1]`.
      positive_classes: as in `predict_scoring`.

    Raises:
      DataError: no candidate has a label.
    """
    rows, places = np.nonzero(found["decoder_labels"] >= 0)
    if not len(rows):
        raise DataError("none of the rows has a labelled candidate; is this a scoring task?")
    classes = found["decoder_labels"][rows, places].astype(np.int64)
    return ScoringPredictions(
        users=found["user_ids"][rows, 0].astype(np.int64),
        items=found["decoder_item_ids"][rows, places].astype(np.int64),
        labels=np.isin(classes, positive_classes).astype(np.int64),
        classes=classes,
        probabilities=found["probability"][rows, places].astype(np.float64),
    )


def scoring_metrics(predictions: ScoringPredictions) -> dict[str, float]:
    """`auc`, `user_averaged_auc`, `log_loss`, `calibration_error`, `num_examples`, `num_users`.

    `num_users` is how many users have both labels. Where nobody has (one row per user, as in
    leave-one-out splits), there is no `user_averaged_auc`.

    Raises:
      DataError: all labels are the same.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    figures = {
        "auc": classification.auc(labels, probabilities),
        "log_loss": classification.log_loss(labels, probabilities),
        "calibration_error": classification.calibration_table(
            labels, probabilities
        ).expected_calibration_error,
        "num_examples": float(len(labels)),
    }
    per_user = classification.per_user_auc(predictions.users, labels, probabilities)
    if per_user.values.size:
        figures["user_averaged_auc"] = float(per_user.values.mean())
    return figures | {"num_users": float(per_user.values.size)}


def predict_retrieval(
    program: programs.Program,
    variables: Variables,
    batches: Any,
    runtime: Runtime,
    index: CatalogueIndex,
    seen: Mapping[int, np.ndarray],
    *,
    k: int = 50,
) -> RetrievalPredictions:
    """Ranks the whole catalogue for every row of the batches.

    Args:
      program: of `programs.retrieval_program`.
      variables, batches, runtime: as in `predict_scoring`.
      index: the catalogue, in the order of the items table.
      seen: by user, items that must not be recommended. An item a row wants is never left out.
      k: length of the lists.

    Raises:
      DataError: a row wants nothing.
    """
    found = programs.run_program(program, variables, batches, runtime)
    if "user" not in found or not len(found["user"]):
        raise DataError("there are no rows to retrieve for; is the split empty?")
    users = found["user_ids"][:, 0].astype(np.int64)
    targets = pad_targets(found["decoder_item_ids"])
    nothing = np.zeros(0, np.int64)
    excluded = [
        np.setdiff1d(seen.get(int(user), nothing), wanted)
        for user, wanted in zip(users, targets, strict=True)
    ]
    top = index.top_k(found["user"], min(k, index.num_items), excluded)
    return RetrievalPredictions(
        users=users,
        targets=targets,
        ranks=index.ranks(found["user"], targets, excluded),
        top_items=top.ids.astype(np.int64),
        scores=top.scores,
        num_ranked=index.num_items - np.array([len(items) for items in excluded], np.int64),
    )


def retrieval_metrics(
    predictions: RetrievalPredictions,
    num_items: int,
    ks: Sequence[int] = DEFAULT_KS,
    held_out: np.ndarray | None = None,
) -> dict[str, float]:
    """`hit_rate@k`, `ndcg@k`, `mrr`, `coverage@k` of the lists, `num_examples`.

    Args:
      predictions: of `predict_retrieval`.
      num_items: of the catalogue; larger k than that are left out.
      ks: cut-offs.
      held_out: bool `[items]`: items never trained on. Given and wanted by some row, the same
        figures over those rows alone are added as `held_out/...`, with `held_out/chance@k`, the
        hit rate of a random order of the items that were ranked.
    """
    ks = tuple(k for k in ks if k <= num_items)
    metrics = ranking.ranking_metrics(predictions.ranks, ks)
    length = predictions.top_items.shape[1]
    metrics[f"coverage@{length}"] = ranking.coverage(predictions.top_items, num_items)
    metrics["num_examples"] = float(len(predictions.users))
    if held_out is not None:
        wanted = predictions.targets >= 0
        unseen = held_out[np.where(wanted, predictions.targets, 0)] & wanted
        rows = unseen.any(axis=1)
        if rows.any():
            ranks = np.where(unseen, predictions.ranks, ranking.NO_TARGET)[rows]
            of_unseen = ranking.ranking_metrics(ranks, ks) | {"num_examples": float(rows.sum())}
            ranked, wanted_by_row = predictions.num_ranked[rows], unseen[rows].sum(axis=1)
            for k in ks:
                of_unseen[f"chance@{k}"] = ranking.chance_hit_rate(ranked, wanted_by_row, k)
            metrics |= {f"held_out/{name}": value for name, value in of_unseen.items()}
    return metrics


def predict_language(
    program: programs.Program, variables: Variables, batches: Any, runtime: Runtime
) -> LanguagePredictions:
    """Likelihood of the target tokens of every row; arguments as in `predict_scoring`."""
    return language_predictions(programs.run_program(program, variables, batches, runtime))


def language_predictions(found: Found) -> LanguagePredictions:
    """Of what `programs.language_program` gives."""
    return LanguagePredictions(
        **{
            field.name: found[field.name].astype(np.float64)
            for field in dataclasses.fields(LanguagePredictions)
        }
    )


def language_metrics(predictions: LanguagePredictions) -> dict[str, float]:
    """`perplexity`, `loss` (nats per token), `token_accuracy`, `num_tokens`.

    Raises:
      DataError: no target token counts.
    """
    nll = float(predictions.negative_log_likelihood.sum())
    tokens = float(predictions.weight.sum())
    return {
        "perplexity": generation.perplexity_from_sums(nll, tokens),
        "loss": nll / tokens,
        "token_accuracy": float(predictions.correct.sum()) / tokens,
        "num_tokens": tokens,
    }


def predict_classification(
    program: programs.Program, variables: Variables, batches: Any, runtime: Runtime
) -> ClassificationPredictions:
    """Classes of every text of the batches; arguments as in `predict_scoring`.

    Raises:
      DataError: no text has a label.
    """
    return classification_predictions(programs.run_program(program, variables, batches, runtime))


def classification_predictions(found: Found) -> ClassificationPredictions:
    """Of what `programs.classification_program` gives; raises as `predict_classification`."""
    rows, places = _labelled(found, "classification")
    return ClassificationPredictions(
        texts=found["decoder_item_ids"][rows, places].astype(np.int64),
        labels=found["decoder_labels"][rows, places].astype(np.int64),
        probabilities=np.exp(found["log_probabilities"][rows, places].astype(np.float64)),
    )


def classification_metrics(predictions: ClassificationPredictions) -> dict[str, float]:
    """Figures of `multiclass_metrics`, and `num_examples`; raises DataError as those do."""
    figures = classification.multiclass_metrics(predictions.labels, predictions.probabilities)
    return figures | {"num_examples": float(len(predictions.labels))}


def predict_likelihood(
    program: programs.Program, variables: Variables, batches: Any, runtime: Runtime
) -> LikelihoodPredictions:
    """Zero-shot score of every candidate of the batches; arguments as in `predict_scoring`.

    Raises:
      DataError: no candidate has a label.
    """
    return likelihood_predictions(programs.run_program(program, variables, batches, runtime))


def likelihood_predictions(found: Found) -> LikelihoodPredictions:
    """Of what `programs.likelihood_program` gives; raises as `predict_likelihood`."""
    rows, places = _labelled(found, "zero-shot")
    return LikelihoodPredictions(
        users=found["user_ids"][rows, 0].astype(np.int64),
        items=found["decoder_item_ids"][rows, places].astype(np.int64),
        labels=found["decoder_labels"][rows, places].astype(np.int64),
        scores=found["score"][rows, places].astype(np.float64),
    )


def likelihood_metrics(
    predictions: LikelihoodPredictions, baselines: MeanBaselines, seed: int = 0
) -> dict[str, float]:
    """How well zero-shot scores order candidates, beside what needs no model.

    Args:
      predictions: of `predict_likelihood`.
      baselines: fitted to the training part.
      seed: of chance.

    Returns:
      `auc`, `user_averaged_auc` (where a user has both labels), `num_examples`, `num_users`; and
      the first two of `popularity/...`, `item_mean/...`, `user_and_item_mean/...` and `chance/...`,
      random scores. All baselines but popularity and chance know the training part's labels.

    Raises:
      DataError: all labels are the same.
    """
    users, labels = predictions.users, predictions.labels
    figures, num_users = _ordering(users, labels, predictions.scores)
    figures |= {"num_examples": float(len(labels)), "num_users": float(num_users)}
    known = baselines.scoring_metrics(users, predictions.items, labels)
    known["chance"], _ = _ordering(users, labels, np.random.default_rng(seed).random(len(labels)))
    for name, found in known.items():
        figures |= {f"{name}/{k}": v for k, v in found.items() if k.endswith("auc")}
    return figures


def _ordering(
    users: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[dict[str, float], int]:
    """AUC, that averaged over users, and how many of those have both labels."""
    figures = {"auc": classification.auc(labels, scores)}
    per_user = classification.per_user_auc(users, labels, scores).values
    if per_user.size:
        figures["user_averaged_auc"] = float(per_user.mean())
    return figures, int(per_user.size)


def _labelled(found: Found, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and positions that have a label."""
    rows, places = np.nonzero(found["decoder_labels"] >= 0)
    if not len(rows):
        raise DataError(f"none of the rows has a label; is this a {kind} task?")
    return rows, places


def pad_targets(item_ids: np.ndarray) -> np.ndarray:
    """Wanted items of each row, first come first: `[n, target]` with -1 between, to `[n, m]`.

    An item that a row wants twice (a repeated purchase) is wanted once: it has one place in a list.

    Raises:
      DataError: a row has none.
    """
    found = _in_front(item_ids)
    order = np.argsort(found, axis=1, kind="stable")  # of equal ones the first stays first
    ascending = np.take_along_axis(found, order, axis=1)
    repeated = np.zeros(found.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    return _in_front(np.where(repeated, -1, found))


def _in_front(item_ids: np.ndarray) -> np.ndarray:
    """Without the -1 between: `[n, target]` to `[n, m]`, -1 at the ends of shorter rows."""
    present = item_ids >= 0
    counts = present.sum(axis=1)
    if (counts == 0).any():
        raise DataError(f"{int((counts == 0).sum())} rows want no item; is this a retrieval task?")
    order = np.argsort(~present, axis=1, kind="stable")[:, : int(counts.max())]
    return np.take_along_axis(item_ids, order, axis=1).astype(np.int64)
