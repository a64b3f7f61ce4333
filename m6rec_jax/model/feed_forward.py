"""Feed-forward layer (gated GELU in T5 1.1) with the task's adapter beside it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dense import Projection
from m6rec_jax.model.dropout import dropout
from m6rec_jax.model.prompts import prompt_variable, task_dot, task_rows, within_ranks

Array = jax.Array


def activation(name: str) -> Callable[[Array], Array]:
    """The function called `name` in a config. 'gelu' is the tanh approximation of T5 1.1."""
    functions: dict[str, Callable[[Array], Array]] = {
        "gelu": lambda x: nn.gelu(x, approximate=True),
        "relu": nn.relu,
        "silu": nn.silu,
        "tanh": jnp.tanh,
        "linear": lambda x: x,
    }
    return functions[name]


class Adapter(nn.Module):
    """λ·(σ(Z W1 + b1) W2 + b2), one per layer and task (paper section 3).

    W2 and b2 start at zero, so a new task starts from the backbone exactly.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, task_ids: Array) -> Array:
        """x `[batch, length, embed]`, task_ids `[batch]` → `[batch, length, embed]`."""
        config, prompts = self.config, self.config.prompts
        tasks, embed, rank = prompts.num_tasks, config.embed_dim, prompts.adapter_rank
        zeros = nn.initializers.zeros_init()
        wi = prompt_variable(
            self,
            "wi",
            within_ranks(nn.initializers.normal(embed**-0.5), prompts.task_adapter_ranks),
            (tasks, embed, rank),
            ("tasks", "embed", "rank"),
        )
        wi_bias = prompt_variable(self, "wi_bias", zeros, (tasks, rank), ("tasks", "rank"))
        wo = prompt_variable(self, "wo", zeros, (tasks, rank, embed), ("tasks", "rank", "embed"))
        wo_bias = prompt_variable(self, "wo_bias", zeros, (tasks, embed), ("tasks", "embed"))
        scale = prompt_variable(
            self, "scale", nn.initializers.constant(prompts.adapter_scale), (tasks,), ("tasks",)
        )
        hidden = task_dot(x, wi, task_ids, operand_dtype=config.operand_dtype)
        hidden = activation(prompts.adapter_activation)(
            hidden + task_rows(wi_bias, task_ids)[:, None]
        )
        out = task_dot(hidden, wo, task_ids, operand_dtype=config.operand_dtype)
        out = out + task_rows(wo_bias, task_ids)[:, None]
        return (out * task_rows(scale, task_ids)[:, None, None]).astype(config.dtype)


class FeedForward(nn.Module):
    """(Π_i act_i(Z Wi_i)) Wo, plus the adapter where the config has one."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, task_ids: Array, *, with_adapter: bool, deterministic: bool
    ) -> Array:
        """x `[batch, length, embed]`, normalised; task_ids `[batch]` → `[batch, length, embed]`.

        `with_adapter` False leaves out an adapter that exists (`adapters_late_only`).
        """
        config = self.config
        hidden: Array | None = None
        for index, name in enumerate(config.mlp_activations):
            branch = Projection(
                in_shape=(config.embed_dim,),
                out_shape=(config.mlp_dim,),
                axes=("embed", "mlp"),
                stddev=config.embed_dim**-0.5,
                operand_dtype=config.operand_dtype,
                out_dtype=config.dtype,
                name=f"wi_{index}",
            )(x)
            branch = activation(name)(branch)
            hidden = branch if hidden is None else hidden * branch
        assert hidden is not None  # ModelConfig refuses an empty list
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        hidden = dropout(config)(hidden, deterministic=deterministic)
        out = Projection(
            in_shape=(config.mlp_dim,),
            out_shape=(config.embed_dim,),
            axes=("mlp", "embed"),
            stddev=config.mlp_dim**-0.5,
            operand_dtype=config.operand_dtype,
            out_dtype=config.dtype,
            name="wo",
        )(hidden)
        if config.prompts.adapter_rank and (with_adapter or self.is_initializing()):
            adapted = Adapter(config, name="adapter")(x, task_ids)
            if with_adapter:
                out = out + adapted
        return out
