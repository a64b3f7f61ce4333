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
from typing import TYPE_CHECKING, Any

import gin

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.dense import ACTIVATIONS
from m6rec_jax.model.tuning import METHODS

if TYPE_CHECKING:
    from m6rec_jax.model.tuning import (
        adapter,
        embedding_update,
        heads,
        lora,
        pooling,
        segment_embeddings,
        soft_prompts,
        special_tokens,
    )

    class _Settings(
        pooling.Settings,
        soft_prompts.Settings,
        adapter.Settings,
        lora.Settings,
        embedding_update.Settings,
        special_tokens.Settings,
        segment_embeddings.Settings,
        heads.Settings,
    ):
        """What the type checker knows of `PromptConfig`; a method's own file knows its own."""
else:
    # Fields of the last base come first.
    _Settings = type("_Settings", tuple(method.settings for method in METHODS[::-1]), {})

REMAT_POLICIES = ("none", "dots", "full")
FLOAT_TYPES = ("float32", "bfloat16")
CROSS_ATTENTION_AT = ("all", "ends")
EXIT_LOSSES = ("none", "rising", "falling")


def default_settings(of: type) -> dict[str, Any]:
    """Defaults of a configuration, whatever gin binds.

    For configurations that come from elsewhere, such as a checkpoint: they must not take settings
    of the run that is configured now. Fields without a plain default are `dataclasses.MISSING`.
    """
    return {field.name: field.default for field in dataclasses.fields(of)}


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    """The values of a setting that has several, of which gin may be given one by itself."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} = {value!r} must be a list, such as ({value!r},)")
    return tuple(value)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PromptConfig(_Settings):
    """What is trained per task while the backbone stays frozen (paper section 3).

    The variables live in the Flax collection `prompts`; each leaf has an axis `tasks`, so one set
    of variables is a bank of tasks. Most settings are those of the methods: see `Settings` of each
    file in `m6rec_jax/model/tuning/`.

    Attributes:
      num_tasks: capacity T of the bank. 1 takes a path without any gather.
      adapters_late_only: only layers at or above L' are changed (adapters, LoRA). What the early
        layers compute then depends on the task only in blocks that hold a special token, and all
        tasks share one segment cache.
    """

    num_tasks: int = 1
    adapters_late_only: bool = False

    def __post_init__(self) -> None:
        _require_at_least("PromptConfig", self, 1, "num_tasks")
        for field in dataclasses.fields(self):
            kind, known = field.metadata.get("kind"), field.metadata.get("known", ())
            value = getattr(self, field.name)
            if kind == "size":
                _require_at_least("PromptConfig", self, 0, field.name)
            elif kind in ("set", "sizes"):
                value = _listed(f"PromptConfig.{field.name}", value)
                object.__setattr__(self, field.name, value)
                for name in value if known else ():
                    _require_known(f"PromptConfig.{field.name}", name, known)
            elif known:
                _require_one_of("PromptConfig", self, field.name, known)
        self._check_task_sizes()
        for method in METHODS:
            method.check(self)

    def _check_task_sizes(self) -> None:
        for field in _TASK_SIZES:
            capacity, least = field.metadata["of"], field.metadata["least"]
            sizes, most = getattr(self, field.name), getattr(self, capacity)
            if sizes and len(sizes) != self.num_tasks:
                raise ConfigError(
                    f"PromptConfig.{field.name} = {sizes} has {len(sizes)} sizes for num_tasks = "
                    f"{self.num_tasks}"
                )
            for size in sizes:
                if not isinstance(size, int) or not least <= size <= most:
                    raise ConfigError(
                        f"PromptConfig.{field.name} = {sizes}: {size!r} is no whole number from "
                        f"{least} to {capacity} = {most}"
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
        sizes = self.task_sizes
        own: dict[str, Any] = {TASK_SIZES[name]: sizes[name][task_id] for name in TASK_SIZES}
        own |= dict.fromkeys(TASK_SIZES, ())
        head = self.head if own["num_options"] else "none"
        return dataclasses.replace(self, num_tasks=1, head=head, **own)

    @property
    def in_layers(self) -> bool:
        """Whether methods change the layers themselves, as adapters and LoRA do."""
        return any(method.sites(self) for method in METHODS)


_TASK_SIZES = [f for f in dataclasses.fields(PromptConfig) if f.metadata.get("kind") == "sizes"]
# What tasks may have less of than the bank has room for: {sizes of the tasks: capacity}.
TASK_SIZES: dict[str, str] = {field.name: field.metadata["of"] for field in _TASK_SIZES}


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
      dropout_rate: in [0, 1); one mask is shared along the length axis, as in T5.
      relative_attention_num_buckets, relative_attention_max_distance: relative position bias.
      per_layer_relative_bias: every layer has its own table (UMT5) instead of one per tower.
      embedding_stddev: standard deviation of token embeddings at the start (T5's is 1).
      embedding_rank: r of a factorised token embedding (paper section 5; ALBERT): a table
        `[vocab, r]` and a projection `[r, embed]`. Vocabulary logits go through r as well: tied
        ones through the same two matrices, others through two of their own. None: one table
        `[vocab, embed]`.
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
      cross_attention_at: which decoder positions read the source: 'all', or only the last one of
        each block ('ends'). The others then depend on the item alone, and so do their keys and
        values, which may be cached; a candidate costs one position instead of all its tokens. For
        scoring only: a text cannot be generated without reading the source.
      share_layers: one layer's parameters serve all layers of a tower (paper section 5); prompts
        stay one per layer.
      exit_losses: weights of the losses after each decoder layer, for early exit (paper section 5):
        'rising' or 'falling' with depth, see `early_exit.exit_weights`. 'none': the last layer
        alone.
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
    embedding_rank: int | None = None
    logits_via_embedding: bool = False
    dtype: str = "float32"
    matmul_dtype: str | None = None
    layer_norm_epsilon: float = 1e-6
    remat: str = "none"
    scan_unroll: int = 1
    late_layers_start: int = 0
    decoder_late_start: int | None = None
    cross_attention_at: str = "all"
    share_layers: bool = False
    exit_losses: str = "none"
    prompts: PromptConfig = dataclasses.field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        activations = _listed("ModelConfig.mlp_activations", self.mlp_activations)
        object.__setattr__(self, "mlp_activations", activations)
        _require_at_least(
            "ModelConfig",
            self,
            1,
            *("vocab_size", "embed_dim", "num_encoder_layers", "num_decoder_layers"),
            *("num_heads", "head_dim", "mlp_dim"),
        )
        _require_at_least("ModelConfig", self, 0, "scan_unroll", "late_layers_start")
        if self.embedding_rank is not None:
            _require_at_least("ModelConfig", self, 1, "embedding_rank")
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
        _require_one_of("ModelConfig", self, "cross_attention_at", CROSS_ATTENTION_AT)
        _require_one_of("ModelConfig", self, "dtype", FLOAT_TYPES)
        _require_one_of("ModelConfig", self, "exit_losses", EXIT_LOSSES)
        if self.matmul_dtype is not None:
            _require_one_of("ModelConfig", self, "matmul_dtype", FLOAT_TYPES)
        if not self.mlp_activations:
            raise ConfigError("ModelConfig.mlp_activations is empty; T5 1.1 has ('gelu', 'linear')")
        for name in self.mlp_activations:
            _require_known("ModelConfig.mlp_activations", name, tuple(ACTIVATIONS))
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ConfigError(
                f"ModelConfig.dropout_rate = {self.dropout_rate} must be at least 0 and below 1"
            )
        if self.late_layers_start > self.num_encoder_layers:
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
        if self.exit_losses != "none" and self.num_exits < 2:
            raise ConfigError(
                f"ModelConfig.exit_losses = {self.exit_losses!r} needs two decoder layers or more "
                f"with cross attention; this model has {self.num_exits}"
            )
        for method in METHODS:
            method.check_model(self)

    @property
    def operand_dtype(self) -> str:
        """Type of matrix product operands: `matmul_dtype`, or `dtype` where that is None."""
        return self.dtype if self.matmul_dtype is None else self.matmul_dtype

    @property
    def embedding_width(self) -> int:
        """Columns of the token embedding's table: `embedding_rank`, or `embed_dim`."""
        return self.embed_dim if self.embedding_rank is None else self.embedding_rank

    @property
    def first_cross_layer(self) -> int:
        """First decoder layer with cross attention (0 when late interaction is off)."""
        if self.late_layers_start == 0:
            return 0
        if self.decoder_late_start is not None:
            return self.decoder_late_start
        late_layers = max(1, self.num_encoder_layers - self.late_layers_start)
        return max(0, self.num_decoder_layers - late_layers)

    @property
    def num_exits(self) -> int:
        """Decoder layers after which an answer can be read: those that have seen the source."""
        return self.num_decoder_layers - self.first_cross_layer

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


def _require_known(setting: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(f"{setting} has unknown {name!r}; known: {', '.join(known)}")
