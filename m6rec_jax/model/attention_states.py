"""Queries, keys and values of one layer's self-attention in each tower, seen while a model runs.

    with watch(encoder_layer=3, decoder_layer=1) as seen:
        model.apply(variables, features)
    seen.attention["encoder"].query

The model's own code knows nothing of it: calls of the towers' stacks are intercepted and cut in
two at that layer, whose input is then projected once more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.attention import MASKED, Attention
from m6rec_jax.model.layer import LayerNorm
from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.model.stack import LayerStack

Array = jax.Array
TOWERS = ("encoder", "decoder")


class SelfAttention(NamedTuple):
    """One layer's self-attention over the tokens of a batch, soft prompts left out.

    Attributes:
      query: `[batch, length, heads, head_dim]`, times sqrt(head_dim): T5's queries carry the scale
        that others divide the products by.
      key, value: of the same shape.
      visible: bool `[batch, length, length]`, True where query (axis 1) sees key (axis 2).
    """

    query: Array
    key: Array
    value: Array
    visible: Array


@dataclass
class Seen:
    """What runs of models left: the first one's outputs, and the self-attention by tower."""

    attention: dict[str, SelfAttention] = field(default_factory=dict)
    outputs: Outputs = field(init=False)


@contextmanager
def watch(encoder_layer: int | None = None, decoder_layer: int | None = None) -> Iterator[Seen]:
    """Context in which one `model.apply` fills what it gives.

    Args:
      encoder_layer, decoder_layer: whose self-attention is wanted; None: of none.
    """
    layers, seen = dict(zip(TOWERS, (encoder_layer, decoder_layer), strict=True)), Seen()

    def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, M6Rec | LayerStack):
            return method(*args, **kwargs)
        if isinstance(module, M6Rec):
            outputs = method(*args, **kwargs)
            # A teacher may follow the student.
            seen.outputs = getattr(seen, "outputs", outputs)
            return outputs
        layer = layers[module.path[0]]
        if layer is None or not kwargs["start"] <= layer < kwargs["stop"]:
            return method(*args, **kwargs)
        below = method(*args, **{**kwargs, "stop": layer})
        every = kwargs["every"] and layer > kwargs["start"]
        x, inputs = below[-1] if every else below, args[1:]
        mask, _, task_ids, *_ = inputs
        seen.attention[module.path[0]] = _self_attention(
            module, x, layer, mask, task_ids, tuned=kwargs["tuned"]
        )
        above = method(x, *inputs, **{**kwargs, "start": layer})
        return jnp.concatenate([below, above]) if every else above

    with nn.intercept_methods(intercept):
        yield seen


def _self_attention(
    stack: LayerStack, x: Array, layer: int, mask: Array, task_ids: Array, *, tuned: bool
) -> SelfAttention:
    """What a layer's attention projects of its input `[batch, prompts + length, embed]`."""
    config = stack.config
    attention = Attention(config, parent=None)

    variables = stack.variables_of(layer)
    scale = {"params": variables["params"]["self_attention_norm"]}
    part = {name: tree.get("self_attention", {}) for name, tree in variables.items()}
    normed = LayerNorm(config, parent=None).apply(scale, x)
    states = attention.apply(part, normed, task_ids, tuned=tuned, method=attention.projected)
    first = config.prompts.num_prompts if stack.path[0] == "encoder" else 0
    query, key, value = (leaf[:, first:] for leaf in states)
    visible = (mask > MASKED / 2)[:, 0, first:, first:]
    return SelfAttention(query * config.head_dim**0.5, key, value, visible)
