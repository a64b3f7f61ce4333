"""What `m6rec prompts list` and `inspect` print."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from m6rec_jax.bank.folder import BankFolder
from m6rec_jax.bank.manifest import PromptManifest
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.config import PromptConfig, default_settings
from m6rec_jax.model.tuning import METHODS

_COLUMNS = ("task", "kind", "method", "prompts", "classes", "parameters", "of backbone", "date")
Manifests = Mapping[str, PromptManifest | CheckpointError]


def read_manifests(bank: BankFolder) -> dict[str, PromptManifest | CheckpointError]:
    """The manifest of every task by its name; of a damaged one, what is wrong with it.

    Tensors are not read, only looked for.

    Raises:
      CheckpointError: there is no such folder.
    """
    found: dict[str, PromptManifest | CheckpointError] = {}
    for name in bank.names():
        try:
            found[name] = bank.manifest(name)
        except CheckpointError as error:
            found[name] = error
    return found


def tasks_table(found: Manifests, where: str) -> str:
    """A table with a line per task; a damaged one says so.

    Args:
      found: of `read_manifests`.
      where: the bank, in case it is empty.
    """
    rows, problems = [_COLUMNS], []
    for name, manifest in found.items():
        if isinstance(manifest, CheckpointError):
            problems.append(f"{name}: {manifest}")
            continue
        prompts = manifest.prompts
        rows.append(
            (
                name,
                manifest.settings.kind or "-",
                manifest.method,
                str(prompts.num_prompts),
                str(prompts.num_options),
                f"{manifest.size:,}",
                f"{manifest.size / max(manifest.backbone_size, 1):.2%}",
                manifest.date,
            )
        )
    if not found:
        return f"{where} has no tasks"
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *problems])


def inspect_task(bank: BankFolder, name: str) -> str:
    """A task's manifest for people, after its tensors were proved intact.

    Raises:
      CheckpointError: no such task, or it is truncated or damaged.
    """
    manifest = bank.read(name).manifest
    prompts = manifest.prompts
    share = manifest.size / max(manifest.backbone_size, 1)
    lines = [
        f"task        {name}",
        f"kind        {manifest.settings.kind or 'not known'}",
        f"method      {manifest.method}",
        f"parameters  {manifest.size:,} ({share:.2%} of the backbone's {manifest.backbone_size:,})",
        f"sizes       {_pairs(_sizes(prompts))}",
        f"settings    {_pairs(_settings(manifest))}",
        f"metrics     {_pairs(manifest.metrics) or 'none'}",
        f"from        {_pairs(manifest.source)}",
        f"date        {manifest.date}",
        f"backbone    {manifest.backbone_fingerprint}",
        f"vocabulary  {manifest.vocabulary_fingerprint}",
        f"prompts     {manifest.prompts_fingerprint} (intact)",
        f"data set    {manifest.dataset_fingerprint or 'not told'}",
        "tensors",
    ]
    lines += [f"  {tensor}  {spec}" for tensor, spec in sorted(manifest.tensors.items())]
    return "\n".join(lines)


def manifests_json(found: Manifests) -> str:
    """Manifests as one JSON object by task; of a damaged one `{"error": what is wrong}`."""
    values = {
        name: {"error": str(manifest)}
        if isinstance(manifest, CheckpointError)
        else manifest.to_json()
        for name, manifest in found.items()
    }
    return json.dumps(values, indent=2)


def _sizes(prompts: PromptConfig) -> dict[str, Any]:
    """All sizes, and other settings that are not what they are by default."""
    defaults = default_settings(PromptConfig)
    return {
        field.name: getattr(prompts, field.name)
        for method in METHODS
        for field in dataclasses.fields(method.settings)
        if field.metadata.get("kind") == "size"
        or (method.used(prompts) and getattr(prompts, field.name) != defaults[field.name])
    }


def _settings(manifest: PromptManifest) -> dict[str, Any]:
    """Those that say something."""
    values = dataclasses.asdict(manifest.settings)
    shown = {n: v for n, v in values.items() if v is not None}
    for name in ("task_id", "kind", "num_options", "retrieval_dim"):
        shown.pop(name, None)
    if not manifest.prompts.num_options:
        shown.pop("positive_classes"), shown.pop("sampling_rate")
    return shown


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
