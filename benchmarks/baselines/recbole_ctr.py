"""RecBole's click models with RecBole's settings, on split files of ours.

What differs from `recbole.quick_start` (which wants `ray`, a cluster scheduler): the split comes
as three files (`benchmark_filename`), the label is in them, the best state is kept in memory
instead of a pickle, and training can be cut off by a clock. Features are those of RecBole's own
`context-aware_ml-100k.yaml` (user: age, gender, occupation; item: year, genres).
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


def write_atomic_files(data: ExportedSplits, folder: Path) -> None:
    """Writes RecBole's `.inter`, `.user`, `.item` files; one `.inter` per part of the split."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        with (folder / f"{NAME}.{part}.inter").open("w") as file:
            file.write("user_id:token\titem_id:token\tlabel:float\n")
            for row in data.rows("per_user_temporal", part):
                columns = [f"u{data.user[row]}", f"i{data.item[row]}", str(data.label[row])]
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


def settings(seed: int, folder: Path) -> dict[str, Any]:
    """RecBole's settings that are not its defaults: the data, the split, and what is measured."""
    loaded = {
        "inter": ["user_id", "item_id", "label"],
        "item": ["item_id", "year", "genres"],
        "user": ["user_id", "age", "gender", "occupation"],
    }
    return {
        "data_path": str(folder.parent),
        "benchmark_filename": list(PARTS),
        "field_separator": "\t",
        "seq_separator": " ",
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LABEL_FIELD": "label",
        "load_col": loaded,
        "threshold": None,
        "normalize_all": False,
        "eval_args": {"group_by": "none", "order": "RO", "mode": "labeled"},
        "train_neg_sample_args": None,
        "metrics": ["AUC", "LogLoss"],
        "valid_metric": "AUC",
        "use_gpu": False,
        "show_progress": False,
        "seed": seed,
        "reproducibility": True,
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
    # RecBole takes the data set's name from the folder's.
    folder = work / "context" / NAME
    write_atomic_files(data, folder)
    # RecBole writes its logs into the current folder, and reads the command line if it may.
    with contextlib.chdir(work):
        config = Config(
            model=model_name,
            dataset=NAME,
            config_dict=settings(seed, folder.resolve()),
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
    return RecBoleRun(scores, "RecBole 1.2.1 defaults (ids, profile, year, genres)", note)


@torch.no_grad()
def _predict(model: torch.nn.Module, loader: Any) -> np.ndarray:
    model.eval()
    parts = [model.predict(batch[0]).numpy() for batch in loader]
    return np.concatenate(parts).astype(np.float64)
