"""What moves a ranking that should stay: candidates or a history in another order, other words.

    m6rec demo --output runs/demo
    python -m benchmarks.order runs/demo/scoring

A run of MovieLens' scoring ranks films for users, right after the last event that its statistics
hold: films that the user has not rated, drawn at random. They are ranked again with

  * the candidates shuffled, which must change nothing;
  * the history shuffled: its behaviours keep their words, and those that fit stay the same;
  * no history at all, beside which the others are to be seen;
  * parts of the template in other words, which the run was not trained on (`PHRASINGS`).

How many of the first ten stay (`overlap@10`), and Kendall's tau of all candidates, averaged over
the users, go to `benchmarks/results/order.json`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset
from scipy.stats import kendalltau

from benchmarks.command_line import errors_told
from benchmarks.results_file import add_rows, results_path, told_rows
from m6rec_jax.data.prepared import EVENTS
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.splits import STATISTICS_PARTS
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.pipeline.locations import dataset_folder
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.serving.service import Service
from m6rec_jax.text.layout import fit_to_budget
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.vocabulary import Vocabulary

DATASET = "movielens-100k"
GIN_FILE = "gin_configs/examples/demo_ctr.gin"
USERS, CANDIDATES, TOP = 100, 100, 10
# Entries of MovieLens' template, saying the same.
PHRASINGS: Mapping[str, Mapping[str, str]] = {
    "behaviours turned round": {"event": "{title}[ ({year})][: {outcome}][, {ago}]"},
    "user and moment in other words": {
        "profile": "{gender}[ {occupation}], aged {age}[, {user_count} films, "
        "{user_positive_percent}% of them liked][, mean rating {user_mean_value}]",
        "context": "on a {weekday} {part_of_day}",
    },
    "title and genres in other words": {
        "candidate": "{title}[ from {year}][. Genres: {genres}]"
        "[, rated {item_mean_value}][, {item_positive_percent}% like it][, {item_count} views]"
        "[, user rates {user_mean_value}][, user likes {user_positive_percent}%]"
        "[, likes {user_genres_percent}% of such genres]"
        "[, likes {user_neighbours_percent}% of similar films][, taste {user_taste_difference}]"
        "[, expected {user_expected_value}]"
    },
    "statistics in other words": {
        "candidate": "{title}[ ({year})][, {genres}]"
        "[. Mean rating {item_mean_value}][. Liked by {item_positive_percent}%]"
        "[. Seen {item_count} times][. User's mean rating {user_mean_value}]"
        "[. User's likes {user_positive_percent}%][. Of these genres {user_genres_percent}%]"
        "[. Of similar films {user_neighbours_percent}%][. Taste {user_taste_difference}]"
        "[. Expected rating {user_expected_value}]"
    },
}


def requests(service: Service, task: str, users: int, candidates: int) -> list[dict[str, Any]]:
    """Requests of users drawn at random, about films not rated in the training part."""
    data = service.parts.data(task)
    assert data.folder is not None
    assert data.statistics is not None
    records = Dataset.open(dataset_folder(DATASET)).user_records
    ids, rng = list(data.items), np.random.default_rng(0)
    drawn = rng.permutation(len(records))[:users]
    files = pyarrow.dataset.dataset([*(data.folder / EVENTS).glob("*.parquet")])
    order = [(name, "ascending") for name in ("user", "time", "row")]
    events = (
        files.to_table(
            filter=pc.field("user").isin(drawn) & pc.field("part").isin(STATISTICS_PARTS)
        )
        .sort_by(order)
        .to_pylist()
    )
    found = []
    for user, own in itertools.groupby(events, key=lambda event: event["user"]):
        behaviours = [{**event, "item": ids[event["item"]]} for event in own]
        unseen = sorted(set(ids) - {behaviour["item"] for behaviour in behaviours})
        row: dict[str, Any] = {"user": {"id": records[user].id, **records[user].attributes}}
        row["time"] = data.statistics.last_time + 1
        row["candidates"] = rng.choice(unseen, candidates, replace=False).tolist()
        found.append(row | {"history": behaviours})
    return found


def measure(service: Service, task: str, rows: Sequence[Any]) -> dict[str, dict[str, float]]:
    """By what was changed, how much of the rankings stayed.

    Raises:
      RejectedRow: a request cannot be answered.
    """
    asked = [service.accept(row, task=task) for row in rows]
    for one in asked:
        if isinstance(one, RejectedRow):
            raise one
    accepted = [one for one in asked if isinstance(one, Accepted)]
    texts = [one.text for one in accepted]
    scorer, length = service.parts.scorer(), service.model.settings.source_length
    rng = np.random.default_rng(0)

    def scores(texts: Sequence[RequestText]) -> list[np.ndarray]:
        histories, candidates = zip(*texts, strict=True)
        return scorer.score_requests(histories, candidates, [task] * len(texts))

    plain = scores(texts)
    orders = [rng.permutation(len(text.candidates)) for text in texts]
    moved = scores(
        [
            text._replace(candidates=[text.candidates[index] for index in order])
            for text, order in zip(texts, orders, strict=True)
        ]
    )
    back = [own[np.argsort(order)] for own, order in zip(moved, orders, strict=True)]
    other = [
        text._replace(history=shuffled(text.history, service.model.vocabulary, length, rng))
        for text in texts
    ]
    found = {
        "candidates shuffled": stayed(plain, back),
        "history shuffled": stayed(plain, scores(other)),
        "history left out": stayed(plain, scores([bare(text) for text in texts])),
    }
    data, max_events = service.parts.data(task), service.parts.settings(task).max_events
    for name, entries in PHRASINGS.items():
        template = DatasetTemplate.parse({**data.spec.template, **entries})
        renderer = RequestRenderer(template, data.statistics, max_events)
        said = [renderer.render(one.request) for one in accepted]
        found[name] = stayed(plain, scores(said))
    return found


def bare(text: RequestText) -> RequestText:
    """Without the behaviours: how much there is to move."""
    return text._replace(history=[text.history[0], text.history[-1]])


def shuffled(
    history: Sequence[str], vocabulary: Vocabulary, length: int, rng: np.random.Generator
) -> list[str]:
    """A history with those behaviours that fit into `length` tokens in any order."""
    tokens = [vocabulary.encode_array(segment) for segment in history]
    dropped = fit_to_budget(tokens, length - 2, keep_last=2)[1]  # [BOS'], [EOS']
    profile, *behaviours, context = history
    return [profile, *rng.permutation(np.array(behaviours[dropped:], object)), context]


def stayed(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> dict[str, float]:
    """`overlap@10` and `kendalls_tau`, means over lists of scores of the same candidates."""
    tops = [[set(np.argsort(-one)[:TOP]) for one in scores] for scores in (before, after)]
    shared = [len(one & other) / TOP for one, other in zip(*tops, strict=True)]
    taus = [kendalltau(*pair).statistic for pair in zip(before, after, strict=True)]
    return {f"overlap@{TOP}": float(np.mean(shared)), "kendalls_tau": float(np.mean(taus))}


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="What moves a ranking that should stay.")
    parser.add_argument("run", type=Path, help="MODEL_DIR of a run that scores MovieLens' films")
    options = parser.parse_args(arguments)
    service = Service.open(options.run)
    task = service.task(None, "scoring")
    asked = requests(service, task, USERS, CANDIDATES)
    rows = told_rows(
        measure(service, task, asked),
        gin_file=GIN_FILE,
        dataset=DATASET,
        split=f"{USERS} users, {CANDIDATES} films each",
        seed=None,
    )
    add_rows(results_path("order"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
