"""Do recommended titles exist? A trained model of dialogues writes them, over the trie and freely.

    python -m benchmarks.constrained_titles runs/conversation [--dataset inspired]

Both ways read the same dialogues and search with the same beams. The texts that were decoded are
looked up among the catalogue's titles, as the vocabulary writes these.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import errors_told
from m6rec_jax.engine.generation import GeneratedText, Generator
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.title_trie import TitleTrie
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline import locations, prepared_rows

DATASET = "inspired"
TITLES, PER_DIALOGUE = 1_000, 10


def title_shares(
    model_dir: Path, dataset: str = DATASET, titles: int = TITLES, beams: int = PER_DIALOGUE
) -> dict[str, dict[str, float]]:
    """`titles_in_catalogue` and `titles` (how many were written), 'constrained' and 'free'.

    Args:
      model_dir: of a run with the task `<dataset>_titles`.
      dataset: of dialogues.
      titles: how many are written: `beams` for each of the first rows of the test part, then of
        the others.
      beams: of the search.

    Raises:
      DataError: too few rows, or the data are not prepared.
      CheckpointError, ConfigError: no such model, or one without the task.
    """
    prepared = locations.prepared(dataset, "by_group")
    sources = _sources(prepared, -(-titles // beams))
    loaded = load_model(model_dir)
    # One program each way: beams of many lengths would compile for longer than they run.
    generator = loaded.generator(
        f"{dataset}_titles",
        batch_sizes=(20,),
        source_buckets=(loaded.settings.source_length,),
    )
    vocabulary, known = generator.vocabulary, prepared.catalogue().texts
    exists = {vocabulary.decode(vocabulary.encode(title)) for title in known}
    trie = TitleTrie(vocabulary, known, generator.max_tokens)
    return {
        "constrained": _share(_written(generator, sources, beams, trie), exists, titles),
        "free": _share(_written(generator, sources, beams, None), exists, titles),
    }


def _sources(prepared: Any, number: int) -> list[list[str]]:
    found: list[list[str]] = []
    for part in ("test", "validation", "train"):
        rows = prepared_rows.read_rows(prepared, "recommendations", part, ("source",))
        found += [row["source"] for row in rows]
    if len(found) < number:
        raise DataError(f"{number} dialogues with a recommendation are needed, {len(found)} there")
    return found[:number]


def _written(
    generator: Generator, sources: Sequence[Sequence[str]], beams: int, trie: TitleTrie | None
) -> list[GeneratedText]:
    found = generator.beam_search(sources, num_beams=beams, length_penalty=0.0, trie=trie)
    return [text for texts in found for text in texts]


def _share(texts: Sequence[GeneratedText], exists: set[str], titles: int) -> dict[str, float]:
    kept = [text.text for text in texts][:titles]
    share = sum(text in exists for text in kept) / len(kept)
    return {"titles_in_catalogue": share, "titles": float(len(kept))}


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="How many recommended titles exist?")
    parser.add_argument("run", type=Path, help="MODEL_DIR of a run on dialogues")
    parser.add_argument("--dataset", default=DATASET)
    parser.add_argument("--titles", type=int, default=TITLES)
    options = parser.parse_args(arguments)
    print(json.dumps(title_shares(options.run, options.dataset, options.titles)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
