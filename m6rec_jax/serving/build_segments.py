"""`m6rec index segments`: a catalogue's candidates through the early layers, into a folder."""

from __future__ import annotations

from pathlib import Path

import gin

from m6rec_jax.bank.loading import load_with_bank
from m6rec_jax.engine.candidates.rows import pack_texts
from m6rec_jax.engine.computed_folder import ComputedManifest
from m6rec_jax.engine.segments.store import STORED_TYPES, write_segments
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.jobs.resources import open_serving_data


@gin.configurable
def build_segments(
    output: str | Path = gin.REQUIRED,
    model_dir: str | Path = gin.REQUIRED,
    *,
    bank: str | None = None,
    task: str = "",
    step: int | None = None,
    prepared: str | None = None,
    items: str | None = None,
    dtype: str = "bfloat16",
    progress: bool = True,
) -> ComputedManifest:
    """Computes what serving would keep of every item of a catalogue as a candidate.

    Args:
      output: a new or empty folder.
      model_dir: of a training run with late interaction.
      bank, task, step, prepared, items, progress: see `batch_inference.infer_requests`.
      dtype: 'float32' or 'bfloat16'.

    Raises:
      CheckpointError: no model. DataError: no catalogue, items without text, or something else in
        the folder.
      ConfigError: late interaction is off, candidates are rendered with statistics, which change
        with users and time, or the output is in a bucket.
    """
    if in_bucket(output):
        raise ConfigError(
            f"{output}: a store of segments lies on a local disk; name a folder there"
        )
    if dtype not in STORED_TYPES:
        raise ConfigError(f"dtype = {dtype!r} is not one of {', '.join(STORED_TYPES)}")
    model = load_with_bank(model_dir, bank=bank, step=step, mesh=None, rules=())
    task = task_name(model.settings.tasks, task)
    if model.segments is None:
        raise ConfigError(
            f"{model_dir} was trained without late interaction (ModelConfig.late_layers_start = "
            "0): nothing of an item can be computed ahead"
        )
    data = open_serving_data(model, task, prepared, items, with_statistics=False)
    if not data.items:
        raise DataError("the catalogue is empty; name another one with --gin.PREPARED=FOLDER")
    used = set(data.template.candidate_template.fields) & set(data.statistics_names())
    if used:
        raise ConfigError(
            f"the template's candidate of {data.spec.name!r} renders statistics "
            f"({', '.join(sorted(used))}), which change with users and time: it cannot be stored"
        )
    settings, room = model.settings.tasks[task], model.settings.target_length
    tokens = []
    for id_, item in data.items.items():
        text = data.template.candidate(item)
        if not len(model.vocabulary.encode_array(text)):
            raise DataError(f"item {id_!r} has no text to score: {text!r}")
        packed = pack_texts(model.vocabulary, [text], room, settings.text_length(room))
        tokens.append(packed.rows[0]["decoder_input_tokens"])
    pool, variables = model.segments.candidates, dict(model.variables)
    return write_segments(
        output,
        tokens,
        lambda texts: pool.states_of(variables, texts, settings),
        model=model.fingerprint(task, exits=False),
        task=task,
        width=pool.width,
        dtype=dtype,
        progress=progress,
    )
