"""Cross entropy over the options at `[EOS]`: scoring by option tuning (paper section 3)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.objectives.sums import Features, Metrics, Sum, sums_by_job, weighted_sum

Array = jax.Array
NAME = "classification"


def classification_loss(
    model: M6Rec,
    variables: Any,
    outputs: Outputs,
    features: Features,
    *,
    jobs: Sequence[int] = (),
) -> tuple[Sum, Metrics]:
    """Cross entropy wherever `decoder_labels` is 0 or more (the input token is `[EOS]` there).

    Args:
      outputs: the model's for `features`: `decoder_labels` int32 `[batch, target]` (-1: none) and
        `task_ids`.
      jobs: see `sums_by_job`.

    Returns:
      The loss' sum, and metrics: loss, accuracy and the losses by job.

    Raises:
      ConfigError: the model has no head.
    """
    prompts = model.config.prompts
    if prompts.head == "none":
        raise ConfigError(
            "the classification loss needs a head: set PromptConfig.head to 'option' or 'linear' "
            "and PromptConfig.num_options"
        )
    labels = features["decoder_labels"]
    task_ids = features.get("task_ids", jnp.zeros((labels.shape[0], 1), jnp.int32))
    logits = model.apply(variables, outputs.hidden, task_ids, method=model.option_logits)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    targets = jax.nn.one_hot(labels, prompts.num_options, dtype=jnp.float32)
    losses = -jnp.sum(targets * log_probabilities, axis=-1)
    loss = weighted_sum(losses, labels >= 0)
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return loss, {
        f"{NAME}/loss": jax.lax.stop_gradient(loss),
        f"{NAME}/accuracy": weighted_sum(right, labels >= 0),
        **sums_by_job(NAME, losses, labels >= 0, features.get("decoder_job_ids"), jobs),
    }
