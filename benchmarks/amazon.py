"""Next items in sequences, as the field has them: leave-one-out, the whole catalogue, no times.

    m6rec data fetch sentence-encoder
    python -m benchmarks.amazon FOLDER                    # everything that has no rows yet
    python -m benchmarks.amazon FOLDER --cold             # 5% of the items are in no training event
    python -m benchmarks.amazon FOLDER --seeds 0 1 2      # of what is trained (default: 0)

FOLDER is called as the data set and holds what `m6rec data import sequences` reads:
`sequences.txt`, a line `user item item ...` per user, and `items.tsv` with an item's text in its
last column (Amazon's reviews are not ours to give away). A user's last item tests, the one before
it validates; at test it belongs to the history. All items but those of the history are ranked,
never without what is wanted.

Popularity, TF-IDF, co-occurrence, both by hand, EASE and SASRec score every item. `hybrid` is the
code that evaluates and serves (`m6rec_jax.evaluation.reranking`), with weights learnt on validation
rows; in place of towers it has none, or a sentence encoder's vectors of the last items. With
`--cold` it finds candidates as LIGER does (Yang et al., 2024), too: its 20 best known items and all
held-out ones, ordered by texts. Rows go to `benchmarks/results/amazon.json` as each run ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from scipy import linalg, sparse

from benchmarks.results_file import add_rows, metric_rows, read_results, results_path
from benchmarks.sasrec import Score, Trainer
from m6rec_jax.data.co_occurrence import CoOccurrence
from m6rec_jax.data.ease import Ease
from m6rec_jax.data.prepared import Catalogue
from m6rec_jax.engine.catalogue_index import NO_ITEM, CatalogueIndex
from m6rec_jax.engine.item_words import ItemWords
from m6rec_jax.engine.runtime import Runtime
from m6rec_jax.evaluation.reranking import LearntRanking, Reranking, Retrieval
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.jobs.job import TaskData
from m6rec_jax.jobs.retrieval import ReadRows, RetrievalPredictions, retrieval_metrics
from m6rec_jax.metrics.ranking import ranks_by_score
from m6rec_jax.training.sentences import encoder_folder

KS = (5, 10, 50)
_COLD = 0.05
_BLOCK = 512
# Rows that weights are learnt on.
_LEARN = 5_000
_DEPTH = 100
# Known items that LIGER generates.
_GENERATED = 20
_PENALTY = 250.0
_SHARES = (0.2, 0.4, 0.6, 0.8)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Users' sequences, as item indices, and what may be learnt from them.

    Attributes:
      name: of the data set.
      texts: of the items.
      sequences: per user, oldest first.
      cold: items that are in no training event, bool `[items]`.
    """

    name: str
    texts: Sequence[str]
    sequences: Sequence[Sequence[int]]
    cold: np.ndarray

    @classmethod
    def read(cls, folder: Path, cold: bool) -> Task:
        """Reads a folder; with `cold` a twentieth of the items is held out, drawn once."""
        lines = (folder / "items.tsv").read_text("utf-8").splitlines()[1:]
        fields = [line.split("\t") for line in lines]
        index = {own[0]: number for number, own in enumerate(fields)}
        rows = (folder / "sequences.txt").read_text("utf-8").splitlines()
        sequences = [[index[item] for item in row.split()[1:]] for row in rows]
        held = np.random.default_rng(0).random(len(fields)) < (_COLD if cold else 0.0)
        return cls(folder.resolve().name, [own[-1] for own in fields], sequences, held)

    @functools.cached_property
    def training(self) -> list[list[int]]:
        """All but the last two items of each user, without cold ones."""
        return [[item for item in own[:-2] if not self.cold[item]] for own in self.sequences]

    @functools.cached_property
    def events(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of training events."""
        users = np.repeat(np.arange(len(self.training)), list(map(len, self.training)))
        return users, np.concatenate(self.training).astype(np.int64)  # some may be empty

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Training events of each item `[items]`."""
        return np.bincount(self.events[1], minlength=len(self.texts))

    @functools.cached_property
    def counted(self) -> CoOccurrence:
        """Which items occur together in training."""
        return CoOccurrence.counted(*self.events, len(self.texts))

    @functools.cached_property
    def linear(self) -> Ease:
        """What follows from all that a user had."""
        return Ease.fitted(*self.events, len(self.texts))

    @functools.cached_property
    def words(self) -> ItemWords:
        """Of the texts."""
        return ItemWords(self.texts)

    def part(self, part: str) -> Rows:
        """Rows of 'test', or a sample of those of 'validation' that want no cold item."""
        cut = 1 if part == "test" else 2
        wanted = np.array([own[-cut] for own in self.sequences])
        users = np.arange(len(wanted))
        if part == "validation":
            users = np.random.default_rng(1).permutation(users[~self.cold[wanted]])[:_LEARN]
        past = [list(self.sequences[user][:-cut]) for user in users.tolist()]
        return Rows(self, past, wanted[users])


@dataclasses.dataclass(frozen=True)
class Rows:
    """One row per user; as much of a `TaskData` as reranking asks for.

    Attributes:
      task: they are of.
      past: items before the wanted one, oldest first.
      wanted: int64 `[rows]`.
    """

    task: Task
    past: Sequence[Sequence[int]]
    wanted: np.ndarray

    @property
    def name(self) -> str:
        return self.task.name

    def prepared(self) -> Rows:
        return self

    def co_occurrence(self) -> CoOccurrence:
        return self.task.counted

    def ease(self) -> Ease:
        return self.task.linear

    def catalogue(self) -> Catalogue:
        return Catalogue([], self.task.texts, self.task.cold, self.task.counts)

    def ranked(
        self, score: Score, length: int, offered: np.ndarray | None = None
    ) -> RetrievalPredictions:
        """Ranks of the wanted items, and the best of each row.

        Args:
          score: of all items.
          length: of the lists.
          offered: known items that alone are ranked beside the cold ones `[rows, k]`; None: all.
        """
        ranks, ids, scores = [], [], []
        for start in progress_bar(range(0, len(self.past), _BLOCK), desc="ranking", delay=2.0):
            past = self.past[start : start + _BLOCK]
            wanted = self.wanted[start : start + _BLOCK]
            found = np.asarray(score(past), np.float32)
            hidden = np.zeros(found.shape, bool)
            for row, own in enumerate(past):
                hidden[row, list(own)] = True
            hidden[np.arange(len(past)), wanted] = False
            if offered is not None:
                others = np.tile(~self.task.cold, (len(past), 1))
                np.put_along_axis(others, offered[start : start + _BLOCK], False, axis=1)
                hidden |= others
            ranks.append(ranks_by_score(found, wanted[:, None], hidden))
            left = np.where(hidden, -np.inf, found)
            some = np.argpartition(-left, min(length, left.shape[1]) - 1, axis=1)[:, :length]
            some.sort(axis=1)
            best = np.take_along_axis(left, some, axis=1)
            order = np.argsort(-best, axis=1, kind="stable")
            scores.append(np.take_along_axis(best, order, axis=1))
            some = np.where(np.isinf(best), NO_ITEM, some)
            ids.append(np.take_along_axis(some, order, axis=1))
        num_ranked = len(self.task.texts) - np.array([len(set(own)) for own in self.past])
        return RetrievalPredictions(
            np.arange(len(self.past)),
            self.wanted[:, None],
            np.concatenate(ranks),
            np.concatenate(ids),
            np.concatenate(scores),
            num_ranked,
        )

    def read(self) -> ReadRows:
        """Nothing of the past is recommended, but what is wanted."""
        past = [np.asarray(own, np.int64) for own in self.past]
        excluded = list(map(np.setdiff1d, past, self.wanted))
        return ReadRows([[]] * len(past), past, excluded)


def popularity(task: Task) -> Score:
    """Training events of an item."""
    counts = task.counts / max(task.counts.max(), 1)
    return lambda past: np.broadcast_to(counts, (len(past), len(counts)))


def tf_idf(task: Task) -> Score:
    """`ItemWords`."""
    return lambda past: task.words.near(past).toarray()


def co_occurrence(task: Task) -> Score:
    """`CoOccurrence.related`."""

    def score(past: Sequence[Sequence[int]]) -> np.ndarray:
        found = np.zeros((len(past), len(task.texts)), np.float32)
        for row, own in enumerate(past):
            near = task.counted.related(own)
            found[row, near.items] = near.shares
        return found

    return score


def both(task: Task) -> Score:
    """Co-occurrence and TF-IDF, 1 to 0.3."""
    return together(task, {co_occurrence(task): 1.0, tf_idf(task): 0.3})


def together(task: Task, parts: Mapping[Score, float]) -> Score:
    """A weighted sum of scores, each divided by a row's largest."""

    def score(past: Sequence[Sequence[int]]) -> np.ndarray:
        total = np.zeros((len(past), len(task.texts)), np.float32)
        for part, weight in parts.items():
            own = part(past)
            for row, items in enumerate(past):
                own[row, list(items)] = 0.0
            total += weight * own / np.maximum(own.max(axis=1, keepdims=True), 1e-12)
        return total

    return score


def ease(task: Task) -> Score:
    """Steck's item-item regression without a diagonal, in closed form."""
    shape = (len(task.training), len(task.texts))
    ones = np.ones(len(task.events[0]), np.float32)
    seen = sparse.csr_matrix((ones, task.events), shape)
    seen.data[:] = 1.0
    gram = np.asfortranarray((seen.T @ seen).toarray(), np.float32)
    gram[np.diag_indices_from(gram)] += _PENALTY
    # Its lower triangle alone is made.
    inverse = linalg.lapack.spotri(linalg.cholesky(gram, lower=True, overwrite_a=True), 1)[0]
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    inverse /= -np.diag(inverse)
    inverse[np.diag_indices_from(inverse)] = 0.0

    def score(past: Sequence[Sequence[int]]) -> np.ndarray:
        return np.stack([inverse[list(set(own))].sum(axis=0) for own in past])

    return score


BASELINES: dict[str, tuple[Callable[[Task], Score], str]] = {
    "popularity": (popularity, "training events"),
    "TF-IDF": (tf_idf, "words of the last 5 items, weighted 1/k"),
    "co-occurrence": (co_occurrence, "within 10 places, the last 10 items weighted 1/k"),
    "co-occurrence and TF-IDF": (both, "each divided by its largest, 1 : 0.3"),
    "EASE": (ease, f"λ = {_PENALTY:.0f}"),
}


# Items drawn for each step; none: cross entropy over all of them.
SASREC = {"SASRec, cross entropy": 0, "SASRec, sampled softmax": 512}


def sasrec(task: Task, num_negatives: int, seed: int, minutes: float) -> tuple[Score, str]:
    """Trained until NDCG@10 of the validation sample stops rising."""
    judge = functools.partial(on_validation, task)
    trainer = Trainer(task.training, len(task.texts), judge, num_negatives, minutes)
    return trainer.fit(seed)


def on_validation(task: Task, score: Score) -> float:
    """NDCG@10 of the validation sample."""
    ranked = task.part("validation").ranked(score, 10)
    return retrieval_metrics(ranked, len(task.texts), (10,))["ndcg@10"]


_LIGER = "hybrid, candidates as LIGER"
# What needs an encoder.
_ENCODED = ("sentence encoder", "TF-IDF and sentence encoder", "hybrid, sentence encoder")


class Encoded:
    """Vectors of the items' texts by a public sentence encoder; a user is the last five's mean."""

    def __init__(self, task: Task, encoder: Path) -> None:
        from m6rec_jax.training.sentences import SentenceEncoder

        vectors = SentenceEncoder(encoder, max_tokens=64)(task.texts)
        vectors -= vectors.mean(axis=0)
        self.items = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        self.index = CatalogueIndex(self.items)

    def users(self, past: Sequence[Sequence[int]]) -> np.ndarray:
        """Float32 `[rows, width]`, of unit length."""
        found = np.stack(
            [
                (1.0 / np.arange(1, len(own[-5:]) + 1)) @ self.items[list(own[-5:])[::-1]]
                for own in past
            ]
        )
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / lengths, np.float32)

    def score(self, past: Sequence[Sequence[int]]) -> np.ndarray:
        """Cosines `[rows, items]`."""
        return self.users(past) @ self.items.T


def texts_alone(task: Task, encoded: Encoded) -> tuple[Score, str]:
    """TF-IDF and the encoder's cosines, at the ratio that does best on the validation sample."""
    words = tf_idf(task)

    def mixed(share: float) -> Score:
        return together(task, {words: 1.0 - share, encoded.score: share})

    best = max(_SHARES, key=lambda share: on_validation(task, mixed(share)))
    return mixed(best), f"{1 - best:.1f} : {best:.1f}"


def nothing(task: Task) -> Score:
    """Of no retriever: all items alike."""
    return lambda past: np.zeros((len(past), len(task.texts)), np.float32)


def retrieval(rows: Rows, score: Score, depth: int) -> Retrieval:
    """What a retriever that scores all items found: that many, or nothing."""
    predictions = rows.ranked(score, depth or max(KS))
    if not depth:
        nothing_found = np.full_like(predictions.top_items, NO_ITEM)
        predictions = dataclasses.replace(predictions, top_items=nothing_found)

    def similarities(places: slice, ids: np.ndarray) -> np.ndarray:
        scores = np.asarray(score(rows.past[places]), np.float32)
        return np.where(ids < 0, -np.inf, np.take_along_axis(scores, np.maximum(ids, 0), axis=1))

    return Retrieval(cast(TaskData, rows), predictions, rows.read(), similarities, Runtime())


def hybrid(task: Task, score: Score, depth: int) -> RetrievalPredictions:
    """Test rows in the order of weights that were learnt on validation rows."""
    reranking = Reranking(depth=_DEPTH)
    learnt = LearntRanking(reranking)
    learnt(retrieval(task.part("validation"), score, depth), None)
    weights = learnt.learnt["", True].weights
    told = ", ".join(f"{name} {value:.2f}" for name, value in weights.known.items())
    of_new = ", ".join(f"{name} {value:.2f}" for name, value in weights.new.items())
    print(f"  weights: {told}; of new items {of_new}", flush=True)
    return reranking(retrieval(task.part("test"), score, depth), weights)


@functools.cache
def without_towers(task: Task) -> RetrievalPredictions:
    """Of the hybrid."""
    return hybrid(task, nothing(task), 0)


def as_liger(task: Task) -> RetrievalPredictions:
    """Some known items that the hybrid found best, and all cold ones, by the words of texts."""
    found = without_towers(task)
    known_first = np.argsort(task.cold[found.top_items], axis=1, kind="stable")
    places = known_first[:, :_GENERATED]
    offered = np.take_along_axis(found.top_items, places, axis=1)
    return task.part("test").ranked(tf_idf(task), max(KS), offered)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", help="of these alone (default: all)")
    parser.add_argument("--cold", action="store_true", help="hold out a twentieth of the items")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of what is trained")
    parser.add_argument("--minutes", type=float, default=40, help="at most, of a training")
    parser.add_argument("--force", action="store_true", help="run again what has rows already")
    options = parser.parse_args(arguments)
    known = [*BASELINES, *SASREC, "hybrid, no towers", *_ENCODED]
    if options.cold:
        known += [_LIGER]
    if unknown := sorted(set(options.models or ()) - set(known)):
        parser.error(f"unknown models {unknown}; known: {known}")
    task = Task.read(options.folder, options.cold)
    split = "leave_one_out" + (f"-cold{_COLD:.0%}" if options.cold else "")
    path = results_path("amazon")
    if not set(_ENCODED).isdisjoint(options.models or known):
        encoder = encoder_folder("sentence-encoder")
    runs = [
        (model, seed)
        for model in options.models or known
        for seed in (options.seeds if model in SASREC else [None])
    ]
    for model, seed in runs:
        if not options.force and (model, task.name, split, seed) in read_results(path).runs:
            print(f"{model}: has rows already", flush=True)
            continue
        start, note = time.monotonic(), None
        if model in BASELINES:
            make, config = BASELINES[model]
            predictions = task.part("test").ranked(make(task), max(KS))
        elif model in SASREC:
            config = "64 wide, 2 layers" + (f", {SASREC[model]} items a step" * bool(SASREC[model]))
            score, note = sasrec(task, SASREC[model], seed or 0, options.minutes)
            predictions = task.part("test").ranked(score, max(KS))
        elif model == "hybrid, no towers":
            config = "weights learnt on validation rows"
            predictions = without_towers(task)
        elif model == _LIGER:
            config = f"the {_GENERATED} best known items and all unseen ones, by TF-IDF"
            predictions = as_liger(task)
        else:
            encoded = Encoded(task, encoder)
            config = "all-MiniLM-L6-v2, the last 5 items weighted 1/k"
            if model == "sentence encoder":
                predictions = task.part("test").ranked(encoded.score, max(KS))
            elif model == "TF-IDF and sentence encoder":
                score, ratio = texts_alone(task, encoded)
                config = f"each divided by its largest, {ratio} by validation rows"
                predictions = task.part("test").ranked(score, max(KS))
            else:
                predictions = hybrid(task, encoded.score, _DEPTH)
        lists = predictions.top_items[:, : max(KS)]
        predictions = dataclasses.replace(predictions, top_items=lists)
        metrics = retrieval_metrics(predictions, len(task.texts), KS, task.cold)
        seconds = time.monotonic() - start
        add_rows(
            path,
            metric_rows(
                metrics,
                model=model,
                config=config,
                dataset=task.name,
                split=split,
                seed=seed,
                seconds=seconds,
                note=note,
            ),
        )
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{model}: {figures} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
