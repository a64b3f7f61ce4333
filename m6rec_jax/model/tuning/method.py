"""What a tuning method is: all that the model, training and the bank ask of one.

A method is one file of this package. It defines a dataclass `Settings`, whose fields become fields
of `PromptConfig` (and of gin), and a subclass of `Method`, which is found by being there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.dense import Site
from m6rec_jax.model.prompts import Variable

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig, PromptConfig

Array = jax.Array
Tensors = Mapping[str, Array]


def size(default: int = 0) -> Any:
    """A setting: a size of at least 0. A bank has room for its largest task and pads the others."""
    return dataclasses.field(default=default, metadata={"kind": "size"})


def sizes_of(capacity: str, least: int = 0) -> Any:
    """A setting: the size of each task of a run, from `least` to the setting `capacity`."""
    return dataclasses.field(default=(), metadata={"kind": "sizes", "of": capacity, "least": least})


def names(default: tuple[str, ...], known: Sequence[str]) -> Any:
    """A setting: some of the `known` names. A bank has those of all its tasks."""
    return dataclasses.field(default=default, metadata={"kind": "set", "known": tuple(known)})


def token_ids() -> Any:
    """A setting: token ids. A bank has those of all its tasks."""
    return dataclasses.field(default=(), metadata={"kind": "set"})


def choice(default: str, known: Sequence[str], *, one_per_bank: bool = False) -> Any:
    """A setting: one of the `known` names, which all tasks of a bank may have to share."""
    kind = "shared" if one_per_bank else ""
    return dataclasses.field(default=default, metadata={"kind": kind, "known": tuple(known)})


def attention_sites(config: ModelConfig) -> dict[str, Site]:
    """The projections of an attention."""
    embed, heads = (config.embed_dim,), (config.num_heads, config.head_dim)
    inward = (embed, heads, ("embed", "heads", "kv"))
    sites = [Site(name, *inward) for name in ("query", "key", "value")]
    sites.append(Site("out", heads, embed, ("heads", "kv", "embed")))
    return {site.name: site for site in sites}


def feed_forward_sites(config: ModelConfig) -> dict[str, Site]:
    """The two places of a feed-forward layer."""
    embed, mlp = (config.embed_dim,), (config.mlp_dim,)
    return {
        "hidden": Site("hidden", embed, mlp, ("embed", "mlp")),
        "mlp": Site("mlp", embed, embed, ("embed", "embed")),
    }


class Method:
    """A tuning method. What a subclass does not override, the method does not do.

    Attributes:
      name: what it adds to a task's method in the bank ('option_adapter'); empty: nothing.
      order: methods are asked in this order, then by name. A method whose variables lie in the
        module `bank` must keep it, or others would start from other random values.
      settings: the dataclass of its fields of `PromptConfig`.
      groups: part of its leaves' names -> their row in the table of parameters. Such a part occurs
        in the names of no other method's leaves.
      meanings: settings by which equal tensors mean something else.
      neutral: value that pads its tensors, and of tensors that a task does not have.
      switches: last parts of names of tensors in layers, which, all neutral, change nothing.
      towers: whose token embeddings it changes: 'encoder', 'decoder'.
      in_early_layers: it changes them in every segment, so that early layers depend on the task.
    """

    name: ClassVar[str] = ""
    order: ClassVar[int] = 100
    settings: ClassVar[type]
    groups: ClassVar[Mapping[str, str]]
    meanings: ClassVar[tuple[str, ...]] = ()
    neutral: ClassVar[float] = 0.0
    switches: ClassVar[tuple[str, ...]] = ()
    towers: ClassVar[tuple[str, ...]] = ()
    in_early_layers: ClassVar[bool] = False

    def used(self, prompts: PromptConfig) -> bool:
        """Whether a model with these settings has any of it."""
        raise NotImplementedError

    def label(self, prompts: PromptConfig) -> str:
        """What it adds to a task's method, where it is used."""
        return self.name

    def owns(self, leaf: str) -> bool:
        """Whether a leaf of that name is the method's."""
        return any(part in leaf for part in self.groups)

    def check(self, prompts: PromptConfig) -> None:
        """Raises ConfigError where settings do not fit each other."""
        if self.in_early_layers and self.used(prompts) and prompts.adapters_late_only:
            name = dataclasses.fields(self.settings)[0].name
            raise ConfigError(
                f"PromptConfig.{name} = {getattr(prompts, name)} changes what the early layers "
                "read, which adapters_late_only is to keep the same for all tasks: set one of the "
                "two to 0 or False"
            )

    def check_model(self, config: ModelConfig) -> None:
        """Raises ConfigError where settings do not fit the model."""

    # Outside of layers.

    def variables(self, config: ModelConfig) -> Mapping[str, Variable]:
        """Variables of the module `bank`, by name."""
        return {}

    def embedding(
        self, config: ModelConfig, tensors: Tensors, tokens: Array, task_ids: Array
    ) -> Array | None:
        """What it adds to the embeddings of tokens `[batch, length]`: `[batch, length, embed]`.

        `tensors` are the values of all variables of `bank`, `[tasks, ...]`.
        """
        return None

    def token_products(self, config: ModelConfig) -> int:
        """Parameters whose product with each token is summed there."""
        return 0

    def candidate_embedding(
        self,
        config: ModelConfig,
        tensors: Tensors,
        tokens: Array,
        vectors: Array,
        mask: Array,
        task_ids: Array,
    ) -> Array | None:
        """What it adds to embeddings of whole candidates: `[batch, length, embed]`.

        The decoder asks where it reads blocks at once, not where it writes token by token.

        Args:
          tokens: `[batch, length]`.
          vectors: `[batch, length, embed]` of the tokens, `embedding` of all methods included.
          mask: bool `[batch, length, length]`: what each position sees of its block up to itself.
        """
        return None

    def candidate_products(self, config: ModelConfig) -> int:
        """Parameters whose product with each token of a candidate is summed there."""
        return 0

    def pair_products(self, config: ModelConfig) -> int:
        """Products that are summed there for each pair of positions, as attention does."""
        return 0

    # Inside of layers.

    def sites(self, prompts: PromptConfig) -> Sequence[str]:
        """Names of the sites that it changes."""
        return ()

    def change(self, config: ModelConfig, site: Site) -> nn.Module:
        """A module named as in the tree of variables; (x, y, task_ids) -> the changed y.

        x `[batch, length, *in_shape]` is what the site reads, y `[batch, length, *out_shape]` what
        it, and methods before this one, made of x.
        """
        raise NotImplementedError

    def site_products(self, config: ModelConfig, site: Site) -> int:
        """Parameters that each token is multiplied with at a site."""
        return 0

    # In a bank.

    def for_bank(
        self, tensors: dict[str, np.ndarray], task: ModelConfig, bank: ModelConfig
    ) -> Mapping[str, np.ndarray]:
        """Tensors of a task (without the axis of tasks) that a bank holds otherwise."""
        return {}
