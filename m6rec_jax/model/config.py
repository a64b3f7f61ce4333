"""The size and arithmetic of a model: `ModelConfig` (the backbone) and `PromptConfig` (the tasks).

Both are set in gin:

    from m6rec_jax.model import config

    ModelConfig.vocab_size = 8192
    ModelConfig.embed_dim = 128
    ModelConfig.prompts = @PromptConfig()
    PromptConfig.num_prompts = 18
    PromptConfig.num_options = 2

Defaults are those of public T5 1.1 wherever T5 has the notion.
"""

import dataclasses
from typing import Any

import gin

from m6rec_jax.errors import ConfigError

HEADS = ("option", "linear", "none")
REMAT_POLICIES = ("none", "dots", "full")
FLOAT_TYPES = ("float32", "bfloat16")
ACTIVATIONS = ("gelu", "relu", "silu", "linear", "tanh")
LORA_TARGETS = ("query", "key", "value", "out")
# What tasks may have less of than the bank has room for: {sizes of the tasks: capacity}.
TASK_SIZES = {
    "task_num_prompts": "num_prompts",
    "task_num_options": "num_options",
    "task_adapter_ranks": "adapter_rank",
    "task_lora_ranks": "lora_rank",
}


def default_settings(of: type) -> dict[str, Any]:
    """What a configuration has where nothing is said, whatever gin binds.

    For configurations that come from elsewhere, such as a checkpoint: settings of a run that
    happens to be configured must not become part of them. Fields without a plain default are
    `dataclasses.MISSING` and have to be given.
    """
    return {field.name: field.default for field in dataclasses.fields(of)}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """What is trained per task while the backbone stays frozen (paper section 3).

    Everything here lives in the Flax collection `prompts`; each leaf has a leading axis `tasks`
    (after `layers` inside a layer stack), so one set of variables is a bank of tasks.

    Attributes:
      num_tasks: capacity T of the bank. 1 takes a path without any gather.
      num_prompts: P, soft prompts in front of the encoder input, options included (0: none).
      num_options: C, classes. The last C soft prompts are also the rows of the softmax layer when
        `head` is 'option', so then C <= P.
      head: 'option' (rows shared with the soft prompts), 'linear' (a matrix and bias of its own,
        for plain prompt tuning) or 'none'.
      adapter_rank: r of the adapters parallel to each feed-forward layer (0: none).
      adapter_activation: σ between the adapter's two matrices.
      adapter_scale: λ at the start. W2 starts at zero, so an adapter starts as the identity
        whatever λ is.
      lora_rank: r of the updates W + lora_scale · A B to attention projections, in self and cross
        attention alike (0: none). B starts at zero.
      lora_scale: the factor itself, which LoRA's authors write alpha / r. It is no multiple of
        1 / r here, so that a task of a smaller rank, padded into a bank, keeps its scale.
      lora_targets: which projections: any of 'query', 'key', 'value', 'out'.
      adapters_late_only: only layers at or above L' have their adapters and LoRA updates applied.
        What the early layers compute then depends on the task only in blocks that hold a special
        token, and all tasks share one segment cache.
      embedding_rank: r of the updates E + A B to the token embedding that both towers read (0:
        none); vocabulary logits keep the backbone's. A, a row for each token, starts at zero. Where
        frozen vectors of words do not tell a task's classes apart, this can. Early layers then
        depend on the task in every block, so it does not go with `adapters_late_only`.
      special_token_ids: ids whose embeddings may move with the task. The bank holds deltas, zero
        at the start, added to the backbone's rows.
      retrieval_dim: width of the two retrieval projections (0: none).
      num_segment_embeddings: rows added by min(block id, rows - 1) between the early and the late
        encoder layers, zero at the start, in use only when late interaction is on (0: none).
      init_stddev: standard deviation of soft prompts, and of a linear head, at the start.
      task_num_prompts, task_num_options, task_adapter_ranks, task_lora_ranks: the sizes of each
        task where tasks of one run are unlike, one number per task and at most the capacity of the
        same name. Empty: every task has the capacity. A task without classes has 0 options.
    """

    num_tasks: int = 1
    num_prompts: int = 0
    num_options: int = 0
    head: str = "none"
    adapter_rank: int = 0
    adapter_activation: str = "gelu"
    adapter_scale: float = 1.0
    lora_rank: int = 0
    lora_scale: float = 1.0
    lora_targets: tuple[str, ...] = ("query", "value")
    adapters_late_only: bool = False
    embedding_rank: int = 0
    special_token_ids: tuple[int, ...] = ()
    retrieval_dim: int = 0
    num_segment_embeddings: int = 0
    init_stddev: float = 0.5
    task_num_prompts: tuple[int, ...] = ()
    task_num_options: tuple[int, ...] = ()
    task_adapter_ranks: tuple[int, ...] = ()
    task_lora_ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_token_ids", tuple(self.special_token_ids))
        if isinstance(self.lora_targets, str):  # tuple('out') would be three letters
            object.__setattr__(self, "lora_targets", (self.lora_targets,))
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        _require_at_least("PromptConfig", self, 1, "num_tasks")
        _require_at_least(
            "PromptConfig",
            self,
            0,
            *("num_prompts", "num_options", "adapter_rank", "lora_rank", "retrieval_dim"),
            *("embedding_rank", "num_segment_embeddings"),
        )
        if self.embedding_rank and self.adapters_late_only:
            raise ConfigError(
                f"PromptConfig.embedding_rank = {self.embedding_rank} changes what the early "
                "layers read of every word, which adapters_late_only is to keep the same for all "
                "tasks: set one of the two to 0 or False"
            )
        for name in self.lora_targets:
            if name not in LORA_TARGETS:
                raise ConfigError(
                    f"PromptConfig.lora_targets has unknown {name!r}; known: "
                    + ", ".join(LORA_TARGETS)
                )
        if self.lora_rank and not self.lora_targets:
            raise ConfigError(
                f"PromptConfig.lora_rank = {self.lora_rank}, but lora_targets is empty; usual are "
                "('query', 'value')"
            )
        _require_one_of("PromptConfig", self, "head", HEADS)
        _require_one_of("PromptConfig", self, "adapter_activation", ACTIVATIONS)
        if self.head != "none" and self.num_options < 2:
            raise ConfigError(
                f"PromptConfig.head = {self.head!r} needs PromptConfig.num_options >= 2, "
                f"got {self.num_options}"
            )
        if self.head == "option" and self.num_options > self.num_prompts:
            raise ConfigError(
                f"PromptConfig.num_options = {self.num_options} exceeds num_prompts = "
                f"{self.num_prompts}: the options are the last soft prompts. Raise num_prompts "
                "or set PromptConfig.head = 'linear'"
            )
        self._check_task_sizes()

    def _check_task_sizes(self) -> None:
        for name, capacity in TASK_SIZES.items():
            # At rank 0 an adapter's last bias would still train, and belong to nothing.
            least = 1 if name.endswith("ranks") else 0
            sizes, most = tuple(getattr(self, name)), getattr(self, capacity)
            object.__setattr__(self, name, sizes)
            if sizes and len(sizes) != self.num_tasks:
                raise ConfigError(
                    f"PromptConfig.{name} = {sizes} has {len(sizes)} sizes for num_tasks = "
                    f"{self.num_tasks}"
                )
            for size in sizes:
                if not isinstance(size, int) or not least <= size <= most:
                    raise ConfigError(
                        f"PromptConfig.{name} = {sizes}: {size!r} is no whole number from {least} "
                        f"to {capacity} = {most}"
                    )
        if 1 in self.task_num_options:
            raise ConfigError(
                f"PromptConfig.task_num_options = {self.task_num_options}: one class alone is "
                "nothing to choose from; 0 says that a task has none"
            )
        of_tasks = self.task_sizes
        prompts, options = of_tasks["task_num_prompts"], of_tasks["task_num_options"]
        for task, (num_prompts, num_options) in enumerate(zip(prompts, options, strict=True)):
            if self.head == "option" and num_options > num_prompts:
                raise ConfigError(
                    f"task {task} of PromptConfig has {num_options} options (task_num_options) but "
                    f"{num_prompts} soft prompts (task_num_prompts), the last of which the options "
                    "are"
                )

    @property
    def task_sizes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of each task by the names of `TASK_SIZES`, capacities where none are given."""
        return {
            name: getattr(self, name) or (getattr(self, capacity),) * self.num_tasks
            for name, capacity in TASK_SIZES.items()
        }

    def of_task(self, task_id: int) -> "PromptConfig":
        """One task's prompts by themselves: `num_tasks` 1, and the sizes of that task.

        Raises:
          ConfigError: the bank has no such task.
        """
        if not 0 <= task_id < self.num_tasks:
            raise ConfigError(
                f"there is no task {task_id}: PromptConfig.num_tasks = {self.num_tasks}"
            )

        own: dict[str, Any] = {
            TASK_SIZES[name]: sizes[task_id] for name, sizes in self.task_sizes.items()
        }
        own |= dict.fromkeys(TASK_SIZES, ())
        head = self.head if own["num_options"] else "none"
        return dataclasses.replace(self, num_tasks=1, head=head, **own)

    @property
    def in_layers(self) -> bool:
        """Whether the layers themselves hold prompts: adapters or LoRA updates."""
        return self.adapter_rank > 0 or self.lora_rank > 0


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A T5 1.1 encoder-decoder (paper section 1, in this project's form).

    Attributes:
      vocab_size: V, rows of the token embedding, control tokens and padding rows included.
      embed_dim: D, width of the residual stream.
      num_encoder_layers, num_decoder_layers: depth of each tower.
      num_heads, head_dim: attention heads and their width; their product need not be D.
      mlp_dim: width of the feed-forward layer.
      mlp_activations: one input matrix per entry, their outputs multiplied. ('gelu', 'linear') is
        T5 1.1's gated GELU (tanh approximation); ('relu',) is T5 1.0.
      dropout_rate: 0 in [0, 1); one mask is shared along the length axis, as in T5.
      relative_attention_num_buckets, relative_attention_max_distance: relative position bias.
      per_layer_relative_bias: every layer has its own table (UMT5) instead of one per tower.
      embedding_stddev: standard deviation of token embeddings at the start (T5's is 1).
      logits_via_embedding: vocabulary logits reuse the token embedding, scaled by D^-0.5.
      dtype: type of activations between operations. Norms, softmax and logits are float32 always;
        those of classes, users and items also where hardware rounds float32 operands.
      matmul_dtype: type to which operands of products with weights are rounded, forward and
        backward (attention's own are of `dtype`); sums are float32 always. None means `dtype`.
        'bfloat16' with dtype = 'float32' is fastest on a CPU with AMX.
      layer_norm_epsilon: of the RMS norms.
      remat: what the backward pass recomputes per layer: 'none' (nothing), 'dots' (everything but
        weight products), 'full' (the whole layer).
      scan_unroll: layers per iteration of the compiled loop; 0 unrolls all.
      late_layers_start: L'. Encoder layers below it see one block (segment) at a time, so that
        their output may be cached per segment (paper section 4). 0: off.
      decoder_late_start: decoder layers below it skip cross attention when late interaction is
        on. None: as many late decoder layers as there are late encoder layers, at least one.
      share_layers: one layer's parameters serve all layers of a tower (paper section 5); prompts
        stay one per layer.
      prompts: the task bank.
    """

    vocab_size: int = 32128
    embed_dim: int = 512
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.0
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    per_layer_relative_bias: bool = False
    embedding_stddev: float = 1.0
    logits_via_embedding: bool = False
    dtype: str = "float32"
    matmul_dtype: str | None = None
    layer_norm_epsilon: float = 1e-6
    remat: str = "none"
    scan_unroll: int = 1
    late_layers_start: int = 0
    decoder_late_start: int | None = None
    share_layers: bool = False
    prompts: PromptConfig = dataclasses.field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        _require_at_least(
            "ModelConfig",
            self,
            1,
            *("vocab_size", "embed_dim", "num_encoder_layers", "num_decoder_layers"),
            *("num_heads", "head_dim", "mlp_dim"),
        )
        _require_at_least("ModelConfig", self, 0, "scan_unroll")
        _require_at_least("ModelConfig", self, 2, "relative_attention_num_buckets")
        if self.relative_attention_num_buckets % 4:
            raise ConfigError(
                "ModelConfig.relative_attention_num_buckets = "
                f"{self.relative_attention_num_buckets} must be a multiple of 4: half for each "
                "direction, half of that for exact distances"
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ConfigError(
                "ModelConfig.relative_attention_max_distance = "
                f"{self.relative_attention_max_distance} must exceed half the number of buckets "
                f"({self.relative_attention_num_buckets // 2})"
            )
        _require_one_of("ModelConfig", self, "remat", REMAT_POLICIES)
        _require_one_of("ModelConfig", self, "dtype", FLOAT_TYPES)
        if self.matmul_dtype is not None:
            _require_one_of("ModelConfig", self, "matmul_dtype", FLOAT_TYPES)
        if not self.mlp_activations:
            raise ConfigError("ModelConfig.mlp_activations is empty; T5 1.1 has ('gelu', 'linear')")
        for name in self.mlp_activations:
            if name not in ACTIVATIONS:
                raise ConfigError(
                    f"ModelConfig.mlp_activations has unknown {name!r}; known: "
                    + ", ".join(ACTIVATIONS)
                )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ConfigError(
                f"ModelConfig.dropout_rate = {self.dropout_rate} must be at least 0 and below 1"
            )
        if not 0 <= self.late_layers_start <= self.num_encoder_layers:
            raise ConfigError(
                f"ModelConfig.late_layers_start = {self.late_layers_start} must lie between 0 "
                f"(off) and num_encoder_layers = {self.num_encoder_layers}"
            )
        if self.decoder_late_start is not None and not (
            0 <= self.decoder_late_start <= self.num_decoder_layers
        ):
            raise ConfigError(
                f"ModelConfig.decoder_late_start = {self.decoder_late_start} must lie between 0 "
                f"and num_decoder_layers = {self.num_decoder_layers}"
            )
        for token in self.prompts.special_token_ids:
            if not 0 <= token < self.vocab_size:
                raise ConfigError(
                    f"PromptConfig.special_token_ids has {token}, outside the vocabulary of "
                    f"{self.vocab_size}"
                )

    @property
    def operand_dtype(self) -> str:
        """Type of matrix product operands: `matmul_dtype`, or `dtype` where that is None."""
        return self.dtype if self.matmul_dtype is None else self.matmul_dtype

    @property
    def first_cross_layer(self) -> int:
        """First decoder layer with cross attention (0 when late interaction is off)."""
        if self.late_layers_start == 0:
            return 0
        if self.decoder_late_start is not None:
            return self.decoder_late_start
        late_layers = max(1, self.num_encoder_layers - self.late_layers_start)
        return max(0, self.num_decoder_layers - late_layers)

    def replace(self, **changes: object) -> "ModelConfig":
        """A copy with some attributes changed (and checked again)."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def _require_at_least(owner: str, config: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{owner}.{name} = {value!r} must be an integer of at least {least}")


def _require_one_of(owner: str, config: object, name: str, known: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in known:
        raise ConfigError(f"{owner}.{name} = {value!r} is not one of {', '.join(known)}")
