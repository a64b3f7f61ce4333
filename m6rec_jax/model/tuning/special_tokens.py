"""Embeddings of special tokens that move with the task (paper, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.prompts import EXACT, Variable, task_dot
from m6rec_jax.model.tuning.method import Array, Method, Tensors, token_ids

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

_DELTAS = "special_token_deltas"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Special tokens.

    Attributes:
      special_token_ids: ids whose embeddings each task changes. The bank holds deltas to the
        backbone's rows, which start at zero.
    """

    special_token_ids: tuple[int, ...] = token_ids()


class SpecialTokens(Method):
    order, settings = 40, Settings
    groups: ClassVar = {"special_token": "special tokens"}
    meanings = ("special_token_ids",)
    towers = ("encoder", "decoder")

    def used(self, prompts: PromptConfig) -> bool:
        return bool(prompts.special_token_ids)

    def check_model(self, config: ModelConfig) -> None:
        ids = config.prompts.special_token_ids
        if len(set(ids)) != len(ids):
            raise ConfigError(f"PromptConfig.special_token_ids = {ids} names a token twice")
        for token in ids:
            if not (isinstance(token, int) and 0 <= token < config.vocab_size):
                raise ConfigError(
                    f"PromptConfig.special_token_ids has {token!r}, no number of a token in the "
                    f"vocabulary of {config.vocab_size}"
                )

    def variables(self, config: ModelConfig) -> Mapping[str, Variable]:
        ids = config.prompts.special_token_ids
        shape, axes = (len(ids), config.embed_dim), ("special_tokens", "embed")
        return {_DELTAS: Variable(nn.initializers.zeros_init(), shape, axes)} if ids else {}

    def embedding(
        self, config: ModelConfig, tensors: Tensors, tokens: Array, task_ids: Array
    ) -> Array | None:
        ids = config.prompts.special_token_ids
        if not ids:
            return None
        # Four or so ids: a product with a one-hot matrix, so that the gradient needs no scatter.
        hits = (tokens[..., None] == jnp.asarray(ids, tokens.dtype)).astype(jnp.float32)
        return task_dot(hits, tensors[_DELTAS], task_ids, **EXACT)

    def for_bank(
        self, tensors: dict[str, np.ndarray], task: ModelConfig, bank: ModelConfig
    ) -> Mapping[str, np.ndarray]:
        """Rows for all ids of the bank, zero for those that the task does not change."""
        own, room = task.prompts.special_token_ids, bank.prompts.special_token_ids
        if not own:
            return {}
        spread = np.zeros((len(room), task.embed_dim), np.float32)
        spread[[room.index(i) for i in own]] = tensors[f"bank/{_DELTAS}"]
        return {f"bank/{_DELTAS}": spread}
