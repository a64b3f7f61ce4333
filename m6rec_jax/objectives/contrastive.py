"""InfoNCE between users and items: the two retrieval towers (paper section 2).

A retrieval row's encoder holds a user, its decoder (which does not see the encoder) packs one or
more items the user chose next. Each is a positive; the items of all other retrieval rows of the
*global* batch are its negatives. The arrays are global under `jax.jit`, so that holds on any number
of devices without a collective in this file.

Where the source is read from left to right, every behaviour ends in a state of the user at that
moment. Each such state, and the one at `[EOS']`, then has one positive, the item that came next (as
in SASRec, Kang and McAuley, 2018), provided that the batch's decoders hold that item in some row:
their items are a sample of the catalogue, by frequency.
"""

from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.objectives.sums import Features, Metrics, Sum, weighted_sum

Array = jax.Array
NAME = "contrastive"

# Stands in for -inf: a row without a single negative gets loss 0 and a gradient of 0, not NaN.
NO_LOGIT = -1e9


class RetrievalItems(NamedTuple):
    """The items of each row, in order, N places per row.

    Attributes:
      positions: int32 `[batch, N]`, of their `[EOS]` in the decoder row.
      ids: int32 `[batch, N]`, in the items table.
      valid: bool `[batch, N]`, False at empty places and in rows that are not for retrieval.
      dropped: float32 scalar, items that found no place.
    """

    positions: Array
    ids: Array
    valid: Array
    dropped: Array


@gin.configurable(allowlist=["max_items_per_row"])
def retrieval_items(features: Features, max_items_per_row: int = 0) -> RetrievalItems:
    """Finds the items of each retrieval row.

    Args:
      features: `decoder_item_ids` int32 `[batch, target]` (-1: no item ends here), `retrieval`
        int32 `[batch, 1]`.
      max_items_per_row: N. 0: target // 2, which always suffices (an item has a `[BOS]` and an
        `[EOS]`). A tighter bound saves work in large batches: the similarities are
        `[batch, batch · N]`.
    """
    item_ids = features["decoder_item_ids"]
    length = item_ids.shape[1]
    places = min(max_items_per_row or max(1, length // 2), length)
    present = (item_ids >= 0) & (features["retrieval"].reshape(-1, 1) > 0)
    positions = jnp.argsort(~present, axis=1, stable=True)[:, :places]
    valid = jnp.take_along_axis(present, positions, axis=1)
    ids = jnp.take_along_axis(item_ids, positions, axis=1)
    dropped = jnp.sum(present.astype(jnp.float32)) - jnp.sum(valid.astype(jnp.float32))
    return RetrievalItems(positions, ids, valid, dropped)


def contrastive_count(features: Features) -> Array:
    """Denominator: how many positive items the retrieval rows hold."""
    if "retrieval" not in features:
        return jnp.zeros(())
    return jnp.sum(retrieval_items(features).valid.astype(jnp.float32))


def known_positives(items: RetrievalItems, user_ids: Array) -> Array:
    """Items that must not be a user's negatives because the user chose them, here or elsewhere.

    Args:
      items: of the batch.
      user_ids: int32 `[batch]`; rows of equal ids (0 or more) are one user, -1 is nobody else.

    Returns:
      bool `[batch, batch · N]`: row b's user has chosen item m in some row of the batch.
    """
    batch, places = items.ids.shape
    every_id = items.ids.reshape(1, -1)
    in_row = jnp.zeros((batch, batch * places), bool)
    for place in range(places):
        chosen = items.ids[:, place, None] == every_id
        in_row |= chosen & items.valid[:, place, None]
    same_user = (user_ids[:, None] == user_ids[None, :]) & (user_ids >= 0)[:, None]
    same_user |= jnp.eye(batch, dtype=bool)
    return (same_user.astype(jnp.float32) @ in_row.astype(jnp.float32)) > 0


def info_nce(
    users: Array,
    items: Array,
    valid: Array,
    known: Array,
    *,
    temperature: float,
    log_frequency: Array | None = None,
) -> tuple[Array, Array]:
    """-log of each positive's share among itself and its row's negatives.

    Other positives of the same row are neither: each stands alone against the negatives.

    Args:
      users: `[batch, retrieval]`, unit length.
      items: `[batch, N, retrieval]`, unit length.
      valid: bool `[batch, N]`.
      known: bool `[batch, batch · N]`, not to be used as negatives.
      temperature: divides the similarities.
      log_frequency: float32 `[batch, N]`, log of the chance that an item is drawn as a negative
        (its share of the events), subtracted from all logits: without it frequent items are pushed
        down for being frequent.

    Returns:
      Loss `[batch, N]` (meaningless where not valid), and whether the positive beats all negatives.
    """
    similarity = jnp.einsum("br,mr->bm", users, items.reshape(-1, items.shape[-1])) / temperature
    positive = jnp.einsum("br,bnr->bn", users, items) / temperature
    if log_frequency is not None:
        similarity -= log_frequency.reshape(1, -1)
        positive -= log_frequency
    negative = jnp.where(valid.reshape(1, -1) & ~known, similarity, NO_LOGIT)
    against = jax.nn.logsumexp(negative, axis=-1, keepdims=True)
    return jax.nn.softplus(against - positive), positive > jnp.max(negative, -1, keepdims=True)


class Moments(NamedTuple):
    """Moments of each row at which the next item is known, M places per row.

    Attributes:
      positions: int32 `[batch, M]`, in the source.
      ids: int32 `[batch, M]`, of the items that came next.
      valid: bool `[batch, M]`, False at empty places and in rows that are not for retrieval.
    """

    positions: Array
    ids: Array
    valid: Array


@gin.configurable(allowlist=["max_moments_per_row"])
def retrieval_moments(features: Features, max_moments_per_row: int = 0) -> Moments:
    """Finds the moments of each retrieval row; the latest ones where there is no room for all.

    Args:
      features: `encoder_next_item_ids` int32 `[batch, source]` (-1: no moment), `retrieval` int32
        `[batch, 1]`.
      max_moments_per_row: M. 0: as many as the source has tokens. A tighter bound saves work: the
        similarities are `[batch · M, items of the batch]`.
    """
    next_ids = features["encoder_next_item_ids"]
    length = next_ids.shape[1]
    places = min(max_moments_per_row or length, length)
    present = (next_ids >= 0) & (features["retrieval"].reshape(-1, 1) > 0)
    # From the end: the moment that counts in use, [EOS'], is always among them.
    positions = length - 1 - jnp.argsort(~present[:, ::-1], axis=1, stable=True)[:, :places]
    valid = jnp.take_along_axis(present, positions, axis=1)
    return Moments(positions, jnp.take_along_axis(next_ids, positions, axis=1), valid)


def next_item_nce(
    users: Array,
    moments: Moments,
    items: Array,
    drawn: RetrievalItems,
    known: Array,
    temperature: float,
    log_frequency: Array | None = None,
) -> tuple[Array, Array, Array]:
    """-log of the next item's share among itself and the batch's other items, at every moment.

    Args:
      users: `[batch, M, retrieval]`, unit length.
      moments: of the users.
      items: `[batch, N, retrieval]`, unit length.
      drawn: what the items are.
      known: bool `[batch, batch · N]`, not to be used as negatives.
      temperature, log_frequency: as in `info_nce`.

    Returns:
      Loss, whether the next item beats all negatives, and float32 weights: 1 where the batch holds
      the next item, else 0; all `[batch, M]`.
    """
    pool = items.reshape(-1, items.shape[-1])
    similarity = jnp.einsum("bmr,pr->bmp", users, pool) / temperature
    if log_frequency is not None:
        similarity -= log_frequency.reshape(-1)
    there = drawn.valid.reshape(-1)
    wanted = (moments.ids[..., None] == drawn.ids.reshape(-1)) & there
    number = jnp.sum(wanted, axis=-1)
    # Rows that hold the same item give it vectors that differ by dropout: their mean counts.
    positive = jnp.sum(jnp.where(wanted, similarity, 0.0), axis=-1) / jnp.maximum(number, 1)
    negative = jnp.where(there & ~known[:, None] & ~wanted, similarity, NO_LOGIT)
    against = jax.nn.logsumexp(negative, axis=-1)
    weights = (moments.valid & (number > 0)).astype(jnp.float32)
    right = positive > jnp.max(negative, axis=-1)
    return jax.nn.softplus(against - positive), right, weights


@gin.configurable(allowlist=["temperature", "correct_frequency"])
def contrastive_loss(
    model: M6Rec,
    variables: Any,
    outputs: Outputs,
    features: Features,
    *,
    temperature: float = 0.07,
    correct_frequency: bool = False,
) -> tuple[Sum, Metrics]:
    """InfoNCE over the batch's retrieval rows.

    Args:
      model, variables: to project with.
      outputs: the model's for `features`.
      features: `retrieval`, `decoder_item_ids` (see `retrieval_items`), `task_ids`, `user_ids`
        int32 `[batch, 1]` (optional); `decoder_item_log_frequency` float32 `[batch, target]` for
        `correct_frequency`, at the positions of `decoder_item_ids`; `encoder_next_item_ids` where
        the source is read from left to right (`ModelConfig.left_to_right_retrieval`).
      temperature: 0.07 in the paper.
      correct_frequency: logQ correction, see `info_nce`.

    Returns:
      The loss' sum, and metrics: loss, accuracy (the positive beats all in-batch negatives) and
      dropped_items (a sum per batch: items for which `max_items_per_row` left no place).

    Raises:
      ConfigError: if the model has no retrieval projections, or features are missing.
    """
    if not model.config.prompts.retrieval_dim:
        raise ConfigError(
            "the contrastive loss needs retrieval projections: set PromptConfig.retrieval_dim "
            "(128 in the paper)"
        )
    if temperature <= 0.0:
        raise ConfigError(f"contrastive_loss.temperature = {temperature} must be positive")
    items = retrieval_items(features)
    batch = items.ids.shape[0]
    task_ids = features.get("task_ids", jnp.zeros((batch, 1), jnp.int32))
    user_ids = features.get("user_ids", jnp.full((batch, 1), -1, jnp.int32)).reshape(-1)
    log_frequency = None
    if correct_frequency:
        if "decoder_item_log_frequency" not in features:
            raise ConfigError(
                "contrastive_loss.correct_frequency needs the feature 'decoder_item_log_frequency'"
            )
        log_frequency = jnp.take_along_axis(
            features["decoder_item_log_frequency"], items.positions, axis=1
        )
    states = jnp.take_along_axis(outputs.hidden, items.positions[..., None], axis=1)
    vectors = model.apply(variables, states, task_ids, method=model.item_embedding)
    known = known_positives(items, user_ids)
    if model.config.left_to_right_retrieval:
        moments = retrieval_moments(features)
        users = model.apply(
            variables,
            outputs.encoded,
            moments.positions,
            task_ids,
            method=model.moment_embeddings,
        )
        loss, right, weights = next_item_nce(
            users, moments, vectors, items, known, temperature, log_frequency
        )
        # As many as the batch has items, so that the denominator is that of `contrastive_count`.
        weights *= jnp.sum(items.valid) / jnp.maximum(jnp.sum(weights), 1.0)
    else:
        users = model.apply(variables, outputs.encoded, task_ids, method=model.user_embedding)
        loss, right = info_nce(
            users,
            vectors,
            items.valid,
            known,
            temperature=temperature,
            log_frequency=log_frequency,
        )
        weights = items.valid
    summed = weighted_sum(loss, weights)
    return summed, {
        f"{NAME}/loss": jax.tree.map(jax.lax.stop_gradient, summed),
        f"{NAME}/accuracy": weighted_sum(right.astype(jnp.float32), weights),
        f"{NAME}/dropped_items": Sum(items.dropped, jnp.ones(())),
    }
