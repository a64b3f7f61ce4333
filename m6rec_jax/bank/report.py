"""What `m6rec prompts list` and `inspect` print."""

from __future__ import annotations

import json
from collections.abc import Mapping

from m6rec_jax.bank.folder import BankFolder
from m6rec_jax.bank.manifest import PromptManifest
from m6rec_jax.errors import CheckpointError

_COLUMNS = ("task", "kind", "method", "prompts", "classes", "parameters", "of backbone", "date")
Manifests = Mapping[str, PromptManifest | CheckpointError]


def read_manifests(bank: BankFolder) -> dict[str, PromptManifest | CheckpointError]:
    """The manifest of every task by its name; of a damaged one the error. Reads no tensors.

    Raises:
      CheckpointError: there is no such folder.
    """
    manifests: dict[str, PromptManifest | CheckpointError] = {}
    for name in bank.names():
        try:
            manifests[name] = bank.manifest(name)
        except CheckpointError as error:
            manifests[name] = error
    return manifests


def tasks_table(manifests: Manifests, where: str) -> str:
    """A table with a line per task of `read_manifests`; `where` names a bank without any."""
    if not manifests:
        return f"{where} has no tasks"
    rows, problems = [_COLUMNS], []
    for name, manifest in manifests.items():
        if isinstance(manifest, CheckpointError):
            problems.append(f"{name}: {manifest}")
            continue
        prompts, share = manifest.prompts, f"{manifest.size / manifest.backbone_size:.2%}"
        sizes = (str(prompts.num_prompts), str(prompts.num_options), f"{manifest.size:,}")
        rows.append((name, manifest.settings.kind, manifest.method, *sizes, share, manifest.date))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *problems])


def manifests_json(manifests: Manifests) -> str:
    """Manifests as one JSON object by task; of a damaged one `{"error": what is wrong}`."""
    values = {
        name: {"error": str(manifest)}
        if isinstance(manifest, CheckpointError)
        else manifest.to_json()
        for name, manifest in manifests.items()
    }
    return json.dumps(values, indent=2)
