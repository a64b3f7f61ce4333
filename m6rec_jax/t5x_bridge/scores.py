"""What `t5x.infer` in 'score' mode, and exported models, compute for a batch of rows.

Which scores there are is decided by the kinds of the mixture's tasks (`registration.TaskInfo`):

    scoring, classification   log_probabilities       [rows, target, classes], at every [EOS]
    retrieval                 similarity              [rows, target], of the row's user and items
    language                  negative_log_likelihood, correct, weight    [rows]
    likelihood                score                   [rows, target]

Beside them stand `decoder_labels` and `decoder_item_ids` `[rows, target]` and `user_ids`
`[rows, 1]`, which tell what each score is of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.engine.likelihood import mean_target_log_probabilities, token_sums
from m6rec_jax.engine.retrieval import item_embeddings, user_embeddings
from m6rec_jax.engine.scoring import class_log_probabilities
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec

Array = jax.Array
_SCORED = {"scoring", "classification", "retrieval", "language", "likelihood"}
IDENTITY = ("decoder_labels", "decoder_item_ids", "user_ids")


def scores(
    model: M6Rec,
    variables: Mapping[str, Any],
    features: Mapping[str, Array],
    kinds: Collection[str],
) -> dict[str, Array]:
    """Scores of a batch; for use inside jit.

    Args:
      model, variables: the model.
      features: the batch.
      kinds: of the tasks that rows are of.

    Raises:
      ConfigError: none of them has scores (all write texts, or recommend in a dialogue).
    """
    if _SCORED.isdisjoint(kinds):
        raise ConfigError(
            f"tasks of the kind {' or '.join(sorted(kinds))} have no scores in t5x: set MODE = "
            "'predict' for texts, or use `m6rec eval` and `m6rec infer`"
        )
    found = {name: jnp.asarray(features[name]) for name in IDENTITY}
    if not {"scoring", "classification"}.isdisjoint(kinds):
        found["log_probabilities"] = class_log_probabilities(model, variables, features)
    if "retrieval" in kinds:
        found["similarity"] = _similarities(model, variables, features)
    if "language" in kinds:
        found |= token_sums(model, variables, features)._asdict()
    if "likelihood" in kinds:
        found["score"] = mean_target_log_probabilities(model, variables, features)
    return found


def _similarities(
    model: M6Rec, variables: Mapping[str, Any], features: Mapping[str, Array]
) -> Array:
    """Cosine of the row's user with what the item tower makes of every position."""
    users = user_embeddings(model, variables, features)
    items = item_embeddings(model, variables, features)
    return jnp.einsum("br,btr->bt", users, items)
