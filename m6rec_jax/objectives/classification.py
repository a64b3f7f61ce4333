"""Cross entropy over the options at `[EOS]`: scoring by option tuning (paper section 3)."""

from collections.abc import Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.objectives.sums import Features, Metrics, Sum, sums_by_job, weighted_sum

Array = jax.Array
NAME = "classification"


def classification_count(features: Features) -> Array:
    """Denominator: how many positions have a label."""
    return jnp.sum((features["decoder_labels"] >= 0).astype(jnp.float32))


def soft_targets(
    labels: Array,
    num_classes: int,
    ordinal_spread: float,
    soft_labels: Array | None = None,
    num_options: Array | None = None,
) -> Array:
    """What the classes' probabilities should be: `[...]` → `[..., classes]`, rows sum to 1.

    Args:
      labels: int32 `[...]`, the class; negative ones give some row, to be masked.
      num_classes: of the result.
      ordinal_spread: 0: all on the label. Otherwise classes share in proportion to
        exp(-(distance from the label)² / (2 spread²)): for ordered classes such as star ratings.
      soft_labels: float32 `[...]`, a position between classes in [0, classes - 1], used in place of
        `labels`: 3.25 puts three quarters on class 3 and one on class 4.
      num_options: broadcastable to `[...]`, how many classes exist; the others get nothing.
    """
    classes = jnp.arange(num_classes, dtype=jnp.float32)
    centre = (labels if soft_labels is None else soft_labels).astype(jnp.float32)
    distance = jnp.abs(classes - centre[..., None])
    if ordinal_spread:
        # A row of no class at all would be NaN, and so would its gradient, masked or not.
        exists = True if num_options is None else classes < jnp.maximum(num_options, 1)[..., None]
        score = jnp.where(exists, -jnp.square(distance / ordinal_spread) / 2.0, -jnp.inf)
        return jax.nn.softmax(score, axis=-1)
    return jnp.maximum(0.0, 1.0 - distance)


@gin.configurable(allowlist=["ordinal_spread"])
def classification_loss(
    model: M6Rec,
    variables: Any,
    outputs: Outputs,
    features: Features,
    *,
    ordinal_spread: float = 0.0,
    jobs: Sequence[int] = (),
) -> tuple[Sum, Metrics]:
    """Cross entropy wherever `decoder_labels` is 0 or more (the input token is `[EOS]` there).

    Args:
      model, variables: to make option logits with.
      outputs: the model's for `features`.
      features: `decoder_labels` int32 `[batch, target]` (-1: none), `task_ids`, and optionally
        `decoder_soft_labels` float32 `[batch, target]`.
      ordinal_spread: see `soft_targets`.
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
    if ordinal_spread < 0.0:
        raise ConfigError(f"classification_loss.ordinal_spread = {ordinal_spread} is negative")
    labels = features["decoder_labels"]
    task_ids = features.get("task_ids", jnp.zeros((labels.shape[0], 1), jnp.int32))
    logits = model.apply(variables, outputs.hidden, task_ids, method=model.option_logits)
    num_options = model.apply(variables, task_ids, method=model.num_options)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    targets = soft_targets(
        labels,
        prompts.num_options,
        ordinal_spread,
        features.get("decoder_soft_labels"),
        None if num_options is None else num_options[:, None],
    )
    losses = -jnp.sum(targets * log_probabilities, axis=-1)
    loss = weighted_sum(losses, labels >= 0)
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    fixed = jax.tree.map(jax.lax.stop_gradient, loss)
    return loss, {
        f"{NAME}/loss": fixed,
        f"{NAME}/accuracy": weighted_sum(right, labels >= 0),
        **sums_by_job(NAME, losses, labels >= 0, features.get("decoder_job_ids"), jobs),
    }
