"""T5's vocabulary of 32,000 pieces, which public T5, Flan-T5 and T5 1.1 weights come with.

    m6rec data fetch t5-vocabulary

In gin, `vocabulary_file.shared = 't5-vocabulary'` then names it to every task.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.prepared import VOCABULARY
from m6rec_jax.data.sources import (
    FileRoute,
    PackageRoute,
    PublicDataset,
    Source,
    register_dataset,
)

_SHA256 = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"

PIECES = Source(
    name="t5-pieces",
    title="T5's SentencePiece vocabulary (Google)",
    licence="Apache-2.0",
    terms="Keep the licence and the notices with copies.",
    routes=(
        FileRoute(
            "https://storage.googleapis.com/t5-data/vocabs/cc_all.32000/sentencepiece.model",
            _SHA256,
        ),
        PackageRoute(
            "diffsynth",
            "1.1.9",
            "9a47387385840e11537613f319cb01ac7d1ac24073ea4a42454c839f11c6d7cc",
            {"diffsynth/tokenizer_configs/flux/tokenizer_2/spiece.model": _SHA256},
        ),
    ),
)


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Copies the file, beside a description."""
    names = [path.rsplit("/", 1)[-1] for route in PIECES.routes for path in route.files]
    (found, *_) = [path for name in names if (path := sources[PIECES.name] / name).is_file()]
    shutil.copyfile(found, folder / VOCABULARY)
    description = {"name": "t5-vocabulary", "licence": PIECES.licence}
    (folder / "vocabulary.json").write_text(json.dumps(description), "utf-8")
    return f"t5-vocabulary: {(folder / VOCABULARY).stat().st_size:,} bytes"


DATASET = register_dataset(
    PublicDataset(
        name="t5-vocabulary",
        description="T5's vocabulary of 32,000 pieces",
        sources=(PIECES,),
        build=build,
        spec_file="vocabulary.json",
    )
)
