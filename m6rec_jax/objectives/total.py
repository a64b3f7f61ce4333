"""The weighted sum of the objectives over one forward pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import classification, contrastive, language_modelling
from m6rec_jax.objectives.exits import over_exits
from m6rec_jax.objectives.sums import Features, Metrics, Sum, Terms, is_by_job

Array = jax.Array

# The loss of each objective, and the features that it reads.
_OBJECTIVES: dict[str, tuple[Any, tuple[str, ...]]] = {
    language_modelling.NAME: (
        over_exits(language_modelling.language_modelling_loss),
        ("decoder_target_tokens", "decoder_loss_weights"),
    ),
    classification.NAME: (over_exits(classification.classification_loss), ("decoder_labels",)),
    contrastive.NAME: (contrastive.contrastive_loss, ("decoder_item_ids", "retrieval")),
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
    jobs: Sequence[int] = (),
    language_modelling_weight: float = 1.0,
    classification_weight: float = 0.0,
    contrastive_weight: float = 0.0,
) -> tuple[Terms, Metrics]:
    """The objectives as terms of a loss, Σ weight · (sum of losses) / count (`mean_loss`).

    An objective of weight 0 is left out when the step is traced, with all it alone needs:
    classification alone makes no vocabulary logits. With `ModelConfig.exit_losses` language
    modelling and classification are sums over the decoder's exits, see `exits.over_exits`.

    Args:
      variables: {'params': ..., 'prompts': ...}.
      features: the batch; see `M6Rec.__call__` and each objective.
      rngs: {'dropout': key} unless deterministic.
      jobs: numbers of the jobs whose losses are summed apart, see `sums_by_job`.

    Returns:
      A term for each objective, and every objective's metrics as sums and counts.

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
        missing = [feature for feature in _OBJECTIVES[name][1] if feature not in features]
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
    terms: Terms = {}
    metrics: Metrics = {}
    for name, weight in weights.items():
        if weight:
            loss = _OBJECTIVES[name][0]
            summed, of_objective = loss(model, variables, outputs, features, jobs=jobs)
            terms[name] = Sum(weight * summed.total, summed.count)
            for metric, value in of_objective.items():
                total = weight * value.total if is_by_job(metric) else value.total
                metrics[metric] = Sum(total, value.count)
    return terms, metrics
