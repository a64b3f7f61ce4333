"""What a student learns from a teacher beside its own objectives (paper section 5).

- Relations between tokens in self-attention, as in MiniLM v2 (Wang et al., 2021): of any width, so
  that teacher and student need not be alike in anything but the vocabulary.
- The teacher's probabilities of tokens and classes, and of items for users.

The teacher's variables come as a collection beside the student's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.attention import MASKED
from m6rec_jax.model.attention_states import TOWERS, SelfAttention, watch
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.objectives import classification, contrastive, language_modelling
from m6rec_jax.objectives.sums import Features, Metrics, Sum, nonzero, weighted_sum
from m6rec_jax.objectives.total import loss_denominators

Array = jax.Array
NAME = "distillation"
# The collection of the teacher's variables, and the entry of its fingerprint in a manifest.
TEACHER = "teacher"
_TERMS = ("relation_weight", "vocabulary_weight", "class_weight", "similarity_weight")


@gin.configurable
@dataclass(frozen=True)
class Distillation:
    """From whom, what and how much.

    Attributes:
      teacher: MODEL_DIR, `checkpoints` folder or step folder of a run with the same vocabulary: one
        of this project, or a T5 by `m6rec convert`. Its prompts come along, so a tuned teacher
        teaches its task.
      relation_weight: of the relations' divergence, a mean over tokens and heads, summed over
        query-query, key-key and value-value and over both towers.
      encoder_layer, decoder_layer: the teacher's layers whose relations the student's last ones
        learn; negative ones count from the end.
      num_relation_heads: heads into which both models' are split anew; None: the student's own.
      vocabulary_weight: of the divergence from the teacher's tokens, where the target has a weight.
      class_weight: from its classes, where there is a label; both models need a head.
      temperature: divides logits of tokens and classes; the divergence is multiplied by its square.
      similarity_weight: from how it spreads a user's interest over the batch's items of the same
        job; both models need retrieval projections.
      similarity_temperature: divides similarities of users and items.
      chunk_length: as for `language_modelling_loss`.
    """

    teacher: str
    relation_weight: float = 1.0
    encoder_layer: int = -1
    decoder_layer: int = -1
    num_relation_heads: int | None = None
    vocabulary_weight: float = 0.0
    class_weight: float = 0.0
    temperature: float = 1.0
    similarity_weight: float = 0.0
    similarity_temperature: float = 0.07
    chunk_length: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "similarity_temperature"):
            if getattr(self, name) <= 0.0:
                raise ConfigError(f"Distillation.{name} = {getattr(self, name)} must be positive")
        for name in (*_TERMS, "chunk_length"):
            if getattr(self, name) < 0.0:
                raise ConfigError(f"Distillation.{name} = {getattr(self, name)} is negative")
        if self.num_relation_heads is not None and self.num_relation_heads < 1:
            raise ConfigError(
                f"Distillation.num_relation_heads = {self.num_relation_heads} must be at least 1 "
                "(None: as many as the student has)"
            )
        if not any(getattr(self, name) for name in _TERMS):
            raise ConfigError("every weight of Distillation is 0: nothing to learn from a teacher")


class DistillationLoss:
    """A loss function: a student's own objectives, and its divergence from a teacher.

    Args:
      settings: of the distillation.
      objectives: the student's own loss function.
      teacher: whose variables are the collection `TEACHER` of those that are passed.
      student: of the student.

    Raises:
      ConfigError: settings that do not fit the two models.
    """

    def __init__(
        self, settings: Distillation, objectives: Any, teacher: M6Rec, student: ModelConfig
    ) -> None:
        self._settings, self._objectives, self._teacher = settings, objectives, teacher
        config = teacher.config
        self._heads = settings.num_relation_heads or student.num_heads
        for whose, of in (("teacher", config), ("student", student)):
            if settings.relation_weight and of.num_heads * of.head_dim % self._heads:
                raise ConfigError(
                    f"Distillation.num_relation_heads = {self._heads} does not divide the width of "
                    f"the {whose}'s attention: {of.num_heads} heads of {of.head_dim}"
                )
        depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
        self._layers = {
            f"{tower}_layer": _layer(settings, tower, depth) for tower, depth in depths.items()
        }
        prompts, own = config.prompts, student.prompts
        if prompts.num_tasks not in (1, own.num_tasks):
            raise ConfigError(
                f"the teacher is a bank of {prompts.num_tasks} tasks, the student of "
                f"{own.num_tasks} (PromptConfig.num_tasks): a teacher has one, or as many"
            )
        classes = [0 if of.head == "none" else of.num_options for of in (prompts, own)]
        if settings.class_weight and (0 in classes or classes[0] != classes[1]):
            raise ConfigError(
                f"Distillation.class_weight = {settings.class_weight} needs heads of equally many "
                f"classes (PromptConfig.num_options): teacher {classes[0]}, student {classes[1]}"
            )
        sizes = [of.task_sizes["task_num_options"] for of in (prompts, own)]
        theirs = sizes[0] * (len(sizes[1]) // len(sizes[0]))
        if settings.class_weight and any(
            o not in (0, t) for t, o in zip(theirs, sizes[1], strict=True)
        ):
            raise ConfigError(
                f"Distillation.class_weight = {settings.class_weight}: the student's tasks have "
                f"{sizes[1]} classes (PromptConfig.task_num_options), the teacher's {theirs}"
            )
        if settings.similarity_weight and not (prompts.retrieval_dim and own.retrieval_dim):
            raise ConfigError(
                f"Distillation.similarity_weight = {settings.similarity_weight} needs retrieval "
                f"projections (PromptConfig.retrieval_dim): teacher {prompts.retrieval_dim}, "
                f"student {own.retrieval_dim}"
            )

    def denominators(self, features: Features) -> dict[str, Array]:
        """Those of the objectives, and the tokens of both towers."""
        tokens = {
            tower: jnp.sum((features[f"{tower}_block_ids"] != 0).astype(jnp.float32))
            for tower in TOWERS
        }
        counts = getattr(self._objectives, "denominators", loss_denominators)
        return counts(features) | tokens

    def __call__(
        self,
        model: M6Rec,
        variables: Any,
        features: Features,
        *,
        denominators: Mapping[str, Array] | None = None,
        **options: Any,
    ) -> tuple[Array, Metrics]:
        """As `total_loss`; the teacher never drops anything."""
        settings = self._settings
        student = {name: tree for name, tree in variables.items() if name != TEACHER}
        teacher = jax.lax.stop_gradient(variables[TEACHER])
        given = self.denominators(features) if denominators is None else denominators
        config = model.config
        with watch(config.num_encoder_layers - 1, config.num_decoder_layers - 1) as own:
            loss, metrics = self._objectives(
                model, student, features, denominators=given, **options
            )
        taught = dict(features)
        if self._teacher.config.prompts.num_tasks == 1:
            taught.pop("task_ids", None)
        with watch(**self._layers) as theirs:
            self._teacher.apply(teacher, taught)
        both = (
            _Side(self._teacher, teacher, taught, theirs.outputs),
            _Side(model, student, features, own.outputs),
        )

        def terms() -> Any:
            """Names, weights, denominators and sums of what has a weight."""
            if weight := settings.relation_weight:
                for tower in TOWERS:
                    relations = theirs.attention[tower], own.attention[tower]
                    losses = relation_divergence(*relations, self._heads)
                    tokens = features[f"{tower}_block_ids"] != 0
                    yield f"{tower}_relations", weight, tower, weighted_sum(losses, tokens)
            if weight := settings.vocabulary_weight:
                yield "vocabulary", weight, language_modelling.NAME, self._of_vocabulary(*both)
            if weight := settings.class_weight:
                yield "classes", weight, classification.NAME, self._of_classes(*both)
            if weight := settings.similarity_weight:
                yield "similarity", weight, contrastive.NAME, self._of_similarity(*both)

        for name, weight, counted, found in terms():
            loss += weight * found.total / nonzero(given[counted])
            metrics[f"{NAME}/{name}"] = jax.lax.stop_gradient(found)
        return loss, metrics

    def _of_vocabulary(self, teacher: _Side, student: _Side) -> Sum:
        def sums(variables: Any, wanted: Array, hidden: Array, weights: Array) -> Sum:
            return weighted_sum(
                self._divergence(
                    *(
                        side.model.apply(own, states, method=side.model.token_logits)
                        for side, own, states in zip(
                            (teacher, student), variables, (wanted, hidden), strict=True
                        )
                    )
                ),
                weights,
            )

        arrays = teacher.outputs.hidden, student.outputs.hidden
        weights = student.features["decoder_loss_weights"]
        return language_modelling.in_chunks(
            sums,
            self._settings.chunk_length,
            (teacher.variables, student.variables),
            (*arrays, weights),
        )

    def _of_classes(self, teacher: _Side, student: _Side) -> Sum:
        logits = [
            side.model.apply(
                side.variables,
                side.outputs.hidden,
                side.task_ids,
                method=side.model.option_logits,
            )
            for side in (teacher, student)
        ]
        return weighted_sum(self._divergence(*logits), student.features["decoder_labels"] >= 0)

    def _divergence(self, wanted: Array, logits: Array) -> Array:
        """Of softmaxes over the last axis, `[...]`; rows that one vocabulary lacks are left out."""
        temperature = self._settings.temperature
        known = min(wanted.shape[-1], logits.shape[-1])
        log_p, log_q = (
            jax.nn.log_softmax(x[..., :known] / temperature, axis=-1) for x in (wanted, logits)
        )
        return temperature**2 * divergence(log_p, log_q)

    def _of_similarity(self, teacher: _Side, student: _Side) -> Sum:
        features = student.features
        items = contrastive.retrieval_items(features)
        visible = items.valid.reshape(1, -1) & ~contrastive.of_other_jobs(
            items, contrastive.retrieval_job_ids(features)
        )

        def log_shares(side: _Side) -> Array:
            users, vectors = contrastive.user_and_item_vectors(
                side.model, side.variables, side.outputs, items, side.task_ids
            )
            vectors = vectors.reshape(-1, vectors.shape[-1])
            similarity = jnp.einsum("br,mr->bm", users, vectors, precision="highest")
            scaled = similarity / self._settings.similarity_temperature
            return jax.nn.log_softmax(jnp.where(visible, scaled, MASKED), axis=-1)

        return weighted_sum(
            divergence(log_shares(teacher), log_shares(student)), items.weights.sum(1)
        )


@dataclass(frozen=True)
class _Side:
    """Teacher or student, and what it made of a batch."""

    model: M6Rec
    variables: Any
    features: Features
    outputs: Outputs

    @property
    def task_ids(self) -> Array:
        rows = self.outputs.hidden.shape[0]
        return self.features.get("task_ids", jnp.zeros((rows, 1), jnp.int32))


def relation_divergence(teacher: SelfAttention, student: SelfAttention, num_heads: int) -> Array:
    """KL of the student's relations from the teacher's, float32 `[batch, length]`.

    A relation is softmax(X Xᵀ / sqrt(width)) over what both layers let a token see; X are queries,
    keys or values, their heads joined and split into num_heads of that width. The mean over heads,
    the sum over the three.
    """
    visible = teacher.visible & student.visible

    # Recomputed in the backward pass: relations are as large as all attention weights.
    @jax.checkpoint
    def of_heads(wanted: Array, own: Array) -> Array:
        return jnp.mean(
            divergence(*(_log_relations(x, visible, num_heads) for x in (wanted, own))), 1
        )

    pairs = zip(teacher[:3], student[:3], strict=True)
    return sum((of_heads(*pair) for pair in pairs), jnp.zeros(visible.shape[:2]))


def _log_relations(vectors: Array, visible: Array, num_heads: int) -> Array:
    """`[batch, length, heads, head_dim]` → `[batch, num_heads, length, length]`, float32."""
    split = vectors.astype(jnp.float32).reshape(*vectors.shape[:2], num_heads, -1)
    products = jnp.einsum("bqhd,bkhd->bhqk", split, split, precision="highest")
    scaled = products * split.shape[-1] ** -0.5
    return jax.nn.log_softmax(jnp.where(visible[:, None], scaled, MASKED), axis=-1)


def divergence(log_p: Array, log_q: Array) -> Array:
    """KL: Σ p (log p - log q) over the last axis, `[..., n]` → `[...]`."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _layer(settings: Distillation, tower: str, depth: int) -> int:
    layer: int = getattr(settings, f"{tower}_layer")
    if not -depth <= layer < depth:
        raise ConfigError(
            f"Distillation.{tower}_layer = {layer}: the teacher's {tower} has layers 0 to "
            f"{depth - 1}, or -{depth} to -1 counted from the end"
        )
    return layer % depth
