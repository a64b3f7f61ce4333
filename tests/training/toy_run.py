"""A tiny run for tests: a model, an endless learnable data source, and a script to be killed.

python tests/training/toy_run.py MODEL_DIR STEPS KILL_AT
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.checkpoint import list_steps
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.model.config import ModelConfig, PromptConfig

VOCAB, SOURCE, TARGET, ROWS = 32, 8, 4, 8
SPECIAL = (1, 2)


def copied(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by name, that no later step overwrites."""
    return {name: np.array(leaf) for name, leaf in flatten(tree).items()}


def toy_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "embed_dim": 16,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "head_dim": 8,
        "mlp_dim": 32,
        "dropout_rate": 0.1,
        "prompts": PromptConfig(
            num_prompts=4,
            num_options=2,
            head="option",
            adapter_rank=2,
            special_token_ids=SPECIAL,
            retrieval_dim=0,
        ),
    }
    return ModelConfig(**(values | changes))


def toy_batch(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Rows whose target repeats a source token; row lengths differ, so accumulation can err."""
    source = rng.integers(3, VOCAB, (rows, SOURCE)).astype(np.int32)
    lengths = rng.integers(3, SOURCE + 1, (rows, 1))
    real = np.arange(SOURCE) < lengths
    source = np.where(real, source, 0)
    target = source[:, :2]
    targets = np.concatenate([target, np.ones((rows, 1)), np.zeros((rows, 1))], 1).astype(np.int32)
    inputs = np.concatenate([np.zeros((rows, 1)), target, np.ones((rows, 1))], 1).astype(np.int32)
    weights = (targets > 0).astype(np.float32) * (rng.random((rows, 1)) < 0.7)
    labels = np.full((rows, TARGET), -1, np.int32)
    labels[:, -1] = source[:, 0] % 2
    labels[rng.random(rows) < 0.2, -1] = -1
    return {
        "encoder_input_tokens": source,
        "encoder_block_ids": real.astype(np.int32),
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights.astype(np.float32),
        "decoder_block_ids": np.ones((rows, TARGET), np.int32),
        "decoder_labels": labels,
        "decoder_item_ids": np.full((rows, TARGET), -1, np.int32),
        "decoder_item_log_frequency": np.zeros((rows, TARGET), np.float32),
        "task_ids": np.zeros((rows, 1), np.int32),
        "retrieval": np.zeros((rows, 1), np.int32),
        "user_ids": np.full((rows, 1), -1, np.int32),
    }


class ToyBatches:
    """`ResumableBatches` over shards of random rows; notes the digest of every batch it made.

    Rows are numbered: `user_ids` (which no objective of the toy reads) of row k of a shard is
    shard * 100,000 + k.
    """

    def __init__(
        self,
        name: str,
        feature_lengths: Mapping[str, int],
        batch_size: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
        num_shards: int = 4,
    ) -> None:
        per_process = num_shards // process_count
        self.shards = range(process_index * per_process, (process_index + 1) * per_process)
        self._num_shards, self._rows = num_shards, batch_size // num_shards
        self._rngs = {shard: np.random.default_rng([7, shard]) for shard in self.shards}
        self.num_batches = 0
        self.num_state_dicts = 0
        self.digests: dict[int, str] = {}

    def __next__(self) -> dict[str, np.ndarray]:
        parts = [toy_batch(rng, self._rows) for rng in self._rngs.values()]
        first = self.num_batches * self._rows
        for shard, part in zip(self.shards, parts, strict=True):
            part["user_ids"] = (100_000 * shard + first + np.arange(self._rows))[:, None]
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        content = b"".join(batch[name].tobytes() for name in sorted(batch))
        self.digests[self.num_batches] = hashlib.sha256(content).hexdigest()
        self.num_batches += 1
        return batch

    def _key(self, shard: int) -> str:
        return f"shard-{shard:05d}-of-{self._num_shards:05d}"

    def state_dict(self) -> dict[str, bytes]:
        self.num_state_dicts += 1
        states = {
            self._key(shard): json.dumps(rng.bit_generator.state).encode()
            for shard, rng in self._rngs.items()
        }
        return {**states, "settings": json.dumps({"num_batches": self.num_batches}).encode()}

    def load_state_dict(self, states: Mapping[str, bytes]) -> None:
        for shard, rng in self._rngs.items():
            rng.bit_generator.state = json.loads(states[self._key(shard)])
        self.num_batches = json.loads(states["settings"])["num_batches"]


def toy_validation(*_: Any, **__: Any) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(99)
    return [toy_batch(rng, ROWS) for _ in range(2)]


# How tests name settings, and the groups of `training.options` they are of.
SETTINGS = {
    "mixture_or_task_name": "TrainingData.mixture_or_task_name",
    "task_feature_lengths": "TrainingData.task_feature_lengths",
    "batch_size": "TrainingData.batch_size",
    "batches": "TrainingData.batches",
    "vocabulary_fingerprint": "TrainingData.vocabulary_fingerprint",
    "initial_checkpoint_path": "Start.checkpoint",
    "initial_prompts": "Start.prompts",
    "initial_options": "Start.options",
    "initial_embeddings": "Start.embeddings",
    "accumulation_steps": "Step.accumulation_steps",
    "frozen_dtype": "Step.frozen_dtype",
    "weight_bits": "Step.weight_bits",
    "distillation": "Step.distillation",
    "checkpoint_period": "Checkpoints.period",
    "keep_checkpoints": "Checkpoints.keep",
    "log_period": "Logging.period",
    "tensorboard": "Logging.tensorboard",
    "progress": "Logging.progress",
    "eval_period": "Validation.period",
    "validate_first": "Validation.first",
    "evaluate": "Validation.evaluate",
    "best_metric": "Validation.best_metric",
    "best_mode": "Validation.best_mode",
    "early_stopping_patience": "Validation.patience",
    "validation": "Validation.batches",
}
ARGUMENTS = {
    "TrainingData": "data",
    "Start": "start",
    "Step": "step",
    "Checkpoints": "checkpoints",
    "Logging": "log",
    "Validation": "validation",
}


def grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `train`: those of `SETTINGS` in their groups, the others as they are."""
    from m6rec_jax.training import options

    groups: dict[str, dict[str, Any]] = {}
    arguments = {}
    for name, value in settings.items():
        if name in SETTINGS:
            group, field = SETTINGS[name].split(".")
            groups.setdefault(group, {})[field] = value
        else:
            arguments[name] = value
    made = {ARGUMENTS[group]: getattr(options, group)(**values) for group, values in groups.items()}
    return arguments | made


def toy_train(model_dir: str | Path, steps: int, **changes: Any) -> Any:
    """`train` with the toy's settings; `result, batches`."""
    from m6rec_jax.training.loop import train
    from m6rec_jax.training.optimizers import adamw

    made: list[ToyBatches] = []

    def make(*args: Any, **kwargs: Any) -> ToyBatches:
        made.append(ToyBatches(*args, num_shards=num_shards, **kwargs))
        return made[-1]

    num_shards = changes.pop("num_shards", 4)
    settings: dict[str, Any] = {
        "model": toy_config(),
        "batch_size": ROWS,
        "optimizer": adamw(3e-3, weight_decay=0.01),
        "seed": 3,
        "checkpoint_period": 4,
        "log_period": 2,
        "batches": make,
        "validation": toy_validation,
        "tensorboard": False,
        "progress": False,
        "mixture_or_task_name": "toy",
        "task_feature_lengths": {"inputs": SOURCE, "targets": TARGET},
    }
    arguments = grouped(settings | changes)
    result = train(model_dir=str(model_dir), train_steps=steps, **arguments)
    return result, made[-1]


def main() -> None:
    folder, steps, kill_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def die(model: Any, variables: Any, step: int) -> dict[str, float]:
        if step == kill_at:
            while not list_steps(folder / "checkpoints"):  # saving goes on in the background
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    # A validation at the step to die at, without batches.
    toy_train(folder, steps, evaluate=die, eval_period=1, validation=lambda *a, **k: [])


if __name__ == "__main__":
    main()
