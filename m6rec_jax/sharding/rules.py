"""Rule sets: which mesh axis splits which logical axis.

A rule is a pair (logical axis, mesh axis or axes or None). Within one array a mesh axis is used
once, by the first rule that asks for it; so `batch` comes first, and an activation
(`batch, length, embed`) is split by examples while a kernel (`embed, mlp`) is split by `embed`.

In gin:

    from m6rec_jax.sharding import rules

    Step.rules = @fully_sharded()

A logical axis that no rule names is not split; `LOGICAL_AXES` are those that there are.
`lookup_batch` is the batch while embeddings are looked up: split as `batch`, but not over what
splits `embed`.
"""

from contextlib import AbstractContextManager

import gin
from flax import linen as nn

MeshAxes = str | tuple[str, ...] | None
LogicalRules = tuple[tuple[str, MeshAxes], ...]

# Of the task bank's variables.
PROMPT_AXES = ("tasks", "prompts", "rank", "classes", "retrieval", "special_tokens", "segments")
# Of activations, the backbone's variables, and these.
LOGICAL_AXES = (
    *("batch", "lookup_batch", "length", "embed", "mlp", "heads", "kv", "vocab"),
    *("relpos_buckets", "layers"),
    *PROMPT_AXES,
)

BATCH: LogicalRules = (("batch", ("data", "fsdp")),)


@gin.configurable
def data_parallel() -> LogicalRules:
    """Examples over data and fsdp; every device holds all parameters."""
    return (*BATCH, ("lookup_batch", ("data", "fsdp")))


@gin.configurable
def fully_sharded() -> LogicalRules:
    """Examples over data and fsdp; parameters and optimizer state over fsdp along `embed`."""
    return (*BATCH, ("lookup_batch", "data"), ("embed", "fsdp"))


@gin.configurable
def fully_sharded_2d() -> LogicalRules:
    """As `fully_sharded`, and heads, feed-forward width and vocabulary over tensor."""
    return (
        *BATCH,
        ("lookup_batch", "data"),
        ("vocab", "tensor"),
        ("heads", "tensor"),
        ("mlp", "tensor"),
        ("embed", "fsdp"),
    )


def axis_rules(rules: LogicalRules) -> AbstractContextManager[None]:
    """Context in which the model's sharding constraints follow `rules`.

    Needed around whatever traces the model, together with `jax.set_mesh(mesh)`. Without a mesh or
    without rules the constraints do nothing.
    """
    return nn.logical_axis_rules(rules)
