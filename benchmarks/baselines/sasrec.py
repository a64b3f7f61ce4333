"""SASRec: RecBole's module and settings, trained on every position of a window at once.

RecBole's own loop makes one example of every prefix and learns from its last position only: fifty
times the arithmetic for the same targets. Here each user's training sequence is cut into windows of
50 at an offset that changes every epoch, with a target at each position; loss (cross entropy over
all items), optimizer, learning rate, dropout and the number of targets a step are RecBole's.
Training ends when validation NDCG@10 has not risen for `PATIENCE` epochs.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from recbole.config import Config
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.utils import init_seed

from benchmarks.baselines.exported_splits import ExportedSplits
from m6rec_jax.metrics.ranking import ndcg, ranks_by_score

LENGTH = 50
TARGETS_PER_STEP = 2048
PATIENCE = 20


@dataclass(frozen=True)
class SASRecRun:
    """Test scores [users, items], and how the run went."""

    scores: np.ndarray
    config: str
    note: str | None


class _Catalogue:
    """All that RecBole's module asks of a data set: how many items there are, padding included."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def num(self, field: str) -> int:
        return self.num_items + 1


class AllPositionsSASRec(SASRec):
    """SASRec whose `forward` returns the state of every position, [batch, length, hidden]."""

    def gather_indexes(self, output: torch.Tensor, gather_index: torch.Tensor) -> torch.Tensor:
        return output


def windows(sequences: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Cuts item sequences (indices from 1) into rows of `LENGTH` inputs and one more target.

    Returns:
      int64 [windows, LENGTH + 1], padded with 0 at the end; neighbouring windows of a user share
      the one item that is target of the first and input of the second.
    """
    rows = []
    for sequence in sequences:
        cuts = np.arange(-int(rng.integers(LENGTH)), len(sequence) - 1, LENGTH)
        for start in cuts:
            piece = sequence[max(start, 0) : start + LENGTH + 1]
            if len(piece) > 1:
                rows.append(np.pad(piece, (0, LENGTH + 1 - len(piece))))
    return np.stack(rows)


def last_inputs(sequences: list[np.ndarray]) -> np.ndarray:
    """The last `LENGTH` items of each sequence, padded at the end: int64 [users, LENGTH]."""
    tails = [sequence[-LENGTH:] for sequence in sequences]
    return np.stack([np.pad(tail, (0, LENGTH - len(tail))) for tail in tails])


@torch.no_grad()
def score_all(model: AllPositionsSASRec, inputs: np.ndarray) -> np.ndarray:
    """Scores of every item after each input sequence: float32 [users, items]."""
    model.eval()
    parts = []
    for batch in torch.from_numpy(inputs).split(128):
        length = (batch > 0).sum(1)
        states = model(batch, length)[torch.arange(len(batch)), length - 1]
        parts.append((states @ model.item_embedding.weight.T)[:, 1:].numpy())
    return np.concatenate(parts)


def train_and_score(data: ExportedSplits, seed: int, *, threads: int, cap: float) -> SASRecRun:
    """Trains to early stopping on the validation items and scores all items for the test.

    Args:
      threads: of the processor. cap: seconds after which training stops after the running epoch.
    """
    torch.set_num_threads(threads)
    config = Config(
        model="SASRec",
        dataset="ml",
        config_dict={
            "train_neg_sample_args": None,
            "use_gpu": False,
            "MAX_ITEM_LIST_LENGTH": LENGTH,
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
        },
    )
    init_seed(seed, True)
    rng = np.random.default_rng(seed)
    model = AllPositionsSASRec(config, _Catalogue(data.items.num_rows))
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])

    users = range(data.users.num_rows)
    starts = np.searchsorted(data.user, np.arange(data.users.num_rows + 1))
    full = [data.item[starts[u] : starts[u + 1]] + 1 for u in users]
    train = [sequence[:-2] for sequence in full]
    validation_target = np.array([sequence[-2] - 1 for sequence in full])
    seen = np.zeros((data.users.num_rows, data.items.num_rows), bool)
    for user, sequence in enumerate(train):
        seen[user, sequence - 1] = True
    validation_inputs = last_inputs(train)

    start = time.monotonic()
    best, best_epoch, best_state, epoch = -1.0, 0, copy.deepcopy(model.state_dict()), 0
    while epoch - best_epoch < PATIENCE and time.monotonic() - start < cap:
        epoch += 1
        model.train()
        losses = []
        for batch in _batches(windows(train, rng), rng):
            tokens = torch.from_numpy(batch)
            # The last input of a short window has no target after it: it is masked below.
            inputs, target = tokens[:, :-1], tokens[:, 1:]
            states = model(inputs, (inputs > 0).sum(1))
            real = target > 0
            logits = states[real] @ model.item_embedding.weight.T
            loss = torch.nn.functional.cross_entropy(logits, target[real])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        ranks = ranks_by_score(score_all(model, validation_inputs), validation_target, seen)
        score = ndcg(ranks, 10)
        print(
            f"  SASRec seed {seed} epoch {epoch}: loss {np.mean(losses):.4f}, "
            f"validation NDCG@10 {score:.4f}, {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if score > best:
            best, best_epoch, best_state = score, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    note = None
    if epoch - best_epoch < PATIENCE:
        note = f"cut off after {epoch} epochs ({cap:.0f} s); best epoch {best_epoch}"
    scores = score_all(model, last_inputs([sequence[:-1] for sequence in full]))
    return SASRecRun(scores, "RecBole 1.2.1 module and defaults, own loop", note)


def _batches(rows: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffles windows and groups them to about `TARGETS_PER_STEP` targets."""
    rows = rows[rng.permutation(len(rows))]
    targets = np.cumsum((rows[:, 1:] > 0).sum(1))
    cuts = np.searchsorted(targets, np.arange(TARGETS_PER_STEP, targets[-1], TARGETS_PER_STEP))
    return [part for part in np.split(rows, cuts) if len(part)]
