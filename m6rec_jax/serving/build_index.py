"""`m6rec index build`: a catalogue to a folder that retrieval searches (`index_files`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gin
import jax

from m6rec_jax.checkpoints.buckets import in_bucket
from m6rec_jax.engine.bundle import Bundle, load_model
from m6rec_jax.engine.index_files import DEFAULT_BLOCK, IndexManifest, write_index
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.request_data import open_serving_data, refuse_dialogues
from m6rec_jax.sharding import LogicalRules, data_parallel, make_mesh


@gin.configurable
def build_index(
    output: str | Path = gin.REQUIRED,
    model_dir: str | Path = gin.REQUIRED,
    *,
    task: str = "",
    step: int | None = None,
    load: Callable[..., Bundle] = load_model,
    prepared: str | None = None,
    items: str | None = None,
    graph: bool = False,
    batch_size: int = 32,
    block: int = DEFAULT_BLOCK,
    rules: LogicalRules | None = None,
    progress: bool = True,
) -> IndexManifest:
    """Embeds every item of a catalogue.

    Args:
      output: a new or empty folder; a run that was killed goes on by the same command.
      model_dir: of a training run for retrieval.
      task, step, load, prepared, items, batch_size, rules, progress: see
        `batch_inference.infer_requests`.
      graph: also make what approximate search needs (usearch).
      block: items embedded between two records of progress.

    Raises:
      CheckpointError: no model, or a damaged index in the folder.
      DataError: no catalogue, items without text, something else in the folder, or another process
        that builds there.
      ConfigError: the model does not retrieve, or the output is in a bucket.
    """
    if in_bucket(output):
        raise ConfigError(f"{output}: an index lies on a local disk; copy it to the bucket")
    if jax.process_count() > 1:
        raise ConfigError("m6rec index build runs in one process, on all of its devices")
    rules = data_parallel() if rules is None else tuple(rules)
    bundle = load(model_dir, step=step, mesh=make_mesh(), rules=rules)
    task = task_name(bundle.settings.tasks, task)
    refuse_dialogues(bundle, task)
    retriever = bundle.retriever(
        task, batch_sizes=(batch_size,), target_buckets=(bundle.settings.target_length,)
    )
    data = open_serving_data(bundle, task, prepared, items, with_statistics=False)
    texts = data.item_texts()
    for id_, text in texts.items():
        if not len(bundle.vocabulary.encode_array(text)):
            raise DataError(f"item {id_!r} has no text to embed: {text!r}")
    return write_index(
        output,
        texts,
        retriever.embed_items,
        model=bundle.fingerprint(task),
        dim=bundle.model.config.prompts.retrieval_dim,
        graph=graph,
        block=block,
        extra={"step": bundle.step, "task": task},
        progress=progress,
    )
