"""What `m6rec demo` shows: its figures, users, texts and curves as a `ReportData`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.data.prepared import Prepared
from m6rec_jax.evaluation.report import (
    Behaviour,
    Comparison,
    LossCurve,
    ModelText,
    ParameterGroup,
    Recommendation,
    ReportData,
    ScoredExamples,
    TextPiece,
    UserPanel,
    Verdict,
)
from m6rec_jax.jobs.retrieval import RetrievalPredictions
from m6rec_jax.jobs.scoring import ScoringPredictions
from m6rec_jax.metrics.baselines import MeanBaselines
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.metric_log import read_metrics
from m6rec_jax.training.parameter_table import ParameterTable

NUM_USERS = 5
NUM_RECOMMENDED = 10
_SHOWN_BEHAVIOURS = 10


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo found. `facts` are shown as they are; `folders` and `gin_files` by phase."""

    metrics: Mapping[str, float]
    scoring: Prepared
    retrieval: Prepared
    scored: ScoringPredictions
    ranked: RetrievalPredictions
    vocabulary_file: Path
    baselines: MeanBaselines
    parameters: ParameterTable
    folders: Mapping[str, Path]
    gin_files: Mapping[str, str]
    facts: Mapping[str, str]


def report_data(result: DemoResult) -> ReportData:
    """Everything on the page."""
    metrics, scored, baselines = result.metrics, result.scored, result.baselines
    return ReportData(
        title="MovieLens-100k",
        summary="One encoder-decoder that reads nothing but text: pretrained on what users did and "
        "what films are, then option-adapter-tuned for scoring and for retrieval with the backbone "
        "frozen.",
        comparisons=[
            Comparison(
                "Will the user rate the film 4 or 5?",
                "AUC",
                metrics["ctr.auc"],
                {
                    "popularity": metrics["ctr.baselines.popularity.auc"],
                    "smoothed mean": metrics["ctr.baselines.smoothed_mean.auc"],
                },
            ),
            Comparison(
                "Is the probability right?",
                "log loss",
                metrics["ctr.log_loss"],
                {
                    "popularity": None,
                    "smoothed mean": metrics["ctr.baselines.smoothed_mean.log_loss"],
                },
                higher_is_better=False,
            ),
            Comparison(
                "Which film comes next?",
                "hit rate @ 10",
                metrics["retrieval.hit_rate@10"],
                {
                    "popularity": metrics["retrieval.baselines.popularity.hit_rate@10"],
                    "smoothed mean": None,
                },
            ),
        ],
        scored=ScoredExamples(
            scored.labels,
            scored.probabilities,
            {
                "popularity": baselines.popularity(scored.items),
                "smoothed mean": baselines.item_mean(scored.items),
            },
        ),
        losses=[_loss_curve(name, folder) for name, folder in result.folders.items()],
        users=_users(result),
        score_name="cosine similarity",
        texts=[_model_text(result)],
        parameters=[
            ParameterGroup(f"{group.part}: {group.name}", group.count, group.trains)
            for group in result.parameters.groups
        ],
        facts=result.facts,
        notes=[
            "Scoring: each user's first 80% of ratings train, the next 10% validate, the last 10% "
            "test. Statistics in the text come from earlier training ratings alone; those of the "
            "user, in test rows, from that user's validation ratings, too.",
            "Retrieval: each user's last film, among all films the user has not rated before.",
            "Smoothed mean: the film's share of likes in training, with five ratings' worth of the "
            "overall share.",
        ],
    )


def _loss_curve(name: str, folder: Path) -> LossCurve:
    lines = read_metrics(folder)
    trained = [line for line in lines if "loss" in line]
    validated = [line for line in lines if "validation/loss" in line]
    return LossCurve(
        name,
        [int(line["step"]) for line in trained],
        [line["loss"] for line in trained],
        [int(line["step"]) for line in validated],
        [line["validation/loss"] for line in validated],
    )


def _users(result: DemoResult) -> list[UserPanel]:
    """Users at even distances through the test part, so that nobody picked them."""
    ranked, catalogue = result.ranked, result.retrieval.catalogue()
    titles = [_title(item.attributes) for item in catalogue.items]
    rows = {
        int(row["user_index"]): row
        for row in prepared_rows.read_rows(result.retrieval, "next_items", "test")
    }
    # Of what was not seen before, only the last event has one; the temporal split tests it, too.
    outcomes = {
        (int(row["user_index"]), int(item)): float(rating)
        for row in prepared_rows.read_rows(result.scoring, "groups", "test")
        for item, rating in zip(row["item_indices"], row["ratings"], strict=True)
    }
    panels = []
    for place in np.linspace(0, len(ranked.users) - 1, NUM_USERS).astype(int):
        user = int(ranked.users[place])
        history: list[str] = rows[user]["history"]
        past = [text for text in history[1:-1] if text]
        panels.append(
            UserPanel(
                name=f"User {rows[user]['user_id']}",
                profile=history[0],
                history=[_behaviour(text) for text in past[::-1][:_SHOWN_BEHAVIOURS]],
                recommendations=[
                    _recommendation(titles[item], float(score), outcomes.get((user, int(item))))
                    for item, score in zip(
                        ranked.top_items[place, :NUM_RECOMMENDED],
                        ranked.scores[place, :NUM_RECOMMENDED],
                        strict=True,
                    )
                    if item >= 0
                ],
                history_length=len(past),
            )
        )
    return panels


def _title(attributes: Mapping[str, Any]) -> str:
    year = attributes.get("year")
    return f"{attributes['title']} ({year})" if year else str(attributes["title"])


def _behaviour(text: str) -> Behaviour:
    """Takes "liked Fargo (1996), 3 days ago" apart again."""
    what, _, when = text.rpartition(", ")
    outcome, _, title = what.partition(" ")
    verdicts: dict[str, Verdict] = {"loved": "liked", "liked": "liked"}
    return Behaviour(title, when, outcome, verdicts.get(outcome, "disliked"))


def _recommendation(title: str, score: float, rating: float | None) -> Recommendation:
    if rating is None:
        return Recommendation(title, score, "not rated")
    verdict: Verdict = "liked" if rating >= 4 else "disliked"
    return Recommendation(title, score, f"rated {rating:.0f} stars next", verdict)


def _model_text(result: DemoResult) -> ModelText:
    vocabulary = Vocabulary(result.vocabulary_file)
    row = next(prepared_rows.read_rows(result.scoring, "groups", "test"))
    probabilities = {
        (int(user), int(item)): float(probability)
        for user, item, probability in zip(
            result.scored.users, result.scored.items, result.scored.probabilities, strict=True
        )
    }

    def piece(text: str, remark: str = "") -> TextPiece:
        return TextPiece(text, len(vocabulary.encode(text)), remark)

    return ModelText(
        title=f"User {row['user_id']}, one row of the test part",
        segments=[piece(text) for text in row["history"] if text],
        candidates=[
            piece(
                text,
                f"probability {probabilities[int(row['user_index']), int(item)]:.2f}, "
                f"rated {rating:.0f}",
            )
            for text, item, rating in zip(
                row["candidates"], row["item_indices"], row["ratings"], strict=True
            )
        ],
    )
