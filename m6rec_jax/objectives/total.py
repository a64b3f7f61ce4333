"""The weighted sum of the objectives over one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import classification, contrastive, language_modelling
from m6rec_jax.objectives.exits import over_exits
from m6rec_jax.objectives.sums import Features, Metrics, Sum, nonzero, weighted

Array = jax.Array


class _Objective(NamedTuple):
    loss: Callable[..., tuple[Sum, Metrics]]
    counted: Callable[[Features], Array]
    features: tuple[str, ...]


_OBJECTIVES = {
    language_modelling.NAME: _Objective(
        over_exits(language_modelling.language_modelling_loss),
        language_modelling.language_modelling_count,
        ("decoder_target_tokens", "decoder_loss_weights"),
    ),
    classification.NAME: _Objective(
        over_exits(classification.classification_loss),
        classification.classification_count,
        ("decoder_labels",),
    ),
    contrastive.NAME: _Objective(
        contrastive.contrastive_loss,
        contrastive.contrastive_count,
        ("decoder_item_ids", "retrieval"),
    ),
}


def loss_denominators(features: Features) -> dict[str, Array]:
    """How many tokens, labels and items a batch holds, by objective; float32 scalars.

    With gradient accumulation, add them up over all steps first and pass them to `total_loss` in
    every step: the steps' losses and gradients then add up to those of the large batch.
    (Contrastive negatives come from the step's own rows.)
    """
    return {
        name: objective.counted(features)
        for name, objective in _OBJECTIVES.items()
        if all(feature in features for feature in objective.features)
    }


@gin.configurable(
    allowlist=["language_modelling_weight", "classification_weight", "contrastive_weight"]
)
def total_loss(
    model: M6Rec,
    variables: Any,
    features: Features,
    *,
    rngs: Mapping[str, Array] | None = None,
    deterministic: bool = True,
    denominators: Mapping[str, Array] | None = None,
    jobs: Sequence[int] = (),
    language_modelling_weight: float = 1.0,
    classification_weight: float = 0.0,
    contrastive_weight: float = 0.0,
) -> tuple[Array, Metrics]:
    """Σ over objectives of weight · (sum of losses) / denominator.

    An objective of weight 0 is left out when the step is traced, with all it alone needs:
    classification alone makes no vocabulary logits. With `ModelConfig.exit_losses` language
    modelling and classification are sums over the decoder's exits, see `exits.over_exits`.

    Args:
      variables: {'params': ..., 'prompts': ...}.
      features: the batch; see `M6Rec.__call__` and each objective.
      rngs: {'dropout': key} unless deterministic.
      denominators: of `loss_denominators`; None: this batch's own.
      jobs: numbers of the jobs whose losses are summed apart, see `job_losses`.

    Returns:
      The loss, a float32 scalar, and every objective's metrics as sums and counts.

    Raises:
      ConfigError: no weight is positive, one is negative, or features are missing.
    """
    weights = {
        language_modelling.NAME: language_modelling_weight,
        classification.NAME: classification_weight,
        contrastive.NAME: contrastive_weight,
    }
    for name, weight in weights.items():
        if weight < 0.0:
            raise ConfigError(f"total_loss.{name}_weight = {weight} is negative")
        missing = [f for f in _OBJECTIVES[name].features if f not in features]
        if weight and missing:
            raise ConfigError(
                f"total_loss.{name}_weight = {weight} needs the feature {missing[0]!r}, which the "
                f"batch lacks; set the weight to 0 or add the feature to the task"
            )
    if not any(weights.values()):
        raise ConfigError("every weight of total_loss is 0: nothing to train on")
    outputs = model.apply(
        variables,
        features,
        deterministic=deterministic,
        rngs=rngs,
        exits=model.config.exit_losses != "none",
    )
    denominators = denominators or loss_denominators(features)
    loss, metrics = jnp.zeros(()), dict[str, Sum]()
    for name, weight in weights.items():
        if not weight:
            continue
        loss_of = _OBJECTIVES[name].loss
        summed, of_objective = loss_of(model, variables, outputs, features, jobs=jobs)
        loss += weight * summed.total / nonzero(denominators[name])
        metrics |= weighted(of_objective, weight)
    return loss, metrics
