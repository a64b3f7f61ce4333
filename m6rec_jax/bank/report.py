"""What `m6rec prompts list` and `inspect` print."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from m6rec_jax.bank.folder import BankFolder
from m6rec_jax.bank.manifest import PromptManifest
from m6rec_jax.errors import CheckpointError

_COLUMNS = ("task", "kind", "method", "prompts", "classes", "parameters", "of backbone", "date")
# What of a configuration tells prompts apart, in this order.
_SIZES = ("num_prompts", "num_options", "head", "adapter_rank", "lora_rank", "retrieval_dim")


def list_tasks(bank: BankFolder) -> str:
    """A table with a line per task; a damaged one says so.

    Raises:
      CheckpointError: there is no such folder.
    """
    rows, problems = [_COLUMNS], []
    for name in bank.names():
        try:
            manifest = bank.manifest(name)
        except CheckpointError as error:
            problems.append(f"{name}: {error}")
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
    if len(rows) == 1 and not problems:
        return f"{bank.path} has no tasks"
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
        f"sizes       {_pairs({size: getattr(prompts, size) for size in _SIZES})}",
        f"settings    {_pairs(_settings(manifest))}",
        f"metrics     {_pairs(manifest.metrics) or 'none'}",
        f"from        {_pairs(manifest.source)}",
        f"date        {manifest.date}",
        f"backbone    {manifest.backbone_fingerprint}",
        f"vocabulary  {manifest.vocabulary_fingerprint}",
        f"prompts     {manifest.prompts_fingerprint} (intact)",
        "tensors",
    ]
    lines += [f"  {tensor}  {spec}" for tensor, spec in sorted(manifest.tensors.items())]
    return "\n".join(lines)


def manifests_json(bank: BankFolder, names: list[str]) -> str:
    """The manifests of tasks as one JSON object.

    Raises:
      CheckpointError: no such task, or a damaged manifest.
    """
    return json.dumps({name: bank.manifest(name).to_json() for name in names}, indent=2)


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
