"""What `m6rec prompts list` and `inspect` print, of `BankFolder.manifests`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from m6rec_jax.bank.folder import PromptManifest
from m6rec_jax.errors import CheckpointError

_COLUMNS = ("task", "kind", "method", "prompts", "classes", "parameters", "of backbone", "date")
Manifests = Mapping[str, PromptManifest | CheckpointError]


def tasks_table(manifests: Manifests) -> str:
    """A line for each task, below names of columns; what is damaged comes last."""
    rows, problems = [_COLUMNS], []
    for name, manifest in manifests.items():
        if isinstance(manifest, CheckpointError):
            problems.append(f"{name}: {manifest}")
            continue
        prompts, share = manifest.prompts, f"{manifest.size / manifest.backbone_size:.2%}"
        sizes = (str(prompts.num_prompts), str(prompts.num_options), f"{manifest.size:,}")
        rows.append((name, manifest.settings.kind, manifest.method, *sizes, share, manifest.date))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{width}}}" for width in widths)
    return "\n".join([*(line.format(*row).rstrip() for row in rows), *problems])


def manifests_json(manifests: Manifests) -> str:
    """One JSON object by task; of a damaged one `{"error": what is wrong}`."""
    values = {
        name: {"error": str(manifest)}
        if isinstance(manifest, CheckpointError)
        else dataclasses.asdict(manifest)
        for name, manifest in manifests.items()
    }
    return json.dumps(values, indent=2)
