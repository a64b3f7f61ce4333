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
    """The manifest of every task by its name; of a damaged one the error. Reads no tensors.

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
    """A table with a line per task of `read_manifests`; `where` names a bank without any."""
    if not found:
        return f"{where} has no tasks"
    rows, problems = [_COLUMNS], []
    for name, manifest in found.items():
        if isinstance(manifest, CheckpointError):
            problems.append(f"{name}: {manifest}")
            continue
        prompts, kind = manifest.prompts, manifest.settings.kind
        sizes = (str(prompts.num_prompts), str(prompts.num_options), f"{manifest.size:,}")
        rows.append((name, kind, manifest.method, *sizes, _share(manifest), manifest.date))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *problems])


def inspect_task(bank: BankFolder, name: str) -> str:
    """A task's manifest for people, after a check of its tensors.

    Raises:
      CheckpointError: no such task, or it is truncated or damaged.
    """
    manifest = bank.read(name).manifest
    size, whole = f"{manifest.size:,}", f"{manifest.backbone_size:,}"
    lines = [
        f"task        {name}",
        f"kind        {manifest.settings.kind}",
        f"method      {manifest.method}",
        f"parameters  {size} ({_share(manifest)} of the backbone's {whole})",
        f"sizes       {_pairs(_sizes(manifest.prompts))}",
        f"settings    {_pairs(_settings(manifest))}",
        f"metrics     {_pairs(manifest.metrics) or 'none'}",
        f"from        {_pairs(manifest.source)}",
        f"date        {manifest.date}",
        f"backbone    {manifest.backbone_fingerprint}",
        f"vocabulary  {manifest.vocabulary_fingerprint}",
        f"prompts     {manifest.prompts_fingerprint} (intact)",
        f"data set    {manifest.dataset_fingerprint or 'none'}",
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


def _share(manifest: PromptManifest) -> str:
    return f"{manifest.size / manifest.backbone_size:.2%}"


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
    """Settings that are there, matter, and are not shown elsewhere."""
    hidden = {"task_id", "kind", "num_options", "retrieval_dim"}
    if not manifest.prompts.num_options:
        hidden |= {"positive_classes", "sampling_rate"}
    values = dataclasses.asdict(manifest.settings)
    return {n: v for n, v in values.items() if v is not None and n not in hidden}


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
