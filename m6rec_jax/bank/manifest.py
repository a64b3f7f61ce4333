"""The manifest of a task's prompts: what they are, and the one model that they fit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from m6rec_jax.checkpoints.manifest import TensorSpec, library_versions, read_model_config
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import CheckpointError, M6RecError
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.tuning import METHODS

FORMAT = 5
# Settings of the model that change how it is computed, not what.
_HOW = {
    "prompts",
    "dropout_rate",
    "embedding_stddev",
    "exit_losses",
    "dtype",
    "matmul_dtype",
    "remat",
    "scan_unroll",
}
WHAT = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in _HOW)


@dataclasses.dataclass(frozen=True, slots=True)
class PromptManifest:
    """`manifest.json` of a task's folder.

    Attributes:
      task, method: name in the bank; how it was tuned (`method_of`).
      date: of the checkpoint that the prompts were taken from; UTC, ISO 8601.
      backbone_fingerprint, prompts_fingerprint: see `checkpoints.fingerprint`.
      backbone_size: parameters of the backbone.
      vocabulary_fingerprint: `text.Vocabulary.fingerprint`.
      model_config: of the model with this task alone.
      settings: what inference must know; its task_id is 0.
      metrics: by split and name, such as 'validation/auc'.
      source: where the prompts come from: `run`, `task` (of seqio) and `step`.
      tensors: name to spec; of the task alone, so without the axis of tasks.
      dataset_spec: what the data set's `dataset.json` holds, whose template renders requests; None
        for tasks of texts.
      versions: of m6rec_jax and libraries.
    """

    task: str
    method: str
    date: str
    backbone_fingerprint: str
    backbone_size: int
    vocabulary_fingerprint: str
    prompts_fingerprint: str
    model_config: ModelConfig
    settings: TaskSettings
    metrics: Mapping[str, float]
    source: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    dataset_spec: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=library_versions)

    @property
    def prompts(self) -> PromptConfig:
        """What the task has."""
        return self.model_config.prompts

    @property
    def size(self) -> int:
        """Parameters of the prompts."""
        return sum(math.prod(spec.shape) for spec in self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


def parse_prompt_manifest(text: str, where: str) -> PromptManifest:
    """Reads a manifest's JSON; `where` names the file in errors.

    Raises:
      CheckpointError: damaged, or of another version.
    """
    try:
        values = json.loads(text)
        format_ = values.pop("format")
        if format_ != FORMAT:
            raise CheckpointError(
                f"{where} is of format {format_}, this reads {FORMAT}: add it anew"
            )
        values["settings"] = msgspec.convert(values["settings"], TaskSettings)
        values["tensors"] = {
            name: TensorSpec(tuple(spec["shape"]), spec["dtype"])
            for name, spec in values["tensors"].items()
        }
        version = str(values["versions"]["m6rec_jax"])
        values["model_config"] = read_model_config(values["model_config"], version)
        return PromptManifest(**values)
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, M6RecError) as error:
        raise CheckpointError(f"{where} is damaged, or of another version: {error}") from error


def method_of(prompts: PromptConfig, trainable: str | None) -> str:
    """The name of a task's tuning method, as its file in `gin_configs/tuning/` is called.

    Names of methods joined by '_', such as 'option_adapter': soft prompts are 'option' where they
    are options, else 'prompt'. With none 'linear_probe'; 'full' where the backbone trained as well.
    """
    if trainable == "all":
        return "full"
    used = [method.label(prompts) for method in METHODS if method.used(prompts)]
    return "_".join(filter(None, used)) or "linear_probe"


def check_owner(
    manifest: PromptManifest,
    owner: str,
    backbone_fingerprint: str,
    vocabulary_fingerprint: str,
    model_config: ModelConfig | None = None,
) -> None:
    """Prompts mean something only with the backbone and vocabulary that they were trained on.

    Args:
      manifest: of the prompts.
      owner: what the other model is called in errors.
      backbone_fingerprint, vocabulary_fingerprint: of that, as in `PromptManifest`.
      model_config: of that; None: only the two fingerprints count.

    Raises:
      CheckpointError: another vocabulary or backbone, or one that computes something else.
    """

    def compare(what: str, mine: Any, its: Any) -> None:
        if mine != its:
            raise CheckpointError(
                f"the prompts of '{manifest.task}' were trained with {what} {mine!r}, but "
                f"{owner} has {its!r}, with which they mean nothing: tune the task on it, or "
                "keep its prompts in a bank of their own"
            )

    compare("vocabulary_fingerprint", manifest.vocabulary_fingerprint, vocabulary_fingerprint)
    compare("backbone_fingerprint", manifest.backbone_fingerprint, backbone_fingerprint)
    if model_config is None:
        return
    for name in WHAT:
        # Of `decoder_late_start` None has a meaning, too.
        computed = "first_cross_layer" if name == "decoder_late_start" else name
        mine, its = (getattr(one, computed) for one in (manifest.model_config, model_config))
        compare(f"ModelConfig.{name}", mine, its)
    own, there = manifest.prompts, model_config.prompts
    for method in METHODS:
        if method.used(own) and method.used(there):
            for field in dataclasses.fields(method.settings):
                if field.metadata.get("kind") == "shared":
                    mine, its = getattr(own, field.name), getattr(there, field.name)
                    compare(f"PromptConfig.{field.name} (BankCapacity.{field.name})", mine, its)
