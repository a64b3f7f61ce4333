"""`m6rec index build`: a catalogue to a folder that retrieval searches (`index_files`)."""

from __future__ import annotations

from pathlib import Path

import gin
import jax

from m6rec_jax.bank.loading import load_with_bank
from m6rec_jax.engine.computed_folder import ComputedManifest
from m6rec_jax.engine.index.index_files import write_index
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.sharding import LogicalRules, data_parallel, make_mesh


@gin.configurable
def build_index(
    output: str | Path = gin.REQUIRED,
    model_dir: str | Path = gin.REQUIRED,
    *,
    bank: str | None = None,
    task: str = "",
    step: int | None = None,
    prepared: str | None = None,
    items: str | None = None,
    batch_size: int = 32,
    rules: LogicalRules | None = None,
    progress: bool = True,
) -> ComputedManifest:
    """Embeds every item of a catalogue.

    Args:
      output: a new or empty folder.
      model_dir: of a training run for retrieval.
      bank, task, step, prepared, items, batch_size, rules, progress: see
        `batch_inference.infer_requests`.

    Raises:
      CheckpointError: no model, or a damaged index in the folder.
      DataError: no catalogue, items without text, or another index in the folder.
      ConfigError: the model does not retrieve, or the output is in a bucket.
    """
    if in_bucket(output):
        raise ConfigError(f"{output}: an index lies on a local disk; copy it to the bucket")
    if jax.process_count() > 1:
        raise ConfigError("m6rec index build runs in one process, on all of its devices")
    rules = data_parallel() if rules is None else rules
    model = load_with_bank(model_dir, bank=bank, step=step, mesh=make_mesh(), rules=rules)
    task = task_name(model.settings.tasks, task)
    retriever = model.retriever(
        task, batch_sizes=(batch_size,), target_buckets=(model.settings.target_length,)
    )
    retriever.settings(task)
    texts = open_serving_data(model, task, prepared, items, with_statistics=False).item_texts()
    for id_, text in texts.items():
        if not len(model.vocabulary.encode_array(text)):
            raise DataError(f"item {id_!r} has no text to embed: {text!r}")
    return write_index(
        output,
        texts,
        retriever.embed_items,
        model=model.fingerprint(task),
        task=task,
        dim=model.model.config.prompts.retrieval_dim,
        progress=progress,
    )
