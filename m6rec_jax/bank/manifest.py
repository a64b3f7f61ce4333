"""The manifest of a task's prompts: what they are, and the one model that they fit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from m6rec_jax.checkpoints.manifest import TensorSpec, library_versions, read_model_config
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import CheckpointError, M6RecError
from m6rec_jax.io.hashing import sha256
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.tuning import METHODS

FORMAT = 3
_FINGERPRINT = "manifest_fingerprint"
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
      versions: of m6rec_jax and libraries.
      dataset_fingerprint: of the contents of `dataset.json` beside it; None without one.
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
    versions: Mapping[str, str] = dataclasses.field(default_factory=library_versions)
    dataset_fingerprint: str | None = None

    @property
    def prompts(self) -> PromptConfig:
        """What the task has."""
        return self.model_config.prompts

    @property
    def size(self) -> int:
        """Parameters of the prompts."""
        return sum(math.prod(spec.shape) for spec in self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object, with a fingerprint of all that it says."""
        values = {"format": FORMAT, **dataclasses.asdict(self)}
        return {**values, _FINGERPRINT: _fingerprint(values)}


def _fingerprint(values: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, however it is laid out."""
    return sha256(json.dumps(values, sort_keys=True, separators=(",", ":")))


def dataset_fingerprint(spec: Mapping[str, Any] | None) -> str | None:
    """SHA-256 of what a `dataset.json` holds; None of none."""
    return None if spec is None else _fingerprint(spec)


def parse_prompt_manifest(text: str, where: str) -> PromptManifest:
    """Reads a manifest's JSON; `where` names the file in errors.

    Raises:
      CheckpointError: damaged, changed since it was written, or of a newer version.
    """
    try:
        values = json.loads(text)
        changed = values.pop(_FINGERPRINT) != _fingerprint(values)
        format_ = int(values.pop("format"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged: {error}") from error
    if format_ > FORMAT:
        raise CheckpointError(f"{where} was written by a newer m6rec_jax; update it")
    if changed:
        raise CheckpointError(
            f"{where} is damaged: it is not what was written ({_FINGERPRINT} does not fit). To "
            "change a task's settings, tune or export it anew: remove it from the bank and add it"
        )
    try:
        settings = TaskSettings.from_json(values["settings"])
        tensors = {
            name: TensorSpec(tuple(spec["shape"]), spec["dtype"])
            for name, spec in values["tensors"].items()
        }
        model = read_model_config(values["model_config"], str(values["versions"]["m6rec_jax"]))
        read = {"settings": settings, "tensors": tensors, "model_config": model}
        return PromptManifest(**(values | read))
    except (LookupError, TypeError, ValueError, AttributeError, M6RecError) as error:
        raise CheckpointError(f"{where} does not fit this version: {error}") from error


def method_of(prompts: PromptConfig, trainable: str | None) -> str:
    """The name of a task's tuning method, as its file in `gin_configs/tuning/` is called.

    Names of methods joined by '_', such as 'option_adapter': soft prompts are 'option' where they
    are options, else 'prompt'. With none 'linear_probe'; 'full' where the backbone trained as well.
    """
    if trainable == "all":
        return "full"
    used = [method.label(prompts) for method in METHODS if method.used(prompts)]
    return "_".join(filter(None, used)) or "linear_probe"


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """The one model that prompts fit.

    Attributes:
      name: what it is called in errors.
      backbone_fingerprint, vocabulary_fingerprint: as in `PromptManifest`.
      model_config: None where only the two fingerprints count.
    """

    name: str
    backbone_fingerprint: str
    vocabulary_fingerprint: str
    model_config: ModelConfig | None


def owner_of(manifest: PromptManifest) -> Owner:
    """The model that a task's prompts were trained on."""
    return Owner(
        f"that of '{manifest.task}'",
        manifest.backbone_fingerprint,
        manifest.vocabulary_fingerprint,
        manifest.model_config,
    )


def check_owner(manifest: PromptManifest, owner: Owner) -> None:
    """Prompts mean something only with the backbone and vocabulary that they were trained on.

    Raises:
      CheckpointError: another vocabulary or backbone, or one that computes something else.
    """
    whose = f"the prompts of '{manifest.task}'"
    mine, its = manifest.vocabulary_fingerprint, owner.vocabulary_fingerprint
    if mine != its:
        raise CheckpointError(
            f"{whose} were trained with another vocabulary (fingerprint {mine[:16]}…) than "
            f"{owner.name} (fingerprint {its[:16]}…), so its token ids mean other words to them. "
            "Tune the task anew, or keep its prompts in a bank of their own"
        )
    mine, its = manifest.backbone_fingerprint, owner.backbone_fingerprint
    if mine != its:
        raise CheckpointError(
            f"{whose} were trained on another backbone (fingerprint {mine[:16]}…) than "
            f"{owner.name} (fingerprint {its[:16]}…), on which they mean nothing. Tune the task "
            "on it, or keep its prompts in a bank of their own"
        )
    if owner.model_config is None:
        return
    for name in WHAT:
        mine_value = getattr(manifest.model_config, name)
        its_value = getattr(owner.model_config, name)
        if name == "decoder_late_start":
            # None has a meaning, too, and without late interaction no value has any.
            same = manifest.model_config.first_cross_layer == owner.model_config.first_cross_layer
        else:
            same = mine_value == its_value
        if not same:
            raise CheckpointError(
                f"{whose} were trained with ModelConfig.{name} = {mine_value!r}, but {owner.name} "
                f"has {its_value!r}: the same backbone then computes something else"
            )
    own, there = manifest.prompts, owner.model_config.prompts
    for method in METHODS:
        if not method.used(own) or not method.used(there):
            continue
        for field in dataclasses.fields(method.settings):
            mine, its = getattr(own, field.name), getattr(there, field.name)
            if field.metadata.get("kind") == "shared" and mine != its:
                what = " and ".join(method.groups.values())
                raise CheckpointError(
                    f"{whose} have {what} with PromptConfig.{field.name} = {mine!r}, but "
                    f"{owner.name} has {its!r}: one bank has one (BankCapacity.{field.name}, where "
                    f"none of its tasks has {what})"
                )
