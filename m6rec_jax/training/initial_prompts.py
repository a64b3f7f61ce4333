"""Where heads of a new run start: as the words of their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from m6rec_jax.checkpoints.trees import PyTree
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.embedding import output_vectors
from m6rec_jax.training.initialization import Variables
from m6rec_jax.training.options import Words
from m6rec_jax.training.task_data import prompt_row_of, text_vocabulary


def with_initial_options(
    variables: Variables, config: ModelConfig, task: str, words: Words
) -> Variables:
    """Starts the classes of all tasks, or of those that are named, as `Start.options` says.

    Args:
      variables: of the new run.
      config: of the model.
      task: a registered task or mixture, whose vocabulary is used.
      words: of each class, or such words by the name of the seqio task.

    Raises:
      ConfigError: words that do not fit the model or the vocabulary.
    """
    if not words:
        return variables
    encode = text_vocabulary(task).encode
    by_row: dict[int | None, Sequence[str]] = (
        {prompt_row_of(name, task, config): of_task for name, of_task in words.items()}
        if isinstance(words, Mapping)
        else {None: words}
    )
    for row, of_task in by_row.items():
        variables = with_options_of_words(variables, config, [encode(w) for w in of_task], row)
    return variables


def with_options_of_words(
    variables: Variables,
    config: ModelConfig,
    words: Sequence[Sequence[int]],
    task_id: int | None = None,
) -> Variables:
    """Starts the head's classes as the backbone's own output vectors of their words.

    Those are the options, or the columns of a linear head. The logit of a class is then that of its
    word's first token in the language model: a backbone that has learnt to write these words after
    `[EOS]` scores before its tuning begins.

    Args:
      variables: of the new run.
      config: of the model.
      words: token ids of each class.
      task_id: row of the bank; None: all tasks, which have equally many classes, start alike.

    Raises:
      ConfigError: another number of words than classes, a word without tokens, two that begin with
        the same one, or no head.
    """
    if config.prompts.head == "none":
        raise ConfigError(
            "Start.options names words of classes, but the model has none "
            "(PromptConfig.head = 'none')"
        )
    rows = range(config.prompts.num_tasks) if task_id is None else [task_id]
    numbers = sorted({config.prompts.of_task(row).num_options for row in rows})
    if numbers != [len(words)]:
        whose = "the model" if task_id is None else f"task {task_id}"
        raise ConfigError(
            f"Start.options names {len(words)} classes, but {whose} has "
            f"{' or '.join(map(str, numbers))} (PromptConfig.num_options)"
            + ("; give words by the task's name" if len(numbers) > 1 else "")
        )
    if not all(len(ids) for ids in words):
        raise ConfigError("Start.options: every class needs a word")
    first = np.asarray([ids[0] for ids in words])
    if len(set(first.tolist())) < len(first):
        raise ConfigError(
            "Start.options: two classes begin with the same token of this vocabulary, so "
            "the language model cannot tell them apart; choose other words"
        )
    linear, tied = config.prompts.head == "linear", config.logits_via_embedding
    places = slice(None) if task_id is None else task_id

    def put(old: jax.Array, params: PyTree) -> jax.Array:
        options = output_vectors(params, first)
        # The logits of the language model's own matrix lack the scale that those of classes have.
        options = (options if tied else options * config.embed_dim**0.5).astype(old.dtype)
        if linear:
            return old.at[places, :, : len(words)].set(options.T)
        return old.at[places, -len(words) :].set(options)

    def unbiased(old: jax.Array, _: PyTree) -> jax.Array:
        return old.at[places, : len(words)].set(0)

    if linear:  # Start.prompts = 'matching' may have taken over a bias
        variables = _with_tensor(variables, "head_bias", unbiased)
    return _with_tensor(variables, "head_kernel" if linear else "soft_prompts", put)


def _with_tensor(
    variables: Variables, name: str, put: Callable[[jax.Array, PyTree], jax.Array]
) -> Variables:
    """The variables with put(tensor, backbone) as that tensor of the bank, `[tasks, ...]`."""
    prompts = variables["prompts"]
    tensor = prompts["bank"][name]
    new = jax.jit(put, out_shardings=tensor.sharding)(tensor, variables["params"])
    return {**variables, "prompts": {**prompts, "bank": {**prompts["bank"], name: new}}}
