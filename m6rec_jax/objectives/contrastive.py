"""InfoNCE between users and items: the two retrieval towers (paper section 2).

A retrieval row's encoder holds a user, its decoder (which does not see the encoder) packs one or
more items the user chose next. Each is a positive; the items of all other retrieval rows of the
same job (the seqio task, by `decoder_job_ids`) in the *global* batch are its negatives. Rows of
different jobs have different catalogues or prompts, so they are never compared. The arrays are
global under `jax.jit`, so no collective is needed here.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.objectives.sums import Features, Metrics, Sum, sums_by_job, weighted_sum

Array = jax.Array
NAME = "contrastive"

TEMPERATURE = 0.07  # of the paper; divides similarities
# Stands in for -inf: a row without a single negative gets loss 0 and a gradient of 0, not NaN.
NO_LOGIT = -1e9


class RetrievalItems(NamedTuple):
    """The items of each row, in order, N places per row.

    Attributes:
      positions: int32 `[batch, N]`, of their `[EOS]` in the decoder row.
      ids: int32 `[batch, N]`, in the items table.
      valid: bool `[batch, N]`, False at empty places and in rows that are not for retrieval.
      weights: float32 `[batch, N]`, how much each counts in the loss; 0 where not valid.
      dropped: float32 scalar, items that found no place.
      chosen: int32 `[batch, M]`, all items of a row, those without a place, too; -1 where fewer.
    """

    positions: Array
    ids: Array
    valid: Array
    weights: Array
    dropped: Array
    chosen: Array


@gin.configurable(allowlist=["max_items_per_row", "order_discount"])
def retrieval_items(
    features: Features, max_items_per_row: int = 0, order_discount: float = 0.0
) -> RetrievalItems:
    """Finds the items of each retrieval row.

    Args:
      features: `decoder_item_ids` int32 `[batch, target]` (-1: no item ends here), `retrieval`
        int32 `[batch, 1]`.
      max_items_per_row: N. 0: target // 2, which always suffices. A tighter bound saves work: the
        similarities are `[batch, batch · N]`.
      order_discount: the k-th item of a row counts k^-order_discount: what a user chose first says
        more of what is wanted next. 0: all alike.
    """
    item_ids = features["decoder_item_ids"]
    length = item_ids.shape[1]
    most = max(1, length // 2)
    places = min(max_items_per_row or most, length)
    present = (item_ids >= 0) & (features["retrieval"].reshape(-1, 1) > 0)
    order = jnp.argsort(~present, axis=1, stable=True)
    positions = order[:, :places]
    valid = jnp.take_along_axis(present, positions, axis=1)
    ids = jnp.take_along_axis(item_ids, positions, axis=1)
    chosen = jnp.take_along_axis(jnp.where(present, item_ids, -1), order[:, :most], axis=1)
    dropped = jnp.sum(present.astype(jnp.float32)) - jnp.sum(valid.astype(jnp.float32))
    discounts = jnp.arange(1, places + 1, dtype=jnp.float32) ** -order_discount
    return RetrievalItems(positions, ids, valid, valid * discounts, dropped, chosen)


def known_positives(items: RetrievalItems, user_ids: Array, job_ids: Array) -> Array:
    """Items that are no negatives of a user, who chose them: bool `[batch, batch · N]`.

    Rows of a job (`job_ids` int32 `[batch]`) with equal `user_ids` int32 `[batch]` are one user; -1
    is nobody else.
    """
    batch, places = items.ids.shape
    every_id = jnp.where(items.valid, items.ids, -2).reshape(1, -1)
    in_row = jnp.zeros((batch, batch * places), bool)
    for place in range(items.chosen.shape[1]):
        in_row |= items.chosen[:, place, None] == every_id
    same_user = (user_ids[:, None] == user_ids[None, :]) & (user_ids >= 0)[:, None]
    same_user &= job_ids[:, None] == job_ids[None, :]
    same_user |= jnp.eye(batch, dtype=bool)
    return (same_user.astype(jnp.float32) @ in_row.astype(jnp.float32)) > 0


def of_other_jobs(items: RetrievalItems, job_ids: Array) -> Array:
    """Items of other jobs: bool `[batch, batch · N]`."""
    return job_ids[:, None] != jnp.repeat(job_ids, items.ids.shape[1])[None, :]


def info_nce(
    users: Array,
    items: Array,
    valid: Array,
    known: Array,
    log_frequency: Array | None = None,
) -> tuple[Array, Array]:
    """-log of each positive's share among itself and its row's negatives.

    Other positives of the same row are neither: each stands alone against the negatives.

    Args:
      users: `[batch, retrieval]`, unit length.
      items: `[batch, N, retrieval]`, unit length.
      valid: bool `[batch, N]`.
      known: bool `[batch, batch · N]`, not to be used as negatives.
      log_frequency: float32 `[batch, N]`, log of the chance that an item is drawn as a negative,
        subtracted from all logits: without it frequent items are pushed down for being frequent.

    Returns:
      Loss `[batch, N]` (meaningless where not valid), and whether the positive beats all negatives.
    """
    # Divided by the temperature, what rounding to bfloat16 does to a similarity is no longer small.
    einsum = functools.partial(jnp.einsum, precision="highest")
    similarity = einsum("br,mr->bm", users, items.reshape(-1, items.shape[-1])) / TEMPERATURE
    positive = einsum("br,bnr->bn", users, items) / TEMPERATURE
    if log_frequency is not None:
        similarity -= log_frequency.reshape(1, -1)
        positive -= log_frequency
    negative = jnp.where(valid.reshape(1, -1) & ~known, similarity, NO_LOGIT)
    against = jax.nn.logsumexp(negative, axis=-1, keepdims=True)
    return jax.nn.softplus(against - positive), positive > jnp.max(negative, -1, keepdims=True)


def retrieval_job_ids(features: Features) -> Array:
    """The job of each row: `[batch]`. Rows of one prompt are of one job unless features tell."""
    rows = features["decoder_item_ids"].shape[0]
    task_ids = features.get("task_ids", jnp.zeros((rows, 1), jnp.int32))
    # Retrieval rows are never packed: the first position tells whose the row is.
    return features.get("decoder_job_ids", task_ids.reshape(rows, 1))[:, 0]


def user_and_item_vectors(
    model: M6Rec, variables: Any, outputs: Outputs, items: RetrievalItems, task_ids: Array
) -> tuple[Array, Array]:
    """Of each row's user `[batch, retrieval]` and items `[batch, N, retrieval]`, of unit length."""
    users = model.apply(variables, outputs.encoded, task_ids, method=model.user_embedding)
    states = jnp.take_along_axis(outputs.hidden, items.positions[..., None], axis=1)
    return users, model.apply(variables, states, task_ids, method=model.item_embedding)


@gin.configurable(allowlist=["correct_frequency"])
def contrastive_loss(
    model: M6Rec,
    variables: Any,
    outputs: Outputs,
    features: Features,
    *,
    correct_frequency: bool = False,
    jobs: Sequence[int] = (),
) -> tuple[Sum, Metrics]:
    """InfoNCE over the batch's retrieval rows.

    Args:
      outputs: the model's for `features`.
      features: those of `retrieval_items`, `task_ids`, and optionally `user_ids` int32 `[batch, 1]`
        and `decoder_job_ids` int32 `[batch, target]` (without it, rows of one prompt are of one
        job); `decoder_item_log_frequency` float32 `[batch, target]` for `correct_frequency`.
      correct_frequency: logQ correction, see `info_nce`.
      jobs: see `sums_by_job`.

    Returns:
      The loss' sum, and metrics: loss, accuracy (the positive beats all in-batch negatives),
      dropped_share (of items for which `max_items_per_row` left no place) and the losses by job.

    Raises:
      ConfigError: the model has no retrieval projections, or features are missing.
    """
    if not model.config.prompts.retrieval_dim:
        raise ConfigError(
            "the contrastive loss needs retrieval projections: set PromptConfig.retrieval_dim "
            "(128 in the paper)"
        )
    items = retrieval_items(features)
    batch = items.ids.shape[0]
    task_ids = features.get("task_ids", jnp.zeros((batch, 1), jnp.int32))
    user_ids = features.get("user_ids", jnp.full((batch, 1), -1, jnp.int32)).reshape(-1)
    job_ids = retrieval_job_ids(features)
    log_frequency = None
    if correct_frequency:
        if "decoder_item_log_frequency" not in features:
            raise ConfigError(
                "contrastive_loss.correct_frequency needs the feature 'decoder_item_log_frequency'"
            )
        log_frequency = jnp.take_along_axis(
            features["decoder_item_log_frequency"], items.positions, axis=1
        )
    users, vectors = user_and_item_vectors(model, variables, outputs, items, task_ids)
    known = known_positives(items, user_ids, job_ids) | of_other_jobs(items, job_ids)
    loss, right = info_nce(users, vectors, items.valid, known, log_frequency)
    summed = weighted_sum(loss, items.weights)
    return summed, {
        f"{NAME}/loss": jax.lax.stop_gradient(summed),
        f"{NAME}/accuracy": weighted_sum(right.astype(jnp.float32), items.weights),
        f"{NAME}/dropped_share": Sum(items.dropped, items.dropped + jnp.sum(items.valid)),
        **sums_by_job(NAME, loss, items.weights, job_ids[:, None], jobs),
    }
