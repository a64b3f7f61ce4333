"""RecBole's click models with RecBole's settings, on split files of ours.

What differs from `recbole.quick_start` (which wants `ray`, a cluster scheduler): the split comes
as three files (`benchmark_filename`), the label is in them, the best state is kept in memory
instead of a pickle, and training can be cut off by a clock. Features are those of RecBole's own
`context-aware_ml-100k.yaml` (user: age, gender, occupation; item: year, genres) and, for DIN,
`sequential_DIN_on_ml-100k.yaml` (item: year, genres; the last 50 items of the user).
"""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from benchmarks.baselines.exported_splits import PARTS, ExportedSplits

NAME = "ml"
SEQUENTIAL = ("DIN",)
MAX_HISTORY = 50


@dataclass(frozen=True)
class RecBoleRun:
    """Test scores [rows], in the order of the split's rows, and how the run went."""

    scores: np.ndarray
    config: str
    note: str | None


class _TimeIsUp(Exception):
    """Raised between epochs: RecBole's training loop has no other way out."""


def _token(value: object) -> str:
    return "" if value is None else str(value).replace("\t", " ").replace(" ", "_")


def write_atomic_files(data: ExportedSplits, folder: Path, sequential: bool) -> int:
    """Writes RecBole's `.inter`, `.user`, `.item` files; one `.inter` per part of the split.

    For a sequential model each row carries the user's last `MAX_HISTORY` items before it; a user's
    first row has none and is left out, as in RecBole's own augmentation.

    Returns:
      the length of the longest history, at least 1; 0 without histories.
    """
    longest = int(sequential)
    folder.mkdir(parents=True, exist_ok=True)
    starts = np.searchsorted(data.user, np.arange(data.users.num_rows))
    for part in PARTS:
        with (folder / f"{NAME}.{part}.inter").open("w") as file:
            history_column = "\titem_id_list:token_seq" if sequential else ""
            file.write(f"user_id:token\titem_id:token\tlabel:float{history_column}\n")
            for row in data.rows("per_user_temporal", part):
                first = starts[data.user[row]]
                columns = [f"u{data.user[row]}", f"i{data.item[row]}", str(data.label[row])]
                if sequential:
                    past = data.item[first:row][-MAX_HISTORY:]
                    if not len(past):
                        continue
                    columns.append(" ".join(f"i{item}" for item in past))
                    longest = max(longest, len(past))
                file.write("\t".join(columns) + "\n")
    users = data.users.to_pylist()
    with (folder / f"{NAME}.user").open("w") as file:
        file.write("user_id:token\tage:token\tgender:token\toccupation:token\n")
        for index, user in enumerate(users):
            values = [_token(user[name]) for name in ("age", "gender", "occupation")]
            file.write("\t".join([f"u{index}", *values]) + "\n")
    with (folder / f"{NAME}.item").open("w") as file:
        file.write("item_id:token\tyear:token\tgenres:token_seq\n")
        for index, item in enumerate(data.items.to_pylist()):
            genres = " ".join(_token(genre) for genre in item["genres"] or ())
            file.write(f"i{index}\t{_token(item['year'])}\t{genres}\n")
    return longest


def settings(model: str, seed: int, folder: Path, longest: int) -> dict[str, Any]:
    """RecBole's settings that are not its defaults: the data, the split, and what is measured.

    Args:
      longest: the longest history that was written, which RecBole's DIN must be told.
    """
    sequential = model in SEQUENTIAL
    loaded: dict[str, list[str]] = {
        "inter": ["user_id", "item_id", "label"],
        "item": ["item_id", "year", "genres"],
    }
    chosen: dict[str, Any] = {}
    if sequential:
        loaded["inter"].append("item_id_list")
        chosen["alias_of_item_id"] = ["item_id_list"]
        # Attention over 50 items for every row: in bfloat16 (RecBole's own switch) an epoch takes
        # less than half the time, which under a time limit is worth more than the last digits.
        chosen["enable_amp"] = True
    else:
        loaded["user"] = ["user_id", "age", "gender", "occupation"]
    return {
        "data_path": str(folder.parent),
        "benchmark_filename": list(PARTS),
        "field_separator": "\t",
        "seq_separator": " ",
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LABEL_FIELD": "label",
        "MAX_ITEM_LIST_LENGTH": longest or MAX_HISTORY,
        "load_col": loaded,
        "threshold": None,
        "normalize_all": False,
        "eval_args": {"group_by": "none", "order": "TO" if sequential else "RO", "mode": "labeled"},
        "train_neg_sample_args": None,
        "metrics": ["AUC", "LogLoss"],
        "valid_metric": "AUC",
        "use_gpu": False,
        "show_progress": False,
        "seed": seed,
        "reproducibility": True,
        **chosen,
    }


def train_and_score(
    data: ExportedSplits,
    model_name: str,
    seed: int,
    work: Path,
    *,
    threads: int,
    cap: float,
) -> RecBoleRun:
    """Trains to RecBole's early stopping on validation AUC and scores the test part.

    Args:
      work: folder for the split files and RecBole's logs.
      threads: of the processor. cap: seconds after which training stops after the running epoch.
    """
    torch.set_num_threads(threads)
    # One line an epoch about a renamed torch function.
    warnings.filterwarnings("ignore", category=FutureWarning)
    sequential = model_name in SEQUENTIAL
    # RecBole takes the data set's name from the folder's.
    folder = work / ("sequential" if sequential else "context") / NAME
    longest = write_atomic_files(data, folder, sequential)
    # RecBole writes its logs into the current folder, and reads the command line if it may.
    with contextlib.chdir(work):
        config = Config(
            model=model_name,
            dataset=NAME,
            config_dict=settings(model_name, seed, folder.resolve(), longest),
        )
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        train, validation, test = data_preparation(config, dataset)
        # Again, as in RecBole's quick start: initial weights depend on the seed alone.
        init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
        model = get_model(config["model"])(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

        best: dict[str, Any] = {"auc": -1.0, "epoch": -1}
        start = time.monotonic()
        epochs = 0

        def after_epoch(epoch: int, score: float) -> None:
            nonlocal epochs
            epochs = epoch + 1
            print(
                f"  {model_name} seed {seed} epoch {epochs}: validation AUC {score:.4f}, "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
            if score > best["auc"]:
                best.update(auc=score, epoch=epochs, state=copy.deepcopy(model.state_dict()))
            if time.monotonic() - start > cap:
                raise _TimeIsUp

        note = None
        try:
            trainer.fit(train, validation, verbose=False, saved=False, callback_fn=after_epoch)
        except _TimeIsUp:
            note = f"cut off after {epochs} epochs ({cap:.0f} s); best epoch {best['epoch']}"
        model.load_state_dict(best["state"])
        scores = _predict(model, test)
    inputs = f"history of {MAX_HISTORY}" if sequential else "ids, profile"
    precision = ", bfloat16" if sequential else ""
    config_text = f"RecBole 1.2.1 defaults ({inputs}, year, genres{precision})"
    return RecBoleRun(scores, config_text, note)


@torch.no_grad()
def _predict(model: torch.nn.Module, loader: Any) -> np.ndarray:
    model.eval()
    parts = [model.predict(batch[0]).numpy() for batch in loader]
    return np.concatenate(parts).astype(np.float64)
