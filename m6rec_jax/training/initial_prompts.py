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
from m6rec_jax.training.task_data import frequent_tokens_of, prompt_row_of, tokens_of
from m6rec_jax.training.train_state import TrainState

INITIAL_SOFT_PROMPTS = ("random", "vocabulary", "class_labels")
# Words of each class, or such words by the name of the seqio task whose classes they are.
Words = Sequence[str] | Mapping[str, Sequence[str]]
# Soft prompts are drawn from this many pieces; rarer ones have embeddings that hardly ever learnt.
NUM_FREQUENT = 5000
# Keeps these draws apart from others of the same seed.
_DRAWS = 0x50505


def check_initial_prompts(
    choice: str, config: ModelConfig, initial_prompts: str, labels: Words = (), options: Words = ()
) -> None:
    """Refuses settings that do not fit, before anything is computed.

    Args:
      choice: `Start.soft_prompts`.
      config: of the model.
      initial_prompts: what a checkpoint's prompts are taken for; see `state_from_checkpoint`.
      labels: `Start.class_labels`.
      options: `Start.options`.

    Raises:
      ConfigError: an unknown choice, a model without soft prompts, labels that are not there, or
        two origins for soft prompts or for the head.
    """
    setting = f"Start.soft_prompts = {choice!r}"
    if initial_prompts == "all" and options:
        raise ConfigError(
            "Start.options would overwrite the head that Start.prompts = 'all' "
            "takes over from the checkpoint: set INITIAL_OPTIONS = () to keep it, or "
            "Start.options = () where a file binds that"
        )
    if choice not in INITIAL_SOFT_PROMPTS:
        raise ConfigError(f"{setting} is not one of {', '.join(INITIAL_SOFT_PROMPTS)}")
    if choice == "random":
        return
    if not config.prompts.num_prompts:
        raise ConfigError(
            f"{setting}, but the model has no soft prompts (PromptConfig.num_prompts = 0)"
        )
    if choice == "class_labels" and not labels:
        raise ConfigError(
            f"{setting}, but Start.class_labels is empty: give a text for each class (the macro "
            "OPTION_WORDS of gin_configs/tuning/)"
        )
    if choice == "class_labels" and config.prompts.head == "option" and _meet(labels, options):
        raise ConfigError(
            f"{setting} and Start.options are both given, but with options the last soft "
            "prompts are the head, which can start from one of them only: set INITIAL_OPTIONS = () "
            "to start from the labels' text, or Start.options = () where a file binds that"
        )
    if initial_prompts == "all":
        raise ConfigError(
            f"{setting} would overwrite the soft prompts that Start.prompts = 'all' takes "
            "over from the checkpoint; leave one of them out"
        )


def _meet(labels: Words, options: Words) -> bool:
    """Whether both are given for one task."""
    if isinstance(labels, Mapping) and isinstance(options, Mapping):
        return bool(labels.keys() & options.keys())
    return bool(labels and options)


def with_initial_prompts(
    state: TrainState,
    config: ModelConfig,
    task: str,
    *,
    soft_prompts: str,
    labels: Words,
    options: Words,
    seed: int,
) -> TrainState:
    """Starts soft prompts, then options, as `train` is told to.

    Args:
      state: at step 0.
      config: of the model.
      task: a registered task or mixture, whose vocabulary is used.
      soft_prompts: one of `INITIAL_SOFT_PROMPTS`; 'random' leaves them as they are.
      labels: text of each class, for 'class_labels'. A task of a bank that is not named has none,
        and starts as by 'vocabulary'.
      options: a word per class; empty leaves the options as the other prompts.
      seed: of the draws.

    Raises:
      ConfigError: settings that do not fit each other, the model or the vocabulary.
    """
    if soft_prompts != "random":
        tokens = frequent_tokens_of(task, NUM_FREQUENT)
        state = with_prompts_of_tokens(state, config, tokens, seed)
    if soft_prompts == "class_labels":
        for row, ids in _tokens_by_row(labels, task, config):
            state = with_prompts_of_labels(state, config, ids, row)
    for row, ids in _tokens_by_row(options, task, config):
        state = with_options_of_words(state, config, ids, row)
    return state


def _tokens_by_row(
    words: Words, task: str, config: ModelConfig
) -> Iterator[tuple[int | None, list[list[int]]]]:
    """Row of the bank (None: all) and token ids of each class."""
    if isinstance(words, Mapping):
        for name, own in words.items():
            yield prompt_row_of(name, task, config), tokens_of(task, own)
    elif words:
        yield None, tokens_of(task, words)


def with_prompts_of_tokens(
    state: TrainState, config: ModelConfig, tokens: Sequence[int], seed: int
) -> TrainState:
    """Starts soft prompts, options included, as the backbone's embeddings of tokens.

    Each task of a bank draws for itself, without repeating a token, by the seed alone.

    Raises:
      ConfigError: fewer tokens than soft prompts, or one outside the model's vocabulary.
    """
    prompts, candidates = config.prompts, np.asarray(tokens, np.int32)
    if len(candidates) < prompts.num_prompts:
        raise ConfigError(
            f"Start.soft_prompts = 'vocabulary' draws PromptConfig.num_prompts = "
            f"{prompts.num_prompts} different tokens, but the vocabulary offers {len(candidates)}"
        )
    if candidates.size and candidates.max() >= config.vocab_size:
        raise ConfigError(
            f"the vocabulary has token {candidates.max()}, but ModelConfig.vocab_size is "
            f"{config.vocab_size}"
        )
    rng = np.random.default_rng([seed, _DRAWS])
    drawn = np.stack(
        [
            rng.choice(candidates, prompts.num_prompts, replace=False)
            for _ in range(prompts.num_tasks)
        ]
    )

    def put(prompts: jax.Array, params: PyTree) -> jax.Array:
        return input_vectors(params, drawn).astype(prompts.dtype)

    return _with_tensor(state, "soft_prompts", put)


def with_prompts_of_labels(
    state: TrainState,
    config: ModelConfig,
    labels: Sequence[Sequence[int]],
    task_id: int | None = None,
) -> TrainState:
    """Starts the last soft prompts as the text of the classes, one each, in their order.

    A label is the mean of the backbone's embeddings of its tokens (Lester et al. 2021, section
    3.1). With the option head these are the options, which `with_options_of_words` may start
    otherwise.

    Args:
      state: at step 0.
      config: of the model.
      labels: token ids of each class.
      task_id: row of the bank; None: all tasks, which have equally many classes, start alike.

    Raises:
      ConfigError: another number of labels than classes, fewer soft prompts than labels, or a label
        without tokens.
    """
    _check_classes("Start.class_labels", labels, config, task_id)
    prompts = config.prompts
    least = min(prompts.of_task(row).num_prompts for row in _rows(config, task_id))
    if len(labels) > least:
        raise ConfigError(
            f"Start.class_labels has {len(labels)} labels, but there are {least} soft prompts to "
            "start from them: raise PromptConfig.num_prompts (the macro TASK_PROMPTS)"
        )

    def put(prompts: jax.Array, params: PyTree) -> jax.Array:
        vectors = [input_vectors(params, np.asarray(ids)) for ids in labels]
        means = jnp.stack([of_label.mean(axis=0) for of_label in vectors])
        places = slice(None) if task_id is None else task_id
        return prompts.at[places, -len(labels) :].set(means.astype(prompts.dtype))

    return _with_tensor(state, "soft_prompts", put)


def with_options_of_words(
    state: TrainState,
    config: ModelConfig,
    words: Sequence[Sequence[int]],
    task_id: int | None = None,
) -> TrainState:
    """Starts the head's classes as the backbone's own output vectors of their words.

    Those are the options, or the columns of a linear head. The logit of a class is then that of its
    word's first token in the language model: a backbone that has learnt to write these words after
    `[EOS]` scores before its tuning begins.

    Args:
      state: at step 0.
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

    if linear:  # `initial_prompts='matching'` may have taken over a bias
        state = _with_tensor(state, "head_bias", unbiased)
    return _with_tensor(state, "head_kernel" if linear else "soft_prompts", put)


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
    state: TrainState, name: str, put: Callable[[jax.Array, PyTree], jax.Array]
) -> TrainState:
    """The state with put(tensor, backbone) as that tensor of the bank, `[tasks, ...]`."""
    bank = state.prompts["bank"]
    new = jax.jit(put, out_shardings=bank[name].sharding)(bank[name], state.params)
    return state.replace(prompts={**state.prompts, "bank": {**bank, name: new}})
