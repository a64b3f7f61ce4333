"""The `prompts` collection: everything that is trained per task beside a frozen backbone.

Every leaf has a leading axis `tasks` (after `layers` inside a stack): a bank of tasks of equal
shapes. An example picks its row by task id, so one batch may mix tasks; a bank of one task is
indexed statically and costs nothing.

A bank has one capacity for all its tasks; a smaller task is padded. Its soft prompts are the *last*
of the capacity (and its options the last of those), so that padding changes no distance between
positions; what stands before them is masked out of attention. Its adapter has zeros beyond its rank
in W1, b1 and W2, and these stay zero in training: every σ offered maps 0 to 0, so each factor's
gradient has the other as a factor. So it is with the two matrices of a LoRA update. Tasks of one
run update the token embedding at one rank.

How many prompts and classes each task has is known in one of two ways. In training the config says
it (`PromptConfig.task_num_prompts`, `task_num_options`). A bank that is served has the numbers
among its variables, in the collection `task_sizes`, so that another task changes no compiled
program:

    {"params": ..., "prompts": ..., "task_sizes": {"bank": {"num_prompts": int32 [tasks],
                                                             "num_options": int32 [tasks]}}}
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dense import dot

Array = jax.Array
COLLECTION = "prompts"
SIZES_COLLECTION = "task_sizes"

# Score of a class that a task does not have: exp of it is 0, yet 0 · it is not NaN.
NO_CLASS = -1e9


def task_axis(name: str) -> int:
    """Where the axis `tasks` is in a leaf of the collection: after that of layers inside a stack.

    Args:
      name: such as 'bank/soft_prompts' or 'encoder/layers/mlp/adapter/wi'.
    """
    return 0 if name.startswith("bank/") else 1


def prompt_variable(
    module: nn.Module,
    name: str,
    init: Callable[..., Array],
    shape: Sequence[int],
    axes: Sequence[str],
) -> Array:
    """The value of variable `name` in the `prompts` collection, float32, made at initialisation.

    Args:
      init: as for Flax parameters, (key, shape, dtype) → array.
      shape: `[tasks, ...]`.
      axes: logical axis names, one per dimension.
    """
    boxed = nn.with_logical_partitioning(init, tuple(axes))
    variable = module.variable(
        COLLECTION, name, lambda: boxed(module.make_rng("prompts"), tuple(shape), jnp.float32)
    )
    return variable.value


def within_ranks(init: Callable[..., Array], ranks: Sequence[int]) -> Callable[..., Array]:
    """An initialiser of `[tasks, ..., rank]`: zeros beyond each task's rank; no `ranks`: `init`."""
    if not ranks:
        return init

    def limited(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        own = jnp.asarray(ranks).reshape(-1, *(1,) * (len(shape) - 1))
        return jnp.where(jnp.arange(shape[-1]) < own, init(key, shape, dtype), 0)

    return limited


def task_rows(bank: Array, task_ids: Array) -> Array:
    """Rows of a bank: `[tasks, ...]` and task_ids `[batch]` → `[batch, ...]`, or `[1, ...]`.

    With one task the result keeps a batch axis of one, which broadcasts.
    """
    return bank if bank.shape[0] == 1 else jnp.take(bank, task_ids, axis=0)


# Products by which classes, users and items are told apart, and what is added to embeddings: small
# ones, in float32 whatever the hardware does to the others.
_EXACT: dict[str, Any] = {"operand_dtype": "float32", "precision": "highest"}


def task_dot(
    x: Array,
    bank: Array,
    task_ids: Array,
    *,
    operand_dtype: str,
    num_contracted: int = 1,
    precision: str | None = None,
) -> Array:
    """x `[batch, length, in dims]` times its task's row of bank `[tasks, in dims, out dims]`.

    Args:
      task_ids: `[batch]`.
      operand_dtype: type to which operands are rounded.
      num_contracted: how many in dims there are.
      precision: as for `dot`.

    Returns:
      `[batch, length, out dims]`, float32.
    """
    options: dict[str, Any] = {
        "operand_dtype": operand_dtype,
        "num_contracted": num_contracted,
        "precision": precision,
    }
    if bank.shape[0] == 1:
        return dot(x, bank[0], **options)
    return dot(x, jnp.take(bank, task_ids, axis=0), num_batch=1, **options)


class PromptBank(nn.Module):
    """The prompts that do not sit in a layer: soft prompts, heads, projections, embeddings."""

    config: ModelConfig

    def setup(self) -> None:
        prompts, embed = self.config.prompts, self.config.embed_dim
        tasks = prompts.num_tasks
        zeros = nn.initializers.zeros_init()
        by_width = nn.initializers.normal(embed**-0.5)
        as_prompts = nn.initializers.normal(prompts.init_stddev)
        if prompts.num_prompts:
            self.soft_prompts = prompt_variable(
                self,
                "soft_prompts",
                as_prompts,
                (tasks, prompts.num_prompts, embed),
                ("tasks", "prompts", "embed"),
            )
        if prompts.embedding_rank:
            vocab, rank = self.config.vocab_size, prompts.embedding_rank
            self.embedding_a = prompt_variable(
                self, "embedding_update_a", zeros, (tasks, vocab, rank), ("tasks", "vocab", "rank")
            )
            # As large as the vectors that it is added to, so that A says by how much of them.
            self.embedding_b = prompt_variable(
                self,
                "embedding_update_b",
                nn.initializers.normal(self.config.embedding_stddev),
                (tasks, rank, embed),
                ("tasks", "rank", "embed"),
            )
        if prompts.special_token_ids:
            self.special_tokens = prompt_variable(
                self,
                "special_token_deltas",
                zeros,
                (tasks, len(prompts.special_token_ids), embed),
                ("tasks", "special_tokens", "embed"),
            )
        if prompts.num_segment_embeddings:
            self.segments = prompt_variable(
                self,
                "segment_embedding",
                zeros,
                (tasks, prompts.num_segment_embeddings, embed),
                ("tasks", "segments", "embed"),
            )
        if prompts.head == "linear":
            self.linear_kernel = prompt_variable(
                self,
                "head_kernel",
                as_prompts,
                (tasks, embed, prompts.num_options),
                ("tasks", "embed", "classes"),
            )
            self.linear_bias = prompt_variable(
                self, "head_bias", zeros, (tasks, prompts.num_options), ("tasks", "classes")
            )
        if prompts.retrieval_dim:
            shape = (tasks, embed, prompts.retrieval_dim)
            axes = ("tasks", "embed", "retrieval")
            self.user_kernel = prompt_variable(self, "user_projection", by_width, shape, axes)
            self.item_kernel = prompt_variable(self, "item_projection", by_width, shape, axes)

    def prompt_embeddings(self, task_ids: Array) -> Array:
        """Soft prompts of each example, `[batch, prompts, embed]` (0 prompts: length 0)."""
        batch = task_ids.shape[0]
        if not self.config.prompts.num_prompts:
            return jnp.zeros((batch, 0, self.config.embed_dim), self.config.dtype)
        rows = task_rows(self.soft_prompts, task_ids)
        return jnp.broadcast_to(rows, (batch, *rows.shape[1:])).astype(self.config.dtype)

    def embedding_updates(self, tokens: Array, task_ids: Array) -> Array | None:
        """Rows of A B to add to the embeddings of `tokens` `[batch, length]`; None without any."""
        if not self.config.prompts.embedding_rank:
            return None
        if self.embedding_a.shape[0] == 1:
            rows = jnp.take(self.embedding_a[0], tokens, axis=0)
        else:
            rows = self.embedding_a[task_ids[:, None], tokens]
        return task_dot(rows, self.embedding_b, task_ids, **_EXACT)

    def special_token_deltas(self, tokens: Array, task_ids: Array) -> Array | None:
        """What to add to the embeddings of `tokens` `[batch, length]`; None without any."""
        ids = self.config.prompts.special_token_ids
        if not ids:
            return None
        # Four or so ids: a product with a one-hot matrix, so that the gradient needs no scatter.
        hits = (tokens[..., None] == jnp.asarray(ids, tokens.dtype)).astype(jnp.float32)
        return task_dot(hits, self.special_tokens, task_ids, **_EXACT)

    def segment_embeddings(self, block_ids: Array, task_ids: Array) -> Array | None:
        """Segment embeddings of block_ids `[batch, length]` (0: soft prompts); None without any."""
        rows = self.config.prompts.num_segment_embeddings
        if not rows:
            return None
        hits = jax.nn.one_hot(jnp.clip(block_ids, 0, rows - 1), rows, dtype=jnp.float32)
        return task_dot(hits, self.segments, task_ids, **_EXACT)

    def num_prompts(self, task_ids: Array) -> Array | None:
        """Soft prompts of each example's task, `[batch]`; None where all have the capacity."""
        return self._sizes("num_prompts", self.config.prompts.task_num_prompts, task_ids)

    def num_options(self, task_ids: Array) -> Array | None:
        """Classes of each example's task, `[batch]`; None where all have the capacity."""
        return self._sizes("num_options", self.config.prompts.task_num_options, task_ids)

    def _sizes(self, name: str, configured: Sequence[int], task_ids: Array) -> Array | None:
        if self.has_variable(SIZES_COLLECTION, name):
            sizes = self.get_variable(SIZES_COLLECTION, name)
        elif configured:
            sizes = jnp.asarray(configured, jnp.int32)
        else:
            return None
        return jnp.take(sizes, task_ids, axis=0)

    def option_logits(self, hidden: Array, task_ids: Array) -> Array:
        """Class scores, `[batch, length, embed]` → `[batch, length, classes]`, float32.

        'option': hidden · (the last soft prompts) / sqrt(embed). The scale keeps the first logits
        near the soft prompts' own size, whatever the width. 'linear': hidden W / sqrt(embed) + b,
        whose columns start and learn as options do that are no prompts. Classes that a task does
        not have get a vanishing score.
        """
        prompts = self.config.prompts
        capacity = prompts.num_options
        if prompts.head == "linear":
            logits = task_dot(hidden, self.linear_kernel, task_ids, **_EXACT)
            logits = logits * self.config.embed_dim**-0.5
            logits = logits + task_rows(self.linear_bias, task_ids)[:, None]
            shift = 0
        else:
            options = self.soft_prompts[:, -capacity:].transpose(0, 2, 1)
            logits = task_dot(hidden, options, task_ids, **_EXACT)
            logits = logits * self.config.embed_dim**-0.5
            shift = 1
        num_options = self.num_options(task_ids)
        if num_options is None:
            return logits
        classes, count = jnp.arange(capacity), num_options[:, None]
        column = jnp.minimum(classes + shift * (capacity - count), capacity - 1)
        logits = jnp.take_along_axis(logits, column[:, None], axis=-1)
        return jnp.where((classes < count)[:, None], logits, NO_CLASS)

    def user_projection(self, hidden: Array, task_ids: Array) -> Array:
        """`[batch, length, embed]` → `[batch, length, retrieval]`, unit length, float32."""
        return _unit(task_dot(hidden, self.user_kernel, task_ids, **_EXACT))

    def item_projection(self, hidden: Array, task_ids: Array) -> Array:
        """`[batch, length, embed]` → `[batch, length, retrieval]`, unit length, float32."""
        return _unit(task_dot(hidden, self.item_kernel, task_ids, **_EXACT))


def _unit(x: Array) -> Array:
    # The small term inside the root keeps the gradient finite for an all-zero (padding) row.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
