"""Toy data for whole commands in several processes; imported by the gin file of the test.

They note the rows they give, and get into trouble on demand: the environment variable TROUBLE
may say 'kill 1 9', SIGKILL for process 1 as it reads batch 9, or 'term 0 6', SIGTERM for process 0
('term all 6': for all).
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import gin
import numpy as np

from m6rec_jax.checkpoints.checkpoint import list_steps
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import M6Rec
from tests.training.toy_run import ToyBatches, toy_config, toy_validation

gin.external_configurable(toy_validation, "toy_validation")


def small_config() -> ModelConfig:
    """Without prompts and dropout, of which compiling would take most of the time."""
    return toy_config(prompts=PromptConfig(), dropout_rate=0.0)


@gin.configurable
def small_model() -> M6Rec:
    return M6Rec(small_config())


@gin.configurable
class WatchedBatches(ToyBatches):
    """`folder` gets `NOTES-PROCESS.jsonl`: `[batch, [row numbers]]` per line.

    NOTES, the name of the launch, is an environment variable.
    """

    def __init__(self, *args: Any, folder: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._process = str(kwargs["process_index"])
        self._folder = Path(folder)
        self._notes = self._folder / f"{os.environ['NOTES']}-{self._process}.jsonl"
        self._trouble = (os.environ.get("TROUBLE") or "none - -1").split()

    def __next__(self) -> dict[str, np.ndarray]:
        index = self.num_batches
        batch = super().__next__()
        with self._notes.open("a") as file:
            file.write(json.dumps([index, batch["user_ids"][:, 0].tolist()]) + "\n")
        what, who, when = self._trouble
        if who in (self._process, "all") and index == int(when):
            if what == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                while not list_steps(self._folder / "run" / "checkpoints"):
                    time.sleep(0.01)  # saving goes on in the background
                os.kill(os.getpid(), signal.SIGKILL)
        return batch
