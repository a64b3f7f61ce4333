"""A run on real seqio tasks (the tiny shop's), and a script to be killed.

python tests/training/shop_run.py DATA_DIR MODEL_DIR STEPS KILL_AT
"""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from m6rec_jax.checkpoints.location import list_steps
from m6rec_jax.pipeline import preprocessors
from m6rec_jax.pipeline.batches import BatchIterator
from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.source import PreparedSource
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.loop import train
from m6rec_jax.training.optimizers import adamw
from tests.pipeline import shop_rows
from tests.training.toy_run import grouped, toy_config

MIXTURE = "training_shop_mixture"
LENGTHS = {"inputs": 48, "targets": 48}


def write_shop(folder: Path) -> None:
    shop_rows.write_views(folder)
    shop_rows.make_vocabulary(folder)


def register(folder: Path) -> Vocabulary:
    """A mixture of text infilling (random masks) and scoring."""
    text = Vocabulary(folder / "shop.model")
    vocabulary = SeqioVocabulary(lambda: text)
    if MIXTURE in seqio.MixtureRegistry.names():
        return text
    views = {"documents": preprocessors.infilling_rows, "groups": preprocessors.scoring_rows}
    names = []
    for view, preprocessor in views.items():
        name = f"training_shop_{view}"
        (prepared,) = folder.glob(f"*/{view}/1.0.0")
        seqio.TaskRegistry.add(
            name,
            source=PreparedSource(lambda prepared=prepared: prepared, shuffle_buffer_size=8),
            preprocessors=[functools.partial(preprocessor, vocabulary=vocabulary, task_name=name)],
            output_features={
                feature: seqio.Feature(vocabulary, add_eos=False, dtype=tf.as_dtype(spec.dtype))
                for feature, spec in TASK_FEATURES.items()
            },
            shuffle_buffer_size=None,
        )
        names.append(name)
    seqio.MixtureRegistry.add(MIXTURE, names, default_rate=1.0)
    return text


class NotedBatches(BatchIterator):
    """Notes the digest of every batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, num_shards=2, seed=5, **kwargs)
        self.digests: dict[int, str] = {}

    def __next__(self) -> dict[str, Any]:
        index = self.num_batches
        batch = super().__next__()
        content = b"".join(batch[name].tobytes() for name in sorted(batch))
        self.digests[index] = hashlib.sha256(content).hexdigest()
        return batch


def shop_train(
    data: Path,
    model_dir: Path,
    steps: int,
    evaluate: Callable[[Any, Mapping[str, Any], int], Mapping[str, float]] | None = None,
    spare_rows: int = 0,
) -> tuple[Any, NotedBatches]:
    text = register(data)
    made: list[NotedBatches] = []

    def make(*args: Any, **kwargs: Any) -> NotedBatches:
        made.append(NotedBatches(*args, **kwargs))
        return made[-1]

    settings: dict[str, Any] = {
        "mixture_or_task_name": MIXTURE,
        "task_feature_lengths": LENGTHS,
        "batch_size": 4,
        "batches": make,
        "evaluate": evaluate,
        "validation": (lambda *a, **k: []) if evaluate else None,
        "eval_period": 1 if evaluate else steps,
        "checkpoint_period": 5,
        "tensorboard": False,
        "progress": False,
    }
    result = train(
        model=toy_config(vocab_size=text.size + spare_rows),
        model_dir=str(model_dir),
        train_steps=steps,
        optimizer=adamw(1e-3),
        **grouped(settings),
    )
    return result, made[-1]


def main() -> None:
    data, model_dir, steps, kill_at = (*map(Path, sys.argv[1:3]), *map(int, sys.argv[3:5]))

    def die(model: Any, variables: Any, step: int) -> dict[str, float]:
        if step == kill_at:
            while not list_steps(model_dir / "checkpoints"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    shop_train(data, model_dir, steps, evaluate=die)


if __name__ == "__main__":
    main()
