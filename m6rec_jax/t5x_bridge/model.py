"""The model as t5x sees it: losses, scores and generated text.

MODEL = @M6RecModel()
M6RecModel.module = @M6Rec()
M6RecModel.mixture_or_task_name = %MIXTURE_OR_TASK_NAME
M6RecModel.optimizer_def = @adafactor.Adafactor()
M6RecModel.trainable = %TRAINABLE
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gin
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax import traverse_util
from t5x import metrics as t5x_metrics
from t5x import models, optimizers

from m6rec_jax.engine.decoding.automaton import any_text
from m6rec_jax.engine.decoding.generation import generate
from m6rec_jax.engine.decoding.slots import FREE
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.job import job_of
from m6rec_jax.model.m6rec import M6Rec, initial_features
from m6rec_jax.objectives import Metrics, mean_loss, total_loss
from m6rec_jax.pipeline.registration import evaluated_tasks
from m6rec_jax.t5x_bridge import variables
from m6rec_jax.t5x_bridge.data import T5xFeatureConverter, register_readable
from m6rec_jax.t5x_bridge.restoring import mend_checkpoint_manager
from m6rec_jax.t5x_bridge.trainer import without_counts
from m6rec_jax.training.task_data import refuse_larger_vocabulary
from m6rec_jax.training.train_state import TRAINABLE

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]

_IDENTITY = ("decoder_labels", "decoder_item_ids", "user_ids")
_SIZED = ("encoder_input_tokens", "decoder_input_tokens")


@gin.configurable
class M6RecModel(models.BaseTransformerModel):
    """`M6Rec` with the objectives of `m6rec_jax.objectives`.

    Args:
      module: the model.
      mixture_or_task_name: of the data; it decides the vocabulary and what scores are.
      optimizer_def: t5x's, of what trains.
      trainable: 'all', or 'prompts': the backbone is frozen, that is a constant to the gradient,
        and the optimizer holds state for `params/prompts` alone.
      verb: how `predict_batch` writes: 'greedy' or 'beam_search'.
      num_decodes: beams.
      length_penalty: of beam search.

    Raises:
      ConfigError: unknown choices, no such task, or 'prompts' where the model has none.
    """

    FEATURE_CONVERTER_CLS = T5xFeatureConverter

    def __init__(
        self,
        module: M6Rec,
        mixture_or_task_name: str,
        optimizer_def: Any = None,
        *,
        trainable: str = "all",
        verb: str = "greedy",
        num_decodes: int = 1,
        length_penalty: float = 0.6,
    ) -> None:
        if trainable not in TRAINABLE:
            raise ConfigError(
                f"M6RecModel.trainable = {trainable!r} is not one of {', '.join(TRAINABLE)}"
            )
        if verb not in ("greedy", "beam_search"):
            raise ConfigError(f"M6RecModel.verb = {verb!r} is neither 'greedy' nor 'beam_search'")
        self._frozen = trainable == "prompts"
        if self._frozen and optimizer_def is not None:
            optimizer_def = optimizers.MultiOptimizer(((prompts_traversal(), optimizer_def),))
        features = register_readable(mixture_or_task_name).output_features
        super().__init__(
            module=module,
            input_vocabulary=features["encoder_input_tokens"].vocabulary,
            output_vocabulary=features["decoder_target_tokens"].vocabulary,
            optimizer_def=optimizer_def,
        )
        self.trainable = trainable
        self.mixture_or_task_name = mixture_or_task_name
        self._verb, self._length_penalty = verb, length_penalty
        if num_decodes > 1 and verb != "beam_search":
            raise ConfigError(
                f"M6RecModel.num_decodes = {num_decodes} needs M6RecModel.verb = 'beam_search', "
                f"not {verb!r}"
            )
        self._num_decodes = num_decodes
        mend_checkpoint_manager()

    def get_initial_variables(
        self,
        rng: Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> Any:
        """`{'params': ..., 'params_axes': ...}`; sizes of the batch do not matter.

        Raises:
          ConfigError: 'prompts' train and there are none, or the vocabulary has more ids than the
            embedding has rows.
        """
        del input_shapes, input_types
        text = self.output_vocabulary.text
        refuse_larger_vocabulary(self.mixture_or_task_name, text, self.module.config)
        made = dict(self.module.init(rng, initial_features()))
        if self._frozen and not jax.tree.leaves(made.get(variables.PROMPTS, {})):
            raise ConfigError(
                "M6RecModel.trainable = 'prompts', but the model has no prompts: include a file of "
                "gin_configs/tuning/ (or set PromptConfig), or train 'all'"
            )
        return variables.with_axes(made)

    def loss_fn(
        self, params: Params, batch: Batch, dropout_rng: Array | None
    ) -> tuple[Array, dict[str, Any]]:
        """`objectives.total_loss` and its metrics, in t5x's form."""
        features, counts = without_counts(batch)
        terms, metrics = total_loss(
            self.module,
            variables.split(params, frozen=self._frozen),
            features,
            rngs=None if dropout_rng is None else {"dropout": dropout_rng},
            deterministic=dropout_rng is None,
        )
        loss = mean_loss(terms, counts)
        return loss, _t5x_metrics(loss, metrics, features)

    def loss_counts(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Of the terms of `objectives.total_loss`; they depend on the batch alone."""
        terms, _ = total_loss(self.module, variables.split(params), batch)
        return {name: term.count for name, term in terms.items()}

    def score_batch(
        self, params: Params, batch: Batch, return_intermediates: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """The indices of the rows' users `[rows]`, and `scores` by name."""
        del return_intermediates
        return batch["user_ids"][:, 0], self.scores(params, batch)

    def scores(self, params: Params, batch: Batch) -> dict[str, Array]:
        """`score_batch`'s scores alone, for exported models: those of the tasks' jobs.

        See `jobs.job.Job.scores`. `decoder_labels` and `decoder_item_ids` `[rows, target]` and
        `user_ids` `[rows, 1]` stand beside them and say what each score is of.

        Raises:
          ConfigError: no job has scores (all write texts, or recommend in a dialogue).
        """
        kinds = sorted({task.kind for task in evaluated_tasks(self.mixture_or_task_name)})
        jobs = [job for job in map(job_of, kinds) if job.has_scores]
        if not jobs:
            raise ConfigError(
                f"tasks of the kind {' or '.join(kinds)} have no scores in t5x: set MODE = "
                "'predict' for texts, or use `m6rec eval` and `m6rec infer`"
            )
        found = {name: jnp.asarray(batch[name]) for name in _IDENTITY}
        for job in jobs:
            found |= job.scores(self.module, variables.split(params), batch)
        return found

    def predict_batch_with_aux(
        self, params: Params, batch: Batch, rng: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Writes text for the sources of the batch, after the prefixes that the tasks give.

        Returns:
          Tokens `[rows, target - 1]` of the best text, and `{'scores': [rows]}`, see
          `engine.decoding.slots` and `engine.decoding.beam_search`.
        """
        del rng
        features = {**batch, "prefix_ids": _prefixes(batch)}
        written = generate(
            self.module,
            self._verb,
            self._num_decodes,
            variables.split(params),
            features,
            any_text(self.output_vocabulary.text, self.module.config.vocab_size),
            jnp.float32(self._length_penalty) if self._verb == "beam_search" else None,
        )
        return written.tokens[:, 0], {"scores": written.scores[:, 0]}

    def _compute_logits(
        self, params: Params, batch: Batch, dropout_rng: Array | None = None
    ) -> Array:
        """Of target tokens, `[rows, target, vocab]`; the losses do without."""
        own = variables.split(params)
        rngs = None if dropout_rng is None else {"dropout": dropout_rng}
        outputs = self.module.apply(own, batch, deterministic=dropout_rng is None, rngs=rngs)
        return self.module.apply(own, outputs.hidden, method=self.module.token_logits)


def prompts_traversal() -> traverse_util.ModelParamTraversal:
    """What `MultiOptimizer` trains of `params`: the prompts."""
    return traverse_util.ModelParamTraversal(
        lambda name, _: name.startswith(f"/{variables.PROMPTS}/")
    )


def _prefixes(batch: Batch) -> Array:
    """Prefixes of texts: the tokens before the first with a loss, `[rows, target - 1]`.

    See `text.rows.generation_row`. Rows without any loss ask for no text.
    """
    has_loss = batch["decoder_loss_weights"] > 0
    before = jnp.cumsum(has_loss, axis=1) == 0
    given = before & has_loss.any(axis=1, keepdims=True) & (batch["decoder_block_ids"] == 1)
    return jnp.where(given, batch["decoder_target_tokens"], FREE)[:, :-1]


def _t5x_metrics(loss: Array, metrics: Metrics, features: Batch) -> dict[str, Any]:
    """Metrics that add up over microbatches, and t5x's measures of speed."""
    rows, length = features["decoder_input_tokens"].shape
    devices = jax.device_count()
    rate = t5x_metrics.TimeRate.from_model_output
    return {
        "loss": t5x_metrics.AveragePerStep(total=loss),
        **{
            name: clu_metrics.Average(total=value.total, count=value.count)
            for name, value in metrics.items()
        },
        **{
            f"non_padding_fraction/{name.removesuffix('_input_tokens')}": clu_metrics.Average(
                total=jnp.count_nonzero(features[name.replace("input_tokens", "block_ids")]),
                count=jnp.array(features[name].size),
            )
            for name in _SIZED
        },
        "timing/seqs": t5x_metrics.Sum(jnp.array(rows)),
        "timing/seconds": t5x_metrics.Time(),
        "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
        "timing/seqs_per_second": rate(numerator=jnp.array(rows)),
        "timing/seqs_per_second_per_core": rate(numerator=jnp.array(rows / devices)),
        "timing/target_tokens_per_second": rate(numerator=jnp.array(rows * length)),
        "timing/target_tokens_per_second_per_core": rate(
            numerator=jnp.array(rows * length / devices)
        ),
    }
