"""Where soft prompts and heads of a new run start: random, vocabulary, or class labels' text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.checkpoints.trees import PyTree
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.embedding import input_vectors, output_vectors
from m6rec_jax.training.initialization import Variables
from m6rec_jax.training.options import Start, Words
from m6rec_jax.training.task_data import prompt_row_of, text_vocabulary

# Soft prompts are drawn from this many tokens; rarer ones have embeddings that hardly ever learnt.
NUM_FREQUENT = 5000
# Keeps these draws apart from others of the same seed.
_DRAWS = 0x50505


def check_initial_prompts(start: Start, config: ModelConfig) -> None:
    """Raises ConfigError where soft prompts are to start from something, and there are none, or
    where the head would start from two things."""
    setting = f"Start.soft_prompts = {start.soft_prompts!r}"
    if start.soft_prompts != "random" and not config.prompts.num_prompts:
        raise ConfigError(
            f"{setting}, but the model has no soft prompts (PromptConfig.num_prompts = 0)"
        )
    if start.soft_prompts == "class_labels" and config.prompts.head == "option":
        labels, options = start.class_labels, start.options
        by_task = isinstance(labels, Mapping) and isinstance(options, Mapping)
        if set(labels) & set(options) if by_task else options:
            raise ConfigError(
                f"{setting} and Start.options are both given, but with options the last soft "
                "prompts are the head, which can start from one of them only: set "
                "INITIAL_OPTIONS = () (Start.options) to start from the labels' text"
            )


def with_initial_prompts(
    variables: Variables, config: ModelConfig, task: str, start: Start, seed: int
) -> Variables:
    """Starts soft prompts, then options, as `start` says.

    A task of a bank for which there are no labels starts as by 'vocabulary'.

    Args:
      variables: of the new run.
      config: of the model.
      task: a registered task or mixture, whose vocabulary is used.
      start: `check_initial_prompts` has passed.
      seed: of the draws.

    Raises:
      ConfigError: words that do not fit the model or the vocabulary.
    """
    if start.soft_prompts != "random":
        tokens = text_vocabulary(task).frequent_ids(NUM_FREQUENT).tolist()
        variables = with_prompts_of_tokens(variables, config, tokens, seed)
    if start.soft_prompts == "class_labels":
        for row, ids in _tokens_by_row(start.class_labels, task, config):
            variables = with_prompts_of_labels(variables, config, ids, row)
    for row, ids in _tokens_by_row(start.options, task, config):
        variables = with_options_of_words(variables, config, ids, row)
    return variables


def _tokens_by_row(
    words: Words, task: str, config: ModelConfig
) -> Iterator[tuple[int | None, list[list[int]]]]:
    """Row of the bank (None: all) and token ids of each class."""
    if words:
        encode = text_vocabulary(task).encode
        if isinstance(words, Mapping):
            for name, of_task in words.items():
                yield prompt_row_of(name, task, config), [encode(word) for word in of_task]
        else:
            yield None, [encode(word) for word in words]


def with_prompts_of_tokens(
    variables: Variables, config: ModelConfig, tokens: Sequence[int], seed: int
) -> Variables:
    """Starts soft prompts, options included, as the backbone's embeddings of tokens.

    Each task of a bank draws for itself, without repeating a token, by the seed alone.

    Raises:
      ConfigError: fewer tokens than soft prompts.
    """
    prompts, candidates = config.prompts, np.asarray(tokens, np.int32)
    if len(candidates) < prompts.num_prompts:
        raise ConfigError(
            f"Start.soft_prompts = 'vocabulary' draws PromptConfig.num_prompts = "
            f"{prompts.num_prompts} different tokens, but the vocabulary offers {len(candidates)}"
        )
    rng = np.random.default_rng([seed, _DRAWS])
    draws = [
        rng.choice(candidates, prompts.num_prompts, replace=False) for _ in range(prompts.num_tasks)
    ]

    def put(prompts: jax.Array, params: PyTree) -> jax.Array:
        return input_vectors(params, np.stack(draws)).astype(prompts.dtype)

    return _with_tensor(variables, "soft_prompts", put)


def with_prompts_of_labels(
    variables: Variables,
    config: ModelConfig,
    labels: Sequence[Sequence[int]],
    task_id: int | None = None,
) -> Variables:
    """Starts the last soft prompts as the text of the classes, one each, in their order.

    A label is the mean of the backbone's embeddings of its tokens (Lester et al. 2021, section
    3.1). With the option head these are the options, which `with_options_of_words` may start
    otherwise.

    Args:
      variables: of the new run.
      config: of the model.
      labels: token ids of each class.
      task_id: row of the bank; None: all tasks, which have equally many classes, start alike.

    Raises:
      ConfigError: another number of labels than classes, fewer soft prompts than labels, or a label
        without tokens.
    """
    _check_classes("Start.class_labels", labels, config, task_id)
    least = min(config.prompts.of_task(row).num_prompts for row in _rows(config, task_id))
    if len(labels) > least:
        raise ConfigError(
            f"Start.class_labels has {len(labels)} labels, but there are {least} soft prompts to "
            "start from them: raise PromptConfig.num_prompts (the macro TASK_PROMPTS)"
        )

    def put(prompts: jax.Array, params: PyTree) -> jax.Array:
        means = [input_vectors(params, np.asarray(ids)).mean(axis=0) for ids in labels]
        places = slice(None) if task_id is None else task_id
        return prompts.at[places, -len(labels) :].set(jnp.stack(means).astype(prompts.dtype))

    return _with_tensor(variables, "soft_prompts", put)


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
      variables, config, task_id: as for `with_prompts_of_labels`.
      words: token ids of each class.

    Raises:
      ConfigError: another number of words than classes, a word without tokens, two that begin with
        the same one, or no head.
    """
    if config.prompts.head == "none":
        raise ConfigError(
            "Start.options names words of classes, but the model has none "
            "(PromptConfig.head = 'none')"
        )
    _check_classes("Start.options", words, config, task_id)
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


def _rows(config: ModelConfig, task_id: int | None) -> Sequence[int]:
    return range(config.prompts.num_tasks) if task_id is None else [task_id]


def _check_classes(
    setting: str, words: Sequence[Sequence[int]], config: ModelConfig, task_id: int | None
) -> None:
    """Every class must have a word, and every word a class."""
    rows = _rows(config, task_id)
    numbers = sorted({config.prompts.of_task(row).num_options for row in rows})
    if numbers != [len(words)]:
        whose = "the model" if task_id is None else f"task {task_id}"
        raise ConfigError(
            f"{setting} names {len(words)} classes, but {whose} has "
            f"{' or '.join(map(str, numbers))} (PromptConfig.num_options)"
            + ("; give words by the task's name" if len(numbers) > 1 else "")
        )
    if not all(len(ids) for ids in words):
        raise ConfigError(f"{setting}: every class needs a word")


def _with_tensor(
    variables: Variables, name: str, put: Callable[[jax.Array, PyTree], jax.Array]
) -> Variables:
    """The variables with put(tensor, backbone) as that tensor of the bank, `[tasks, ...]`."""
    prompts = variables["prompts"]
    tensor = prompts["bank"][name]
    new = jax.jit(put, out_shardings=tensor.sharding)(tensor, variables["params"])
    return {**variables, "prompts": {**prompts, "bank": {**prompts["bank"], name: new}}}
