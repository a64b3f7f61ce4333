"""What a student learns from a teacher beside its own objectives (paper section 5).

- Relations between tokens in self-attention, as in MiniLM v2 (Wang et al., 2021): of any width, so
  that teacher and student need not be alike in anything but the vocabulary.
- The teacher's probabilities of tokens and classes, and of items for users.

The teacher's variables come as a collection beside the student's own.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from m6rec_jax.objectives import contrastive, language_modelling
from m6rec_jax.objectives.sums import Features, Loss, Metrics, Sum, Terms, weighted_sum

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
      relation_weight: of the divergence of relations in the last layers, a mean over tokens and
        heads, summed over query-query, key-key and value-value and over both towers.
      vocabulary_weight: of the divergence from the teacher's tokens, where the target has a weight.
      class_weight: from its classes, where there is a label; both models need a head.
      similarity_weight: from how it spreads a user's interest over the batch's items of the same
        job; both models need retrieval projections.
      chunk_length: as for `language_modelling_loss`.
    """

    teacher: str
    relation_weight: float = 1.0
    vocabulary_weight: float = 0.0
    class_weight: float = 0.0
    similarity_weight: float = 0.0
    chunk_length: int = 0

    def __post_init__(self) -> None:
        weights = [getattr(self, name) for name in _TERMS]
        if min(weights) < 0.0 or not any(weights):
            raise ConfigError(
                f"{', '.join(f'Distillation.{name}' for name in _TERMS)} = {weights}: none may be "
                "below 0, and one must be above, or there is nothing to learn from a teacher"
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

    def option_logits(self) -> Array:
        model, hidden = self.model, self.outputs.hidden
        return model.apply(self.variables, hidden, self.task_ids, method=model.option_logits)


def check_teacher(settings: Distillation, teacher: ModelConfig, student: ModelConfig) -> None:
    """Raises ConfigError where the two models do not have what is to be learnt."""
    prompts = teacher.prompts, student.prompts
    classes = [0 if of.head == "none" else of.num_options for of in prompts]
    sizes = [of.task_sizes["task_num_options"] for of in prompts]
    # A teacher of one task teaches all.
    pairs = zip(sizes[0] * (len(sizes[1]) // len(sizes[0])), sizes[1], strict=False)
    dims = [of.retrieval_dim for of in prompts]
    width = teacher.num_heads * teacher.head_dim
    for weight, fits, what in (
        (
            settings.relation_weight,
            width % student.num_heads == 0,
            f"attention of the teacher, {width} wide, in the student's {student.num_heads} heads",
        ),
        (
            settings.class_weight,
            0 < classes[0] == classes[1] and all(size in (0, taught) for taught, size in pairs),
            f"heads of equally many classes (PromptConfig.num_options, task_num_options), not "
            f"{classes}, by task {sizes}",
        ),
        (
            settings.similarity_weight,
            all(dims),
            f"retrieval projections in both (PromptConfig.retrieval_dim), not {dims}",
        ),
        (
            1,
            prompts[0].num_tasks in (1, prompts[1].num_tasks),
            f"a bank of one task, or as many as the student's {prompts[1].num_tasks} "
            f"(PromptConfig.num_tasks), not {prompts[0].num_tasks}",
        ),
    ):
        if weight and not fits:
            raise ConfigError(f"teacher and student do not fit: {settings} needs {what}")


def with_teacher(loss: Loss, settings: Distillation, teacher: M6Rec) -> Loss:
    """A student's own loss, and its divergence from a teacher, which never drops anything.

    Args:
      loss: the student's.
      settings: of the distillation; `check_teacher` says whether they fit both.
      teacher: whose variables are the collection `TEACHER` of those that are passed.
    """

    def taught(
        model: M6Rec, variables: Any, features: Features, **options: Any
    ) -> tuple[Terms, Metrics]:
        of_student = {name: tree for name, tree in variables.items() if name != TEACHER}
        of_teacher = jax.lax.stop_gradient(variables[TEACHER])
        with _watched(model) as student_seen:
            terms, metrics = loss(model, of_student, features, **options)
        read = dict(features)
        if teacher.config.prompts.num_tasks == 1:
            read.pop("task_ids", None)
        with _watched(teacher) as teacher_seen:
            teacher.apply(of_teacher, read)
        sides = (
            _Side(teacher, of_teacher, read, teacher_seen.outputs),
            _Side(model, of_student, features, student_seen.outputs),
        )

        def lessons() -> Iterator[tuple[str, float, Sum]]:
            """Names, weights and sums of what has a weight."""
            if weight := settings.relation_weight:
                for tower in TOWERS:
                    relations = teacher_seen.attention[tower], student_seen.attention[tower]
                    losses = relation_divergence(*relations, model.config.num_heads)
                    tokens = features[f"{tower}_block_ids"] != 0
                    yield f"{tower}_relations", weight, weighted_sum(losses, tokens)
            if weight := settings.vocabulary_weight:
                yield "vocabulary", weight, _of_vocabulary(*sides, settings.chunk_length)
            if weight := settings.class_weight:
                losses = _of_logits(*(side.option_logits() for side in sides))
                yield "classes", weight, weighted_sum(losses, features["decoder_labels"] >= 0)
            if weight := settings.similarity_weight:
                yield "similarity", weight, _of_similarity(*sides)

        for name, weight, summed in lessons():
            terms[f"{NAME}/{name}"] = Sum(weight * summed.total, summed.count)
            metrics[f"{NAME}/{name}"] = jax.lax.stop_gradient(summed)
        return terms, metrics

    return taught


def _watched(model: M6Rec) -> Any:
    """Context that sees the self-attention of both last layers."""
    return watch(model.config.num_encoder_layers - 1, model.config.num_decoder_layers - 1)


def _of_vocabulary(teacher: _Side, student: _Side, chunk_length: int) -> Sum:
    def sums(variables: Any, wanted: Array, hidden: Array, weights: Array) -> Sum:
        logits = [
            side.model.apply(of_side, states, method=side.model.token_logits)
            for side, of_side, states in zip(
                (teacher, student), variables, (wanted, hidden), strict=True
            )
        ]
        return weighted_sum(_of_logits(*logits), weights)

    weights = student.features["decoder_loss_weights"]
    arrays = teacher.outputs.hidden, student.outputs.hidden, weights
    variables = teacher.variables, student.variables
    return language_modelling.in_chunks(sums, chunk_length, variables, arrays)


def _of_logits(wanted: Array, logits: Array) -> Array:
    """Of softmaxes over the last axis, `[...]`; rows that one vocabulary lacks are left out."""
    both = min(wanted.shape[-1], logits.shape[-1])
    return divergence(*(jax.nn.log_softmax(x[..., :both], axis=-1) for x in (wanted, logits)))


def _of_similarity(teacher: _Side, student: _Side) -> Sum:
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
        scaled = similarity / contrastive.TEMPERATURE
        return jax.nn.log_softmax(jnp.where(visible, scaled, MASKED), axis=-1)

    losses = divergence(log_shares(teacher), log_shares(student))
    return weighted_sum(losses, items.weights.sum(1))


def relation_divergence(teacher: SelfAttention, student: SelfAttention, num_heads: int) -> Array:
    """KL of the student's relations from the teacher's, float32 `[batch, length]`.

    A relation is softmax(X Xᵀ / sqrt(width)) over what both layers let a token see; X are queries,
    keys or values, their heads joined and split into num_heads of that width. The mean over heads,
    the sum over the three.
    """
    visible = teacher.visible & student.visible

    # Recomputed in the backward pass: relations are as large as all attention weights.
    @jax.checkpoint
    def of_heads(*vectors: Array) -> Array:
        return jnp.mean(divergence(*(_log_relations(x, visible, num_heads) for x in vectors)), 1)

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
