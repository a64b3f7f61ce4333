"""all-MiniLM-L6-v2, a public sentence encoder (22.7M parameters), for embeddings to start from."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Unpacks the model, and writes its word pieces one on a line, in the order of their ids."""
    with zipfile.ZipFile(raw["all-minilm-l6-v2"] / "model.zip") as archive:
        for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
            archive.extract(name, folder)
        ids = json.loads(archive.read("tokenizer.json"))["model"]["vocab"]
    pieces = sorted(ids, key=ids.__getitem__)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return {"word pieces": len(pieces)}
