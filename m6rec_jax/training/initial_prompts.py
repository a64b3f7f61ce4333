"""Where soft prompts of a new run start: random, vocabulary, or class labels' text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.training.task_data import frequent_tokens_of, prompt_row_of, tokens_of
from m6rec_jax.training.train_state import TrainState

INITIAL_SOFT_PROMPTS = ("random", "vocabulary")
# Soft prompts are drawn from this many pieces; rarer ones have embeddings that hardly ever learnt.
NUM_FREQUENT = 5000
# Keeps these draws apart from others of the same seed.
_DRAWS = 0x50505


def check_initial_soft_prompts(choice: str, config: ModelConfig, initial_prompts: str) -> None:
    """Refuses settings that do not fit, before anything is computed.

    Args:
      choice: `train.initial_soft_prompts`.
      config: of the model.
      initial_prompts: what a checkpoint's prompts are taken for; see `state_from_checkpoint`.

    Raises:
      ConfigError: an unknown choice, a model without soft prompts, or two origins for them.
    """
    if choice not in INITIAL_SOFT_PROMPTS:
        raise ConfigError(
            f"train.initial_soft_prompts = {choice!r} is not one of "
            + ", ".join(INITIAL_SOFT_PROMPTS)
        )
    if choice == "random":
        return
    if not config.prompts.num_prompts:
        raise ConfigError(
            f"train.initial_soft_prompts = {choice!r}, but the model has no soft prompts "
            "(PromptConfig.num_prompts = 0)"
        )
    if initial_prompts == "all":
        raise ConfigError(
            f"train.initial_soft_prompts = {choice!r} would overwrite the soft prompts that "
            "train.initial_prompts = 'all' takes over from the checkpoint; leave one of them out"
        )


def with_initial_prompts(
    state: TrainState,
    config: ModelConfig,
    task: str,
    *,
    soft_prompts: str,
    options: Sequence[str] | Mapping[str, Sequence[str]],
    seed: int,
) -> TrainState:
    """Soft prompts, then options, as `train` is told to start them.

    Args:
      state: at step 0.
      config: of the model.
      task: a registered task or mixture, whose vocabulary is used.
      soft_prompts: one of `INITIAL_SOFT_PROMPTS`; 'random' leaves them as they are.
      options: a word per class, or such words by the name of the seqio task whose prompts they are
        for; empty leaves the options as the other prompts.
      seed: of the draws.

    Raises:
      ConfigError: settings that do not fit each other, the model or the vocabulary.
    """
    if soft_prompts == "vocabulary":
        tokens = frequent_tokens_of(task, NUM_FREQUENT)
        state = with_prompts_of_tokens(state, config, tokens, seed)
    if isinstance(options, Mapping):
        for name, words in options.items():
            row = prompt_row_of(name, task, config)
            state = with_options_of_words(state, config, tokens_of(task, words), row)
    elif options:
        state = with_options_of_words(state, config, tokens_of(task, options))
    return state


def with_prompts_of_tokens(
    state: TrainState, config: ModelConfig, tokens: Sequence[int], seed: int
) -> TrainState:
    """Starts soft prompts, options included, as the backbone's embeddings of tokens.

    Each task of a bank draws for itself, without repeating a token. The draws depend on the seed
    alone.

    Args:
      state: at step 0.
      config: of the model.
      tokens: ids to draw from.
      seed: of the draws.

    Raises:
      ConfigError: fewer tokens than soft prompts, or one outside the model's vocabulary.
    """
    prompts, candidates = config.prompts, np.asarray(tokens, np.int32)
    if len(candidates) < prompts.num_prompts:
        raise ConfigError(
            f"train.initial_soft_prompts = 'vocabulary' draws PromptConfig.num_prompts = "
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

    def put(prompts: jax.Array, table: jax.Array) -> jax.Array:
        return table[drawn].astype(prompts.dtype)

    return _with_soft_prompts(state, put, state.params["token_embedder"]["embedding"])


def with_options_of_words(
    state: TrainState,
    config: ModelConfig,
    words: Sequence[Sequence[int]],
    task_id: int | None = None,
) -> TrainState:
    """Starts the options as the backbone's own output vectors of words: their label's text.

    The logit of a class is then that of its word's first token in the language model, which is what
    a backbone that writes these words after `[EOS]` predicts there: it scores before its tuning
    begins.

    Args:
      state: at step 0.
      config: of the model.
      words: token ids of each class.
      task_id: row of the bank; None: all tasks, which have equally many classes, start alike.

    Raises:
      ConfigError: another number of words than options, a word without tokens, two that begin with
        the same one, or no option head.
    """
    prompts = config.prompts
    rows = range(prompts.num_tasks) if task_id is None else [task_id]
    numbers = sorted({prompts.of_task(row).num_options for row in rows})
    if prompts.head != "option" or numbers != [len(words)]:
        whose = "the model" if task_id is None else f"task {task_id}"
        raise ConfigError(
            f"train.initial_options names {len(words)} classes, but {whose} has "
            f"{' or '.join(map(str, numbers))} options and head {prompts.head!r}"
            + ("; give words by the task's name" if len(numbers) > 1 else "")
        )
    if not all(len(ids) for ids in words):
        raise ConfigError("train.initial_options: every class needs a word")
    first = np.asarray([ids[0] for ids in words])
    if len(set(first.tolist())) < len(first):
        raise ConfigError(
            "train.initial_options: two classes begin with the same token of this vocabulary, so "
            "the language model cannot tell them apart; choose other words"
        )
    tied = config.logits_via_embedding

    def put(prompts: jax.Array, table: jax.Array) -> jax.Array:
        # The logits of a separate head lack the scale that the options' have.
        options = table[first] if tied else table[:, first].T * config.embed_dim**0.5
        places = slice(None) if task_id is None else task_id
        return prompts.at[places, -len(words) :].set(options.astype(prompts.dtype))

    table = (
        state.params["token_embedder"]["embedding"]
        if tied
        else state.params["logits_head"]["kernel"]
    )
    return _with_soft_prompts(state, put, table)


def _with_soft_prompts(
    state: TrainState, put: Callable[[jax.Array, jax.Array], jax.Array], table: jax.Array
) -> TrainState:
    """The state with put(soft prompts, table) `[tasks, prompts, embed]` as its soft prompts."""
    bank = state.prompts["bank"]
    old = bank["soft_prompts"]
    new = jax.jit(put, out_shardings=old.sharding)(old, table)
    return state.replace(prompts={**state.prompts, "bank": {**bank, "soft_prompts": new}})
