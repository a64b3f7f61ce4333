"""Models and vocabularies of random values: how fast a model is does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.engine.decoding.slots import FREE, Slots, advance, model_step
from m6rec_jax.model import M6Rec
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID, Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary


def random_variables(model: M6Rec) -> Any:
    """Parameters and prompts."""
    key = jax.random.key(0)
    init = jax.jit(lambda key: nn.meta.unbox(model.init(key, initial_features())))
    return init({"params": key, "prompts": key})


def greedy_program(model: M6Rec, length: int) -> Callable[..., Any]:
    """From variables, source `[batch, source]` to tokens `[batch, length]`; no text ends early."""
    never_ends = Automaton(jnp.arange(model.config.vocab_size) > max(PAD_ID, EOS_ID))

    def greedy(variables: Any, source: Any) -> Any:
        task_ids = jnp.zeros((len(source),), jnp.int32)
        encoded = model.apply(
            variables, source, jnp.ones_like(source), task_ids, method=model.encode
        )
        cache = model.apply(
            variables, encoded, task_ids, max_length=length, method=model.start_decoding
        )
        nothing = {"prefix_ids": jnp.full((len(source), length), FREE, jnp.int32)}
        step = model_step(model, variables, task_ids)
        slots, active = Slots.of(cache, never_ends, nothing), jnp.ones(len(source), bool)
        return advance(step, slots, never_ends, active, length)[1].tokens

    return jax.jit(greedy)


def random_words(folder: Path) -> Vocabulary:
    """A vocabulary of no language."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    texts = [
        " ".join("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(8))
        for _ in range(500)
    ]
    train_vocabulary(texts, folder / "words.model", size=1_000, split_by_whitespace=True)
    return Vocabulary(folder / "words.model")
